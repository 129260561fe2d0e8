"""PyTorch agrees with the numpy reference in outputs, updates and all gradients."""

import numpy as np
import pytest

pytest.importorskip("torch")

from itertools import islice

import torch

from tests.parity import sides
from tests.parity.cases import (
    CENTERED,
    FAMILIES,
    GAPS,
    HOSTS,
    MAPPED,
    OWN,
    REPRESENTATIVES,
    SITES,
    SUMS,
    WRAPPED,
    own,
    t,
)
from tests.table import required_of
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, delta, families, grid, init, raw
from tnadapt_torch import attach

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
wide = every_dtype if IS_THOROUGH else pytest.mark.parametrize("dtype", [torch.float64], ids=["float64"])


@pytest.mark.parametrize(("spec", "sizes"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_agrees(spec, sizes):
    wanted = sides.compare(spec, SITES, torch.float64, **sizes)
    assert all(np.abs(value).max() > 0 for value in (*wanted.delta.values(), *wanted.of_factor.values()))


@pytest.mark.parametrize("family", [*REPRESENTATIVES, "lotr", "tlora", "tera", "loha", "lokr"])
def test_a_family_agrees_in_float32(family):
    """The code of a site does not depend on the dtype; these families cover every kind of step."""
    spec, sizes = FAMILIES[family]
    sides.compare(spec, SITES, torch.float32, **sizes)


@wide
@pytest.mark.parametrize("spec", OWN.values(), ids=OWN)
def test_a_custom_spec_agrees(spec, dtype):
    wanted = sides.compare(spec, SITES, dtype, rank=2)
    assert all(np.abs(value).max() > 0 for value in (*wanted.delta.values(), *wanted.of_factor.values()))


@pytest.mark.parametrize("first", ["A B", "B A"])
def test_the_order_of_the_factors_does_not_matter(first):
    """All sizes are equal, so swapped factors would fit and only their values would reveal it."""
    factors = {"A": t("out r"), "B": t("in r")}
    for order in (first.split(), first.split()[::-1]):
        sides.compare(
            own("out in", "", **{name: factors[name] for name in order}),
            grid(layers=1, kinds={"q": (3, 3)}),
            torch.float64,
            rank=3,
        )


@every_dtype
@pytest.mark.parametrize("factors", CENTERED.values(), ids=CENTERED)
def test_a_centered_spec_agrees(factors, dtype):
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw(0.5), start="centered")
    sides.compare(spec, SITES, dtype, rank=2)


def test_the_update_of_a_centered_spec_starts_at_exactly_zero():
    spec = AdapterSpec(
        name="own", weight="out in", over="layer", factors=CENTERED["with frozen"], scale=raw(), start="centered"
    )
    adapter = spec.bind(SITES, rank=2, seed=1)
    host, state = sides.torch_side(adapter, init(adapter), torch.float32)
    for path in ("layers.0.attn.q", "layers.1.mlp.up"):
        module = host.get_submodule(path)
        assert not state.delta(path).any()
        update = module(torch.ones(3, module.in_features))
        assert update.abs().max() <= 1e-6


@every_dtype
@pytest.mark.parametrize("spec", MAPPED.values(), ids=MAPPED)
def test_a_spec_with_maps_agrees(spec, dtype):
    sides.compare(spec, SITES, dtype, rank=2)


@every_dtype
@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS)
def test_a_spec_with_the_weight_of_the_host_agrees(spec, dtype):
    sides.compare(spec, SITES, dtype, rank=2, sizes={"g": 2} if "g" in spec.weight.split("(")[-1] else None)


ASKED = WRAPPED if IS_THOROUGH else dict(islice(WRAPPED.items(), 0, None, 3))


@pytest.mark.parametrize(("spec", "sizes"), ASKED.values(), ids=ASKED)
def test_a_wrapped_spec_agrees(spec, sizes):
    sides.compare(spec, SITES, torch.float64, **sizes)


@wide
@pytest.mark.parametrize("spec", SUMS.values(), ids=SUMS)
def test_a_sum_agrees(spec, dtype):
    sides.compare(spec, SITES, dtype, rank=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 4)])
@pytest.mark.parametrize("family", ["lora", "lotr", "lorta alone", "tlora", "tera", "vera"])
def test_sizes_of_one_and_square_weights_agree(family, shape):
    spec, _ = FAMILIES[family]
    sizes = dict.fromkeys(required_of(spec), 1)
    sides.compare(spec, grid(layers=2, kinds={"q": shape}), torch.float64, rank=1, sizes=sizes)


@pytest.mark.parametrize("layers", [1, 3])
def test_ranks_above_the_sizes_of_the_weight_agree(layers):
    for spec in (families.lora(), families.lotr(), families.tlora(), families.tera(), families.vera()):
        sides.compare(spec, grid(layers=layers, kinds={"q": (3, 2)}), torch.float64, rank=5)


def test_gaps_between_layers_and_a_frozen_matrix_shared_by_all_shapes_agree():
    for spec in (families.vera(), families.lotr(over="layer"), families.tlora()):
        sides.compare(spec, GAPS, torch.float64, rank=2)


def test_the_scale_of_an_alpha_is_the_same_on_both_sides():
    adapter = families.lora().bind(SITES, rank=4, alpha=6, seed=0)
    params = sides.moved(adapter)
    _, state = sides.torch_side(adapter, params, torch.float64)
    site = SITES[0].path
    name = adapter.slot_name(adapter.find(site)[0], "A").removesuffix("A")
    wanted = 6 / 4 * params[f"{name}B"] @ params[f"{name}A"]
    np.testing.assert_allclose(state.delta(site).detach().numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(delta(adapter, params, site), wanted, rtol=1e-12)


def test_the_comparison_detects_a_changed_factor():
    adapter = families.lotr().bind(SITES, rank=2, seed=0)
    params = sides.moved(adapter)
    wanted = sides.by_reference(adapter, params)
    sides.assert_same(wanted, wanted, 0.0)
    name = next(iter(params))
    other = params | {name: params[name] * (1 + 1e-4)}
    with pytest.raises(AssertionError, match=r"is off by"):
        sides.assert_same(sides.by_torch(adapter, other, torch.float32), wanted, 1e-5)


def test_both_sides_start_from_the_same_values():
    for spec in (families.lora(), families.vera(), families.tlora()):
        adapter = spec.bind(SITES, rank=2, seed=9)
        state = attach(sides.host_of(SITES), spec, target_modules=[site.path for site in SITES], rank=2, seed=9)
        for name, value in init(adapter).items():
            assert torch.equal(state.params()[name].double(), torch.from_numpy(value)), name
