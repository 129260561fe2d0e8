"""Where files are written: permissions and links are kept, and what is not a file or a folder is left alone."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tnadapt import FormatError, Site, families, grid, init, load, read_peft, save, save_as_lora
from tnadapt._files.target import check_target, replace_folder, write_atomically

ADAPTER = families.lora().bind(grid(layers=1, kinds={"q": (6, 4)}), rank=2)
PARAMS = init(ADAPTER)
needs_rights = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o777])
def test_a_file_that_is_replaced_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    save(ADAPTER, PARAMS, path)
    assert (mode_of(path), names_in(tmp_path)) == (mode, ["a"])
    assert load(path)[0] == ADAPTER


def test_no_part_of_a_private_file_is_ever_readable_by_others(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(stat.S_IMODE(os.fstat(file).st_mode)) or sync(file))
    save(ADAPTER, PARAMS, path)
    assert seen == [0o600]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_and_a_new_folder_have_the_permissions_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        save(ADAPTER, PARAMS, tmp_path / "a")
        save_as_lora(ADAPTER, PARAMS, tmp_path / "lora")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == 0o666 & ~umask
    assert mode_of(tmp_path / "lora") == 0o777 & ~umask
    assert mode_of(tmp_path / "lora" / "adapter_config.json") == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    save(ADAPTER, PARAMS, path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_the_file_behind_a_link_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link, chained = tmp_path / "far" / "real", tmp_path / "link", tmp_path / "chained"
    link.symlink_to("far/real")
    chained.symlink_to(link)
    save(ADAPTER, PARAMS, chained)  # through a dangling link
    assert load(target)[0] == ADAPTER
    before = target.stat().st_ino
    save(ADAPTER, PARAMS, link)
    assert target.stat().st_ino != before, "written in place"
    assert link.is_symlink()
    assert chained.is_symlink()
    assert (names_in(tmp_path), names_in(tmp_path / "far")) == (["chained", "far", "link"], ["real"])


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (lambda path: save(ADAPTER, PARAMS, path), lambda path: save_as_lora(ADAPTER, PARAMS, path)):
        with pytest.raises(FormatError, match=r"a: expected a writable path, got error .*\nNothing was written\."):
            write(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


def make_pipe(path):
    os.mkfifo(path)


def make_device_link(path):
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda path: path.mkdir(), "a folder"), (make_pipe, "a pipe"), (make_device_link, "a device")],
    ids=["folder", "pipe", "device"],
)
def test_what_is_not_a_file_is_neither_replaced_nor_read(make, kind, tmp_path):
    path = tmp_path / "a"
    make(path)
    before = path.stat()
    with pytest.raises(
        FormatError, match=rf"a: expected the path of a file, got that of {kind}\.\nNothing was written\."
    ):
        save(ADAPTER, PARAMS, path)
    assert (path.stat().st_ino, path.stat().st_rdev) == (before.st_ino, before.st_rdev)
    assert names_in(tmp_path) == ["a"]
    if kind != "a folder":
        with pytest.raises(FormatError, match="a: expected a file, got a device or a pipe"):
            load(path)
        with pytest.raises(FormatError, match=f"a: expected a folder for the checkpoint, got {kind}"):
            save_as_lora(ADAPTER, PARAMS, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/a", "error 'No such file or directory'.\nCreate its folder first. Nothing was written."),
        ("file/a", "error 'Not a directory'"),
        ("a\0b", "error 'embedded null byte'"),
        ("x" * 300, "error 'File name too long'.\nChoose a shorter name. Nothing was written."),
        ("\ud800", "error .*surrogates not allowed"),
    ],
    ids=["missing", "under a file", "null", "long", "surrogate"],
)
def test_a_path_that_cannot_be_written_is_told(name, message, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FormatError, match=f"expected a writable path, got {message}") as caught:
        save(ADAPTER, PARAMS, tmp_path / name)
    with pytest.raises(FormatError, match=f"expected a writable path, got {message}"):
        check_target(tmp_path / name)
    assert str(caught.value).encode()
    if name != "none/a":  # whose folders are made for a checkpoint
        with pytest.raises(FormatError, match=f"expected a writable path, got {message.partition('.')[0]}"):
            save_as_lora(ADAPTER, PARAMS, tmp_path / name)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("path", ["", ".", "/", "a/.."])
def test_the_path_of_a_folder_is_not_that_of_a_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(FormatError, match=r"(got that of a folder|got the root)\.\nNothing was written"):
        save(ADAPTER, PARAMS, path)
    with pytest.raises(FormatError, match=r"got (the working folder|the root)\.(.|\n)*Nothing was written"):
        save_as_lora(ADAPTER, PARAMS, path)
    assert names_in(tmp_path) == ["a"]


NAMES = ["a b", "é中😀", "q\"'\\", "new\nline", "-o", "*?[", "a" * 250, "é" * 120, os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_path_may_have_any_characters_that_the_system_takes(name, tmp_path):
    save(ADAPTER, PARAMS, tmp_path / name)
    save(ADAPTER, PARAMS, tmp_path / name)
    assert load(tmp_path / name)[0] == ADAPTER
    folder = tmp_path / f"{name[:110]}.d"
    save_as_lora(ADAPTER, PARAMS, folder)
    save_as_lora(ADAPTER, PARAMS, folder, rank=1)
    assert read_peft(folder).adapter.sites[0].path == "layers.0.q"
    assert len(names_in(tmp_path)) == 2


PATHS = ["a b.c", "é中😀", "q\"'\\", "new\nline", "[0]", "{x}", "^a$", "a..b", "..", "", "/", "%s", "__metadata__"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a_site_may_have_any_name(path, tmp_path):
    sites = [Site(f"{path}.0.{path}", (6, 4), {"layer": 0, "kind": path}), Site(path, (8, 4), {path or "c": path})]
    adapter = families.lora().bind(sites, rank=2)
    params = {name: np.full(slot.shape, n, "f4") for n, (name, slot) in enumerate(adapter.slots.items())}
    save(adapter, params, tmp_path / "a", extra={path: np.ones(2)})
    again, found = load(tmp_path / "a")
    assert again == adapter
    assert all(np.array_equal(found[name], value) for name, value in params.items())
    save_as_lora(adapter, params, tmp_path / "lora")
    assert {site.path for site in read_peft(tmp_path / "lora").adapter.sites} == {site.path for site in sites}


@needs_rights
def test_a_folder_without_permission_is_told(tmp_path):
    check_without_permission(tmp_path)


def check_without_permission(folder):
    (folder / "file").write_bytes(b"old")
    (folder / "lora").mkdir()
    (folder / "file").chmod(0o444)
    (folder / "readable").write_bytes(b"old")
    folder.chmod(0o555)
    denied = "expected a writable path, got error 'Permission denied'\\.\nChoose a folder that you may write to\\. "
    for name, message in [
        ("new", denied),
        ("readable", denied),
        ("file", "expected a file that may be written, got one that is read-only\\.\n"),
    ]:
        with pytest.raises(FormatError, match=rf"{name}: {message}Nothing was written\.$"):
            save(ADAPTER, PARAMS, folder / name)
        with pytest.raises(FormatError, match=rf"{name}: {message}Nothing was written\.$"):
            check_target(folder / name)
    for name in ("new", "lora"):
        with pytest.raises(FormatError, match=rf"{name}: expected a writable path, got error 'Permission denied'"):
            save_as_lora(ADAPTER, PARAMS, folder / name)
    assert names_in(folder) == ["file", "lora", "readable"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the test above does it")
def test_a_folder_without_permission_is_told_to_another_user(tmp_path):
    """Root may write everywhere, so that another process gives up its rights first."""
    folder = tmp_path / "own"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    for above in tmp_path.parents:
        if above.stat().st_uid == 0 and str(above) not in ("/", "/tmp"):
            above.chmod(above.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    program = (
        "import os, sys, pathlib; from tests.core.files.test_target import check_without_permission as check;"
        "os.setgid(65534); os.setuid(65534); check(pathlib.Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def write_two(folder, texts=("one", "two")):
    for name, text in zip("ab", texts, strict=True):
        (folder / name).write_text(text)


def test_a_folder_that_is_replaced_keeps_its_permissions_and_its_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    replace_folder(tmp_path / "link", "ab", write_two)
    (tmp_path / "real").chmod(0o750)
    (tmp_path / "real" / "a").chmod(0o640)
    replace_folder(tmp_path / "link", "ab", lambda folder: write_two(folder, ("three", "four")))
    assert [(tmp_path / "real" / name).read_text() for name in "ab"] == ["three", "four"]
    assert [mode_of(tmp_path / "real"), mode_of(tmp_path / "real" / "a")] == [0o750, 0o640]
    assert (tmp_path / "link").is_symlink()
    assert names_in(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("odd", ["folder", "link"])
def test_a_folder_whose_files_are_no_files_is_left_alone(odd, tmp_path):
    replace_folder(tmp_path / "real", "ab", write_two)
    (tmp_path / "real" / "a").unlink()
    (tmp_path / "real" / "a").mkdir() if odd == "folder" else (tmp_path / "real" / "a").symlink_to("b")
    with pytest.raises(FormatError, match=rf"one where a is a {odd}\.\nName a new folder\. Nothing was written\."):
        replace_folder(tmp_path / "real", "ab", write_two)
    assert names_in(tmp_path / "real") == ["a", "b"]


class Stop(BaseException):
    pass


ERRORS = pytest.mark.parametrize("error", [OSError("disk full"), Stop("now"), KeyboardInterrupt("now")], ids=repr)


def stopping(monkeypatch, moment, error, turn=1):
    """Let a call of a function fail, and return what fills a folder."""

    def stop(*_):
        raise error

    calls, rename = [], Path.rename

    def stop_rename(path, target):
        calls.append(target)
        if len(calls) == turn:
            raise error
        return rename(path, target)

    if moment == "os.fsync":
        monkeypatch.setattr(os, "fsync", stop)
    elif moment == "rename":
        monkeypatch.setattr(Path, "rename", stop_rename)
    return stop if moment == "fill" else write_two


@ERRORS
@pytest.mark.parametrize(("moment", "turn"), [("fill", 0), ("os.fsync", 0), ("rename", 1), ("rename", 2)])
def test_whatever_stops_a_write_leaves_the_earlier_folder(moment, turn, error, tmp_path, monkeypatch):
    replace_folder(tmp_path / "real", "ab", write_two)
    fill = stopping(monkeypatch, moment, error, turn)
    told = FormatError if isinstance(error, OSError) else type(error)
    with pytest.raises(told, match=r"disk full|now"):
        replace_folder(tmp_path / "real", "ab", fill)
    assert [(tmp_path / "real" / name).read_text() for name in "ab"] == ["one", "two"]
    assert (names_in(tmp_path), names_in(tmp_path / "real")) == (["real"], ["a", "b"])


@ERRORS
@pytest.mark.parametrize("moment", ["fill", "os.fsync", "rename"])
def test_whatever_stops_a_write_leaves_no_new_folder(moment, error, tmp_path, monkeypatch):
    fill = stopping(monkeypatch, moment, error)
    told = FormatError if isinstance(error, OSError) else type(error)
    with pytest.raises(told, match=r"disk full|now"):
        replace_folder(tmp_path / "y" / "z" / "new", "ab", fill)
    assert names_in(tmp_path) == []


def test_folders_that_were_made_for_it_stay_if_something_else_is_in_them(tmp_path):
    def fail(folder):
        (folder.parent / "other").write_text("mine")
        raise OSError("disk full")

    with pytest.raises(FormatError, match="disk full"):
        replace_folder(tmp_path / "y" / "z" / "new", "ab", fail)
    assert names_in(tmp_path / "y" / "z") == ["other"]


def test_bytes_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "a", b"\0\xff\r\n")
    assert (tmp_path / "a").read_bytes() == b"\0\xff\r\n"


@pytest.fixture
def limit():
    """A function: let no file of this process grow beyond some bytes, as a disk that is full does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_the_earlier_ones(limit, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    save_as_lora(ADAPTER, PARAMS, tmp_path / "lora")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limit(500)
    for name, write in (("a", save), ("new", save), ("lora", save_as_lora), ("other", save_as_lora)):
        with pytest.raises(FormatError, match=rf"{name}: expected a writable path, got error '.*large.*\.\n.*Nothing"):
            write(ADAPTER, PARAMS, tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names_in(tmp_path) == ["a", "lora"]


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    stopping(monkeypatch, "os.fsync", OSError(errno.ENOSPC, "full"))
    todo = (
        r"got error 'No space left on device'\.\nMake room on the disk, or write to another one\. Nothing was written\."
    )
    with pytest.raises(FormatError, match=todo):
        save(ADAPTER, PARAMS, tmp_path / "a")
    with pytest.raises(FormatError, match=todo):
        save_as_lora(ADAPTER, PARAMS, tmp_path / "lora")
    assert names_in(tmp_path) == []


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    for write in (write_atomically, lambda path, _: check_target(path), lambda path, _: replace_folder(path, "a", str)):
        with pytest.raises(FormatError, match=r"^a: expected a writable path, got error 'No such file or directory'"):
            write(Path("a"), b"")


def test_the_check_of_a_path_leaves_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    for name in "ab":
        check_target(tmp_path / name)
    with pytest.raises(FormatError, match="expected the path of a file, got that of a folder"):
        check_target(tmp_path)
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
