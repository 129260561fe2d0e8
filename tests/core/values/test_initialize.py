"""Starting values: their distributions, their random streams, and their reproducibility."""

import math

import numpy as np
import pytest

from tests.table import FAMILIES, REPRESENTATIVES, required_of
from tnadapt import (
    AdapterSpec,
    delta,
    families,
    frozen,
    grid,
    init,
    kaiming_uniform,
    normal,
    raw,
    trainable,
    zeros,
)
from tnadapt.initializers import constant, kaiming_normal, ones, orthogonal, uniform
from tnadapt.testing import start_params

SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)})


def uniform_law(bound):
    return lambda values: (abs(values).max(), values.var()), (bound, bound**2 / 3)


def normal_law(variance):
    return lambda values: (values.mean() + 1, values.var()), (1, variance)


# One family for each initializer.
STARTS = (
    "lora",  # uniform, constant
    "lora stabilized",  # normal
    "cara",  # orthogonal
    "householder",  # identity
    "quantum_peft",  # controlled_z
    "pissa",  # svd
    "dota",  # tt_svd
    "lotr svd",  # hosvd_core
    "lora_pt",  # t_svd, cyclic
    "tcurlora",  # tensor_cur
    "mora 6",  # rotary
)
every_start = pytest.mark.parametrize("adapter", STARTS, indirect=True)
representative = pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)


def test_the_list_covers_every_initializer():
    kinds = {name: {factor.init.kind for factor in case.spec.arrays.values()} for name, case in FAMILIES.items()}
    assert set().union(*(kinds[name] for name in STARTS)) == set().union(*kinds.values())


@every_start
def test_every_value_is_a_float32(adapter):
    for value in start_params(adapter).values():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, value.astype(np.float32).astype(np.float64))


@representative
def test_the_same_seed_gives_equal_values_in_new_arrays(adapter):
    one, two = start_params(adapter), start_params(adapter)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
        assert one[name] is not two[name]
        assert one[name].flags.writeable


FIXED = {
    "constant",
    "rotary",
    "identity",
    "cyclic",
    "controlled_z",
    "t_svd",
}  # the middle factor of a t-SVD is diagonal and mostly 0


@every_start
def test_another_seed_gives_different_values(adapter):
    random = [name for name, slot in adapter.slots.items() if slot.factor.init.kind not in FIXED]
    one, two = (
        start_params(adapter),
        start_params(
            adapter.spec.bind(adapter.sites, rank=adapter.rank, sizes=adapter.sizes, seed=6, overparametrized=True)
        ),
    )
    assert random or adapter.spec.name in {"mora", "lora_pt"}  # these families draw nothing at random
    for name in random:
        assert not np.isin(one[name], two[name]).any()


def test_two_factors_with_the_same_initializer_differ():
    params = init(families.lotr().bind(grid(layers=2, kinds={"q": (8, 8)}), rank=4))
    assert not np.isin(params["A"], params["B"]).any()


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**64, 2**200])
def test_neighbouring_seeds_give_different_values(seed):
    spec = families.lotr()
    one, two = (init(spec.bind(SITES, rank=2, seed=number))["6x4.A"] for number in (seed, seed + 1))
    assert np.isfinite(one).all()
    assert not np.isin(one, two).any()


def test_an_additional_factor_does_not_change_the_values_of_the_others():
    few = {"A": trainable("r in"), "B": trainable("out r", init=zeros())}
    many = {"first": frozen("r"), **few, "last": trainable("r out", init=uniform())}
    one, two = (
        init(AdapterSpec(name=name, weight="out in", factors=factors, scale=raw(2)).bind(SITES, rank=3, seed=9))
        for name, factors in (("one", few), ("two", many))
    )
    assert set(one) < set(two)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)


def test_additional_sites_do_not_change_a_shared_frozen_factor():
    spec = families.vera()
    one = init(spec.bind(grid(layers=2, kinds={"q": (6, 4)}), rank=3))
    two = init(spec.bind(grid(layers=5, kinds={"key": (6, 4), "query": (6, 4)}), rank=3))
    for name in "AB":
        np.testing.assert_array_equal(one[name], two[name])


