"""Rows of a stacked factor, unbound once for all sites: no row is ever stale and no gradient is lost."""

import pytest
import torch

from tests.torch import hosts
from tnadapt import AdapterSpec, raw, trainable, zeros
from tnadapt_torch import attach

BATCH = hosts.words()
stacked = pytest.mark.parametrize("family", ["lotr", "lorta", "tlora", "tera"])


def adapted(family):
    model = hosts.toy()
    return model, hosts.adapt(model, family)


def gradients(model):
    model.zero_grad()
    model(BATCH).square().sum().backward()
    return hosts.grads(model)


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        hosts.close(found[name], gradient)


def double(state):
    """Double every parameter, by each of the ways in which a parameter can be changed."""
    with torch.no_grad():
        for place, parameter in enumerate(state.parameters()):
            if place % 3 == 0:
                parameter.mul_(2)
            elif place % 3 == 1:
                parameter.data = 2 * parameter.data
            else:
                parameter.data.mul_(2)


@stacked
def test_rows_follow_every_way_of_changing_a_parameter(family):
    model, state = adapted(family)
    fresh, other = adapted(family)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    model(BATCH).sum().backward()
    double(state)
    assert torch.equal(model(BATCH), fresh(BATCH))
    assert_close(gradients(model), gradients(fresh))


@stacked
def test_a_forward_without_gradients_does_not_affect_the_next_one(family):
    wanted = gradients(adapted(family)[0])
    model, _ = adapted(family)
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            model(BATCH)
        assert_close(gradients(model), wanted)


@stacked
def test_a_graph_can_be_used_twice_and_two_graphs_in_any_order(family):
    model, _ = adapted(family)
    wanted = gradients(model)
    model.zero_grad()
    loss = model(BATCH).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_close(hosts.grads(model), {name: 2 * gradient for name, gradient in wanted.items()})
    model.zero_grad()
    first, second = model(BATCH).square().sum(), 3 * model(BATCH).square().sum()
    second.backward()
    first.backward()
    assert_close(hosts.grads(model), {name: 4 * gradient for name, gradient in wanted.items()})


@stacked
def test_a_factor_can_be_frozen_and_trained_again(family):
    model, state = adapted(family)
    wanted = gradients(model)
    state.requires_grad_(requires_grad=False)
    assert not model(BATCH).requires_grad
    state.requires_grad_(requires_grad=True)
    assert_close(gradients(model), wanted)


@stacked
def test_hooks_on_a_parameter_are_run(family):
    model, state = adapted(family)
    wanted = gradients(model)
    seen = []
    for parameter in state.parameters():
        parameter.register_hook(lambda gradient: 2 * gradient)
        parameter.register_post_accumulate_grad_hook(seen.append)
    found = gradients(model)
    assert len(seen) == len(list(state.parameters()))
    assert_close(found, {name: 2 * gradient for name, gradient in wanted.items()})


@stacked
def test_parameters_can_be_replaced_by_functional_call(family):
    model, _ = adapted(family)
    wanted = gradients(model)
    model(BATCH)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    given = {name: model.get_parameter(name).detach().clone().requires_grad_() for name in names}
    torch.func.functional_call(model, given, (BATCH,)).square().sum().backward()
    assert_close({name: value.grad for name, value in given.items()}, wanted)
    assert_close(gradients(model), wanted)


def as_function(model, state):
    """Return the loss as a function of the adapter's parameters, and their values."""
    values = {f"tnadapt_default.{name}": p.detach() for name, p in state.named_parameters()}
    return lambda given: torch.func.functional_call(model, given, (BATCH,)).square().sum(), values


@stacked
def test_func_grad_gives_the_same_gradients(family):
    model, state = adapted(family)
    wanted = gradients(model)
    loss, values = as_function(model, state)
    assert_close(torch.func.grad(loss)(values), wanted)
    assert_close(gradients(model), wanted)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"  # torch's rules for forward mode use torch.jit.script
)
@stacked
def test_forward_mode_agrees_with_backward_mode(family):
    model, state = adapted(family)
    loss, values = as_function(model, state)
    tangents = {name: hosts.normal(*value.shape, seed=9) for name, value in values.items()}
    wanted = sum((gradient * tangents[name]).sum() for name, gradient in gradients(model).items())
    _, found = torch.func.jvp(loss, (values,), (tangents,))
    hosts.close(found, wanted, 1e-4)


@stacked
def test_second_derivatives_are_repeatable(family):
    model, state = adapted(family)
    parameters = list(state.parameters())

    def once():
        first = torch.autograd.grad(model(BATCH).square().mean(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    wanted = once()
    for found, gradient in zip(once(), wanted, strict=True):
        hosts.close(found, gradient)


@pytest.mark.parametrize("modes", ["layer kind out in", "out layer in kind", "kind out in layer", "out in kind layer"])
def test_site_modes_can_be_anywhere_in_a_factor(modes):
    spec = AdapterSpec(
        name="own", weight="out in", over="layer kind", factors={"D": trainable(modes, init=zeros())}, scale=raw(2)
    )
    model = hosts.toy(3)
    state = hosts.wake(attach(model, spec, target_modules=["k_proj", "v_proj"], layers_to_transform=[0, 2], seed=0))
    whole = torch.einsum(f"{''.join(word[0] for word in modes.split())}->lkoi", state.params()["D"])
    for layer, place in ((0, 0), (2, 1)):
        for kind, number in (("k_proj", 0), ("v_proj", 1)):
            path = f"layers.{layer}.self_attn.{kind}"
            wanted = 2 * whole[place, number]
            hosts.close(state.delta(path), wanted)
            module, x = model.get_submodule(path), hosts.normal(3, 16)
            hosts.close(module(x) - module.bias, x @ (module.weight + wanted).T)
