"""Specs made of other specs: a magnitude, a mask, what they add, and where they are refused."""

import numpy as np
import pytest

from tests.table import FAMILIES, places
from tests.thorough import IS_THOROUGH
from tnadapt import (
    AdapterSpec,
    PlanError,
    Site,
    SpecError,
    count,
    degrees_of_freedom,
    delta,
    families,
    first_gradients,
    from_json,
    frozen,
    init,
    magnitude,
    masked,
    rank_bound,
    same,
    to_json,
    to_lora,
    trainable,
    zeros,
)
from tnadapt.initializers import host, ones, row_norms
from tnadapt.testing import check

A, B = trainable("r in"), trainable("out r", init=zeros())
KINDS = {"q": (4, 6), "v": (6, 4)}


def weights_of(adapter, seed=0):
    random = np.random.default_rng(seed)
    return {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}


def spec_with(m, **more):
    return AdapterSpec(name="own", weight="out in", factors={"A": A, "B": B, "m": m}, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_magnitude_adds_one_number_for_each_row_of_each_weight(family):
    case = FAMILIES[family]
    sites = places(case.spec, layers=2, kinds=KINDS)
    words = {"rank": case.rank, "sizes": case.sizes, "overparametrized": True}
    plain, adapter = case.spec.bind(sites, **words), magnitude(case.spec).bind(sites, **words)
    rows = sum(site.shape[0] for site in sites)
    assert count(adapter).trainable == count(plain).trainable + rows
    assert count(adapter).frozen == count(plain).frozen
    assert from_json(to_json(adapter)) == adapter
    assert first_gradients(adapter) == (*first_gradients(plain), "magnitude")


def test_the_count_of_edora_is_that_of_the_paper():
    """RoBERTa-large: query, value and two dense layers of 24 layers, rank 16 (EDoRA, arXiv:2501.12067)."""
    kinds = {"query": (1024, 1024), "value": (1024, 1024), "dense": (1024, 1024), "output": (1024, 4096)}
    sites = [Site(f"{layer}.{kind}", shape) for layer in range(24) for kind, shape in kinds.items()]
    adapter = magnitude(families.lora_xs(start="svd")).bind(sites, rank=16)
    assert count(adapter).trainable == 96 * 16**2 + 96 * 1024 == 122_880


@pytest.mark.parametrize("wrap", [magnitude, masked])
def test_every_law_holds(wrap):
    held = check(wrap(families.lotr()), examples=5 if IS_THOROUGH else 3)  # the first is the smallest of all
    assert len(held) == len({one.law for one in held})


@pytest.mark.parametrize("family", ["lora", "lotr", "mtlora dtsm", "gralora hybrid", "lokr"])
@pytest.mark.parametrize("pattern", ["half", "2:4", "rows"])
def test_a_mask_keeps_every_zero_of_the_weight(family, pattern):
    case = FAMILIES[family]
    adapter = masked(case.spec).bind([Site("q", (8, 8))], rank=case.rank, sizes=case.sizes, overparametrized=True)
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 8))
    if pattern == "half":
        weight[random.random((8, 8)) < 0.5] = 0
    elif pattern == "2:4":
        weight.reshape(-1, 4)[:, :2] = 0
    else:
        weight[2:5] = 0
    params = init(adapter, {"q": weight})
    params |= {
        name: random.standard_normal(slot.shape) for name, slot in adapter.slots.items() if slot.factor.trainable
    }
    update = delta(adapter, params, "q")
    assert ((weight + update)[weight == 0] == 0).all()
    assert update[weight != 0].all()
    assert (
        count(adapter).trainable
        == count(case.spec.bind([Site("q", (8, 8))], rank=case.rank, sizes=case.sizes, overparametrized=True)).trainable
    )
    dense = init(adapter, {"q": random.standard_normal((8, 8))})
    whole = {name: dense.get(name, value) if name.startswith("q:") else value for name, value in params.items()}
    plain = case.spec.bind([Site("q", (8, 8))], rank=case.rank, sizes=case.sizes, overparametrized=True)
    np.testing.assert_allclose(delta(adapter, whole, "q"), delta(plain, whole, "q"), atol=1e-12)


def test_losa_is_the_mask_of_a_lora():
    one, other = (spec.bind([Site("q", (4, 6))], rank=2) for spec in (families.losa(), masked(families.lora(alpha=16))))
    weight = np.where(np.arange(24).reshape(4, 6) % 3, 1.5, 0.0)
    for first, second in ((init(one, {"q": weight}), init(other, {"q": weight})),):
        for name in ("A", "B"):
            np.testing.assert_array_equal(first[name], second[name])
        values = {"B": np.ones((4, 2))}
        np.testing.assert_array_equal(delta(one, first | values, "q"), delta(other, second | values, "q"))


def test_a_magnitude_may_have_any_rank_and_no_thin_lora():
    adapter = magnitude(families.lora()).bind([Site("q", (4, 6))], rank=1)
    params = init(adapter, weights_of(adapter))
    params |= {"B": np.ones((4, 1)), "magnitude": np.arange(1.0, 5.0)}
    assert rank_bound(adapter).rank == 4
    assert np.linalg.matrix_rank(delta(adapter, params, "q")) == 4
    with pytest.raises(PlanError, match="expected an update of less than full rank"):
        to_lora(adapter, params, "q")
    found = to_lora(adapter, params, "q", rank=2)
    u, s, v = np.linalg.svd(delta(adapter, params, "q"))
    np.testing.assert_allclose(found.scale * found.B @ found.A, u[:, :2] * s[:2] @ v[:2], atol=1e-10)
    with pytest.raises(PlanError, match="got one with the magnitude magnitude"):
        degrees_of_freedom(adapter)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: magnitude(magnitude(families.lora())), "magnitude: expected a spec without a factor 'magnitude'"),
        (
            lambda: magnitude(spec_with(trainable("out", init=row_norms()))),
            "expected a spec without a factor 'magnitude', got one with 'm'",
        ),
        (lambda: masked(masked(families.lora())), "masked: expected a spec without a factor 'mask'"),
        (lambda: magnitude("lora"), "magnitude: expected a spec, got"),
        (lambda: spec_with(trainable("in", init=row_norms())), "factor 'm': expected the modes 'out' for a magnitude"),
        (lambda: spec_with(trainable("out r", init=row_norms())), "factor 'm': expected the modes 'out'"),
        (lambda: spec_with(frozen("out", init=row_norms())), "factor 'm': expected a magnitude that is trained"),
        (lambda: spec_with(trainable("out", init=row_norms()), terms=["B A m"]), "term 'B A m': expected no magnitude"),
        (
            lambda: AdapterSpec(
                name="own",
                weight="out in",
                factors={"A": A, "B": B, "m": trainable("out", init=row_norms()), "n": same("m")},
                terms=["B A", "B A n"],
            ),
            "factor 'n': expected a copy of a factor in a term, got one of a magnitude",
        ),
        (
            lambda: AdapterSpec(
                name="own",
                weight="out in",
                factors={"A": A, "B": B, **{n: trainable("out", init=row_norms()) for n in "mn"}},
            ),
            "magnitude: expected one, got m and n",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(build, message):
    with pytest.raises(SpecError, match=message):
        build()


def test_a_mask_is_in_every_term():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": A, "B": B, "W": frozen("out in", init=host()), "s": trainable("out", init=ones())},
        terms=["B A", "W s", "- W"],
        start="free",
    )
    assert masked(spec).terms == ("B A mask", "W s mask", "- W mask")
    assert masked(families.lora()).terms == ()
