"""Every family under torch.compile: the whole model is one graph, equal layers by themselves at most two."""

import pytest
import torch
from torch import nn

from tests.table import FAMILIES, REPRESENTATIVES
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt_torch import attach

LINEAR = [name for name, case in FAMILIES.items() if case.is_linear and (IS_THOROUGH or name in REPRESENTATIVES)]
LAYERS = 4


class Layer(nn.Module):
    """Two linear layers, with even axes, of two shapes."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Counting:
    """A compiler backend that runs the graph unchanged and counts the graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def adapted(name):
    torch.manual_seed(0)
    model, case = Stack().double().train(), FAMILIES[name]
    state = attach(
        model, case.spec, target_modules="all-linear", rank=case.rank, sizes=case.sizes, seed=0, overparametrized=True
    ).double()
    return model, hosts.wake(state, size=0.3)


def passes(model, batches=(3, 5, 6)):
    """Run training passes; return outputs and gradients."""
    found = []
    for batch in batches:
        model.zero_grad()
        y = model(hosts.normal(batch, 4, 8, dtype=torch.float64).requires_grad_())
        y.square().sum().backward()
        found.append((y.detach(), hosts.grads(model)))
    return found


def compare(found, wanted):
    for (y, gradients), (y_wanted, gradients_wanted) in zip(found, wanted, strict=True):
        hosts.close(y, y_wanted, 1e-9)
        assert gradients.keys() == gradients_wanted.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, gradients_wanted[name], rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("name", LINEAR)
def test_a_model_is_one_graph(name):
    model, _ = adapted(name)
    wanted = passes(model)
    backend = Counting()
    model.compile(fullgraph=True, backend=backend, dynamic=True)
    compare(passes(model), wanted)
    assert backend.graphs == 1


@pytest.mark.parametrize("name", LINEAR)
def test_equal_layers_by_themselves_are_one_graph(name):
    model, _ = adapted(name)
    wanted = passes(model, batches=(3,))
    backend = Counting()
    for layer in model.layers:
        layer.compile(fullgraph=True, backend=backend)
    compare(passes(model, batches=(3,)), wanted)
    assert backend.graphs == 1
