"""Hosts that read weights past their modules, wrap them, or call them in their own way; names at the edge."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import PeftModel, get_peft_model

from tests.peft.models import bert, close, config, differs, llama, logits, wake
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families
from tnadapt_torch import attach
from tnadapt_torch.peft import TnConfig, TnLinear

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def lora(**more):
    return TnConfig(spec=families.lora(), **{"rank": 2, "seed": 0} | more)


def awake(model):
    for seed, state in enumerate(model.base_model.states().values()):
        wake(state, seed=seed)
    return model


# ---------------------------------------------------------------- torch's fused encoder

FEED = {"target_modules": ["linear1", "linear2"]}
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def layer():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)


def stack():
    return nn.TransformerEncoder(layer(), 2)


class Outer(nn.Module):
    """A model with an encoder inside."""

    def __init__(self):
        super().__init__()
        self.inner = stack()

    def forward(self, x, **words):
        return self.inner(x, **words)


@torch.no_grad()
def both_modes(model, x=X, **words):
    """Return the output, after a check that it is the same in train and in eval mode."""
    trained, evaluated = (model.train(mode)(x, **words) for mode in (True, False))
    kept = ~words["src_key_padding_mask"] if "src_key_padding_mask" in words else ...
    close(evaluated[kept], trained[kept], 1e-5)
    return evaluated


@pytest.mark.parametrize("make", [layer, stack, Outer])
def test_an_encoder_has_the_update_in_both_modes(make, tmp_path):
    model = awake(get_peft_model(make(), lora(**FEED)))
    plain = make()
    wake(attach(plain, families.lora(), rank=2, seed=0, **FEED), seed=0)
    changed = both_modes(model)
    close(changed, plain.eval()(X).detach(), 1e-5)
    differs(changed, make().eval()(X).detach())
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(make(), tmp_path)
    close(both_modes(back), changed, 1e-5)
    for twin in (copy.deepcopy(back), pickle.loads(pickle.dumps(back))):
        close(both_modes(twin), changed, 1e-5)


@pytest.mark.parametrize("make", [stack, Outer])
def test_padding_in_an_encoder_is_right_in_both_modes(make):
    model = awake(get_peft_model(make(), lora(**FEED))).requires_grad_(False)
    changed = both_modes(model, src_key_padding_mask=PADDING)
    with model.disable_adapter():
        differs(both_modes(model, src_key_padding_mask=PADDING)[~PADDING], changed[~PADDING])


@pytest.mark.filterwarnings("ignore")  # PEFT warns of layers without a merge, and of the deleted adapter
def test_an_encoder_is_right_however_adapters_come_and_go():
    model = awake(get_peft_model(stack(), lora(**FEED)))
    base, first = stack().eval()(X).detach(), both_modes(model)
    model.add_adapter("second", lora(target_modules=["layers.1.linear1"]))
    wake(model.base_model.states()["second"], seed=4)
    close(both_modes(model), first)
    model.set_adapter("second")
    second = both_modes(model)
    differs(second, first)
    model.merge_adapter()
    close(both_modes(model), second, 1e-5)
    model.unmerge_adapter()
    close(both_modes(model), second)
    with model.disable_adapter():
        close(both_modes(model), base, 1e-5)
    model.delete_adapter("second")
    close(both_modes(model), first)
    host = model.unload()
    assert {type(module) for module in host.modules()} == {type(module) for module in stack().modules()}
    assert torch.equal(host.eval()(X), stack().eval().requires_grad_(False)(X))


def test_an_encoder_fuses_its_layers_again_when_no_adapter_is_left(monkeypatch):
    calls = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *words: calls.append(1) or fused(*words))
    model = awake(get_peft_model(layer(), lora(**FEED))).eval().requires_grad_(False)
    model(X)
    assert not calls
    with pytest.raises(SiteError, match="rank"):
        model.add_adapter("second", lora(rank=None, **FEED))
    model(X)
    assert not calls
    host = model.unload()
    host(X)
    assert calls == [1]
    with pytest.raises(SiteError, match="rank"):
        get_peft_model(host, lora(rank=None, **FEED))
    host(X)
    assert calls == [1, 1]


# ---------------------------------------------------------------- attention, gates, custom layers


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.up = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.gate = nn.Linear(8, 1)

    def forward(self, x):
        return self.up(self.attention(x, x, x)[0]) * self.gate(x)


def test_all_linear_leaves_out_the_projection_of_attention():
    model = awake(get_peft_model(Attention(), lora(target_modules="all-linear", rank=1)))
    assert [path for path, module in model.named_modules() if isinstance(module, TnLinear)] == [
        "base_model.model.up",
        "base_model.model.gate",
    ]
    assert model.peft_config["default"].target_modules == {"up", "gate"}
    plain = Attention()
    plain.load_state_dict(copy.deepcopy(model).unload().state_dict())
    wake(attach(plain, families.lora(), target_modules="all-linear", rank=1, seed=0), seed=0)
    x = torch.randn(2, 3, 8)
    close(model(x), plain(x))


@pytest.mark.parametrize("target", ["attention", "out_proj", "all-linear"])
def test_attention_and_gates_are_refused_by_name(target):
    told = r"gate: expected a rank of at most 1 .* pass overparametrized=True"
    told = told if target == "all-linear" else r"attention.*: expected nn\.Linear or transformers' Conv1D"
    with pytest.raises(SiteError, match=f"(?s)^{told}"):
        get_peft_model(Attention(), lora(target_modules=target if target == "all-linear" else [target]))


def test_a_gate_takes_a_higher_rank_if_told_so():
    model = awake(get_peft_model(Attention(), lora(target_modules="all-linear", rank=4, overparametrized=True)))
    x = torch.randn(2, 3, 8)
    wanted = model(x)
    with model.disable_adapter():
        differs(model(x), wanted)
    close(model.merge_and_unload()(x), wanted, 1e-5)


def test_all_linear_does_not_adapt_the_copies_of_saved_modules():
    model = get_peft_model(bert(), config("lora", target_modules=["query"], modules_to_save=["classifier"]))
    model.add_adapter("second", config("lora", target_modules="all-linear"))
    targets = model.peft_config["second"].target_modules
    assert targets
    assert not [path for path in targets if "classifier" in path]


class Scaled(nn.Linear):
    """A linear layer whose forward takes more than x."""

    def forward(self, input, scale=1.0, *, shift=0.0):
        return scale * super().forward(input) + shift


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Scaled(4, 4), Scaled(4, 4)

    def forward(self, x):
        return self.b(input=self.a(x, 2.0, shift=1.0), scale=0.5)


def test_further_arguments_of_forward_reach_the_base_layer():
    model = awake(get_peft_model(Calls(), lora(target_modules=["a", "b"])))
    plain = Calls()
    wake(attach(plain, families.lora(), target_modules=["a", "b"], rank=2, seed=0), seed=0)
    x = torch.randn(3, 4)
    close(model(x), plain(x))
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        model.base_model.model.a(x, wrong=1)


# ---------------------------------------------------------------- weights that are read


class Reader(nn.Module):
    """A model that reads one weight without calling its layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.called(x), self.read.weight, self.read.bias)


