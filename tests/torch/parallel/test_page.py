"""The table of docs/guides/torch.md on several processes and devices says what is measured.

`test_two_processes` and `tests/torch/test_distributed.py` measure the rows that need processes.
"""

import pytest

from tests.torch.parallel.ways import HEAD, LAUNCHED, OFFLOADED, SHARED, STAND_INS, TABLE, differences


def test_every_row_is_measured():
    ways = SHARED | OFFLOADED | LAUNCHED | STAND_INS
    assert HEAD[1:] == ["attach before", "attach after", "train", "save", "merge", "detach"]
    assert sorted(TABLE) == sorted({way.row for way in ways.values()})


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloading_is_as_the_page_says(name, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    assert differences(OFFLOADED[name]) == []


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_is_as_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert differences(STAND_INS[name]) == []
