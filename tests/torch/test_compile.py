"""torch.compile: one graph, few compilations, equal numbers."""

import pytest
import torch

from tests.torch import hosts

LENGTHS = [5, 7, 9, 12, 6]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that runs the graph as it is, and counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        self.calls += 1
        return graph.forward


@pytest.mark.parametrize(
    ("family", "dropout"), [*((family, 0.0) for family in (*hosts.REPRESENTATIVES, "tera")), ("lotr", 0.3)]
)
def test_one_graph_in_training_for_every_length(family, dropout):
    model = hosts.toy(layers=1).train()
    hosts.adapt(model, family, dropout=dropout)
    model.double()  # so that only a wrong number is off, not one that was summed in another order
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
def test_one_graph_for_every_number_of_tokens_of_one_site(family):
    model = hosts.toy()
    hosts.adapt(model, family)
    site, backend = model.layers[1].self_attn.v_proj, Counting()
    compiled = torch.compile(site, fullgraph=True, backend=backend)
    for tokens in LENGTHS:
        x = hosts.normal(tokens, 16)
        hosts.close(compiled(x), site(x))
    assert 1 <= backend.calls <= 2


def test_a_step_changes_what_a_compiled_model_computes_without_a_new_compilation():
    model = hosts.toy(layers=1)
    state, backend = hosts.adapt(model, "lotr"), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for seed in range(3):
        hosts.wake(state, seed=seed)
        hosts.close(compiled(hosts.words()), model(hosts.words()))
    assert backend.calls == 1


def test_switching_off_and_merging_are_seen_by_a_compiled_model():
    model = hosts.toy(layers=1)
    wanted = model(hosts.words())
    state = hosts.adapt(model, "lotr")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    adapted = compiled(hosts.words())
    with state.disabled():
        hosts.close(compiled(hosts.words()), wanted)
    hosts.close(compiled(hosts.words()), adapted)
    state.merge()
    hosts.close(compiled(hosts.words()), adapted)
    state.unmerge()
    state.detach()
    hosts.close(compiled(hosts.words()), wanted)


def test_two_adapters_are_one_graph():
    model = hosts.toy(layers=1)
    hosts.adapt(model, "lotr", name="first")
    hosts.adapt(model, "tera", name="second")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    hosts.close(compiled(hosts.words()), model(hosts.words()))


def test_autocast_is_one_graph():
    model = hosts.toy(layers=1)
    hosts.adapt(model, "lotr")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        hosts.close(compiled(hosts.words()), model(hosts.words()), 2e-2)
