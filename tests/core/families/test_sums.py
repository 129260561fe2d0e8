"""Families with several terms, copies of a factor, or the host's weight equal the formula of their paper in numpy."""

import numpy as np
import pytest

from tests.table import FAMILIES
from tnadapt import SiteError, delta, families, grid, init, merge
from tnadapt.testing import random_params

KINDS = {"q": (12, 8), "v": (12, 8)}


def diag_between(left, middle, right):
    """Add up the outer products one by one."""
    return sum(left[:, r : r + 1] * middle[r] @ right[r : r + 1] for r in range(len(middle)))


def mtlora_tasks(p, at):
    t = at["task"]
    return 2 * (p["s"][t] * p["B"][t] @ p["A"][t] + p["s_all"] * p["B_all"] @ p["A_all"])


def mtlora(p, at):
    return 8 / 2 * p["B"] @ p["C"] @ p["A"]


def mtlora_icfm(p, at):
    return 8 / 2 * p["B"] @ (p["C"] @ p["C"].T) @ p["A"]


def mtlora_ctcm(p, at):
    return 2 / 2 * p["B"] @ p["C"] @ p["D"] @ p["A"]


def mtlora_dtsm(p, at):
    return 8 / 2 * p["B"] @ (p["C"] + p["D"]) @ p["A"]


def triadaptlora(p, at):
    """Split the square into its lower triangle and its upper one with the diagonal."""
    lower, upper = np.tril(p["C"], -1), np.triu(p["C"])
    return 1 / 2 * p["B"] @ (lower + upper) @ p["A"]


def hira(p, at):
    return p["W"] * (p["B"] @ p["A"])


def losa(p, at):
    return 16 / 2 * np.where(p["W"] == 0, 0, p["B"] @ p["A"])


def ssl(p, at):
    """Scale the columns one by one."""
    return np.stack([p["l"][i] * p["W"][:, i] for i in range(8)], axis=1) - p["W"]


def ssb(p, at):
    return 2 * (np.diag(p["m"]) @ p["W"] @ np.diag(p["l"]) - p["W"])


def nola(p, at):
    s = at["site"]
    down = p["A0"][s] + sum(p["a"][s, n] * p["U"][s, n] for n in range(2))
    up = sum(p["b"][s, k] * p["V"][s, k].reshape(12, 2) for k in range(3))
    return 1 / 2 * up @ down


def rasa(p, at):
    """Concatenate the pair of the layer and that of all layers, as in the official code."""
    layer = at["layer"]
    left = np.concatenate([p["B"][layer], p["B_all"]], axis=1)
    right = np.concatenate([p["A"][layer], p["A_all"]])
    return left @ np.diag(np.concatenate([p["d"][layer], p["e"][layer]])) @ right


def bslora_pairs(p, at):
    """Return the pairs of the weight, of its layer and of the model, as matrices."""
    layer, kind = at["layer"], at["kind"]
    own = p["B"][layer, kind].reshape(12, -1), p["A"][layer, kind].reshape(-1, 8)
    return own, (p["B_layer"][layer], p["A_layer"][layer]), (p["B_all"], p["A_all"])


def bslora(p, at):
    return 2 * sum(up @ down for up, down in bslora_pairs(p, at))


def bslora_gate(p, at):
    """Apply the gates, each a layer with one number between, to every unit vector of the input."""
    own, *shared = bslora_pairs(p, at)
    update = own[0] @ own[1]
    for name, (up, down) in zip(("layer", "all"), shared, strict=True):
        t, u, v, w = (p[f"{gate}_{name}"][at["layer"], at["kind"]][:, None] for gate in "tuvw")
        update = update + t @ (w.T @ (up @ (down @ (u @ (v.T @ np.eye(8))))))
    return 2 * update


def bslora_kron(p, at):
    own, *shared = bslora_pairs(p, at)
    update = own[0] @ own[1]
    for name, (up, down) in zip(("layer", "all"), shared, strict=True):
        t, v = (p[f"{gate}_{name}"][at["layer"], at["kind"]] for gate in "tv")
        update = update + np.kron(t[:, None], up) @ np.kron(v[None], down)
    return 3 * update


def gralora_hybrid(p, at):
    blocks = np.block([[p["B"][o, i] @ p["A"][o, i] for i in range(2)] for o in range(2)])
    return 8 / 2 * (blocks + p["B_all"].reshape(12, -1) @ p["A_all"].reshape(-1, 8))


def cara_blocks(p, at):
    s = at["site"]
    return 2 * diag_between(p["O"], p["w"] * p["S"][s], p["I"].T)


