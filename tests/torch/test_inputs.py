"""Inputs and outputs of a site: shapes, layouts, dtypes, autocast, dropout, views and in-place writes."""

import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt_torch import attach

representative = pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
anomaly_warns = pytest.mark.filterwarnings(
    "ignore:Anomaly Detection has been enabled:UserWarning"  # torch warns whenever anomaly detection is enabled
)
PATH = "layers.1.self_attn.v_proj"  # 8 x 16: not square

SHAPES = {
    "1-D": lambda: hosts.normal(16),
    "one token": lambda: hosts.normal(1, 16),
    "2-D": lambda: hosts.normal(3, 16),
    "one token in 3-D": lambda: hosts.normal(1, 1, 16),
    "4-D": lambda: hosts.normal(2, 3, 2, 16),
    "transposed": lambda: hosts.normal(16, 3).T,
    "every second": lambda: hosts.normal(4, 3, 32)[::2, :, ::2],
    "axes swapped": lambda: hosts.normal(2, 3, 16).transpose(0, 1),
    "expanded": lambda: hosts.normal(1, 16).expand(5, 16),
    "as many tokens as in": lambda: hosts.normal(16, 16),
}


def with_update(module, delta, x):
    """Compute the expected output of a site from its dense update, in the layout of nn.Linear."""
    return x @ (module.weight + delta).T + (0 if module.bias is None else module.bias)


@representative
@pytest.mark.parametrize("shape", SHAPES)
def test_a_site_accepts_any_shape_and_layout_of_x(family, shape):
    model = hosts.toy()
    state, module, x = hosts.adapt(model, family), model.get_submodule(PATH), SHAPES[shape]()
    hosts.close(module(x), with_update(module, state.delta(PATH), x))


@representative
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (0, 3, 16)])
def test_a_site_accepts_an_empty_batch(family, shape):
    model = hosts.toy()
    state, x = hosts.adapt(model, family), torch.zeros(shape, requires_grad=True)
    y = model.get_submodule(PATH)(x)
    assert y.shape == (*shape[:-1], 8)
    y.sum().backward()
    assert x.grad.shape == shape
    assert all(p.grad is None or not p.grad.any() for p in state.parameters())


@representative
def test_a_site_can_be_called_by_keyword(family):
    model = hosts.toy()
    hosts.adapt(model, family)
    module, x = model.get_submodule(PATH), hosts.normal(3, 16)
    assert torch.equal(module(input=x), module(x))


def conv1d(wide, narrow):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return nn.Sequential(Conv1D(wide, narrow))


@representative
def test_conv1d_can_be_adapted(family):
    model = conv1d(8, 16)
    state, x = hosts.adapt(model, family, target_modules=["0"]), hosts.normal(2, 3, 16)
    assert state.delta("0").shape == model[0].weight.shape == (16, 8)
    hosts.close(model(x), x @ (model[0].weight + state.delta("0")) + model[0].bias)


def test_conv1d_can_be_called_by_keyword():
    model = conv1d(8, 16)
    hosts.adapt(model, "lora", target_modules=["0"])
    x = hosts.normal(2, 16)
    assert torch.equal(model[0](x=x), model[0](x))


# ---- dtypes


@representative
def test_a_float64_model_can_have_float64_factors(family):
    model = hosts.toy(dtype=torch.float64)
    state = hosts.adapt(model, family)
    state.double()
    hosts.wake(state)
    module, x = model.get_submodule(PATH), hosts.normal(3, 16, dtype=torch.float64)
    assert state.delta(PATH).dtype == torch.float64
    hosts.close(module(x), with_update(module, state.delta(PATH), x), 1e-12)


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_can_have_float32_factors(family, dtype):
    model = hosts.toy(dtype=dtype)
    state, module = hosts.adapt(model, family), model.get_submodule(PATH)
    module.weight.detach().zero_()
    module.bias.detach().zero_()
    x = hosts.normal(3, 16, dtype=dtype)
    y = module(x)
    assert y.dtype == dtype
    assert state.delta(PATH).dtype == torch.float32
    hosts.close(y, x.float() @ state.delta(PATH).T, 2e-2)
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in state.parameters() if p.grad is not None} == {torch.float32}


@representative
def test_autocast_casts_the_update_and_keeps_float32_gradients(family):
    model = hosts.toy()
    state, module, x = hosts.adapt(model, family), model.get_submodule(PATH), hosts.normal(3, 16)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        whole = model(hosts.words())
    assert y.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    hosts.close(y, exact, 2e-2)
    whole.float().square().sum().backward()
    assert {p.grad.dtype for p in state.parameters() if p.grad is not None} == {torch.float32}


@representative
def test_a_float32_region_inside_autocast_is_exact(family):
    model = hosts.toy()
    hosts.adapt(model, family)
    wanted = model(hosts.words())
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        inner = model(hosts.words())
    assert inner.dtype == torch.float32
    assert torch.equal(inner, wanted)


# ---- dropout


def drop_ones(dropout, is_training):
    model = nn.Sequential(nn.Linear(2000, 1, bias=False))
    state = hosts.adapt(model, "lora", target_modules=["0"], dropout=dropout, overparametrized=True)
    with torch.no_grad():
        model[0].weight.zero_()
        for name, value in state.params().items():
            value.fill_(1.0 if name == "A" else 0.125)
    model.train(is_training)
    torch.manual_seed(0)
    return model(torch.ones(1, 2000)).item()