def test_layers_that_never_run_are_named_once():
    model = get_peft_model(Reader(), lora(target_modules=["called", "read"])).train()
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(x)
        with torch.no_grad():
            model.train()(x)
    with pytest.warns(UserWarning, match=r"got 1 that was not: read\.\n.*write TnConfig\(fold=True\)"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    model.add_adapter("second", lora(target_modules=["read"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="got 1 that was not: read"):
        model(x)
    assert not model.base_model.model._forward_hooks


def test_nothing_is_said_of_layers_that_run():
    model = get_peft_model(llama(), config("lotr")).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=torch.arange(4)[None])
    assert not model.base_model.model._forward_hooks


def test_a_folded_weight_is_read_with_its_update():
    model = awake(get_peft_model(Reader(), lora(target_modules=["called", "read"], fold=True))).train()
    plain = Reader()
    wake(attach(plain, families.lora(), target_modules=["called", "read"], rank=2, seed=0, fold=True), seed=0)
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = model(x)
    close(wanted, plain(x))
    wanted.sum().backward()
    assert all(parameter.grad is not None for parameter in model.base_model.states()["default"].parameters())
    with model.disable_adapter():
        close(model(x), Reader()(x))
    model.merge_adapter()
    close(model(x), wanted, 1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(x), wanted)
    with pytest.raises(SiteError, match=r"^adapter_names: expected layers that are called, got read, whose weight was"):
        model.eval()(x, adapter_names=["default", "__base__", "default"])


@pytest.mark.filterwarnings("ignore")  # transformers tells that the fast kernels are missing
def test_the_projection_that_mamba_reads_is_trained():
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 4}
    told = {"target_modules": ["dt_proj", "in_proj"], "rank": 2}
    made = transformers.MambaConfig(**sizes)
    host = transformers.MambaForCausalLM(made).eval()
    model = awake(get_peft_model(copy.deepcopy(host), lora(**told))).eval()
    wake(attach(host, families.lora(), seed=0, **told), seed=0)
    ids = torch.arange(6)[None]
    close(model(input_ids=ids).logits, host(input_ids=ids).logits, 1e-5)
    model.train()(input_ids=ids).logits.square().mean().backward()
    assert all(parameter.grad.any() for parameter in model.base_model.states()["default"].parameters())


# ---------------------------------------------------------------- wrapped models


class Deep(nn.Module):
    """Two layers of two linear modules each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.ModuleDict({name: nn.Linear(4, 4) for name in "qv"}) for _ in range(2)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["v"](torch.tanh(layer["q"](x)))
        return x


SMALL = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))


def deep(host=None, **more):
    told = TnConfig(spec=families.lotr(), target_modules=["q", "v"], rank=2, seed=0, **more)
    return awake(get_peft_model(Deep() if host is None else host, told)).eval()


def test_a_compiled_base_has_the_paths_of_the_plain_one(tmp_path):
    model, plain = deep(torch.compile(Deep(), backend="eager")), deep()
    assert model.base_model.states()["default"].adapter == plain.base_model.states()["default"].adapter
    close(model(SMALL), plain(SMALL))
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(Deep(), tmp_path)(SMALL), plain(SMALL))
    back = PeftModel.from_pretrained(torch.compile(Deep(), backend="eager"), tmp_path)
    close(back(SMALL), plain(SMALL))


@pytest.mark.parametrize("fold", [False, True] if IS_THOROUGH else [False])
def test_an_adapted_model_compiles_to_one_graph(fold):
    model = deep(fold=fold)
    model.add_adapter("second", lora(target_modules=["q"]))
    awake(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for name in ("default", "second"):
        model.set_adapter(name)
        close(compiled(SMALL), model(SMALL))
    with model.disable_adapter():
        close(compiled(SMALL), Deep()(SMALL))
    close(compiled(SMALL), model(SMALL))
    differs(compiled(SMALL), Deep()(SMALL))


def test_a_data_parallel_base_raises(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        host = nn.parallel.DistributedDataParallel(Deep())
        with pytest.raises(SiteError, match=r"expected a model that is not wrapped yet, got DistributedDataParallel"):
            get_peft_model(host, lora(target_modules=["q"]))
    finally:
        torch.distributed.destroy_process_group()


class Twice(nn.Module):
    """A model that holds one layer under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.ModuleDict({"again": self.first})

    def forward(self, x):
        return self.second["again"](torch.tanh(self.first(x)))


def test_a_layer_with_two_names_is_served_under_both():
    model = awake(get_peft_model(Twice(), lora(target_modules=["first"])))
    plain = Twice()
    wake(attach(plain, families.lora(), target_modules=["first"], rank=2, seed=0), seed=0)
    close(model(SMALL), plain(SMALL))
    with pytest.raises(SiteError, match="rank"):
        model.add_adapter("second", lora(target_modules=["first"], rank=None))
    model.add_adapter("second", lora(target_modules=["first"]))
    close(model(SMALL), plain(SMALL))
    host = model.unload()
    assert host.first is host.second["again"]
    assert type(host.first) is nn.Linear
    fresh = Twice()
    with pytest.raises(SiteError, match="rank"):
        get_peft_model(fresh, lora(target_modules=["first"], rank=None))
    assert type(fresh.second["again"]) is nn.Linear


# ---------------------------------------------------------------- names

BAD = ["a.b", "", "__base__", "keys", "pop", "forward", "half", "training"]


@pytest.mark.filterwarnings("ignore:Adapter name")
@pytest.mark.parametrize("name", BAD)
def test_a_name_that_torch_or_peft_cannot_hold_raises(name):
    host = llama()
    modules = list(host.named_modules())
    with pytest.raises(SiteError, match=r"^adapter_name: expected a name without dots"):
        get_peft_model(host, config("lora"), adapter_name=name)
    assert list(host.named_modules()) == modules
    model = get_peft_model(llama(), config("lora"))
    with pytest.raises(SiteError, match=r"^adapter_name: expected a name without dots"):
        model.add_adapter(name, config("lora"))
    assert list(model.peft_config) == ["default"]


@pytest.mark.filterwarnings("ignore:Adapter name")
@pytest.mark.parametrize("name", ["adapter-2", "1", "über", "lora", "t"])
def test_other_names_are_saved_and_loaded(name, tmp_path):
    model = get_peft_model(llama(), config("lotr", modules_to_save=["lm_head"]), adapter_name=name)
    wake(model.base_model.states()[name])
    model.add_adapter("other", config("lotr", seed=8))
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path / name, adapter_name=name)
    assert torch.equal(logits(back), logits(model))
    model.delete_adapter("other")
    assert not any(".other." in key for key in model.state_dict())


