"""Records of the leaderboard: read as they were written, refused if they are others, and drawn as a page."""

import dataclasses
import json
import math

import pytest

pytestmark = pytest.mark.usefixtures("modules")


def record(**changes):
    from records import Key, Record, versions

    key = Key(**({"task": "digits", "method": "LoRA r8", "rate": 0.125, "seed": 0, "phase": "final"} | changes))
    return Record(
        key=key,
        steps=80,
        numbers=1234,
        bytes=5000,
        seconds=1.5,
        memory=10.0,
        score=0.9,
        loss=key.rate,
        diverged=False,
        losses=(2.0, 1.0),
        test=0.8 if key.phase == "final" else None,
        test_size=100 if key.phase == "final" else 0,
        forgetting=(0.1, 0.4),
        versions=versions(),
    )


def test_a_record_is_read_as_it_was_written(tmp_path):
    from records import read, write

    one = record()
    assert read(write(tmp_path, one)) == one
    assert [path.name for path in tmp_path.iterdir()] == ["digits--LoRA_r8--0.125--seed0--final.json"]


def test_a_loss_that_is_no_number_is_kept(tmp_path):
    from records import read, write

    one = dataclasses.replace(record(), loss=math.nan, diverged=True, losses=(1.0, math.inf))
    found = read(write(tmp_path, one))
    assert math.isnan(found.loss)
    assert found.losses == (1.0, math.inf)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "key": {}}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    from records import RecordError, read_all

    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=r"x\.json: expected a record"):
        read_all(tmp_path)


def test_records_of_two_versions_are_not_mixed(tmp_path):
    from records import RecordError, read_all, write

    write(tmp_path, record())
    path = write(tmp_path, record(seed=1))
    data = json.loads(path.read_text())
    data["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"expected records of one version, got torch .* and 1\.0"):
        read_all(tmp_path)


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    from records import RecordError, write

    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="expected a place to write a record, got"):
        write(tmp_path / "file", record())


def test_a_copy_of_a_record_is_not_a_second_run(tmp_path):
    from records import RecordError, read_all, write

    path = write(tmp_path, record())
    (tmp_path / "copy.json").write_text(path.read_text())
    with pytest.raises(RecordError, match=r"copy\.json: expected the name digits--LoRA_r8--0\.125--seed0--final\.json"):
        read_all(tmp_path)


def test_a_table_has_one_rate_for_the_final_runs_of_a_method(tmp_path):
    """Another search may have found another rate since: a mean over both is that of no method."""
    from page import write_page
    from records import RecordError

    with pytest.raises(RecordError, match=r"expected final runs of LoRA r8 at one rate, got 0\.125 and 0\.25"):
        write_page([record(), record(seed=1, rate=0.25)], tmp_path)
    with pytest.raises(RecordError, match="expected a run of 80 steps as others of digits, got 3"):
        write_page([record(), dataclasses.replace(record(seed=1), steps=3)], tmp_path)


def test_a_method_with_fewer_seeds_than_others_says_which(tmp_path):
    from page import write_page

    write_page([record(), record(seed=1), record(method="LoRA r8 unit", seed=1)], tmp_path)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "| LoRA r8 | " in text
    assert "| LoRA r8 unit (seeds 1) | " in text


def test_a_page_makes_its_folder_or_tells_why_not(tmp_path):
    from page import write_page
    from records import RecordError

    write_page([], tmp_path / "new")
    assert "There are no records." in (tmp_path / "new" / "leaderboard.md").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="expected a place to write the page, got"):
        write_page([], tmp_path / "file" / "below")


@pytest.mark.parametrize("of", ["picture", "page"])
def test_a_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, of):
    """A second program that draws at the same time, or a reader, never meets a half of one."""
    import matplotlib.figure
    import page
    from records import RecordError

    page.write_page([record()], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def break_off(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    if of == "picture":
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, path, **more: break_off(path))
    else:
        monkeypatch.setattr(type(tmp_path), "write_text", lambda self, text, **more: break_off(self))
    with pytest.raises(RecordError, match="expected a place to write the page, got No space left on device"):
        page.write_page([record(), record(seed=1)], tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert b"half" not in after.values()
    if of == "page":
        assert after["leaderboard.md"] == before["leaderboard.md"]


def test_the_page_is_drawn_from_records(tmp_path):
    from page import write_page

    rates = [
        record(phase="search", rate=rate, method=method)
        for rate in (0.25, 0.5)
        for method in ("LoRA r8", "LoRA r8 unit")
    ]
    bad = dataclasses.replace(record(phase="search", rate=1.0), diverged=True)
    write_page([*rates, bad, record(), record(seed=1)], tmp_path)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "| LoRA r8 | 0.125 | 1,234 | 5 | 1.5 | 10 | 80.0 ± 0.0 | 0.125 | +0.30 |" in text
    assert "| LoRA r8 | 0.250 | 0.500 | x | 2^-2 |" in text
    assert "| LoRA r8 unit | 0.250 | 0.500 |  | 2^-2 |" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "leaderboard.md",
        "leaderboard_digits.png",
        "leaderboard_digits_rates.png",
    }


def test_a_loss_that_ends_far_above_its_start_has_diverged():
    from runs import has_diverged, thinned

    assert has_diverged([1.0, math.nan])
    assert has_diverged([1.0] * 10 + [5.0] * 10)
    assert not has_diverged([2.0] * 10 + [1.0] * 8 + [2.5] * 2)
    assert not has_diverged([1.0, 1.0, 1.0, 5.0])  # of a quick run: four batches say nothing
    assert thinned([float(n) for n in range(40)]) == tuple(2.0 * n + 0.5 for n in range(20))
