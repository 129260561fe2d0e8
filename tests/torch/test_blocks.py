"""Several sites in one weight (fused projections, blocks, experts, tasks), compared with the numpy reference."""

import copy
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
from tnadapt import AdapterSpec, Site, SiteError, families, trainable, zeros
from tnadapt.binding import Block
from tnadapt.testing import random_params
from tnadapt_torch import attach, load
from tnadapt_torch._run.blocks import BlocksUpdate

BLOCKS = {"up": (4, 1), "down": (2, 2)}
FUSED = {"qkv": {"q": 8, "k": 2, "v": 2}}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.up, self.down = nn.Linear(4, 12), nn.Linear(4, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x))) + self.qkv(x)[..., 2:6]


class Experts(nn.Module):
    """A mixture in which every expert sees every token, stored as in gpt-oss: (expert, in, out)."""

    def __init__(self):
        super().__init__()
        self.weight_in = nn.Parameter(torch.randn(3, 4, 8))
        self.gate = nn.Linear(4, 3)

    def forward(self, x):
        return torch.einsum("ti,eio,te->to", x, self.weight_in, self.gate(x).softmax(-1))


@pytest.fixture
def host():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()])}).double()


def run(host, x):
    for layer in host["layers"]:
        x = layer(x)
    return x


def moved(state):
    """Give every trainable factor random values; return the same numbers for the reference."""
    params = random_params(state.adapter, np.random.default_rng(0))
    with torch.no_grad():
        for name, value in state.double().params().items():
            value.copy_(torch.from_numpy(params[name]))
    return params


def put(host, state, spec=None, **words):
    """Copy a host, without its adapter, with the updates of the reference added to its weights."""
    params = moved(state)
    other = copy.deepcopy(host)
    state_of = {name: value for name, value in other.named_parameters() if "tnadapt" not in name}
    for path in state.adapter.weights:
        state_of[f"{path}.weight"].data += torch.from_numpy(tnadapt.delta(state.adapter, params, path))
    for child in [child for name, child in other.named_children() if name.startswith("tnadapt")]:
        child.detach()
    return other


@pytest.mark.parametrize("family", ["lotr", "lora", "vera", "lokr"])
def test_outputs_and_merged_weights_agree_with_the_reference(host, family):
    state = attach(
        host,
        getattr(families, family)(),
        target_modules=["qkv", "up", "down"],
        blocks=BLOCKS,
        fused=FUSED,
        rank=2,
        seed=0,
    )
    assert len(state.adapter.sites) == 2 * (3 + 4 + 4)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    wanted = run(put(host, state), x)
    assert torch.allclose(run(host, x), wanted, rtol=0, atol=1e-10)
    state.merge()
    assert torch.allclose(run(host, x), wanted, rtol=0, atol=1e-10)
    state.unmerge()
    state.detach()
    assert not torch.allclose(run(host, x), wanted)


def test_gradients_agree_with_those_of_folded_updates(host):
    """Compare updates on the outputs of the blocks with updates folded into the weights."""
    found = []
    for fold in (False, True):
        model = copy.deepcopy(host)
        state = attach(model, families.lotr(), target_modules=["up", "down"], blocks=BLOCKS, rank=2, seed=0, fold=fold)
        moved(state)
        x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
        run(model, x).square().sum().backward()
        found.append({name: value.grad for name, value in state.params().items()} | {"x": x.grad})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, found[1][name], rtol=1e-10, atol=1e-12), name


def test_only_the_named_parts_of_a_fused_weight_are_adapted(host):
    state = attach(host, families.lora(), target_modules=["qkv"], fused={"qkv": ["q", None, "v"]}, rank=2, seed=0)
    moved(state)
    update = state.delta("layers.1.qkv")
    assert not update[4:8].any()
    assert torch.equal(update[8:], state.delta("layers.1.qkv[v]"))
    assert "layers.1.qkv[v]" in state.table()


def test_blocks_survive_copies_files_and_compilation(host, tmp_path):
    words = {"target_modules": ["qkv", "up", "down"], "blocks": BLOCKS, "fused": FUSED, "rank": 2, "seed": 0}
    state = attach(host, families.lotr(), **words)
    moved(state)
    x = torch.randn(5, 4, dtype=torch.float64)
    wanted = run(host, x)
    assert torch.equal(run(copy.deepcopy(host), x), wanted)
    state.save(tmp_path / "a.safetensors")
    state.detach()
    load(host, tmp_path / "a.safetensors")
    assert torch.equal(run(host, x), wanted)
    compiled = torch.compile(host["layers"][0], backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), host["layers"][0](x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [" ".join(roles) for roles in permutations(["expert", "out", "in"])])
@pytest.mark.parametrize("is_merged", [False, True])
def test_the_update_of_experts_has_the_layout_of_their_parameter(layout, is_merged):
    roles = layout.split()
    sizes = {"expert": 3, "out": 4, "in": 5}
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros([sizes[role] for role in roles], dtype=torch.float64))
    words = {"target_parameters": {"weight": layout}, "rank": 2, "seed": 0}
    state = attach(model, families.lora(), **words)
    params = moved(state)
    wanted = np.transpose(
        tnadapt.delta(state.adapter, params, "weight"), [("expert", "out", "in").index(role) for role in roles]
    )
    if is_merged:
        state.merge()
    np.testing.assert_allclose(model.weight.detach().numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["expert in out", "expert out in"])
