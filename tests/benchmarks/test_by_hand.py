"""Hand-written methods have the values and the gradients of tnadapt: the two sides of a table compute the same."""

import pytest
import torch
from torch import nn

import tnadapt_torch
from tests.thorough import IS_THOROUGH
from tnadapt import families

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("modules")

TOKENS, WIDTH, WIDER = 6, 32, 48


@pytest.fixture
def methods(modules):
    from llama import Shape, methods

    return methods(Shape(hidden=WIDTH, inner=WIDER, heads=8, key_heads=4))


def host():
    torch.manual_seed(0)
    layers = ({"q": nn.Linear(WIDTH, WIDTH, bias=False), "up": nn.Linear(WIDTH, WIDER)} for _ in range(2))
    return nn.ModuleList(nn.ModuleDict(one) for one in layers).double().requires_grad_(False)


def outputs(model, trained):
    """Return the outputs of all layers, the gradient of x, and the sum of squares of the gradients of the factors.

    Rows of a stacked factor are parameters of their own by hand, so the gradients are not compared one by one.
    """
    x = torch.linspace(-1, 1, TOKENS * WIDTH, dtype=torch.float64).reshape(TOKENS, WIDTH).requires_grad_()
    y = torch.cat([layer[kind](x) for layer in (model[0], model[1]) for kind in ("q", "up")], 1)
    leaves = [one for one in trained.parameters() if one.requires_grad]
    first, *others = torch.autograd.grad(y.square().sum(), (x, *leaves))
    return y.detach(), first, torch.stack([one.square().sum() for one in others]).sum()


def test_every_method_has_a_formula(methods):
    from by_hand import FORMULAS
    from llama import METHODS

    assert sorted(one.family for one in methods.values()) == sorted(FORMULAS)
    assert tuple(methods) == METHODS


def test_a_formula_has_the_values_and_gradients_of_tnadapt(methods):
    """Without TeRA, whose plans take seconds, unless all laws are tested."""
    from by_hand import FORMULAS, put_by_hand

    x = torch.linspace(-1, 1, TOKENS * WIDTH, dtype=torch.float64).reshape(TOKENS, WIDTH)
    plain = torch.cat([layer[kind](x) for layer in host() for kind in ("q", "up")], 1)
    for name, method in methods.items():
        if name == "TeRA" and not IS_THOROUGH:
            continue
        model, hand = host(), host()
        words = {"target_modules": ["q", "up"], "seed": 0} | method.words
        state = tnadapt_torch.attach(model, getattr(families, method.family)(), **words).double()
        with torch.no_grad():
            for parameter in state.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))
        put_by_hand(hand, state, FORMULAS[method.family])
        found, wanted = outputs(hand, hand), outputs(model, state)
        assert (wanted[0] - plain).abs().max() > 1e-3, name
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()), msg=name)
