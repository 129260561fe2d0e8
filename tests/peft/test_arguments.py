"""TnConfig takes what attach takes: the same outputs, through PEFT's files, merges and switches."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    import peft
    from peft import PeftModel, get_peft_model

from tests.peft.models import close, config, differs, llama, logits, wake
from tnadapt import FormatError, SiteError, SpecError, families, magnitude
from tnadapt_torch import attach
from tnadapt_torch.peft import TnConfig, TnLinear, TnParameters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Experts(nn.Module):
    """A mixture in which every expert sees every token, with two parameters of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(torch.randn(3, 6, 8))
        self.router = nn.Linear(4, 3)
        self.number = 3

    def forward(self, x, *, scale=1.0):
        hidden = torch.tanh(torch.einsum("ti,eio,te->teo", x, self.up, self.router(x).softmax(-1)))
        return scale * torch.einsum("teo,ejo->tj", hidden, self.down)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.experts = nn.Linear(6, 12), nn.Linear(12, 4), Experts()

    def forward(self, x):
        assert self.experts.number == 3  # read past the layer that PEFT puts in its place
        return x + self.experts(torch.tanh(self.out(torch.tanh(self.qkv(x)))), scale=0.5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
LAYOUTS = {"experts.up": "expert in out", "experts.down": "expert out in"}
CASES = {
    "rank above the weight's": (families.lora(), {"rank": 16, "overparametrized": True, "target_modules": ["qkv"]}),
    "blocks": (
        families.lora(),
        {"rank": 2, "target_modules": ["qkv", "out"], "blocks": {"qkv": (4, 1), "out": (2, 3)}},
    ),
    "fused": (families.lotr(), {"rank": 2, "target_modules": ["qkv"], "fused": {"qkv": ["q", None, "v"]}}),
    "fused by rows": (families.lora(), {"rank": 2, "target_modules": ["qkv"], "fused": {"qkv": {"q": 8, "k": 4}}}),
    "tasks": (families.mtlora_tasks(), {"rank": 2, "target_modules": ["qkv"], "tasks": ["seg", "depth"]}),
    "fold": (families.lora(), {"rank": 2, "target_modules": ["qkv", "out"], "fold": True}),
    "experts": (families.lotr(over="layer expert"), {"rank": 2, "target_parameters": LAYOUTS}),
    "magnitude fused": (
        magnitude(families.lotr()),
        {"rank": 2, "target_modules": ["qkv"], "fused": {"qkv": ["q", None, "v"]}},
    ),
    "magnitude of experts": (
        magnitude(families.lotr(over="layer expert")),
        {"rank": 2, "target_parameters": LAYOUTS},
    ),
    "both": (
        families.lora(),
        {"rank": 2, "target_parameters": {"up": "expert in out"}, "target_modules": ["out", "qkv"]},
    ),
    "a layer of experts": (
        families.lora(),
        {"rank": 2, "target_parameters": LAYOUTS, "target_modules": [r"layers.1.qkv"], "layers_to_transform": [1]},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def adapted(case, *, awake=True, **more):
    spec, words = CASES[case]
    model = get_peft_model(Net(), TnConfig(spec=spec, seed=3, **words | more)).eval()
    if awake:
        wake(model.base_model.states()["default"])
    return model


def attached(case):
    spec, words = CASES[case]
    model = Net().eval()
    wake(attach(model, spec, seed=3, **words))
    return model


@every_case
def test_the_outputs_are_those_of_attach(case):
    close(adapted(case, awake=False)(X), Net()(X))
    model, plain = adapted(case), attached(case)
    close(model(X), plain(X))
    differs(model(X), Net()(X))
    if case == "tasks":
        first = model(X)
        for state in (model.base_model.states()["default"], plain.tnadapt_default):
            state.set_task("depth")
        close(model(X), plain(X))
        differs(model(X), first)


@every_case
def test_the_gradients_are_those_of_attach(case):
    model, plain = adapted(case), attached(case)
    for each in (model, plain):
        each(X).square().sum().backward()
    found, wanted = model.base_model.states()["default"].params(), plain.tnadapt_default.params()
    trained = {name for name, value in wanted.items() if value.requires_grad}
    assert trained == {name for name, value in found.items() if value.requires_grad} != set()
    for name in trained:
        close(found[name].grad, wanted[name].grad, 1e-5)


@every_case
def test_a_saved_adapter_is_loaded(case, tmp_path):
    model = adapted(case)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns about missing keys
        back = PeftModel.from_pretrained(Net(), tmp_path)
    assert torch.equal(back(X), model(X))
    assert back.base_model.states()["default"].adapter == model.base_model.states()["default"].adapter
    back.load_adapter(tmp_path, "second", is_trainable=True)
    back.set_adapter("second")
    assert torch.equal(back.eval()(X), model(X))
    back.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(Net(), tmp_path / "again" / "second")
    assert torch.equal(again(X), model(X))


@every_case
def test_merging_disabling_and_unloading_are_exact(case):
    model, before = adapted(case), {name: value.clone() for name, value in Net().state_dict().items()}
    wanted = model(X)
    model.merge_adapter()
    close(model(X), wanted, 1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(X), wanted)
    with model.disable_adapter():
        assert torch.equal(model(X), Net()(X))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), wanted)
        host = twin.unload()
        assert type(host) is Net
        assert {type(module) for module in host.modules()} == {type(module) for module in Net().modules()}
        assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
        assert host.state_dict().keys() == before.keys()
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == before.keys()
    close(merged(X), wanted, 1e-5)


@every_case
def test_a_second_adapter_is_switched_and_deleted(case):
    model, (spec, words), x = adapted(case).double(), CASES[case], X.double()
    first = model(x)
    model.add_adapter("second", TnConfig(spec=spec, seed=5, **words))
    model.double()
    wake(model.base_model.states()["second"], seed=2)
    assert torch.equal(model(x), first)
    model.set_adapter("second")
    second = model(x)
    differs(second, first)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    differs(both, first)
    model.merge_adapter()
    close(model(x), both, 1e-12)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(model(x), first)


def test_rows_of_parameters_cannot_differ():
    model = adapted("experts")
    with pytest.raises(
        SiteError, match=r"expected adapters on linear layers alone, got one on the parameters of layers"
    ):
        model(X, adapter_names=["default"] * 5)


def test_a_layer_of_parameters_gives_no_lora():
    assert not adapted("experts").supports_lora_conversion()
    assert "tnadapt.TnParameters" in repr(adapted("experts"))
    layer = next(module for module in adapted("experts").modules() if isinstance(module, TnParameters))
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_factors_become_float32_or_stay_as_the_base(dtype, low, autocast, tmp_path):
    words = {"autocast_adapter_dtype": autocast}
    model = get_peft_model(Net().to(dtype), TnConfig(spec=families.vera(), rank=3, target_modules=["qkv"]), **words)
    model.add_adapter("second", TnConfig(spec=families.lotr(), rank=2, target_modules=["qkv"]), **words)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(Net().to(dtype), tmp_path, low_cpu_mem_usage=low, **words)
    back.load_adapter(tmp_path / "second", "second", low_cpu_mem_usage=low, **words)
    for each in (model, back):
        states = each.base_model.states().values()
        found = {value.dtype for state in states for value in state.state_dict().values()}
        assert found == {torch.float32 if autocast else dtype}


def test_factors_of_a_quantized_base_stay_float32():
    """The weight of such a layer is stored as integers, and `compute_dtype` says what it computes in."""
    model = Net()
    layer = model.layers[0].qkv
    layer.weight = nn.Parameter(torch.zeros(12, 6, dtype=torch.int8), requires_grad=False)
    adapted = get_peft_model(
        model, TnConfig(spec=families.lora(), rank=2, target_modules=["layers.0.qkv"]), autocast_adapter_dtype=False
    )
    assert {value.dtype for value in adapted.base_model.states()["default"].params().values()} == {torch.float32}
    layer.compute_dtype = torch.bfloat16
    adapted.base_model._cast_adapter_dtype("default", autocast_adapter_dtype=False)
    assert {value.dtype for value in adapted.base_model.states()["default"].params().values()} == {torch.bfloat16}


REFUSED = {
    "ranks by module as a list": ({"rank_pattern": ["qkv"]}, r"^rank_pattern: expected ranks by module, got"),
    "alphas by module": ({"alpha_pattern": {"qkv": 4.0}}, r"^alpha_pattern: .*one alpha"),
    "PEFT's rank": ({"r": 4}, r"^TnConfig: .*got 'r'\.\nPEFT's r is called rank here"),
    "PEFT's alpha": ({"lora_alpha": 4}, r"^TnConfig: .*\nPEFT's lora_alpha is called alpha here"),
    "PEFT's bias": ({"bias": "all"}, r"^TnConfig: expected a known argument, got 'bias'"),
    "a negative seed": ({"seed": -1}, r"^seed: expected an integer from 0"),
    "a huge seed": ({"seed": 2**63}, r"^seed: expected an integer from 0"),
    "a truth as seed": ({"seed": True}, r"^seed: expected an integer from 0"),
    "parameters as a list": ({"target_parameters": ["up"]}, r"^target_parameters: expected a mapping from names"),
    "blocks as a list": ({"blocks": [4, 1]}, r"^blocks: expected a mapping from names"),
    "fused as a name": ({"fused": "qkv"}, r"^fused: expected a mapping from names"),
    "tasks as a name": ({"tasks": "seg"}, r"^TnConfig: expected a list of names as tasks"),
    "fold as a word": ({"fold": "yes"}, r"^fold: expected True or False"),
    "overparametrized as a number": ({"overparametrized": 1}, r"^overparametrized: expected True or False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_argument_that_cannot_be_taken_raises(case):
    words, told = REFUSED[case]
    with pytest.raises((SiteError, SpecError), match=told):
        TnConfig(spec=families.lora(), rank=2, **words)


def test_empty_patterns_are_taken():
    assert TnConfig(spec=families.lora(), rank_pattern={}, alpha_pattern=None).spec == families.lora()


UNFIT = {
    "a rank above the weight's": (
        {"rank": 16, "target_modules": ["qkv"]},
        r"expected a rank of at most 6 .*\nChoose a smaller rank, or pass overparametrized=True",
    ),
    "blocks of another weight": (
        {"target_modules": ["qkv"], "blocks": {"out": (2, 2)}},
        r"names of the adapted weights, got 'out'",
    ),
    "dropout and fold": (
        {"target_modules": ["qkv"], "fold": True, "dropout": 0.5},
        r"^fold: expected dropout=0, got dropout=0\.5",
    ),
    "a weight twice": (
        {"target_modules": ["qkv"], "target_parameters": {"qkv.weight": "out in"}},
        r"^target_parameters: .*without adapted layers inside, got layers\.0\.qkv in layers\.0\.qkv",
    ),
    "a layer inside": (
        {"target_modules": ["router"], "target_parameters": LAYOUTS},
        r"^target_parameters: .*without adapted layers inside, got layers\.0\.experts\.router in layers\.0\.experts",
    ),
    "a layout": ({"target_parameters": {"experts.up": "out in"}}, r"2 axes of the layout"),
    "no such parameter": ({"target_parameters": {"experts.ups": "out in"}}, r"got 'experts\.ups', which matches none"),
    "another layer": (
        {"target_parameters": LAYOUTS, "layers_to_transform": [7]},
        r"^layers_to_transform: expected layers that hold a target, got \[7\]",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_argument_that_does_not_fit_leaves_the_model_unchanged(case):
    words, told = UNFIT[case]
    model = Net()
    modules, flags = list(model.named_modules()), [each.requires_grad for each in model.parameters()]
    with pytest.raises(SiteError, match=told):
        get_peft_model(model, TnConfig(**{"spec": families.lora(), "rank": 2} | words))
    assert list(model.named_modules()) == modules
    assert [each.requires_grad for each in model.parameters()] == flags


@pytest.mark.parametrize("first", [{"target_modules": ["router"]}, {"target_parameters": LAYOUTS}])
def test_a_second_adapter_inside_or_around_the_first_raises(first):
    second = {"target_parameters": LAYOUTS} if "target_modules" in first else {"target_modules": ["router"]}
    model = get_peft_model(Net(), TnConfig(spec=families.lora(), rank=2, **first))
    modules = list(model.named_modules())
    with pytest.raises(SiteError, match=r"without adapted layers inside, got layers\.0\.experts\.router in"):
        model.add_adapter("second", TnConfig(spec=families.lora(), rank=2, **second))
    assert list(model.named_modules()) == modules


def test_a_parameter_of_the_model_itself_raises():
    with pytest.raises(
        SiteError, match=r"^target_parameters: .*modules below the model.*, got one of the model itself"
    ):
        get_peft_model(Experts(), TnConfig(spec=families.lora(), rank=2, target_parameters={"up": "expert in out"}))


OLD_KEYS = {
    *("adapter", "alpha", "auto_mapping", "base_model_name_or_path", "digests", "dropout", "exclude_modules"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type", "peft_version"),
    *("rank", "revision", "seed", "sizes", "spec", "target_modules", "task_type"),
}  # of adapter_config.json before blocks, fused, tasks, fold, target_parameters and overparametrized


@pytest.mark.parametrize("name", ["lotr", "vera"])
def test_a_file_from_before_these_arguments_is_loaded(name, tmp_path):
    model = get_peft_model(llama(), config(name))
    wake(model.base_model.states()["default"])
    model.save_pretrained(tmp_path)
    path, factors = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    data = {key: value for key, value in json.loads(path.read_text()).items() if key in OLD_KEYS}
    path.write_text(json.dumps(data | {"seed": 0}))  # the seed was in the text of the adapter alone
    from safetensors.torch import load_file, save_file

    save_file({key: value for key, value in load_file(factors).items() if "tnadapt_states" in key}, factors)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))


def test_a_value_of_the_wrong_type_in_a_file_raises(tmp_path):
    adapted("fold").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads(path.read_text())
    for name, value in {"fold": 1, "tasks": None, "blocks": {}, "seed": True, "overparametrized": "yes"}.items():
        path.write_text(json.dumps(good | {name: value}))
        with pytest.raises(FormatError, match=f"expected another type of value for {name}"):
            PeftModel.from_pretrained(Net(), tmp_path)


def test_methods_that_peft_does_not_offer_raise_by_name():
    with pytest.raises(ValueError, match="shared state"):
        peft.inject_adapter_in_model(config("lora"), llama())
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(llama(), config("lora"), mixed=True)


def test_a_pickle_is_not_written(tmp_path):
    model = get_peft_model(llama(), config("lora"))
    folder = tmp_path / "new"
    with pytest.raises(FormatError, match=r"^save_pretrained: expected safe_serialization=True for adapter 'default'"):
        model.save_pretrained(folder, safe_serialization=False)
    assert not folder.exists()
    lora = get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(folder, safe_serialization=False)  # other methods are not affected
    assert (folder / "adapter_model.bin").exists()


def test_ranks_by_module_are_those_of_bind():
    model = get_peft_model(
        llama(), TnConfig(spec="lora", rank=4, target_modules=["q_proj", "v_proj"], rank_pattern={"^v_proj": 2})
    )
    adapter = model.base_model.states()["default"].adapter
    assert {site.path.rpartition(".")[2]: adapter.find(site)[0].network.sizes["r"] for site in adapter.sites} == {
        "q_proj": 4,
        "v_proj": 2,
    }


def test_integers_of_numpy_are_saved_as_plain_ones(tmp_path):
    four = np.int64(4)
    words = {"spec": "lora", "target_modules": ["q_proj"], "rank_pattern": {"v_proj": np.int64(2)}}
    config = TnConfig(**words, rank=four, sizes={"in": np.int64(16)}, blocks={"q_proj": (four, 1)}, seed=np.int64(3))
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["rank"], saved["sizes"], saved["blocks"]) == ({"r": 4, "v_proj": 2}, {"in": 16}, [["q_proj", [4, 1]]])
    assert (saved["seed"], type(config.seed)) == (3, int)


READERS = {"magnitude": (magnitude(families.lora()), 2), "hira": (families.hira(), 2)}


@pytest.mark.filterwarnings("ignore:Already following adapters were merged:UserWarning")  # PEFT tells it as well
@pytest.mark.parametrize("spec", READERS)
def test_adapters_that_read_a_weight_are_merged_from_the_weight_before(spec):
    table, rank = READERS[spec]
    words = {"spec": table, "rank": rank, "target_modules": ["qkv"]}
    model, x = get_peft_model(Net(), TnConfig(seed=3, **words)).double().eval(), X.double()
    model.add_adapter("second", TnConfig(seed=5, **words))
    model.double()
    for seed, state in enumerate(model.base_model.states().values()):
        wake(state, seed=seed)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    layer = next(module for module in model.modules() if isinstance(module, TnLinear))
    before = layer.get_delta_weight("second")
    model.merge_adapter(["default"])
    only = model(x)
    with pytest.raises(SiteError, match=r"expected a weight without merged adapters, since adapter 'second' reads it"):
        model.merge_adapter(["second"])
    with pytest.raises(SiteError, match=r"got one with default\.\nCall unmerge_adapter\(\) first"):
        layer.get_delta_weight("second")
    assert torch.equal(model(x), only)
    model.unmerge_adapter()
    model.merge_adapter()
    close(model(x), both, 1e-12)
    model.unmerge_adapter()
    assert torch.equal(layer.get_delta_weight("second"), before)


@pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")  # the layer that one adapter alone has
@pytest.mark.filterwarnings("ignore:Already following adapters were merged:UserWarning")
@pytest.mark.parametrize("merged", [["default"], ["second"], ["default", "second"]], ids="-".join)
@pytest.mark.parametrize("spec", READERS)
def test_adapters_that_read_a_weight_are_saved_and_measured_without_merges(spec, merged, tmp_path):
    table, rank = READERS[spec]
    model = get_peft_model(Net(), TnConfig(spec=families.lora(), rank=2, target_modules=["qkv"], seed=3)).eval()
    model.add_adapter("second", TnConfig(spec=table, rank=rank, target_modules=["qkv", "out"], seed=5))
    states = model.base_model.states()
    for seed, state in enumerate(states.values()):
        wake(state, seed=seed)
    norms = {name: state.norms() for name, state in states.items()}
    states["second"].save(tmp_path / "before")
    model.base_model.set_adapter(["default", "second"])
    model.merge_adapter(merged)
    states["second"].save(tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "before").read_bytes()
    with pytest.raises(SiteError, match=r"a factor .*, got one with .* merged into it\.\nCall unmerge_adapter\(\)"):
        states["second"].norms()
    assert states["default"].norms() == norms["default"]
    model.unmerge_adapter()
    assert {name: state.norms() for name, state in states.items()} == norms
    model.merge_and_unload(adapter_names=merged)
    states["second"].save(tmp_path / "unloaded")  # the weights keep what was merged
    assert (tmp_path / "unloaded").read_bytes() == (tmp_path / "before").read_bytes()
