"""Modes, transforms, traces and threads: the right numbers, and nothing of a trace is left behind."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import SiteError
from tnadapt_torch import attach

FAMILIES = ["lora", "lotr", "vera", "lorta"]  # plain, stacked, frozen, a hyperedge
families = pytest.mark.parametrize("family", FAMILIES)
MODES = [(mode, pre_dispatch) for mode in ("real", "fake", "symbolic") for pre_dispatch in (True, False)]
TRACES = [(family, *each) for family in FAMILIES for each in MODES]
# A symbolic trace takes up to ten seconds: each family once, each mode once.
SOME = [("lora", "fake", True), ("lotr", "fake", False), ("lorta", "real", True), ("vera", "symbolic", False)]


def host(family, **more):
    model = hosts.toy().double()
    state = hosts.adapt(model, family, **more)
    return model, state.double()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def assert_real(model, wanted):
    """Assert that the model gives real numbers and gradients, as before a trace."""
    y = model(hosts.words())
    assert type(y) is torch.Tensor
    hosts.close(y, wanted, 1e-12)
    y.sum().backward()
    assert all(type(p.grad) is torch.Tensor for p in trained(model).values())
    model.zero_grad()


@families
def test_a_pass_under_fake_tensors_leaves_nothing(family):
    model, _ = host(family)
    wanted = model(hosts.words()).detach()
    for words in (hosts.words(), None):
        with FakeTensorMode(allow_non_fake_inputs=True):
            y = model(hosts.words() if words is None else words)
        assert y.shape == wanted.shape
    assert_real(model, wanted)


@pytest.mark.parametrize(("family", "mode", "pre_dispatch"), TRACES if IS_THOROUGH else SOME)
def test_a_trace_by_make_fx_computes_the_same_and_leaves_nothing(family, mode, pre_dispatch):
    model, _ = host(family)
    wanted = model(hosts.words()).detach()

    def run(parameters, words):
        return functional_call(model, parameters, (words,))

    given = {name: p.detach() for name, p in model.named_parameters()} | dict(model.named_buffers())
    traced = make_fx(run, tracing_mode=mode, pre_dispatch=pre_dispatch, _allow_non_fake_inputs=True)(
        given, hosts.words()
    )
    hosts.close(traced(given, hosts.words(seed=5)), model(hosts.words(seed=5)), 1e-12)
    changed = {name: 2 * value if "tnadapt" in name else value for name, value in given.items()}
    assert not torch.allclose(traced(changed, hosts.words()), wanted)
    assert_real(model, wanted)


@families
def test_a_trace_of_the_gradients(family):
    model, _ = host(family)
    wanted = model(hosts.words()).detach()

    def loss(parameters, words):
        return functional_call(model, parameters, (words,)).square().sum()

    parameters = {name: p.detach() for name, p in trained(model).items()}
    traced = make_fx(grad(loss))(parameters, hosts.words())
    found = traced(parameters, hosts.words())
    loss(trained(model), hosts.words()).backward()
    for name, p in trained(model).items():
        hosts.close(found[name], p.grad, 1e-10)
    model.zero_grad()
    assert_real(model, wanted)


@families
def test_gradients_of_single_examples(family):
    model, _ = host(family)
    wanted = model(hosts.words(3)).detach()
    parameters = {name: p.detach() for name, p in trained(model).items()}

    def loss(parameters, words):
        return functional_call(model, parameters, (words[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, hosts.words(3))
    for row in range(3):
        model.zero_grad()
        model(hosts.words(3)[row : row + 1]).square().sum().backward()
        for name, p in trained(model).items():
            hosts.close(found[name][row], p.grad, 1e-9)
    model.zero_grad()
    y = model(hosts.words(3))
    hosts.close(y, wanted, 1e-12)


@families
def test_an_ensemble_of_factors(family):
    model, state = host(family)
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in trained(model).items()}
    words = hosts.words()
    found = vmap(lambda parameters: functional_call(model, parameters, (words,)))(stacked)
    hosts.close(found[0], model(hosts.words()), 1e-12)
    with torch.no_grad():
        for p in state.parameters():
            p.mul_(2)
    hosts.close(found[1], model(hosts.words()), 1e-12)


@pytest.mark.parametrize("family", FAMILIES if IS_THOROUGH else ["lotr"])
def test_an_exported_program_computes_the_same(family):
    model, _ = host(family)
    model.eval()
    wanted = model(hosts.words()).detach()
    program = torch.export.export(
        model, (hosts.words(),), dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("t")},)
    )
    hosts.close(program.module()(hosts.words(3, 4)), model(hosts.words(3, 4)), 1e-12)
    assert_real(model, wanted)


@families
def test_a_second_derivative(family):
    model, state = host(family, target_modules=["down"])
    x = hosts.normal(2, 3, 16, dtype=torch.float64).requires_grad_()
    layer = nn.Sequential(*model.layers)
    first, *_ = torch.autograd.grad(layer(x).square().sum(), [x], create_graph=True)
    found = torch.autograd.grad(first.square().sum(), list(state.parameters()), allow_unused=True)
    step, direction = 1e-5, [torch.randn_like(p) for p in state.parameters()]

    def moved(size):
        with torch.no_grad():
            for p, d in zip(state.parameters(), direction, strict=True):
                p.add_(size * d)
        value = torch.autograd.grad(layer(x).square().sum(), [x])[0].square().sum()
        with torch.no_grad():
            for p, d in zip(state.parameters(), direction, strict=True):
                p.sub_(size * d)
        return value

    slope = (moved(step) - moved(-step)) / (2 * step)
    summed = sum((g * d).sum() for g, d in zip(found, direction, strict=True) if g is not None)
    hosts.close(summed, slope, 1e-5)


@families
def test_an_evaluation_in_a_thread_beside_training(family):
    model, state = host(family)
    wanted = hosts_gradients(model)
    stop = threading.Event()
    wrong = []

    def evaluate():
        while not stop.is_set():
            with torch.no_grad():
                if model(hosts.words()).requires_grad:
                    wrong.append("a graph in evaluation")

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            found = hosts_gradients(model)
            assert found.keys() == wanted.keys()
            for name, gradient in found.items():
                hosts.close(gradient, wanted[name], 1e-12)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert state.active


def hosts_gradients(model):
    model.zero_grad()
    model(hosts.words()).square().sum().backward()
    return hosts.grads(model)


# ---- other kinds of tensors that a host may pass


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("more", [{}, {"blocks": {"down": (2, 1)}}])
def test_a_jagged_batch_is_right_and_another_nested_one_is_refused(more):
    model, _ = host("lora", **more)
    layer = model.layers[0].mlp.down
    rows = [hosts.normal(n, 24, dtype=torch.float64) for n in (2, 4)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    found = layer(nested)
    for part, row in zip(found.unbind(), rows, strict=True):
        hosts.close(part, layer(row), 1e-12)
    found.values().sum().backward()
    with pytest.raises(SiteError, match=r"x: expected a nested tensor of layout torch\.jagged"):
        layer(torch.nested.nested_tensor(rows, layout=torch.strided))


def test_a_subclass_of_tensor_passes_through():
    class Named(torch.Tensor):
        pass

    model, _ = host("lotr")
    layer = model.layers[0].mlp.down
    x = hosts.normal(3, 24, dtype=torch.float64)
    found = layer(x.as_subclass(Named))
    hosts.close(found.as_subclass(torch.Tensor), layer(x), 1e-12)


def test_swapped_parameters_are_the_same_objects():
    model, state = host("lotr")
    model(hosts.words())
    before = {id(p) for p in state.parameters()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert {id(p) for p in state.parameters()} == before
    assert model(hosts.words()).dtype == torch.float32


@families
@pytest.mark.parametrize("is_run", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_trace_of_jit_has_the_factors_as_parameters_and_serves_any_length(family, is_run):
    model = hosts.sequential()
    sizes = {"sizes": {"head": 1}} if family == "lorta" else {}
    state = attach(model, hosts.FAMILIES[family][0], target_modules=["0", "2"], rank=2, **sizes)
    hosts.wake(state)
    x = hosts.normal(4, 5)
    if is_run:
        model(x)  # rows of a stack that are kept from this call are no part of the trace
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    hosts.wake(state, seed=8)
    for tokens in (4, 700):
        x = hosts.normal(tokens, 5)
        hosts.close(traced(x), model(x))
