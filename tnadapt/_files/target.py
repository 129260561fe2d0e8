"""Where files are written: the check of a path, and replacement of what is there, completely or not at all."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from tnadapt._errors import FormatError

__all__: list[str] = []

NOTHING = "Nothing was written."
NEXT = {  # what to do about an error of the system
    errno.ENOENT: "Create its folder first.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOSPC: "Make room on the disk, or write to another one.",
    errno.EDQUOT: "Make room on the disk, or write to another one.",
    errno.EFBIG: "Write to another disk.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "Choose a folder that you may write to.",
}
LONGEST = 50  # characters of the target's name in that of a temporary file, which must stay below 255 bytes


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside the file, then rename it, so readers see either the old file or the new one.

    A link is followed, and an existing file keeps its permissions. Raises FormatError for a path where no file can be
    written, and for a full disk.
    """
    target, held = _file_at(path)
    part, number = _created(path, target, held)
    try:
        with open(number, "wb") as file:  # noqa: PTH123  (a number, not a path)
            if held is not None:
                _restore(part, held)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:  # a full disk, say, and no fault of the path: it stays the cause
        raise _unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raise FormatError for a path where `write_atomically` could write no file: for use before a long computation."""
    part, number = _created(path, *_file_at(path))
    os.close(number)
    part.unlink()


def _file_at(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the place that is written, and the status of the file that is there."""
    target, held = _followed(path), _held(path)
    if held is not None and not stat.S_ISREG(held.st_mode):
        raise _fault(path, "the path of a file", f"that of {_kind(held.st_mode)}")
    if held is not None and not os.access(target, os.W_OK):
        raise _fault(path, "a file that may be written", "one that is read-only")
    return target, held


def _created(path: Path, target: Path, held: os.stat_result | None) -> tuple[Path, int]:
    """Create an empty temporary file beside the target, and return its path and the number under which it is open."""
    part = _beside(target)
    try:
        return part, os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if held is None else 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None


def replace_folder(path: Path, names: Collection[str], fill: Callable[[Path], None]) -> None:
    """Have a temporary folder beside the folder filled, then exchange the two.

    Whatever fails leaves the folder as it was. A link is followed; the folder and files of these names in it keep their
    permissions. Raises FormatError for a path that is not a folder's, for a folder that holds anything else, and for an
    error of the system, as on a full disk.
    """
    target = _followed(path)
    held = _held_in_folder(path, names)
    part, old = _beside(target), _beside(target)
    above = [folder for folder in target.parents if not folder.exists()]
    try:
        part.mkdir(parents=True)
    except OSError as error:
        _remove(above)
        raise _unwritable(path, error) from None
    try:
        fill(part)
        for name in names:
            if name in held:
                _restore(part / name, held[name])
            with (part / name).open("rb") as file:
                os.fsync(file.fileno())
        if held:
            _restore(part, held[""])
            target.rename(old)
        part.rename(target)
    except BaseException as error:  # also an interrupt between the two renames
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(part, ignore_errors=True)
        _remove(above)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _held_in_folder(path: Path, names: Collection[str]) -> dict[str, os.stat_result]:
    """Return the status of the folder, under "", and of the files in it; empty if there is no folder."""
    held = _held(path)
    if held is None:
        return {}
    if not stat.S_ISDIR(held.st_mode):
        raise _fault(path, "a folder for the checkpoint", _kind(held.st_mode))
    try:
        if path.samefile(Path.cwd()):
            raise _fault(path, "a folder that can be replaced", "the working folder", "Name a folder in it.")
        with os.scandir(path) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError as error:
        raise _unwritable(path, error) from None
    rule, todo = "a new folder, or one that holds only an earlier checkpoint", "Name a new folder."
    if other := sorted(set(found) - set(names)):
        raise _fault(path, rule, f"one that holds {other[0]}", todo)
    if odd := sorted(name for name, status in found.items() if not stat.S_ISREG(status.st_mode)):
        raise _fault(path, rule, f"one where {odd[0]} is {_kind(found[odd[0]].st_mode)}", todo)
    return {"": held} | found


def _followed(path: Path) -> Path:
    """Return the absolute path of the place that is written, behind a link at the end of a path."""
    try:
        target = path.absolute()
        target = target.resolve() if target.is_symlink() or target.name == ".." else target
    except (OSError, RuntimeError) as error:  # a working folder that is gone, or a circle of links
        raise _unwritable(path, error) from None
    if not target.name:
        raise _fault(path, "a path with a name", "the root")
    return target


def _held(path: Path) -> os.stat_result | None:
    """Return the status of what is at a path, or None."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a NUL is a ValueError
        raise _unwritable(path, error) from None


def _restore(path: Path, held: os.stat_result) -> None:
    """Give a new file the owner, the group and the permissions of the one that it replaces."""
    new = path.stat()
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root may give a file away, and others only to a group of their own
            os.chown(path, -1, held.st_gid if held.st_gid != new.st_gid else -1)
            os.chown(path, held.st_uid if held.st_uid != new.st_uid else -1, -1)
    path.chmod(stat.S_IMODE(held.st_mode))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:LONGEST]}.{uuid.uuid4().hex}")


def _remove(folders: Collection[Path]) -> None:
    """Remove the folders that were made for a target, the innermost first, unless something else is in them by now."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _kind(mode: int) -> str:
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe"}
    return next((kind for is_one, kind in kinds.items() if is_one(mode)), "a device")


def _unwritable(path: Path, error: Exception) -> FormatError:
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error)
    return _fault(path, "a writable path", f"error {reason!r}", NEXT.get(number or 0, ""))


def _fault(path: Path, rule: str, came: str, todo: str = "") -> FormatError:
    name = str(path).encode("utf-8", "backslashreplace").decode()  # a path may have bytes that cannot be printed
    return FormatError(f"{name}: expected {rule}, got {came}.\n{todo}{todo and ' '}{NOTHING}")
