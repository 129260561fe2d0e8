"""The exchange of classes: nobody sees another class, copies and pickles keep it, and it can be undone."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.torch import hosts
from tnadapt_torch import attach


def one(module=None, family="lora", **more):
    """Make a model of one linear layer with an awake adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(module if module is not None else nn.Linear(8, 8))
    state = attach(model, family, target_modules=["0"], rank=2, **more)
    return model, hosts.wake(state)


def x():
    return hosts.normal(3, 8)


def update(state):
    return x() @ state.delta("0").T


def test_the_class_keeps_its_names_and_is_a_subclass():
    model, state = one()
    kind = type(model[0])
    assert (kind.__name__, kind.__qualname__, kind.__module__) == ("Linear", "Linear", "torch.nn.modules.linear")
    assert issubclass(kind, nn.Linear)
    assert repr(model[0]) == repr(nn.Linear(8, 8))
    state.detach()
    assert type(model[0]) is nn.Linear
    assert "_tnadapt" not in vars(model[0])


def test_equal_modules_share_one_class():
    model = hosts.toy()
    hosts.adapt(model)
    assert type(model.layers[0].mlp.down) is type(model.layers[1].mlp.down)


def test_the_trace_of_fx_keeps_an_adapted_layer_as_a_leaf():
    model, _ = one()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x()), model(x()))
    assert "call_module" in {node.op for node in traced.graph.nodes}


def test_hooks_of_the_user_see_the_adapted_output_in_both_orders():
    seen = []
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    model, _ = one(layer)
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    y = model(x())
    assert torch.equal(seen[0], y)
    assert torch.equal(seen[1], y)


def test_a_pre_hook_changes_what_the_adapter_sees():
    model, state = one()
    base = copy.deepcopy(model)
    base.tnadapt_default.detach()
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    hosts.close(model(x()), base(2 * x()) + 2 * update(state))


PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_layer_is_pickled_by_its_own_class(protocol):
    model, _ = one()
    data = pickle.dumps(model, protocol)
    twin = pickle.loads(data)
    assert torch.equal(twin(x()), model(x()))
    assert type(twin[0]) is type(model[0])
    twin.tnadapt_default.detach()
    assert type(twin[0]) is nn.Linear
    assert not torch.equal(twin(x()), model(x()))


def test_a_file_of_a_whole_model_holds_only_names_that_exist():
    model, _ = one()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x()), model(x()))


# ---- wrappers that came first or later


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Doubling())


def normed(layer):
    parametrizations.weight_norm(layer)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


def with_own_forward(layer):
    """Give the instance a forward that calls the one of its class, as accelerate does."""
    layer._old_forward = layer.forward
    layer.forward = functools.partial(lambda module, *args: module._old_forward(*args), layer)


def with_closure(layer):
    """Give the instance a forward that holds the bound method, out of sight."""
    old = layer.forward
    layer.forward = functools.partial(lambda call, *args: call(*args), old)


def nothing(layer):
    """Change nothing."""


WRAPPERS = [parametrized, normed, pruned, with_own_forward, with_closure, nothing]


@pytest.mark.parametrize("later", WRAPPERS)
@pytest.mark.parametrize("first", WRAPPERS)
def test_a_wrapper_before_and_one_after_attach(first, later):
    if (
        {first, later} >= {parametrized, normed}
        or first == later != nothing
        or ((pruned in (first, later)) and (parametrized in (first, later) or normed in (first, later)))
    ):
        pytest.skip("torch itself does not allow these two on one weight")
    torch.manual_seed(0)
    base, layer = nn.Linear(8, 8), nn.Linear(8, 8)
    layer.load_state_dict(base.state_dict())
    first(base)
    first(layer)
    model, state = one(layer)
    later(base)
    later(layer)
    hosts.close(model(x()), base(x()) + update(state))
    with state.disabled():
        hosts.close(model(x()), base(x()))
    state.detach()
    hosts.close(model(x()), base(x()))


