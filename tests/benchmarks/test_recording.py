"""Records of benchmarks: read as they were written, refused if they are others, and drawn as a page."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("modules")
ROOT = Path(__file__).parents[2]


def record(**changes):
    from recording import Record, table

    rows = [{"method": "LoRA", "tnadapt ms": 12.345, "/ base": 1.25, "launches": 1234, "/ PEFT": "-"}]
    words = {
        "program": "peers",
        "device": "cpu",
        "machine": "A processor",
        "cores": 2,
        "threads": 1,
        "dtype": "float32",
        "date": "2026-01-02",
        "rounds": 9,
        "clock": "wall",
        "load": 0.2,
        "commit": "abc",
        "versions": {"tnadapt": "1.0", "torch": "2.0"},
        "tables": (table(rows, "many"),),
    }
    return Record(**(words | changes))


def test_a_record_is_read_as_it_was_written(tmp_path):
    from recording import read, read_all, write

    one, other = record(), record(label="before")
    assert read(write(tmp_path, one)) == one
    write(tmp_path, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peers-cpu-before.json", "peers-cpu.json"]
    assert read_all(tmp_path) == [other, one]


def test_columns_have_the_units_of_their_names():
    (table,) = record().tables
    assert table.units == {"tnadapt ms": "ms", "/ base": "ratio", "launches": ""}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "tables": [{}]}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    from recording import RecordError, read_all

    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=r"x\.json: expected a record"):
        read_all(tmp_path)


def test_a_record_under_the_name_of_another_is_refused(tmp_path):
    from recording import RecordError, read_all, write

    write(tmp_path, record()).rename(tmp_path / "other.json")
    with pytest.raises(RecordError, match=r"other\.json: expected the name peers-cpu\.json"):
        read_all(tmp_path)


def test_a_record_of_this_run_has_its_versions():
    import torch
    from recording import commit, cores, machine, version, versions

    found = versions()
    assert found["tnadapt"] == version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine("cpu")
    assert cores() >= 1
    assert isinstance(commit(), str)


def test_a_page_has_the_numbers_of_a_record():
    from page import page_of

    text = page_of([record()], "1.0")
    assert "## peers, cpu\n" in text
    assert "### peers, cpu: many\n" in text
    assert "| method | tnadapt ms | / base | launches | / PEFT |\n|---|---:|---:|---:|---|" in text.replace(
        "| --- | ---: | ---: | ---: | --- |", "|---|---:|---:|---:|---|"
    )
    assert "| LoRA | 12.35 | 1.25 | 1,234 | - |" in text
    made = "*A processor, 2 cores, 1 threads, float32, medians of 9 rounds. Measured on 2026-01-02 with tnadapt 1.0"
    assert f"\n{made}, torch 2.0; commit abc.*\n" in text


def test_a_column_is_written_with_the_digits_of_its_least_number():
    from page import page_of
    from recording import table

    rows = [{"a": 123.456, "b": 123.456, "c": 1234.5}, {"a": 1.0, "b": 101.0, "c": 98765.4}]
    text = page_of([record(tables=(table(rows),))], "1.0")
    assert "| 123.46 | 123.5 | 1,234 |\n| 1.00 | 101.0 | 98,765 |" in text


def test_a_busy_machine_is_told():
    from page import page_of

    assert "other processes" not in page_of([record()], "1.0")
    assert "**while 3.1 other processes were running**" in page_of([record(load=3.14)], "1.0")
    assert "other processes" not in page_of([record(load=3.14, rounds=1)], "1.0")  # it counts


def test_programs_with_regimes_come_first():
    from page import page_of

    names = ("calibrate", "peers", "regimes", "cyclic", "passes")
    text = page_of([record(program=name) for name in names], "1.0")
    parts = text.split("\n## ")[1:]
    assert [part.split(",")[0] for part in parts] == ["regimes", "peers", "passes", "calibrate", "cyclic"]
    assert ["<details" in part for part in parts] == [False, False, False, False, True]  # by a click


def test_a_record_of_another_version_is_labelled():
    from page import page_of

    assert "Of another version" not in page_of([record()], "1.0")
    assert "**Of another version: tnadapt 1.0.** *A processor" in page_of([record()], "1.1")


def test_the_page_is_that_of_the_records():
    """Draw it again with `python benchmarks/page.py`."""
    from page import page_of
    from recording import FOLDER, read_all, version

    assert (ROOT / "docs" / "evidence" / "speed.md").read_text(encoding="utf-8") == page_of(read_all(FOLDER), version())


def unfounded(page, drawn):
    """Return the decimal figures of each section of a page that names no date and that are not on the drawn page."""
    known = set(re.findall(r"\d[\d,]*\.\d+", drawn))
    found = []
    for section in page.split("\n## ")[1:]:
        if not re.search(r"[Mm]easured on \d{4}-\d\d-\d\d", section):
            found += [one for one in re.findall(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.])", section) if one not in known]
    return found


def test_a_figure_without_a_date_and_a_record_is_found():
    page = "# Title\n9.99\n## One\nMeasured on 2026-01-02: 1.23\n## Two\n1.24 and 1.25 with torch 2.1.0\n"
    assert unfounded(page, "| 1.24 |") == ["1.25"]


def test_figures_of_the_prose_are_dated_or_those_of_a_record():
    """A section of docs/explanation/performance.md that says no "measured on" quotes docs/evidence/speed.md."""
    names = ("explanation/performance.md", "evidence/speed.md")
    page, drawn = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in names)
    assert unfounded(page, drawn) == []


def test_every_program_of_make_bench_writes_a_record():
    """Those that measure or count, which are programs and not modules."""
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert len(programs) > 15
    for path in programs:
        text = path.read_text(encoding="utf-8")
        assert path.stem == "page" or "report(options" in text or "write_record(options" in text, path.name


def test_a_record_is_plain_data():
    one = record()
    assert json.loads(json.dumps(dataclasses.asdict(one)))["tables"][0]["rows"][0]["launches"] == 1234
