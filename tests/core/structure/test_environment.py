"""The environment of a factor is the Gram matrix of the derivative of all updates with respect to it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tnadapt
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, PlanError, Site, families, frozen, grid, raw, same, trainable
from tnadapt._planning import Labeled, NumpyBackend, plan, run
from tnadapt._structure import environment as module
from tnadapt._structure.environment import COUNTS, environments, is_in_a_term
from tnadapt._values import drawn_starts, map_factor
from tnadapt.testing import adapters, start_params

KINDS = {"q": (4, 6), "v": (4, 6), "up": (6, 4)}


def moved(adapter, seed=0):
    """Random values for everything that is trained."""
    random = np.random.default_rng(seed)
    begin = start_params(adapter) | drawn_starts(adapter)
    trained = {name for name, slot in adapter.slots.items() if slot.factor.trainable}
    return {name: random.standard_normal(np.shape(v)) if name in trained else v for name, v in begin.items()}


def group_of(adapter, slot):
    names = {adapter.slot_name(group, adapter.slots[slot].name.rpartition(".")[2]): group for group in adapter.groups}
    return names[slot]


def grams(params, environment, parts):
    """Each piece as an array (batch, rows, rows), by the plan of its network."""
    found = []
    for piece in environment.pieces:
        order = plan(piece.network, "delta")
        operands = []
        for source, modes in zip(piece.sources, order.inputs, strict=True):
            if source == COUNTS:
                value = environment.counts()
            else:
                part = parts[source]
                value = map_factor(part.factor.map, np.asarray(params[part.name], dtype=float)[part.stack])
            operands.append(Labeled(value, modes))
        found.append(run(order, operands, NumpyBackend()).array.reshape(piece.network.weight_shape))
    return found


def applied(environment, pieces, value):
    """E times an array of the factor's shape."""
    for piece, gram in zip(environment.pieces, pieces, strict=True):
        fold = piece.unfolding
        batch = value.transpose(fold.axes).reshape(fold.shape)
        value = np.einsum("bij,bjk->bik", gram, batch).reshape(fold.sizes).transpose(fold.inverse)
    return environment.times * value


def derivative(adapter, params, slot):
    """The change of all updates, without the scale, by each entry of one array: shape (entries, numbers)."""

    def updates(values):
        here = group_of(adapter, slot)
        changed = params | {slot: values}
        return np.concatenate([tnadapt.delta(adapter, changed, site).ravel() for site in here.sites])

    scale = group_of(adapter, slot).network.scale
    shape, zero = adapter.slots[slot].shape, updates(np.zeros(adapter.slots[slot].shape))
    size = int(np.prod(shape))
    return np.stack([updates(unit.reshape(shape)) - zero for unit in np.eye(size)]) / scale


def check(adapter):
    params = moved(adapter)
    for slot, (environment, parts) in environments(adapter).items():
        slope = derivative(adapter, params, slot)
        pieces = grams(params, environment, parts)
        shape = adapter.slots[slot].shape
        units = np.eye(len(slope)).reshape(-1, *shape)
        found = np.stack([applied(environment, pieces, unit).ravel() for unit in units])
        np.testing.assert_allclose(found, slope @ slope.T, rtol=1e-10, atol=1e-10 * np.abs(slope).max(initial=1) ** 2)


REFUSED = {
    "mtlora icfm": "its term has it 2 times",
    "mtlora dtsm": "it is in 2 terms",
    "nola": "it is in 2 terms",
    "bslora": "several groups share it",
    "bslora gate": "several groups share it",
    "bslora kron": "several groups share it",
    "tinylora tied": "several groups share it",
    "sharelora": "several groups share it",
    "sharelora b": "several groups share it",
    "sharelora both": "several groups share it",
    "hira": "the host's weight",
    "losa": "the host's weight",
    "ssl": "the host's weight",
    "ssb": "the host's weight",
    "svdiff": "the host's weight",
    "miss bat": "it is in 2 terms",
    **dict.fromkeys(
        ("oft", "oft shared", "hra", "hra free", "soda", "soda delta", "householder", "quantum_peft"), "by the map"
    ),
}


ASKED = [name for n, name in enumerate(FAMILIES) if IS_THOROUGH or name in REFUSED or n % 3 == 0]


@pytest.mark.parametrize("name", ASKED)
def test_the_environment_of_every_family(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    if name in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[name]):
            environments(adapter)
    else:
        check(adapter)