LAW_SITES = grid(layers=40, kinds={"q": (96, 64), "k": (96, 64), "v": (96, 64)})
LAWS = {  # family, its rank, factor -> distribution, taken from the paper's code as the family's docstring says
    "lora": (families.lora(), 32, {"A": uniform_law(1 / 8)}),
    "lora gaussian": (families.lora(gaussian=True), 32, {"A": normal_law(1 / 32**2)}),
    "lotr": (families.lotr(), 32, {"A": normal_law(1), "B": normal_law(1)}),
    "lorta": (
        families.lorta(),
        64,
        {name: uniform_law(math.sqrt(6 / 64)) for name in "HLM"} | {"A": uniform_law(1 / 8)},
    ),
    "tlora": (families.tlora(), 16, {"A": normal_law(1 / 48), "C": normal_law(1 / (3 * 96))}),
    "vera": (families.vera(), 32, {"A": uniform_law(math.sqrt(6 / 64)), "B": uniform_law(math.sqrt(6 / 32))}),
    "tera": (families.tera(out_order=1, in_order=1), 50, {"G": normal_law(1 / 64), "U_o1": normal_law(1 / 50)}),
    "lora frozen a": (families.lora(frozen_a=True), 4, {"A": uniform_law(1 / 8)}),
    "lora_xs": (families.lora_xs(), 16, {"A": uniform_law(1 / 8), "B": uniform_law(1 / 4)}),
    "lora_xs sigma": (families.lora_xs(sigma=1e-5), 16, {"R": normal_law(1e-10)}),
    "randlora": (families.randlora(), 16, {"A": uniform_law(math.sqrt(3)), "B": uniform_law(math.sqrt(3))}),
    "krona": (families.krona(), None, {"A": uniform_law(1 / math.sqrt(8))}),
    "kadaptation": (families.kadaptation(), 32, {"A": uniform_law(0.01), "u": uniform_law(1 / math.sqrt(8))}),
    "superlora": (
        families.superlora(),
        16,
        {name: normal_law(1 / 16) for name in ("A1", "A2", "B1", "B2", "S")} | {"C2": normal_law(1)},
    ),
    "gralora": (families.gralora(), 4, {"A": uniform_law(1 / math.sqrt(8))}),
    "monarch": (families.monarch(), 1, {"P1": uniform_law(1 / math.sqrt(8))}),
    "btt": (families.btt(), 2, {"R": normal_law(1 / 8)}),
    "lotr_tt": (
        families.lotr_tt(),
        64,
        {name: normal_law(1) for name in ("A1", "B2")} | {name: normal_law(1 / 64) for name in ("A2", "B1")},
    ),
    "flora": (families.flora(), 32, {"P_out": normal_law(1 / 64), "P_in": normal_law(1 / 64)}),
    "flora gaussian": (families.flora(gaussian=True), 32, {"P_out": normal_law(4e-4), "P_in": normal_law(4e-4)}),
    "fact_tk": (
        families.fact_tk(),
        32,
        {"U": uniform_law(1 / 8), "C": uniform_law(math.sqrt(3) / 32), "P": uniform_law(math.sqrt(6 / 120))},
    ),
    "fact_tt": (families.fact_tt(), 16, {"U": uniform_law(1 / 8), "S": uniform_law(1 / 4)}),
    "cara": (families.cara(), 32, {"S": normal_law(2 / 120)}),
    "metatt": (families.metatt(), 32, {"G_in": normal_law(1 / 64)}),
    "tt_lora": (families.tt_lora(), 4, {f"G{n}": normal_law(1 / 4) for n in range(1, 6)}),
    "loretta": (
        families.loretta(),
        4,
        {f"{letter}{n}": normal_law(1 / 4) for letter in "AB" for n in (1, 2, 3)} | {"A4": normal_law(1 / 64)},
    ),
    "quanta": (families.quanta(order=2), None, {"T1_2": uniform_law(math.sqrt(3 / 64))}),
}


