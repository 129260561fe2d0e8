"""The code that compilers get: the products of the plan, then a plain addition, with which they fuse what follows."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import detect_fake_mode
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import post_grad
from torch._inductor.utils import run_and_get_code
from torch._inductor.virtualized import V

from tests.table import FAMILIES, REPRESENTATIVES
from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch import hosts
from tests.torch.seam import compiled
from tnadapt import families, plan
from tnadapt.binding import find_product
from tnadapt_torch import attach
from tnadapt_torch._run.lower import lower_apply, nodes_read

MATRICES = [name for name, case in FAMILIES.items() if len(case.spec.axes) == 2]
LINEAR = [name for name, case in FAMILIES.items() if case.is_linear and (IS_THOROUGH or name in REPRESENTATIVES)]
TOKENS, WIDTH, OUT, RANK = 24, 16, 12, 2
STEPS = (torch.mm, torch.bmm, torch.mul)


@pytest.mark.parametrize("name", MATRICES)
def test_the_last_step_is_a_plain_addition_and_the_scale_lies_in_a_factor(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (8, 12)})
    for network in dict.fromkeys(adapter.networks):
        graph = lower_apply(network, 1024, fft=False, compiled=True).__self__.graph
        calls = [node for node in graph.nodes if node.op == "call_function"]
        methods = {node.target for node in graph.nodes if node.op == "call_method"}
        scalings = [node for node in calls if node.target is torch.mul and isinstance(node.args[1], float)]
        order = plan(network, tokens=1024, fft=False)
        assert {node.target for node in calls} <= {*STEPS, torch.add, torch.sub}
        assert methods <= {"reshape", "transpose", "permute", "contiguous", "unsqueeze", "squeeze"}
        assert sum(node.target in STEPS for node in calls) == len(order.steps) + len(scalings)
        additions = [node for node in calls if node.target in (torch.add, torch.sub)]
        assert len(additions) == len(network.terms)
        scales = {node.kwargs.get("alpha", 1.0) for node in additions} | {node.args[1] for node in scalings}
        assert {abs(scale) for scale in scales} <= {1.0, abs(network.scale)}
        if network.scale != 1.0:
            assert scalings
            assert all(node.args[0].op == "placeholder" for node in scalings)
            assert all("alpha" not in node.kwargs for node in additions)


def answers(code, given):
    """Return what code computes, and its gradients; all are zero for what the code does not read."""
    total = code(*given)
    grads = torch.autograd.grad(total.square().sum(), given, allow_unused=True)
    return [total, *(torch.zeros_like(one) if grad is None else grad for one, grad in zip(given, grads, strict=True))]


@pytest.mark.parametrize("name", MATRICES)
def test_it_computes_what_eager_code_computes(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (8, 12)})
    for network in dict.fromkeys(adapter.networks):
        readers = [find_product(network, term.nodes) for term in network.terms]
        for host_product in (False, True) if any(one is not None for one in readers) else (False,):
            asked = {"tokens": 1024, "fft": False, "host_product": host_product}
            order, (out, inner) = plan(network, **asked), network.weight_shape
            first = len(order.operands) - len(network.nodes)
            shapes = [[network.sizes[mode] for mode in order.inputs[first + n]] for n in nodes_read(network, **asked)]
            sides = [(5, out), (5, inner), *[(5, out)] * host_product]
            random = torch.Generator().manual_seed(0)
            given = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in (*sides, *shapes)]
            given = [one.requires_grad_() for one in given]
            wanted = answers(lower_apply(network, **asked), given)
            for one, other in zip(answers(lower_apply(network, compiled=True, **asked), given), wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, other.detach().abs().max().item()))


def passes_of(model, x):
    """Return the graphs of the forward and the backward pass, after the rewriting of Inductor on a CPU."""
    graphs = []

    def keep(graph, inputs):
        with V.set_fake_mode(detect_fake_mode(inputs)):
            post_grad.post_grad_passes(graph, is_inference=False)
        graphs.append(graph.graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table())
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend=backend)(x).square().sum().backward()
    torch.compiler.reset()
    return graphs


def large(graph):
    """Return the shapes of what each operation makes of activations, as matrices; views and factors are left out."""
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and not node.target.is_view:
            *_, width = node.meta["val"].shape
            if node.meta["val"].numel() == TOKENS * width:
                found.setdefault(node.target.name().split("::")[1].split(".")[0], []).append((TOKENS, width))
    return found


def test_lora_adds_no_pass_over_an_activation_but_its_two_additions():
    """On a bfloat16 host, where nothing is folded. Only factors are scaled, cast or copied.

    Inductor makes addmm of a product that is added as it is, and the other way round only on a GPU.
    """
    model = nn.Sequential(nn.Linear(WIDTH, OUT, bias=False)).to(torch.bfloat16)
    hosts.wake(attach(model, families.lora(alpha=8), target_modules=["0"], rank=RANK, seed=0))
    x = hosts.normal(2, TOKENS // 2, WIDTH, dtype=torch.bfloat16)
    forward, backward = passes_of(model, x.requires_grad_())
    assert large(forward) == {"mm": [(TOKENS, OUT), (TOKENS, RANK), (TOKENS, OUT)], "add": [(TOKENS, OUT)]}
    assert large(backward) == {
        "mm": [(TOKENS, RANK), (TOKENS, WIDTH), (TOKENS, WIDTH)],
        "add": [(TOKENS, WIDTH)],
    }


@pytest.mark.parametrize("name", LINEAR if IS_THOROUGH else ["lorta"])  # whose factors are stacked over weights
def test_no_gradient_is_added_at_an_index(name):
    """The inductor of torch 2.13 adds at a wrong index where the gradient is transposed and there are two threads."""
    model = compiled.host(layers=2)
    compiled.adapt(model, name)
    graphs = passes_of(model, hosts.normal(3, 8, dtype=torch.float64).requires_grad_())
    assert len(graphs) == 2
    assert compiled.added_at_an_index(graphs) == []


@left_to_laws("the C++ compiler takes seconds for each")
@pytest.mark.parametrize("name", LINEAR)
def test_code_for_two_threads_gives_the_numbers_of_eager_code_where_tiles_are_full(name):
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 320), nn.Tanh(), nn.Linear(320, 256))
    case, threads = FAMILIES[name], torch.get_num_threads()
    rank = case.rank if case.rank is None else 32
    state = attach(model, case.spec, target_modules="all-linear", rank=rank, sizes=case.sizes, overparametrized=True)
    hosts.wake(state, seed=0, size=0.02)
    x = hosts.normal(512, 256)
    torch.compiler.reset()
    torch.set_num_threads(2)
    try:
        wanted = compiled.answers(model, x)
        compiled.agree(compiled.answers(model, x, torch.compile(model, fullgraph=True)), wanted, tolerance=1e-3)
    finally:
        torch.set_num_threads(threads)
        torch.compiler.reset()


@left_to_laws("the C++ compiler takes seconds")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_fuses_the_addition_with_the_activation_that_follows(dtype):
    """A product that accumulates into y would be a call of a library, and the activation a kernel of its own."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(64, 48), nn.SiLU()).to(dtype)
    state = hosts.wake(attach(model, families.lora(alpha=8), target_modules=["0"], rank=RANK, seed=0))
    for update in state.updates.values():
        update.may_fold = False
    x = hosts.normal(TOKENS, 64, dtype=dtype)
    with torch.no_grad():
        found, (forward,) = run_and_get_code(torch.compile(model, fullgraph=True), x)
        hosts.close(found, model(x), 2e-2)
    assert forward.count("extern_kernels.addmm(") == 1, "the layer itself, with its bias"
    assert forward.count("extern_kernels.mm(") == 2, "the two products of the update"
    kernels = [line for line in forward.splitlines() if " = async_compile." in line]
    assert [line for line in kernels if "silu" in line and "_add_" in line], kernels
    torch.compiler.reset()