def test_every_expert_of_one_parameter_is_a_site(layout, tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Experts()}).double()
    spec = families.lotr(over="layer expert")
    x = torch.randn(5, 4, dtype=torch.float64)
    before = model["experts"](x)
    state = attach(model, spec, target_parameters={"weight_in": layout}, rank=2, seed=0)
    assert [site.path for site in state.adapter.sites] == [f"experts.weight_in[{n}]" for n in range(3)]
    assert state.adapter.sites[0].shape == ((8, 4) if layout == "expert in out" else (4, 8))
    assert torch.equal(model["experts"](x), before)
    params = moved(state)
    update = torch.from_numpy(tnadapt.delta(state.adapter, params, "experts.weight_in"))
    update = update.transpose(1, 2) if layout == "expert in out" else update
    assert torch.allclose(model["experts"].weight_in, state.weights["experts.weight_in"].parameter + update)
    assert torch.allclose(state.delta("experts.weight_in[1]"), update[1], rtol=0, atol=1e-12)
    after = model["experts"](x)
    state.save(tmp_path / "a.safetensors")
    state.merge()
    assert torch.allclose(model["experts"](x), after, rtol=0, atol=1e-12)
    state.unmerge()
    state.detach()
    assert torch.equal(model["experts"](x), before)
    with pytest.raises(tnadapt.FormatError, match=r"experts\.weight_in has a weight of shape .*without a layout"):
        load(model, tmp_path / "a.safetensors")
    load(model, tmp_path / "a.safetensors", target_parameters={"weight_in": layout})
    assert torch.allclose(model["experts"](x), after, rtol=0, atol=1e-12)


def test_each_task_has_its_own_update(host):
    state = attach(host, families.mtlora_tasks(), target_modules=["qkv"], tasks=["seg", "depth"], rank=2, seed=0)
    params = moved(state)
    found = {}
    for task in ("seg", "depth"):
        state.set_task(task)
        found[task] = state.delta("layers.0.qkv").detach()
        wanted = tnadapt.delta(state.adapter, params, f"layers.0.qkv[{task}]")
        assert np.allclose(found[task].numpy(), wanted, rtol=0, atol=1e-12)
        x = torch.randn(3, 4, dtype=torch.float64)
        module = host["layers"][0].qkv
        plain = torch.nn.functional.linear(x, module.weight, module.bias)
        assert torch.allclose(module(x), plain + x @ found[task].T, rtol=0, atol=1e-12)
    assert not torch.equal(found["seg"], found["depth"])
    with pytest.raises(SiteError, match=r"task: expected one of this adapter's tasks \(seg, depth\), got 'edges'"):
        state.set_task("edges")


def test_a_weight_without_a_site_for_the_task_gets_no_update():
    class Owner:
        active, dropout, training, task = True, 0.0, False, "depth"

    site = Site("w[seg]", (4, 3), {"task": "seg"}, Block("w", (4, 3), (0, 0)))
    hook, output = BlocksUpdate(Owner(), {site: SimpleNamespace(reads_product=False)}), torch.randn(2, 4)
    assert torch.equal(hook(None, (torch.randn(2, 3),), {}, output), output)
    assert not hook.delta(output).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"target_modules": ["up"], "blocks": {"down": (1, 2)}},
            r"names of the adapted weights, got 'down'",
        ),
        ({"target_parameters": {"up.weight": "out in out"}}, r"expected a layout of the words out and in"),
        ({"target_parameters": {"up.weight": "expert out in"}}, r"with the 3 axes of .*, got one of shape \(16, 4\)"),
        ({"target_parameters": {"up.weights": "out in"}}, r"got 'up\.weights', which matches none"),
        ({}, r"attach: expected target_modules, got none"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_raise_and_change_nothing(host, words, message):
    with pytest.raises(SiteError, match=message):
        attach(host, families.lora(), rank=2, seed=0, **words)
    assert not [name for name in host.state_dict() if "tnadapt" in name]
    assert all(parameter.requires_grad for parameter in host.parameters())


def test_blocks_whose_rows_overlap_only_in_part_raise():
    spec = AdapterSpec(
        name="own", weight="out in", factors={"W": trainable("out in", init=zeros())}, scale=tnadapt.raw()
    )
    places = [((8, 2), (0, 0)), ((8, 2), (4, 2))]
    sites = [
        Site(f"w[{n}]", shape, {"kind": str(n)}, Block("w", (12, 4), start)) for n, (shape, start) in enumerate(places)
    ]
    spec.bind(sites)
    with pytest.raises(SiteError, match=r"w: expected blocks with equal or disjoint rows, got row 4 in two"):
        BlocksUpdate(None, dict.fromkeys(sites, SimpleNamespace(reads_product=False)))


def test_the_task_of_a_merged_adapter_cannot_be_changed(host):
    state = attach(host, families.lora(), target_modules=["up"], tasks=["a", "b"], rank=2)
    moved(state)
    state.merge()
    state.set_task("a")
    with pytest.raises(SiteError, match=r"task: expected an adapter that is not merged, got one with task 'a'"):
        state.set_task("b")
    state.unmerge()
    state.set_task("b")
    assert state.task == "b"


def test_a_parameter_has_no_lora_folder(tmp_path):
    model = torch.nn.Module()
    model.weight_in = nn.Parameter(torch.randn(4, 8))
    state = attach(model, families.lora(), target_parameters={"weight_in": "out in"}, rank=2)
    with pytest.raises(SiteError, match=r"save_as_lora: expected the weights of linear layers, got the parameter"):
        state.save_as_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