@given(st.data())
def test_the_environment_of_random_specs(data):
    adapter = data.draw(adapters())
    try:
        environments(adapter)
    except PlanError:
        assume(False)
    check(adapter)


def spec(over="", **factors):
    return AdapterSpec(name="own", weight="out in", over=over, factors=factors, scale=raw(0.5), start="free")


def test_a_core_has_one_small_matrix_for_each_bond():
    adapter = families.lotr().bind(grid(layers=3, kinds={"q": (50, 40)}), rank={"p": 20, "q": 30})
    found = environments(adapter)
    assert [piece.network.weight_shape for piece in found["G"][0].pieces] == [(1, 20, 20), (1, 30, 30)]
    assert [piece.unfolding.shape for piece in found["G"][0].pieces] == [(1, 20, 90), (1, 30, 60)]
    (of_a,) = found["A"][0].pieces
    assert of_a.network.weight_shape == (1, 20, 20)
    assert set(of_a.network.nodes) == {"B", "B'", "G", "G'"}  # one network for all sites, not one for each


def test_lora_has_the_gram_matrix_of_the_other_factor():
    adapter = families.lora().bind(Site("q", (5, 4)), rank=2)
    params = moved(adapter)
    found = environments(adapter)
    (of_a,) = grams(params, *found["A"])
    (of_b,) = grams(params, *found["B"])
    np.testing.assert_allclose(of_a[0], params["B"].T @ params["B"], rtol=1e-12)
    np.testing.assert_allclose(of_b[0], params["A"] @ params["A"].T, rtol=1e-12)


def test_sites_that_are_missing_are_not_counted():
    places = [Site(f"{n}.{kind}", (4, 3), {"layer": n, "kind": kind}) for n, kind in ((0, "q"), (1, "q"), (1, "v"))]
    factors = {"A": trainable("out r"), "B": trainable("in r"), "L": trainable("layer r"), "K": trainable("kind r")}
    check(spec("layer kind", **factors).bind(places, rank=2))
    bare = {"A": trainable("out r"), "B": trainable("in r"), "K": trainable("kind r")}
    adapter = spec("layer kind", **bare).bind(places, rank=2)
    check(adapter)
    assert environments(adapter)["K"][0].counts().tolist() == [2, 1]


def test_a_site_mode_that_the_term_has_not_counts_its_sites():
    adapter = spec("layer", A=trainable("out r"), B=trainable("in r")).bind(grid(layers=3, kinds={"q": (4, 3)}), rank=2)
    assert environments(adapter)["A"][0].times == 3
    check(adapter)


def test_a_matrix_of_too_many_rows_is_refused(monkeypatch):
    three = {"A": trainable("out r s"), "C": trainable("r s in")}
    adapter = spec(**three).bind(Site("q", (4, 4)), rank={"r": 3, "s": 4}, overparametrized=True)
    check(adapter)
    monkeypatch.setattr(module, "MOST", 11)
    module._environment.cache_clear()
    with pytest.raises(PlanError, match=r"'A' \(a Gram matrix over r s would have 12 rows, more than 11\); 'C' \("):
        environments(adapter)
    module._environment.cache_clear()


def test_every_factor_that_does_not_fit_is_named_with_its_reason():
    adapter = spec(
        A=trainable("out p"),
        R=trainable("p q", map="rotation"),
        C=trainable("q s"),
        D=same("C", "s t"),
        B=frozen("t in"),
    ).bind(Site("q", (4, 4)), rank=2)
    reasons = r"environments: .*'R' \(its entries follow .* 'rotation'\); 'C' \(its term has it 2 times\)|'C'.*'R'"
    with pytest.raises(PlanError, match=reasons):
        environments(adapter)


def test_a_mode_of_the_factor_does_not_join_what_it_stacks():
    factors = {"A": trainable("layer out p"), "G": trainable("layer p q"), "B": trainable("layer q in")}
    adapter = spec("layer", **factors).bind(grid(layers=3, kinds={"q": (4, 5)}), rank={"p": 2, "q": 3})
    assert [piece.network.weight_shape for piece in environments(adapter)["G"][0].pieces] == [(3, 2, 2), (3, 3, 3)]
    check(adapter)


def test_a_trained_factor_may_be_in_no_term():
    network = families.lora().bind(Site("q", (4, 4)), rank=2).networks[0]
    more = replace(network, factors={**network.factors, "m": trainable("out")})
    assert [is_in_a_term(more, name) for name in ("A", "B", "m")] == [True, True, False]
