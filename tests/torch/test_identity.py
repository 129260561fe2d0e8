"""Factors stay the same objects through casts and loads; copies and pickles are complete; checkpointing is exact."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.torch import hosts
from tnadapt import AdapterSpec, raw, trainable
from tnadapt_torch import attach, load

representative = pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
CENTERED = AdapterSpec(
    name="own",
    weight="out in",
    over="site",
    factors={"A": trainable("site out p"), "B": trainable("in p")},
    scale=raw(0.5),
    start="centered",
)

PATH = "layers.0.self_attn.q_proj"


def idents(model):
    return {name: id(parameter) for name, parameter in model.named_parameters()}


def step(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(hosts.words()).float().square().sum().backward()
    optimizer.step()


def under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        step(model)


def switched_off(model):
    with model.tnadapt_default.disabled():
        model(hosts.words())


def merged_and_back(model):
    model.tnadapt_default.merge()
    model.tnadapt_default.unmerge()


def filled(model):
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


EVENTS = {
    "to bfloat16": lambda model: model.to(torch.bfloat16),
    "to float64 and back": lambda model: model.double().float(),
    "to the same device": lambda model: model.to("cpu"),
    "half": lambda model: model.half(),
    "step": step,
    "autocast": under_autocast,
    "second adapter": lambda model: hosts.adapt(model, "tera", name="second"),
    "disabled": switched_off,
    "merge and unmerge": merged_and_back,
    "load_state_dict": filled,
    "train and eval": lambda model: model.eval().train(),
    "compile": lambda model: torch.compile(model, backend="eager")(hosts.words()),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("family", ["lora", "vera"])
def test_every_parameter_stays_the_same_object(family, event):
    torch.compiler.reset()
    model = hosts.toy()
    state = hosts.adapt(model, family, modules_to_save=["score"])
    before = idents(model)
    EVENTS[event](model)
    after = idents(model)
    assert {name: after.get(name) for name in before} == before
    assert {id(p) for p in state.parameters()} <= set(before.values())


def test_load_keeps_the_parameters_of_the_host_and_of_other_adapters(tmp_path):
    model = hosts.toy()
    hosts.adapt(model, "lora").save(tmp_path / "a.safetensors")
    other = hosts.toy()
    hosts.adapt(other, "lotr", name="first")
    before = idents(other)
    load(other, tmp_path / "a.safetensors", adapter_name="second")
    assert {name: idents(other).get(name) for name in before} == before


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_forward_reads_the_factors_after_a_cast(family, dtype):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    model.to(dtype)
    assert {value.dtype for value in state.params().values()} == {dtype}
    x = hosts.normal(3, 16, dtype=dtype)
    path = "layers.0.self_attn.q_proj"
    group, _ = state.adapter.find(path)
    for factor in group.network.factors:  # write to each one: a stale copy would not notice
        value = state.params()[state.adapter.slot_name(group, factor)]
        before, kept = model.get_submodule(path)(x), value.detach().clone()
        with torch.no_grad():
            value.zero_()
            assert not torch.equal(model.get_submodule(path)(x), before), factor
            value.copy_(kept)


@representative
def test_a_state_dict_transfers_the_adapter_to_another_copy_of_the_model(family):
    model, other = hosts.toy(), hosts.toy()
    hosts.adapt(model, family)
    hosts.adapt(other, family, awake=False)
    result = other.load_state_dict(model.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(other(hosts.words()), model(hosts.words()))


def test_the_starting_values_of_a_centered_spec_are_in_no_state_dict():
    _, state = adapted("centered")
    assert state.state_dict().keys() == {f"factors.{name}" for name in state.params()}


# ---- copies


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_whole,
}


def adapted(family):
    model = hosts.toy()
    more = {"modules_to_save": ["score"]}
    if family != "centered":
        return model, hosts.adapt(model, family, **more)
    state = attach(model, CENTERED, target_modules=hosts.TARGETS, rank=2, seed=0, **more)
    return model, hosts.wake(state)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("family", [*hosts.REPRESENTATIVES, "centered"])
def test_a_copy_is_complete_and_independent(family, copied):
    model, state = adapted(family)
    wanted = model(hosts.words())
    twin = copied(model)
    assert torch.equal(twin(hosts.words()), wanted)
    ours = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    theirs = {value.untyped_storage().data_ptr() for value in [*twin.parameters(), *twin.buffers()]}
    assert not ours & theirs
    hosts.wake(twin.tnadapt_default, seed=99)
    assert not torch.allclose(twin(hosts.words()), wanted), "the copy's sites must read the copy's factors"
    assert torch.equal(model(hosts.words()), wanted)
    hosts.wake(state, seed=98)
    other = model(hosts.words())
    twin.tnadapt_default.detach()
    assert torch.equal(twin(hosts.words()), hosts.toy()(hosts.words()))
    assert torch.equal(model(hosts.words()), other)
    state.detach()
    assert torch.equal(model(hosts.words()), hosts.toy()(hosts.words()))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_merged_model_can_be_unmerged(copied):
    model = hosts.toy()
    state = hosts.adapt(model, "lotr")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state.merge()
    twin = copied(model)
    twin.tnadapt_default.unmerge()
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert state.merged is not None
    assert not torch.equal(model.layers[0].mlp.down.weight, twin.layers[0].mlp.down.weight)


def test_a_copy_trains_its_own_factors():
    model, _ = adapted("lotr")
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    step(twin)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []


# ---- gradients


class Checkpointed(nn.Module):
    def __init__(self, host, use_reentrant):
        super().__init__()
        self.host, self.use_reentrant = host, use_reentrant

    def forward(self, x):
        for layer in self.host.layers:
            x = checkpoint(layer, x, use_reentrant=self.use_reentrant)
        return x


def plain(host, x):
    for layer in host.layers:
        x = layer(x)
    return x


@representative
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(family, use_reentrant):
    model = hosts.toy()
    hosts.adapt(model, family)
    x = hosts.normal(2, 5, 16).requires_grad_()
    plain(model, x).square().sum().backward()
    wanted, of_x = hosts.grads(model), x.grad
    model.zero_grad()
    x.grad = None
    Checkpointed(model, use_reentrant)(x).square().sum().backward()
    found = hosts.grads(model)
    assert found.keys() == wanted.keys()
    hosts.close(x.grad, of_x)
    for name, gradient in wanted.items():
        hosts.close(found[name], gradient)


def test_gradient_checkpointing_repeats_the_same_dropout():
    model = hosts.toy().train()
    hosts.adapt(model, "lotr", dropout=0.5)
    x = hosts.normal(2, 5, 16)
    torch.manual_seed(5)
    plain(model, x).square().sum().backward()
    wanted = hosts.grads(model)
    model.zero_grad()
    torch.manual_seed(5)
    Checkpointed(model, use_reentrant=False)(x).square().sum().backward()
    for name, gradient in hosts.grads(model).items():
        hosts.close(gradient, wanted[name])


@representative
def test_accumulated_gradients_equal_those_of_the_whole_batch(family):
    model = hosts.toy()
    hosts.adapt(model, family)
    batch = hosts.words(4)
    model(batch).square().sum().backward()
    wanted = hosts.grads(model)
    model.zero_grad()
    for part in batch.chunk(2):
        model(part).square().sum().backward()
    found = hosts.grads(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        hosts.close(found[name], gradient)


@pytest.mark.parametrize("family", ["lora", "tera"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_keep_their_dtype_on_a_host_in_a_dtype_that_nothing_is_trained_in(family, dtype, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    before, update = copy.deepcopy(state.params()), state.delta(PATH)
    model.to(dtype)
    assert model.get_submodule(PATH).weight.dtype == dtype
    for name, value in state.params().items():
        assert torch.equal(value, before[name]), name
    model.float()
    assert torch.equal(state.delta(PATH), update)
    state.save(tmp_path / "a.safetensors")