@pytest.mark.parametrize("name", ["weight", "model", "lm_head"])
def test_a_word_of_the_models_paths_is_a_name_unless_modules_are_trained_in_full(name, tmp_path):
    model = get_peft_model(llama(), config("lotr", target_modules=["q_proj"]), adapter_name=name)
    model.add_adapter("other", config("lotr", target_modules=["q_proj"]))
    wake(model.base_model.states()[name])
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path / name, adapter_name=name)
    assert torch.equal(logits(back), logits(model))
    with pytest.raises(SiteError, match=rf"expected a name that no factor, group or module has, got '{name}'"):
        model.add_adapter("third", config("lotr", target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with pytest.raises(SiteError, match=rf"expected a name that no factor, group or module has, got '{name}'"):
        get_peft_model(llama(), config("lotr", modules_to_save=["lm_head"]), adapter_name=name)


def test_a_rule_does_not_match_the_copies_of_modules_trained_in_full():
    model = get_peft_model(bert(), config("lora", target_modules=["query"], modules_to_save=["pooler"]))
    model.add_adapter("second", config("lora", target_modules=["dense"]))
    layers = [path for path, module in model.named_modules() if isinstance(module, TnLinear)]
    assert layers
    assert not [path for path in layers if "pooler" in path]
    with pytest.raises(SiteError, match=r"expected nn\.Linear .*, got ModulesToSaveWrapper"):
        model.add_adapter("third", config("lora", target_modules=["pooler"]))
