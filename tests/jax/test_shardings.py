"""`shardings`: the axes of each array are split by the rules of their modes, and rules that cannot hold are refused."""

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import tnadapt_jax
from tests.table import FAMILIES
from tnadapt import SiteError, families, grid, magnitude

SITES = grid(layers=2, kinds={"q": (16, 8), "v": (16, 8), "up": (32, 8)})
MESH = AbstractMesh((2, 4), ("fsdp", "tensor"))
RULES = {"out": "tensor", "in": "fsdp", "layer": None}


def specs(spec, rules=RULES, *, rank=2, mesh=MESH, sites=SITES, **options):
    return tnadapt_jax.shardings(spec.bind(sites, rank=rank, **options), rules, mesh=mesh)


def test_each_axis_has_the_rule_of_its_mode():
    found = specs(families.lotr())
    assert found["trainable"]["16x8.A"] == P("tensor", None)
    assert found["trainable"]["16x8.B"] == P("fsdp", None)
    assert found["trainable"]["16x8.G"] == P(None, None, None)
    found = specs(families.lotr(), {"in": ("fsdp", "tensor"), "q": "fsdp"})
    assert found["trainable"]["16x8.G"] == P(None, None, "fsdp")
    assert found["trainable"]["32x8.B"] == P(("fsdp", "tensor"), None)  # q finds its axis of the mesh taken


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_is_that_of_the_params(family, started):
    """With rules for every word that all adapters know; sizes are not checked without a mesh."""
    adapter = FAMILIES[family].bind(layers=2, kinds={"q": (6, 4), "up": (4, 6)})
    found, params = tnadapt_jax.shardings(adapter, RULES), started(adapter)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda spec, value: len(spec) == value.ndim, found, params))


def test_an_axis_that_is_split_into_modes_is_cut_along_the_first_of_them():
    spec = families.lokr()
    adapter = spec.bind(SITES, rank=2)
    (first, *_), (inner, *_) = adapter.networks[0].axes
    found = tnadapt_jax.shardings(adapter, RULES)
    for name, one in found["trainable"].items():
        for mode, entry in zip(adapter.slots[name].factor.held, one, strict=True):
            assert entry == {first: "tensor", inner: "fsdp"}.get(mode), (name, mode)
    assert any("tensor" in one for one in found["trainable"].values())


def test_a_mode_has_its_own_rule_before_that_of_the_axis():
    adapter = families.lokr().bind(SITES, rank=2)
    (first, second), _ = adapter.networks[0].axes
    found = tnadapt_jax.shardings(adapter, {"out": "tensor", first: None, second: "fsdp"})
    entries = {
        (mode, entry)
        for name, one in found["trainable"].items()
        for mode, entry in zip(adapter.slots[name].factor.held, one, strict=True)
    }
    assert {(first, None), (second, "fsdp")} <= entries


def test_an_axis_of_the_mesh_is_used_once_in_an_array():
    found = specs(families.hira(), {"out": "fsdp", "in": "fsdp"})
    assert found["frozen"]["layers.0.q:host"] == P("fsdp", None)


def test_starts_lengths_and_weights_of_the_host_have_shardings():
    found = specs(magnitude(families.pissa()))
    assert found["frozen"]["layers.0.q:host"] == P("tensor", "fsdp")
    assert found["trainable"]["0.q.magnitude"] == P("tensor")
    starts = {name: one for name, one in found["frozen"].items() if name.endswith(":start")}
    assert starts
    assert {*starts.values()} <= {P("tensor", None), P(None, "fsdp"), P("fsdp", None), P(None, "tensor")}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"inn": "fsdp"}, r"rules: expected modes of this adapter, got 'inn'\.\nThe nearest names are in"),
        ({"out": "tp"}, r"rules\['out'\]: expected axes of the mesh, which has fsdp, tensor, got 'tp'"),
        ({"out": 3}, r"rules\['out'\]: expected an axis of the mesh, got"),
        ([("out", "tensor")], r"shardings: expected rules as a mapping from modes to axes of a mesh, got"),
        ({"p": "tensor"}, r"expected a size of its mode 'p' that 4 devices divide, got 2\.\nWrite 'p': None"),
    ],
    ids=["no mode", "no axis", "number", "list", "size"],
)
def test_rules_that_cannot_hold_are_refused(rules, message):
    with pytest.raises(SiteError, match=message):
        specs(families.lotr(), rules)
