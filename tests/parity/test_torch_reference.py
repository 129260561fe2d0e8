"""PyTorch gives the numbers of the numpy reference: outputs, updates, and every gradient."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from tests.parity import sides
from tests.table import FAMILIES
from tnadapt import (
    AdapterSpec,
    Site,
    constant,
    delta,
    families,
    frozen,
    grid,
    init,
    normal,
    ones,
    orthogonal,
    over_rank,
    raw,
    trainable,
)
from tnadapt_torch import attach

KINDS = {"attn.q": (6, 4), "attn.v": (6, 4), "mlp.up": (4, 6)}
SITES = grid(layers=2, kinds=KINDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

LINEAR = {name: case for name, case in FAMILIES.items() if case.is_linear}


def own(weight, over, scale=None, **factors):
    """A spec that need not start at 0: here every factor has values."""
    return AdapterSpec(
        name="own", weight=weight, over=over, factors=factors, scale=scale or raw(0.5), identity_at_start=False
    )


def t(modes):
    return trainable(modes)


OWN = {
    "LoHa": own("out in", "", A=t("out r"), B=t("r in"), C=t("out q"), D=t("q in")),
    "LoKr": own("(o1 o2) (i1 i2)", "", A=t("o1 i1"), B=t("o2 r"), C=t("r i2"), scale=over_rank("r", alpha=4)),
    "CP": own("out in", "layer kind", A=t("out r"), B=t("r in"), L=t("layer r"), K=t("r kind"), s=t("r")),
    "out and in split": own("(o1 o2) (i1 i2)", "layer", A=t("o2 p i1"), B=t("p i2 q o1"), C=t("layer q")),
    "scalar": own("out in", "", A=t("out r"), s=t(""), B=t("in r")),
    "scalar first": own("out in", "", s=t(""), A=t("out r"), B=t("in r")),
    "two scalars": own("out in", "", s=t(""), D=t("out in"), u=frozen("", init=constant(0.7))),
    "one dense factor": own("out in", "", D=t("out in")),
    "one dense factor, turned": own("out in", "", D=t("in out")),
    "one split factor, mixed": own("(o1 o2) (i1 i2)", "", D=t("i2 o1 i1 o2")),
    "one dense factor for all": own("out in", "layer", D=t("in out")),
    "a dense factor a site": own("out in", "site", D=t("in site out")),
    "outer product": own("out in", "layer", a=t("out"), b=t("in layer")),
    "row scale": own("out in", "", a=t("out"), D=frozen("out in"), b=t("in")),
    "in mode in all": own("out in", "", A=t("in r"), B=t("r out in"), c=t("in")),
    "out mode in all": own("out in", "", A=t("in r out"), B=t("r out"), c=t("out")),
    "bond in four": own("out in", "", A=t("out r"), B=t("in r"), c=t("r"), d=t("r")),
    "bond of stacks only": own(
        "out in", "layer kind", D=t("out in p"), L=t("layer p"), K=t("kind p q"), M=t("q layer")
    ),
    "chain": own("(o1 o2) (i1 i2)", "site", A=t("o1 p"), B=t("p o2 q"), C=t("q i1 r"), D=t("r i2 u"), S=t("u site")),
    "site mode twice": own("out in", "layer", A=t("layer out p"), B=t("in layer p"), C=t("p layer")),
    "constant frozen": own(
        "out in", "", A=t("out r"), B=frozen("r in", init=constant(0.3)), c=frozen("r", init=ones())
    ),
    "frozen at both ends": own("out in", "site", A=frozen("in p site"), B=t("p q site"), C=frozen("out q")),
    "orthogonal": own("out in", "layer", A=frozen("out r", init=orthogonal()), B=t("r in layer")),
    "all sizes from one": own("out in", "kind", A=t("out r"), B=t("r in"), k=t("kind")),
}


@every_dtype
@pytest.mark.parametrize("case", LINEAR.values(), ids=LINEAR)
def test_a_family(case, dtype):
    wanted = sides.compare(case.spec, SITES, dtype, rank=case.rank, sizes=case.sizes)
    assert all(np.abs(value).max() > 0 for value in (*wanted.delta.values(), *wanted.of_factor.values()))


@every_dtype
@pytest.mark.parametrize("spec", OWN.values(), ids=OWN)
def test_a_spec_of_ones_own(spec, dtype):
    wanted = sides.compare(spec, SITES, dtype, rank=2)
    assert all(np.abs(value).max() > 0 for value in (*wanted.delta.values(), *wanted.of_factor.values()))


@pytest.mark.parametrize("first", ["A B", "B A"])
def test_factors_in_another_order_are_the_same_adapter(first):
    """All sizes are equal, so that factors that change places would go unseen but for the numbers."""
    factors = {"A": t("out r"), "B": t("in r")}
    for order in (first.split(), first.split()[::-1]):
        sides.compare(
            own("out in", "", **{name: factors[name] for name in order}),
            grid(layers=1, kinds={"q": (3, 3)}),
            torch.float64,
            rank=3,
        )


CENTERED = {
    "two factors": {"A": trainable("out r"), "B": trainable("r in")},
    "stacked": {"A": trainable("layer out r"), "B": trainable("r in"), "s": trainable("layer")},
    "with frozen": {"A": trainable("out r", init=normal(0.3)), "F": frozen("r q"), "B": trainable("q in layer")},
    "dense": {"D": trainable("out in")},
}


@every_dtype
@pytest.mark.parametrize("factors", CENTERED.values(), ids=CENTERED)
def test_a_centered_spec(factors, dtype):
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw(0.5), centered=True)
    sides.compare(spec, SITES, dtype, rank=2)


def test_a_centered_spec_starts_at_exactly_nothing():
    spec = AdapterSpec(
        name="own", weight="out in", over="layer", factors=CENTERED["with frozen"], scale=raw(), centered=True
    )
    adapter = spec.bind(SITES, rank=2, seed=1)
    host, state = sides.torch_side(adapter, init(adapter), torch.float32)
    for path in ("layers.0.attn.q", "layers.1.mlp.up"):
        module = host.get_submodule(path)
        assert not state.delta(path).any()
        update = module(torch.ones(3, module.in_features))
        assert update.abs().max() <= 1e-6


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 4)])
@pytest.mark.parametrize("family", ["lora", "lotr", "lorta alone", "tlora", "tera", "vera"])
def test_sizes_of_one_and_square_weights(family, shape, dtype):
    sides.compare(FAMILIES[family].spec, grid(layers=2, kinds={"q": shape}), dtype, rank=1)


@pytest.mark.parametrize("layers", [1, 3])
def test_ranks_above_the_sizes_of_the_weight(layers):
    for spec in (families.lora(), families.lotr(), families.tlora(), families.tera(), families.vera()):
        sides.compare(spec, grid(layers=layers, kinds={"q": (3, 2)}), torch.float64, rank=5)


def test_layers_with_gaps_and_a_frozen_matrix_that_all_shapes_share():
    kinds = {"q": (6, 4), "v": (6, 4), "up": (4, 6)}
    sites = tuple(
        Site(f"h.{layer}.{kind}", shape, {"layer": layer, "kind": kind})
        for layer in (11, 3)
        for kind, shape in kinds.items()
    )
    for spec in (families.vera(), families.lotr(over="layer"), families.tlora()):
        sides.compare(spec, sites, torch.float64, rank=2)


def test_the_scale_of_an_alpha_is_the_same_on_both_sides():
    adapter = families.lora().bind(SITES, rank=4, alpha=6, seed=0)
    params = sides.moved(adapter)
    _, state = sides.torch_side(adapter, params, torch.float64)
    site = SITES[0].path
    name = adapter.slot_name(adapter.find(site)[0], "A").removesuffix("A")
    wanted = 6 / 4 * params[f"{name}B"] @ params[f"{name}A"]
    np.testing.assert_allclose(state.delta(site).detach().numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(delta(adapter, params, site), wanted, rtol=1e-12)


def test_the_comparison_can_fail():
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
