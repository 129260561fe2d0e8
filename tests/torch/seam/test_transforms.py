"""Whether a layer passes the gradient on, inside the transforms of torch.func, whose wrappers hide the flags of x."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import attach

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"  # torch's rules for forward mode use torch.jit.script
)
X = hosts.normal(3, 2, 8)


class Stops(nn.Linear):
    """A layer whose output has no gradient, like a kernel without a derivative."""

    def forward(self, x):
        return super().forward(x.detach())


def host(second=nn.Linear, **more):
    """Make two layers: the adapters of the first one need a gradient that the second one must pass on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), second(8, 8))
    states = [
        attach(model, "lora", target_modules=["0", "1"], rank=2, seed=seed, adapter_name=name, **more)
        for seed, name in enumerate(("first", "second"))
    ]
    return model, [hosts.wake(state) for state in states]


def factors(model, layer=""):
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and layer in name}


def ensemble(model):
    """Map over the factors of the second layer: its input is then one plain tensor, and its output is many."""
    stacked = {name: torch.stack([value, value]) for name, value in factors(model, "1").items()}
    return vmap(lambda given: functional_call(model, given, (X,)))(stacked)[0]


def gradient(model):
    """Differentiate by the factors of the second layer: its input has no gradient at this level, but one outside."""
    grad(lambda given: functional_call(model, given, (X,)).sum())(factors(model, "1"))
    return model(X)


def per_example(model):
    loss = grad(lambda given, x: functional_call(model, given, (x,)).sum())
    vmap(loss, in_dims=(None, 0))(factors(model), X)
    return model(X)


def nested(model):
    grad(lambda factor: vmap(model)(factor * X).sum())(torch.tensor(1.0))
    return model(X)


TRANSFORMS = {
    "vmap over factors": ensemble,
    "vmap over x": lambda model: vmap(model)(X),
    "grad": gradient,
    "vmap of grad": per_example,
    "grad of vmap": nested,
    "jvp": lambda model: jvp(model, (X,), (X,))[0],
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@transforms
@pytest.mark.parametrize("more", [{}, {"blocks": {"1": (2, 1)}}], ids=["whole", "blocks"])
@pytest.mark.parametrize("unproven", [False, True])
def test_a_layer_that_passes_the_gradient_is_accepted(transform, more, unproven):
    model, states = host(**more)
    updates = [state.updates["1"] for state in states]
    for update in updates:
        update.unproven = unproven  # what attach sets if the layer is quantized
    y = transform(model)
    assert not any(update.unproven for update in updates)
    hosts.close(y.detach(), model(X).detach(), 1e-5)


@transforms
@pytest.mark.parametrize("unproven", [False, True])
def test_a_layer_that_stops_the_gradient_is_refused(transform, unproven):
    model, states = host(Stops)
    for state in states:
        state.updates["1"].unproven = unproven
    with pytest.raises(SiteError, match=r"^1: expected a layer that passes the gradient on to its input, got one"):
        transform(model)
    with torch.no_grad():
        assert model(X).isfinite().all()


def forward(model):
    """Differentiate in the direction of the factors of the second layer."""
    given = factors(model, "1")
    return jvp(lambda given: functional_call(model, given, (X,)), (given,), (given,))[0]


@pytest.mark.parametrize("transform", [ensemble, forward])
def test_compiled_code_inside_a_transform_is_accepted(transform):
    model, _ = host()
    torch.compiler.reset()
    compiled = torch.compile(transform, backend="eager", fullgraph=True)
    hosts.close(compiled(model).detach(), model(X).detach(), 1e-5)
