"""The core, torch and JAX find the same layers, kinds and names of factors in the same tree."""

import numpy as np
import pytest

from tnadapt import families, init, sites_of

jnp = pytest.importorskip("jax.numpy")
nn = pytest.importorskip("torch.nn")

Tree = dict[str, "Tree | None"]
BLOCK: Tree = {"q": None, "mlp": {"0": None, "2": None}}
TREES: dict[str, Tree] = {
    "list of blocks": {"h": {"0": BLOCK, "1": BLOCK}, "head": None},
    "numbers behind names": {"encoder": {"layer_0": BLOCK, "layer_1": BLOCK}, "norm_1": {"x": None}},
    "blocks in blocks": {"block": {"0": {"layer": {"0": BLOCK, "1": BLOCK}}, "1": {"layer": {"0": BLOCK, "1": BLOCK}}}},
    "two towers": {"text": {"layers": {"0": BLOCK, "1": BLOCK}}, "vision": {"layers": {"0": BLOCK, "1": BLOCK}}},
    "bare lists": {"layers": {"0": {"q": None}, "1": {"q": None}}, "heads": {"0": None, "1": None}},
    "root list": {"0": None, "1": None},
    "root blocks": {"0": BLOCK, "1": BLOCK},
    "wrapped": {"0": {"encoder": {"layer": {"0": BLOCK, "1": BLOCK}}}, "1": None},
    "no layers": {"up": None, "down": {"proj": None}},
    "one block": {"h": {"0": BLOCK}},
    "one named block": {"layer_0": BLOCK},
}


def paths_of(tree: Tree, above: str = "") -> list[str]:
    return [
        path
        for name, inner in tree.items()
        for path in (paths_of(inner, f"{above}{name}.") if inner else [above + name])
    ]


def module_of(tree: Tree | None) -> nn.Module:
    if tree is None:
        return nn.Linear(4, 4, bias=False)
    whole = nn.Module()
    for name, inner in tree.items():
        whole.add_module(name, module_of(inner))
    return whole


def leaves_of(tree: Tree | None) -> object:
    return {"weight": jnp.zeros((4, 4))} if tree is None else {name: leaves_of(inner) for name, inner in tree.items()}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("spec", [families.lora(), families.metatt()], ids=lambda spec: spec.name)
def test_the_core_and_both_bindings_find_the_same_names(tree, spec):
    import tnadapt_jax
    import tnadapt_torch

    plain = sites_of(dict.fromkeys(paths_of(tree), (4, 4)))
    state = tnadapt_torch.attach(module_of(tree), spec, target_modules="all-linear", rank=2, seed=0)
    leaves = tnadapt_jax.find_sites(leaves_of(tree), target=".*", layout="hf-torch")
    expected = {site.path: dict(site.coordinates) for site in plain}
    assert {site.path: dict(site.coordinates) for site in state.adapter.sites} == expected
    assert {site.path: dict(site.coordinates) for site in leaves.sites} == expected
    started = init(spec.bind(plain, rank=2, seed=0))
    in_jax = tnadapt_jax.init(spec.bind(leaves.sites, rank=2, seed=0))
    in_torch = {name: value.detach().numpy() for name, value in state.params().items()}
    for params in (in_torch, {**in_jax["trainable"], **in_jax["frozen"]}):
        assert params.keys() == started.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(np.asarray(value), started[name])


def test_a_target_in_one_layer_still_has_a_layer_number():
    """All sites may be in one layer; the other layers of the host still show that it is a layer."""
    import tnadapt_jax
    import tnadapt_torch

    tree = TREES["numbers behind names"]
    state = tnadapt_torch.attach(module_of(tree), families.lora(), target_modules=["layer_0.q"], rank=2, seed=0)
    leaves = tnadapt_jax.find_sites(leaves_of(tree), target=["layer_0.q"], layout="hf-torch")
    for (site,) in (state.adapter.sites, leaves.sites):
        assert dict(site.coordinates) == {"layer": 0, "kind": "q"}
