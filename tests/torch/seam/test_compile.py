"""Adapted models under torch.compile: one graph, few compilations, the same numbers."""

import pytest
import torch

from tests.thorough import IS_THOROUGH
from tests.torch import hosts

LENGTHS = [5, 7, 9, 12, 6]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A compiler backend that runs the graph unchanged and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        self.calls += 1
        return graph.forward


@pytest.mark.parametrize(
    ("family", "dropout"),
    [*((family, 0.0) for family in (*hosts.REPRESENTATIVES, *(["tera"] if IS_THOROUGH else []))), ("lotr", 0.3)],
)
def test_training_uses_one_graph_for_every_length(family, dropout):
    model = hosts.toy(layers=1).train()
    hosts.adapt(model, family, dropout=dropout)
    model.double()  # so that a different order of summation does not matter
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for length in LENGTHS:
        batch = hosts.words(2, length)
        torch.manual_seed(length)
        wanted = model(batch)
        wanted.square().sum().backward()
        gradients = hosts.grads(model)
        model.zero_grad()
        torch.manual_seed(length)
        found = compiled(batch)
        found.square().sum().backward()
        hosts.close(found, wanted, 1e-10)
        for name, gradient in hosts.grads(model).items():
            hosts.close(gradient, gradients[name], 1e-10)
        model.zero_grad()
    assert 1 <= backend.calls <= 2


@pytest.mark.parametrize("family", ["lotr", "vera"])
def test_a_site_uses_one_graph_for_every_number_of_tokens(family):
    model = hosts.toy()
    hosts.adapt(model, family)
    site, backend = model.layers[1].self_attn.v_proj, Counting()
    compiled = torch.compile(site, fullgraph=True, backend=backend)
    for tokens in LENGTHS:
        x = hosts.normal(tokens, 16)
        hosts.close(compiled(x), site(x))
    assert 1 <= backend.calls <= 2


def test_a_compiled_model_uses_changed_factors_without_recompiling():
    model = hosts.toy(layers=1)
    state, backend = hosts.adapt(model, "lotr"), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for seed in range(3):
        hosts.wake(state, seed=seed)
        hosts.close(compiled(hosts.words()), model(hosts.words()))
    assert backend.calls == 1


def test_a_model_under_autocast_compiles_to_one_graph():
    model = hosts.toy(layers=1)
    hosts.adapt(model, "lotr")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        hosts.close(compiled(hosts.words()), model(hosts.words()), 2e-2)