def test_removing_a_parametrization_after_attach_keeps_the_adapter():
    layer = nn.Linear(8, 8)
    parametrized(layer)
    model, state = one(layer)
    before = model(x())
    parametrize.remove_parametrizations(layer, "weight")
    hosts.close(model(x()), before)
    state.detach()
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError])
def test_a_class_that_forbids_subclasses_is_served_by_a_hook(error):
    class Final(nn.Linear):
        def __init_subclass__(cls):
            raise error("final")

    seen = []
    layer = Final(8, 8)
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    model, state = one(layer)
    assert type(model[0]) is Final
    with state.disabled():
        base = model(x())
    hosts.close(model(x()), base + update(state))
    assert torch.equal(seen[-1], model(x()))  # as with a front, although the hook of the user was there first
    state.detach()
    assert torch.equal(model(x()), base)
    handle.remove()
    assert not model[0]._forward_hooks


def test_a_subclass_of_linear_keeps_its_own_forward_and_attributes():
    class Loud(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return 3 * super().forward(x)

    model, state = one(Loud(8, 8))
    with state.disabled():
        base = model(x())
    hosts.close(model(x()), base + update(state))
    assert model[0].calls == 2
    assert isinstance(model[0], Loud)


def test_two_adapters_come_and_go_in_any_order():
    model, first = one()
    second = hosts.wake(attach(model, "vera", target_modules=["0"], rank=2, adapter_name="second"), seed=3)
    with first.disabled(), second.disabled():
        base = model(x())
    hosts.close(model(x()), base + update(first) + update(second))
    first.detach()
    hosts.close(model(x()), base + update(second))
    second.detach()
    assert torch.equal(model(x()), base)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("first", ["copy", "original"])
def test_a_copy_of_a_folded_host_is_detached_alone(first):
    model, _ = one(fold=True)
    twin = copy.deepcopy(model)
    wanted = model(x())
    leaving, staying = (twin, model) if first == "copy" else (model, twin)
    leaving.tnadapt_default.detach()
    assert torch.equal(staying(x()), wanted)
    staying.tnadapt_default.detach()
    assert torch.equal(staying(x()), leaving(x()))
    assert not torch.allclose(staying(x()), wanted)
    assert type(staying[0]) is type(leaving[0]) is nn.Linear


# ---- torch's fused encoder


def encoder(stack):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2) if stack else nn.ModuleList([layer])


def call(host, x, **more):
    return host(x, **more) if isinstance(host, nn.TransformerEncoder) else host[0](x)


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_fused_encoder_does_not_pass_by_its_adapters(stack, grad):
    host = encoder(stack).eval().requires_grad_(False)
    state = hosts.wake(attach(host, "lora", target_modules=["linear1", "linear2"], rank=2))
    state.requires_grad_(False)
    sequence = hosts.normal(2, 5, 16)
    with torch.set_grad_enabled(grad):
        found = call(host, sequence)
        hosts.close(found, call(host.train(), sequence))
        with state.disabled():
            assert not torch.allclose(call(host.eval(), sequence), found, atol=1e-3)


def test_a_padded_batch_in_eval_mode_is_not_turned_into_a_nested_tensor():
    host = encoder(stack=True).eval().requires_grad_(False)
    state = hosts.wake(attach(host, "lora", target_modules=["linear1"], rank=2)).requires_grad_(False)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    sequence = hosts.normal(2, 5, 16)
    with torch.no_grad():
        found = host(sequence, src_key_padding_mask=mask)
        wanted = host.train()(sequence, src_key_padding_mask=mask)
    hosts.close(found[~mask], wanted[~mask])
    state.detach()
    kinds = {type(module) for module in host.modules()}
    assert {nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.Linear} <= kinds


def test_an_encoder_is_fused_again_only_after_its_last_adapter():
    host = encoder(stack=True)
    one_state = attach(host, "lora", target_modules=["linear1"], rank=2)
    other = attach(host, "lora", target_modules=["linear2"], rank=2, adapter_name="other")
    one_state.detach()
    assert type(host.layers[0]) is not nn.TransformerEncoderLayer
    assert host.layers[0].activation_relu_or_gelu == 0
    assert "activation_relu_or_gelu" in vars(host.layers[0])
    other.detach()
    assert type(host.layers[0]) is nn.TransformerEncoderLayer
    assert host.layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_a_copied_encoder_stays_unfused(copied):
    host = encoder(stack=True).eval().requires_grad_(False)
    hosts.wake(attach(host, "lora", target_modules=["linear1"], rank=2)).requires_grad_(False)
    twin = copied(host)
    sequence = hosts.normal(2, 5, 16)
    assert torch.equal(twin(sequence), host(sequence))
    twin.tnadapt_default.detach()
    assert twin.layers[0].activation_relu_or_gelu == 1
