"""JAX agrees with the numpy reference in outputs, updates and all gradients: by site, in a scan, and stacked."""

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("torch")  # tests.parity.sides imports it
pytest.importorskip("jax")

import jax
import jax.numpy as jnp

import tnadapt_jax
from tests.parity import sides
from tests.parity.cases import CENTERED, FAMILIES, GAPS, HOSTS, MAPPED, OWN, SITES, SUMS, WRAPPED
from tests.parity.jax_side import by_jax
from tests.table import REPRESENTATIVES
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, families, grid, init, raw

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}


def some_of(cases, every):
    """Return all cases in `make laws`, else one of so many: each is compiled, and PyTorch runs all of them."""
    return cases if IS_THOROUGH else dict(islice(cases.items(), 0, None, every))


TWO = grid(layers=1, kinds={"q": (6, 4), "v": (6, 4)})


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def held(values, dtype):
    """Round these values to the dtype."""
    return {name: np.asarray(value).astype(dtype).astype(float) for name, value in values.items()}


def compare(spec, sites, dtype, *, rank=None, sizes=None, seed=5, ways=("site", "scan")):
    rank = rank if spec.free_bonds else None
    adapter = spec.bind(sites, rank=rank, sizes=sizes, seed=seed, overparametrized=True)
    number = jnp.dtype(dtype)
    params = held(sides.moved(adapter), number)
    asked = tuple(held(some, number) for some in sides.questions(adapter))
    wanted = sides.by_reference(adapter, params, asked)
    for found in by_jax(adapter, params, asked, number, ways).values():
        sides.assert_same(found, wanted, TOLERANCE[dtype])
    return wanted


ASKED = some_of(FAMILIES, every=20) | {name: FAMILIES[name] for name in REPRESENTATIVES}


@pytest.mark.parametrize(("spec", "sizes"), ASKED.values(), ids=ASKED)
def test_a_family_agrees(spec, sizes):
    """In a scan, which reads the same factors as single sites."""
    wanted = compare(spec, SITES, "float64", **sizes, ways=("scan",))
    assert all(np.abs(value).max() > 0 for value in (*wanted.delta.values(), *wanted.of_factor.values()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["lora", "vera", "lotr", "lorta", "tlora", "tera", "loha", "lokr"])
def test_a_family_agrees_in_lower_precision(family, dtype):
    """These families cover every kind of step. Options and shapes change what is contracted, not how dtypes act."""
    spec, sizes = FAMILIES[family]
    compare(spec, TWO, dtype, **sizes, ways=("site",))


@pytest.mark.parametrize("spec", some_of(OWN, every=3).values(), ids=some_of(OWN, every=3))
def test_a_custom_spec_agrees(spec):
    """In a scan, which reads the same factors as single sites; random specs are tested site by site."""
    compare(spec, SITES, "float64", rank=2, ways=("scan",))


@pytest.mark.parametrize("spec", MAPPED.values(), ids=MAPPED)
def test_a_spec_with_maps_agrees(spec):
    compare(spec, SITES, "float64", rank=2)


@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS)
def test_a_spec_with_the_weight_of_the_host_agrees(spec):
    compare(spec, SITES, "float64", rank=2, sizes={"g": 2} if "g" in spec.weight.split("(")[-1] else None)


KEPT = ("mask lora", "both", "magnitude hra")  # whose update reads the weight that is scaled
AROUND = some_of(WRAPPED, every=40) | {name: case for name, case in WRAPPED.items() if name in KEPT}


@pytest.mark.parametrize(("spec", "sizes"), AROUND.values(), ids=AROUND)
def test_a_wrapped_spec_agrees(spec, sizes):
    compare(spec, SITES, "float64", **sizes, ways=("scan",))


@pytest.mark.parametrize("spec", some_of(SUMS, every=3).values(), ids=some_of(SUMS, every=3))
def test_a_sum_agrees(spec):
    compare(spec, SITES, "float64", rank=2)


@pytest.mark.parametrize("factors", CENTERED.values(), ids=CENTERED)
def test_a_centered_spec_agrees(factors):
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw(0.5), start="centered")
    compare(spec, SITES, "float64", rank=2)


def test_the_update_of_a_centered_spec_starts_at_exactly_zero():
    factors = CENTERED["with frozen"]
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw(), start="centered")
    adapter = spec.bind(SITES, rank=2, seed=1)
    params = tnadapt_jax.init(adapter)
    assert {f"{name}:start" for name in params["trainable"]} < params["frozen"].keys()
    assert not tnadapt_jax.delta(adapter, params, SITES[2]).any()
    assert not tnadapt_jax.apply(adapter, params, SITES[2], jnp.ones((3, 6))).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4)])
def test_sizes_of_one_square_weights_and_larger_ranks_agree(shape):
    for family in ("lotr", "tera"):
        spec, _ = FAMILIES[family]
        compare(spec, grid(layers=2, kinds={"q": shape}), "float64", rank=5, ways=("scan",))


def test_gaps_between_layers_and_a_frozen_matrix_shared_by_all_shapes_agree():
    for spec in (families.vera(), families.lotr(over="layer"), families.tlora()):
        compare(spec, GAPS, "float64", rank=2, ways=("scan",))


def test_the_comparison_detects_a_changed_factor():
    adapter = families.lotr().bind(TWO, rank=2, seed=0)
    params, asked = sides.moved(adapter), sides.questions(adapter)
    wanted = sides.by_reference(adapter, params, asked)
    name = next(iter(params))
    other = params | {name: params[name] * (1 + 1e-4)}
    with pytest.raises(AssertionError, match=r"is off by"):
        sides.assert_same(by_jax(adapter, other, asked, jnp.dtype("float64"), ("site",))["site"], wanted, 1e-5)


def test_both_sides_start_from_the_same_values():
    for spec in (families.lora(), families.vera(), families.tlora()):
        adapter = spec.bind(SITES, rank=2, seed=9)
        params = tnadapt_jax.init(adapter)
        for name, value in init(adapter).items():
            tree = "trainable" if adapter.slots[name].factor.trainable else "frozen"
            assert (np.asarray(params[tree][name]).astype(float) == value).all()
