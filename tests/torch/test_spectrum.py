"""Sites that convolve: what they read, in which dtype they transform, and that compiled code contracts instead."""

import copy
import io

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from tests.cyclic import convolving
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import families, plan
from tnadapt_torch import attach

WIDTH, BLOCK = 64, 16
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@pytest.fixture(autouse=True)
def always():
    with convolving():
        yield


def model_of(dtype=torch.float64):
    """Two layers with C3A, at random values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).to(dtype)
    sizes = {"o2": BLOCK, "i2": BLOCK}
    state = attach(model, families.c3a(alpha=WIDTH), target_modules=["0", "2"], sizes=sizes)
    state.to(torch.float64 if dtype == torch.float64 else torch.float32)
    for value in state.parameters():
        nn.init.normal_(value)
    assert plan(state.adapter.networks[0], tokens=16).convolutions
    return model, state


def answers(function, model, x):
    """Outputs and gradients, in float64."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    y = function(x)
    y.double().square().sum().backward()
    return [y.detach().double(), x.grad.double(), *(value.double() for value in hosts.grads(model).values())]


def densely(model, state):
    """The same model with the dense updates, in float64."""
    wide = copy.deepcopy(model).double()
    deltas = {path: state.delta(path).double() for path in ("0", "2")}

    def run(x):
        for path, layer in wide.named_children():
            if path in deltas:
                x = nn.functional.linear(x, layer.weight.detach() + deltas[path], layer.bias.detach())
            else:
                x = layer(x)
        return x

    return run


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_transform_takes_less_than_float32(dtype):
    model, state = model_of(dtype)
    x = torch.randn(20, WIDTH, dtype=dtype)
    y = model(x)
    assert y.dtype == dtype
    hosts.close(y.double(), densely(model, state)(x.double()), TOLERANCE[dtype])


def test_autocast_transforms_in_float32():
    model, state = model_of(torch.float32)
    x = torch.randn(20, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    hosts.close(y.double(), densely(model, state)(x.double()), TOLERANCE[torch.bfloat16])


def test_the_pattern_is_not_read():
    model, state = model_of()
    x = torch.randn(20, WIDTH, dtype=torch.float64)
    wanted = answers(model, model, x)
    for name, value in state.params().items():
        if name.endswith("J"):
            value.fill_(torch.nan)
    for one, two in zip(answers(model, model, x), wanted, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"] if IS_THOROUGH else ["aot_eager"])
def test_compiled_code_contracts_the_pattern_and_gives_the_same_numbers(backend):
    model, _ = model_of()
    x = torch.randn(20, WIDTH, dtype=torch.float64)
    wanted = answers(model, model, x)
    torch.compiler.reset()
    found = answers(torch.compile(model, fullgraph=True, backend=backend), model, x)
    torch.compiler.reset()
    for one, two in zip(found, wanted, strict=True):
        hosts.close(one, two, 1e-10)


def test_a_copy_a_pickle_and_a_trace_give_the_same_numbers():
    model, _ = model_of()
    x = torch.randn(20, WIDTH, dtype=torch.float64)
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), wanted)
    hosts.close(torch.vmap(model)(x.reshape(4, 5, WIDTH)).reshape(wanted.shape), wanted, 1e-10)
    hosts.close(torch.export.export(model, (x,)).module()(x), wanted, 1e-10)
    with torch.inference_mode():
        hosts.close(model(x), wanted, 1e-10)
    assert torch.autograd.gradcheck(model, (x[:2].requires_grad_(),))


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_tensors_are_contracted(mesh):
    """The backward pass of a product of spectra fails on some of their layouts, in torch 2.13 on two processes."""
    model, state = model_of()
    x = torch.randn(20, WIDTH, dtype=torch.float64)
    wanted = model(x)
    for module in (model[0], model[2]):
        for name, value in [*module._parameters.items()]:
            spread = distribute_tensor(value.detach(), mesh, [Replicate()])
            module._parameters[name] = nn.Parameter(spread, requires_grad=False)
    given = distribute_tensor(x, mesh, [Replicate()]).requires_grad_()
    found = model(given)
    hosts.close(found.full_tensor(), wanted, 1e-10)
    found.sum().backward()
    assert given.grad.full_tensor().shape == x.shape
    for name, value in state.params().items():
        if name.endswith("J"):
            value.fill_(torch.nan)
    assert model(given).full_tensor().isnan().all()