@pytest.mark.parametrize(("spec", "rank", "laws"), LAWS.values(), ids=LAWS)
def test_the_factors_of_a_family_have_the_stated_distributions(spec, rank, laws):
    adapter = spec.bind(
        LAW_SITES, rank=rank, sizes={"head": 48} if "head" in spec.weight else None, overparametrized=True
    )
    params = start_params(adapter)
    named = {name: slot for name, slot in adapter.slots.items() if name.split(".")[-1] in laws}
    assert {name.split(".")[-1] for name in named} == set(laws)
    for factor, (statistics, expected) in laws.items():
        values = np.concatenate([params[name].ravel() for name in named if name.split(".")[-1] == factor])
        found = statistics(values)
        error = 6 / math.sqrt(values.size)  # more than four standard deviations of the estimated variance or mean
        assert found == pytest.approx(expected, rel=error), factor
        if expected[0] != 1:  # a uniform distribution; rounding to float32 may exceed its bound slightly
            assert found[0] <= expected[0] * (1 + 2**-23)


CONSTANTS = {
    "lora": {"B": 0},
    "lotr": {"G": 0},
    "lorta": {"B": 0},
    "tlora": {"B": 0, "a": 1},
    "vera": {"b": 0, "d": 0.1},
    "tera": {"d_o1": 1, "d_o2": 1, "d_o3": 0, "d_i1": 1, "d_i2": 1, "d_i3": 1},
    "lora_xs": {"R": 0},
    "randlora": {"l": 0, "g": 1 / 4},
    "krona": {"B": 0},
    "kadaptation": {"v": 0},
    "superlora": {"C1": 0},
    "gralora": {"B": 0},
    "monarch": {"P2": 0},
    "btt": {"L": 0},
    "mora": {"M": 0, "rows": 1, "columns": 1},
    "lotr_tt": {"G": 0},
    "flora": {"G": 0},
    "fact_tk": {"V": 0},
    "fact_tt": {"V": 0},
    "cara": {"w": 1, "A": 0},
    "tenslora": {"G": 0},
    "metatt": {"G_out": 0},
    "tt_lora": {"G6": 0},
    "loretta": {"B4": 0},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_constant_factors_of_a_family_have_the_stated_values(name):
    spec = getattr(families, name)()
    adapter = spec.bind(SITES, rank=2 if spec.free_bonds else None, sizes=dict.fromkeys(required_of(spec), 2))
    params = start_params(adapter)
    fixed = {key for key, slot in adapter.slots.items() if slot.factor.init.kind == "constant"}
    assert {key.split(".")[-1] for key in fixed} == set(CONSTANTS[name])
    for key in fixed:
        np.testing.assert_array_equal(params[key], np.float32(CONSTANTS[name][key.split(".")[-1]]))


@pytest.mark.parametrize(
    ("spec", "variance"),
    [
        (families.tt_lora(start="free"), 2 / (9 * 64)),  # a matrix drawn by Kaiming's initializer with slope sqrt(8)
        (families.loretta(start="free"), 16**2 / 4 / 64 / 96),  # (alpha / r)^2 r / (in out)
    ],
)
def test_the_update_of_a_tensor_train_has_the_stated_variance(spec, variance):
    adapter = spec.bind(LAW_SITES, rank=4, overparametrized=True)
    params = start_params(adapter)
    values = np.stack([delta(adapter, params, site) for site in adapter.sites])
    assert values.var() == pytest.approx(variance, rel=0.2)  # the entries of a train are correlated


def test_the_factors_of_a_decomposition_start_orthonormal():
    cara = init(families.cara().bind(SITES[:1], rank=2, sizes={"head": 3}))
    np.testing.assert_allclose(cara["H"].T @ cara["H"], np.eye(2), atol=1e-6)
    params = init(families.tenslora().bind(LAW_SITES, rank=3))
    np.testing.assert_allclose(params["U_in"].T @ params["U_in"], np.eye(3), atol=1e-6)
    np.testing.assert_allclose((params["U_layer"] ** 2).sum(axis=1), 1, atol=1e-6)
    within = init(families.metatt().bind(LAW_SITES, rank=3))["G_layer"]
    for layer in range(40):
        np.testing.assert_allclose(within[:, layer] @ within[:, layer].T, np.eye(3), atol=1e-6)


def test_vera_has_an_option_for_the_starting_value_of_d():
    assert init(families.vera(d_initial=0.25).bind(SITES[:1], rank=2))["d"].tolist() == [0.25, 0.25]


def drawn(law, modes="layer r q in", rank=5):
    """Return the factor F with these modes, for sizes layer = 3, q = 2, in = 24, out = 4."""
    factors = {"F": frozen(modes, init=law), "Y": trainable("out r q in"), "Z": trainable("r q")}
    words = {"weight": "out in", "over": "layer", "scale": raw(), "start": "free"}
    spec = AdapterSpec(name="own", factors=factors, **words)
    sites = grid(layers=3, kinds={"k": (4, 24)})
    return init(spec.bind(sites, rank={"r": rank, "q": 2}, seed=1, overparametrized=True))["F"]


@pytest.mark.parametrize(
    ("law", "bound", "variance"),
    [
        (uniform(), 1, 1 / 3),
        (uniform(2, fan="in"), 2 / math.sqrt(24), 4 / 24 / 3),
        (uniform(2, fan="q in out"), 2 / math.sqrt(192), 4 / 192 / 3),
        (kaiming_uniform("in"), 1 / math.sqrt(24), 1 / 72),
        (kaiming_uniform("in", slope=0), 0.5, 1 / 12),
        (normal(), 5, 1),
        (normal(3, fan="in in"), 1, 9 / 24**2),
        (kaiming_normal("in"), 1, 1 / 72),
        (kaiming_normal("q", slope=0), 5, 1),
    ],
)
def test_a_random_initializer_has_the_stated_bound_and_variance(law, bound, variance):
    values = drawn(law, rank=50)  # 7,200 entries
    assert abs(values).max() <= bound * (1 + 2**-23)
    assert values.var() == pytest.approx(variance, rel=0.07)
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)


