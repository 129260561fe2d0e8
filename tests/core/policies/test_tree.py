"""The two sides of a bond: their triangular factors, found from the leaves, are those of the dense sides."""

import numpy as np
import pytest

from tests.core.policies.changes import SITES, chain, distance, norm, size, updates
from tnadapt import AdapterSpec, frozen, grid, trainable
from tnadapt.policies import sweep
from tnadapt.policies._bonds import every_bond
from tnadapt.policies._tree import arrays_of, find_edge, norms_of_others, root_of
from tnadapt.testing import random_params


def parts(spec, bond, sites=SITES, rank=2):
    adapter = spec.bind(sites, rank=rank, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    found = every_bond(adapter)[bond]
    (group,) = found.groups
    edge = find_edge(adapter, found)
    assert not isinstance(edge, str), edge
    return adapter, params, edge, group, arrays_of(adapter, group, params)


def branched(**more):
    """A core with four arms: two outer modes on one, a frozen one, and one with a map in between."""
    factors = {
        "A": trainable("o1 p"),
        "C": trainable("p q r s"),
        "F": frozen("q o2"),
        "Q": trainable("r t", map="cayley"),
        "B": trainable("t i1"),
        "S": trainable("s i2 site"),
    }
    spec = {"weight": "(o1 o2) (i1 i2)", "over": "site", "start": "free", "scale": 0.5}
    return AdapterSpec(name="branched", factors=factors, **(spec | more))


TREE = grid(layers=3, kinds={"w": (6, 4)})


def test_a_root_has_the_gram_matrix_of_its_side():
    _, _, edge, group, arrays = parts(chain(), "q")
    modes = {name: group.network.nodes[name].modes for name in edge.nodes}
    left, right = (root_of(edge, arrays, modes, end) for end in edge.ends)
    dense = np.einsum("op,plq->olq", arrays["A"], arrays["B"]).reshape(-1, 2)
    np.testing.assert_allclose(left.T @ left, dense.T @ dense, rtol=1e-12)
    dense = np.einsum("qkr,ri->kiq", arrays["C"], arrays["D"]).reshape(-1, 2)
    np.testing.assert_allclose(right.T @ right, dense.T @ dense, rtol=1e-12)
    assert np.abs(np.tril(left, -1)).max() == 0


@pytest.mark.parametrize("bond", ["p", "s"])
def test_a_branch_with_maps_and_frozen_factors_is_rounded(bond):
    adapter = branched().bind(TREE, rank=3, sizes={"o1": 3, "i1": 2}, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params, rank=2, bond=bond)
    before, after = updates(adapter, params), updates(change.adapter, change.params)
    lost = norm({path: before[path] - after[path] for path in before}) ** 2
    assert lost == pytest.approx((change.errors[bond] ** 2).sum(), rel=1e-10)
    assert lost > 1e-4 * norm(before) ** 2
    assert distance(before, updates(*whole(adapter, params, bond))) < 1e-11 * size(adapter, params)


def whole(adapter, params, bond):
    change = sweep(adapter, params, bond=bond)
    return change.adapter, change.params


def test_a_frozen_factor_is_read_at_the_sizes_of_the_group():
    """Groups of several shapes share a frozen factor, of which the smaller one reads the leading part."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        start="free",
        factors={"F": frozen("out p"), "A": trainable("p q"), "B": trainable("q in")},
    )
    sites = grid(layers=1, kinds={"a": (6, 5), "b": (3, 4)})
    adapter = spec.bind(sites, rank=3, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params, rank=1)
    assert {*change.errors} == {"0.a.q", "0.b.q"}
    for site in sites:
        before, after = (updates(*each)[site.path] for each in ((adapter, params), (change.adapter, change.params)))
        lost = (change.errors[f"0.{site.coordinates['kind']}.q"] ** 2).sum()
        assert ((before - after) ** 2).sum() == pytest.approx(lost, rel=1e-10)


def test_other_parts_have_a_norm_for_each_index_of_the_batch():
    spec = AdapterSpec(
        name="own",
        weight="(o1 o2) (i1 i2)",
        over="site",
        start="free",
        factors={
            "K": trainable("o1 i1 site"),
            "B": trainable("o2 r site"),
            "A": trainable("r i2 site"),
            "g": trainable(""),
        },
    )
    _, _, edge, group, arrays = parts(spec, "r", TREE)
    assert (edge.batch, edge.others) == (("site",), ("K", "g"))
    wanted = np.linalg.norm(arrays["K"], axis=(0, 1)) * abs(arrays["g"])
    np.testing.assert_allclose(norms_of_others(edge, group, arrays), wanted, rtol=1e-12)
    adapter = spec.bind(TREE, rank=2, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params, rank=1)
    before, after = updates(adapter, params), updates(change.adapter, change.params)
    lost = norm({path: before[path] - after[path] for path in before}) ** 2
    assert lost == pytest.approx((change.errors["r"] ** 2).sum(), rel=1e-10)