def test_dropout_acts_in_training_only():
    whole = drop_ones(0.0, is_training=True)
    assert drop_ones(0.4, is_training=False) == whole
    dropped = drop_ones(0.4, is_training=True)
    assert dropped != whole
    assert dropped == pytest.approx(whole, rel=0.1)  # kept entries are scaled up


def test_dropout_does_not_affect_the_output_of_the_host():
    model = hosts.toy().train()
    wanted = model(hosts.words())
    hosts.adapt(model, awake=False, dropout=0.5)
    assert torch.equal(model(hosts.words()), wanted)


def test_dropout_is_drawn_at_every_call_and_separately_per_adapter():
    model = hosts.toy().train()
    first = hosts.adapt(model, name="first", dropout=0.5)
    second = hosts.adapt(model, "vera", name="second")
    assert not torch.equal(model(hosts.words()), model(hosts.words()))
    with first.disabled():
        assert torch.equal(model(hosts.words()), model(hosts.words()))
    assert (first.dropout, second.dropout) == (0.5, 0.0)


# ---- views and in-place writes


class Changes(nn.Module):
    """A model that takes views of a site's output or changes it in place."""

    def __init__(self, change):
        super().__init__()
        self.site, self.change = nn.Linear(6, 8), change

    def forward(self, x):
        return self.change(self.site(x))


def split(y):
    left, right = y.chunk(2, dim=-1)
    return left * right.sigmoid() + y.view(*y.shape[:-1], 2, 4).sum(-2)


def write(y):
    y += 1
    y.mul_(y.detach().sigmoid())
    return y.relu_()


def write_into_view(y):
    top = y[..., :4]
    top *= 2
    return y.unflatten(-1, (2, 4)).transpose(-1, -2).reshape(*y.shape)


@representative
@anomaly_warns
@pytest.mark.parametrize("change", [split, write, write_into_view])
def test_the_output_can_be_viewed_and_changed_in_place(family, change):
    torch.manual_seed(0)
    model = Changes(change)
    state = hosts.adapt(model, family, target_modules=["site"], sizes={"head": 2} if family == "lorta" else {})
    x = hosts.normal(2, 3, 6).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        y = model(x)
        y.square().sum().backward()
    found, state_grads = x.grad.clone(), hosts.grads(state)
    x.grad = None
    wanted = change(with_update(model.site, state.delta("site"), x))
    state.zero_grad()
    wanted.square().sum().backward()
    hosts.close(y, wanted)
    hosts.close(found, x.grad)
    for name, gradient in hosts.grads(state).items():
        hosts.close(state_grads[name], gradient)


class Viewed(nn.Linear):
    """A linear layer that returns a strided view of a tensor that is used again later."""

    def forward(self, x):
        self.both = torch.stack([super().forward(x), x.sum(-1, keepdim=True).expand(*x.shape[:-1], 8)], dim=-1)
        return self.both[..., 0]


@representative
@anomaly_warns
def test_the_output_of_the_host_can_be_a_view_of_a_tensor_used_later(family):
    torch.manual_seed(0)
    model = nn.Sequential(Viewed(6, 8))
    state = hosts.adapt(model, family, target_modules=["0"], sizes={"head": 2} if family == "lorta" else {})
    x = hosts.normal(2, 3, 6).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        y, both = model(x), model[0].both
        (y.square().sum() + both.pow(3).sum()).backward()
    found, x.grad = x.grad, None
    plain = nn.functional.linear(x, model[0].weight, model[0].bias)
    hosts.close(both[..., 0], plain)
    wanted = with_update(model[0], state.delta("0"), x)
    (wanted.square().sum() + plain.pow(3).sum() + 8 * x.sum(-1).pow(3).sum()).backward()
    hosts.close(y, wanted)
    hosts.close(found, x.grad)


def test_the_output_of_the_host_is_not_changed_in_place():
    model, kept = hosts.toy(), []

    class Keeping(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            kept.append((output, output.clone()))
            return output

    module = model.get_submodule(PATH)
    module.__class__ = Keeping
    hosts.adapt(model, "lora")
    y = module(hosts.normal(3, 16))
    ((output, copied),) = kept
    assert torch.equal(output, copied)
    assert not torch.equal(output, y)


@pytest.mark.parametrize("is_requiring", [True, False])
def test_inference_mode_and_no_grad_give_the_same_output(is_requiring):
    model = hosts.toy()
    state = hosts.adapt(model)
    state.requires_grad_(requires_grad=is_requiring)
    wanted = model(hosts.words())
    with torch.inference_mode():  # in another order of sums, which some processors round otherwise
        hosts.close(model(hosts.words()), wanted, 1e-6)
    with torch.no_grad():
        assert not model(hosts.words()).requires_grad
    assert wanted.requires_grad is is_requiring


def test_a_linear_layer_in_two_places_is_one_site():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    state = attach(model, hosts.FAMILIES["lora"][0], target_modules="all-linear", rank=2, seed=0)
    hosts.wake(state)
    assert len(state.adapter.sites) == 1
    x = hosts.normal(3, 4)
    hosts.close(model["b"]["c"](x), with_update(shared, state.delta("a"), x))