@pytest.mark.parametrize(("law", "value"), [(zeros(), 0), (ones(), 1), (constant(-2.5), -2.5)])
def test_a_constant_initializer_gives_its_value(law, value):
    assert (drawn(law) == value).all()


@pytest.mark.parametrize("amount", [1e30, 1e-30, -1e-30])
@pytest.mark.parametrize("law", [constant, normal, uniform, orthogonal])
def test_very_large_and_very_small_amounts_are_finite_and_nonzero_in_float32(law, amount):
    values = drawn(law(amount))
    assert np.isfinite(values).all()
    assert (values != 0).all()
    if law is not orthogonal:
        larger = drawn(law(amount, **({} if law is constant else {"fan": "in"})))
        assert np.isfinite(larger).all()
        assert (larger != 0).all()


@pytest.mark.parametrize("modes", ["layer r q in", "r layer q in", "r q in layer"])
@pytest.mark.parametrize(("rank", "gain"), [(5, 1.0), (60, 0.5), (48, 2.0)])
def test_orthogonal_gives_an_orthogonal_matrix_at_each_site(modes, rank, gain):
    values = np.moveaxis(drawn(orthogonal(gain), modes, rank), modes.split().index("layer"), 0)
    for matrix in values.reshape(3, rank, 48):
        small = matrix @ matrix.T if rank <= 48 else matrix.T @ matrix
        np.testing.assert_allclose(small, gain**2 * np.eye(min(rank, 48)), atol=1e-5)
    assert abs(values[0] - values[1]).max() > 0.1


def test_orthogonal_draws_both_signs():
    signs = [np.sign(np.diagonal(drawn(orthogonal(), rank=48)[layer].reshape(48, 48))) for layer in range(3)]
    assert 0.2 < (np.concatenate(signs) > 0).mean() < 0.8


@pytest.mark.parametrize(("modes", "shape"), [("", ()), ("layer", (3,)), ("r", (5,)), ("r layer", (5, 3))])
def test_orthogonal_gives_the_shape_of_its_slot(modes, shape):
    values = drawn(orthogonal(), modes)
    assert values.shape == shape
    squares = (values**2).sum(axis=0) if "r" in modes.split() else values**2
    np.testing.assert_allclose(squares, 1, atol=1e-6)  # a vector of length 1, or a sign
