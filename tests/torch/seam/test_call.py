"""Layers of other signatures: the input is found among the arguments, and what cannot be served is refused."""

import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt import SiteError


class Masked(nn.Linear):
    def forward(self, hidden, mask=None, *, scale=1.0):
        return super().forward(hidden * scale)


class Named(nn.Linear):
    def forward(self, *, mask, x):
        return super().forward(x)


class Noisy(nn.Linear):
    def forward(self, scale, hidden):
        return super().forward(hidden * scale)


CALLS = {
    "before the input, a number": (Masked, lambda layer, x: layer(scale=1.0, hidden=x)),
    "before the input, a mask": (Masked, lambda layer, x: layer(mask=torch.zeros(3, 1), hidden=x)),
    "by a name that is known": (Named, lambda layer, x: layer(mask=torch.zeros(3, 16), x=x)),
    "by place, a number": (Noisy, lambda layer, x: layer(1.0, x)),
}


@pytest.mark.parametrize("more", [{}, {"blocks": {"0": (2, 2)}}], ids=["whole", "blocks"])
@pytest.mark.parametrize("call", CALLS)
def test_the_input_is_found_among_other_arguments(call, more):
    kind, act = CALLS[call]
    model = nn.Sequential(kind(16, 16))
    state, x = hosts.adapt(model, "lora", target_modules=["0"], **more), hosts.normal(3, 16)
    hosts.close(act(model[0], x), nn.functional.linear(x, model[0].weight + state.delta("0"), model[0].bias))


def test_an_input_that_cannot_be_told_from_another_argument_is_refused():
    model = nn.Sequential(Masked(16, 16))
    hosts.adapt(model, "lora", target_modules=["0"])
    with pytest.raises(SiteError, match=r"^x: expected one argument of the layer with 16 numbers along .*, got 2"):
        model[0](mask=torch.zeros(3, 16), hidden=hosts.normal(3, 16))


def test_a_layer_that_returns_more_than_a_tensor_is_refused_and_can_be_folded():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), self.bias

    model, x = nn.Sequential(Pair(16, 16)), hosts.normal(3, 16)
    state = hosts.adapt(model, "lora", target_modules=["0"])
    with pytest.raises(SiteError, match=r"^0: expected a layer that returns a tensor, got one that returns a tuple"):
        model[0](x)
    state.detach()
    state = hosts.adapt(model, "lora", target_modules=["0"], fold=True)
    wanted = nn.functional.linear(x, state.weights["0"].parameter + state.delta("0"), model[0].bias)
    hosts.close(model[0](x)[0], wanted)