FORMULAS = {
    "mtlora_tasks shared": mtlora_tasks,
    "mtlora": mtlora,
    "mtlora icfm": mtlora_icfm,
    "mtlora ctcm": mtlora_ctcm,
    "mtlora dtsm": mtlora_dtsm,
    "triadaptlora": triadaptlora,
    "hira": hira,
    "losa": losa,
    "ssl": ssl,
    "ssb": ssb,
    "nola": nola,
    "rasa": rasa,
    "bslora": bslora,
    "bslora gate": bslora_gate,
    "bslora kron": bslora_kron,
    "gralora hybrid": gralora_hybrid,
    "cara blocks": cara_blocks,
}


def sparse_weights(adapter, random):
    """Return random weights, a third of whose entries are 0."""
    return {
        path: random.standard_normal(sites[0].weight_shape) * (random.random(sites[0].weight_shape) > 1 / 3)
        for path, sites in adapter.weights.items()
    }


@pytest.mark.parametrize("name", FORMULAS)
def test_the_update_equals_the_formula_of_the_paper(name):
    random = np.random.default_rng(0)
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS, seed=3)
    weights = sparse_weights(adapter, random)
    start = init(adapter, weights)
    moved = start | {key: random.standard_normal(start[key].shape) for key in adapter.slots}
    for group in adapter.groups:
        p = {key: moved[adapter.slot_name(group, key)] for key in adapter.spec.arrays}
        for site in group.sites:
            wanted = FORMULAS[name](p | {"W": weights[site.weight]}, group.index(site))
            found = delta(adapter, moved, site)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * abs(wanted).max())
            assert not delta(adapter, start, site).any()


def test_triadaptlora_and_mtlora_are_the_same_network():
    one, two = (
        family.bind(grid(layers=1, kinds=KINDS), rank=3)
        for family in (families.triadaptlora(), families.mtlora(alpha=1))
    )
    params = random_params(one, np.random.default_rng(0))
    for site in one.sites:
        np.testing.assert_array_equal(delta(one, params, site), delta(two, params, site))


@pytest.mark.parametrize("pattern", ["a third", "two of four"])
def test_losa_keeps_every_zero_of_the_weight(pattern):
    """The pattern of the merged weight is that of the weight, bit for bit, also for two nonzeros in each four."""
    random = np.random.default_rng(0)
    adapter = families.losa().bind(grid(layers=2, kinds=KINDS), rank=4)
    weights = sparse_weights(adapter, random)
    if pattern == "two of four":
        for weight in weights.values():
            weight[:] = random.standard_normal(weight.shape)
            np.put_along_axis(weight.reshape(-1, 4), abs(weight.reshape(-1, 4)).argsort(axis=1)[:, :2], 0.0, axis=1)
    params = init(adapter, weights)
    params |= {key: random.standard_normal(params[key].shape) for key in adapter.slots}
    for path, weight in weights.items():
        merged = merge(weight, delta(adapter, params, path))
        assert (weight == 0).any()
        np.testing.assert_array_equal(merged == 0, weight == 0)
        assert (merged != weight).any()


def test_the_pattern_of_a_dense_weight_changes_nothing():
    sites = grid(layers=1, kinds=KINDS)
    losa, lora = families.losa(alpha=8).bind(sites, rank=2), families.lora().bind(sites, rank=2)
    params = random_params(losa, np.random.default_rng(0))
    own = {key: params[key] for key in lora.slots}
    for site in sites:
        np.testing.assert_array_equal(delta(losa, params, site), delta(lora, own, site))


def test_ssb_rescales_the_rows_and_columns_of_the_weight():
    adapter = families.ssb().bind(grid(layers=1, kinds={"q": (12, 8)}))
    random = np.random.default_rng(0)
    weights = sparse_weights(adapter, random)
    params = init(adapter, weights) | {"l": random.standard_normal(8), "m": random.standard_normal(12)}
    ((path, weight),) = weights.items()
    wanted = params["m"][:, None] * weight * params["l"]
    np.testing.assert_allclose(merge(weight, delta(adapter, params, path)), wanted, rtol=0, atol=1e-12)


def test_the_rank_of_hira_is_that_of_the_weight_times_that_of_the_pair():
    adapter = families.hira().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=2)
    random = np.random.default_rng(0)
    weight = {"layers.0.q": random.standard_normal((12, 3)) @ random.standard_normal((3, 8))}
    params = init(adapter, weight)
    params |= {key: random.standard_normal(params[key].shape) for key in adapter.slots}
    assert np.linalg.matrix_rank(delta(adapter, params, adapter.sites[0])) == 6


def test_rasa_starts_with_half_of_alpha_on_either_pair():
    adapter = families.rasa(alpha=6).bind(grid(layers=2, kinds={"q": (12, 8)}), rank={"p": 3, "q": 4})
    start = init(adapter)
    np.testing.assert_allclose(start["d"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(start["e"], 0.75, rtol=1e-6)


def test_a_host_that_is_missing_is_named():
    adapter = families.losa().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=2)
    with pytest.raises(
        SiteError, match=r"losa: expected the host's weights, which are a factor of it, got none\.\nPass"
    ):
        init(adapter)
