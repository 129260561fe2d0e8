"""Pairs of trained factors on one bond: which an adapter has, that they determine the update, and what is refused."""

import numpy as np
import pytest

import tnadapt
from tests.table import FAMILIES
from tnadapt import AdapterSpec, PlanError, families, frozen, grid, raw, trainable
from tnadapt._structure import pairs
from tnadapt.testing import start_params

KINDS = {"q": (4, 6), "v": (4, 6), "up": (6, 4)}
SERVED = {
    *("lora", "lora rank 1", "lora stabilized", "pissa", "abba", "dota", "mtlora_tasks", "hira", "losa", "loha"),
    *("gralora", "gralora hybrid", "monarch", "monarch wide", "btt"),
}


def read(value, side):
    fold = side.unfolding
    return value.transpose(fold.axes).reshape(fold.shape)


def laid(value, side):
    fold = side.unfolding
    return value.reshape(fold.sizes).transpose(fold.inverse)


def turned(adapter, params, seed=1):
    """The same adapter with other factors: each pair times a random matrix and its inverse."""
    random, changed = np.random.default_rng(seed), dict(params)
    for pair in pairs(adapter):
        batch, _, rank = pair.left.unfolding.shape
        g = random.standard_normal((batch, rank, rank)) + 2 * np.eye(rank)
        left, right = (read(params[side.name], side) for side in (pair.left, pair.right))
        changed[pair.left.name] = laid(left @ g, pair.left)
        changed[pair.right.name] = laid(right @ np.linalg.inv(g).transpose(0, 2, 1), pair.right)
    return changed


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_in_pairs_or_is_refused(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    if name not in SERVED:
        with pytest.raises(PlanError, match=r"pairs: expected trained factors in pairs .*\nUse Preconditioned"):
            pairs(adapter)
        return
    found = pairs(adapter)
    trained = {slot for slot, one in adapter.slots.items() if one.factor.trainable}
    assert sorted(side.name for pair in found for side in (pair.left, pair.right)) == sorted(trained)
    random = np.random.default_rng(0)
    params = start_params(adapter)
    params |= {slot: random.standard_normal(np.shape(params[slot])) for slot in trained}
    changed = turned(adapter, params)
    for site in adapter.sites:
        wanted = tnadapt.delta(adapter, params, site)
        np.testing.assert_allclose(tnadapt.delta(adapter, changed, site), wanted, rtol=1e-10, atol=1e-10)
    assert all(np.abs(changed[slot] - params[slot]).max() > 0.1 for slot in trained)


def bound(over="", **factors):
    spec = AdapterSpec(name="own", weight="out in", over=over, factors=factors, scale=raw(0.5), start="free")
    return spec.bind(grid(layers=3, kinds={"q": (4, 5)}), rank=2 if spec.free_bonds else None)


def test_a_mode_of_both_is_a_batch_and_a_mode_of_one_has_rows():
    (both,) = pairs(bound("layer", A=trainable("in layer r"), B=trainable("layer out r")))
    assert (both.left.unfolding.shape, both.right.unfolding.shape) == ((3, 5, 2), (3, 4, 2))
    (one,) = pairs(bound("layer", A=trainable("in r"), B=trainable("layer out r")))
    assert (one.left.unfolding.shape, one.right.unfolding.shape) == ((1, 5, 2), (1, 12, 2))
    assert one.bond == "r"


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"A": trainable("in p"), "G": trainable("p q"), "B": trainable("q out")}, r"'G' \(it has the bonds p and q\)"),
        (
            {"A": trainable("in p"), "G": trainable("p q"), "B": trainable("q out")},
            "'A' .its partner 'G' is in no pair",
        ),
        ({"A": trainable("in r"), "B": trainable("r out"), "d": trainable("r")}, "'A' .its bond 'r' joins 3 factors"),
        ({"A": frozen("in r"), "B": trainable("r out")}, "'B' .the other end of its bond 'r', 'A', is frozen"),
        ({"A": trainable("in r"), "B": trainable("r out"), "s": trainable("")}, "'s' .it has no bond"),
        ({"A": trainable("in out")}, "'A' .it has no bond"),
    ],
)
def test_what_is_in_no_pair_is_refused_with_its_reason(factors, reason):
    with pytest.raises(PlanError, match=reason):
        pairs(bound(**factors))


def test_a_factor_that_several_groups_share_is_in_no_pair():
    spec = families.sharelora(share="A")
    adapter = spec.bind(grid(layers=1, kinds=KINDS), rank=2)
    with pytest.raises(PlanError, match=r"'A' \(several groups share it\); 'B' \(its partner 'A' is in no pair\)"):
        pairs(adapter)


def test_lotr_is_told_to_use_the_other_optimizer():
    adapter = families.lotr().bind(grid(layers=2, kinds={"q": (4, 5)}), rank=2)
    with pytest.raises(PlanError, match=r"'G' \(it has the bonds p and q\)[^\n]*\nUse Preconditioned"):
        pairs(adapter)
