"""Rows of stacked factors in compiled code, where torch adds a gradient at a wrong index on a CPU."""

import subprocess
import sys

import pytest
import torch
from torch._functorch._aot_autograd import autograd_cache
from torch.func import functional_call, grad, jvp, vmap

from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch import hosts
from tests.torch.seam import compiled

X = hosts.normal(3, 8, dtype=torch.float64)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def adapted():
    """Return a model whose factors are stacked over two axes, and its trained factors without gradients."""
    model = compiled.host(layers=2)
    compiled.adapt(model, "lorta")
    return model, {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}


def loss_of(model):
    return lambda factors, x: functional_call(model, factors, (x,)).square().sum()


def by_factors(model, factors):
    return grad(loss_of(model)), (factors, X)


def by_x(model, factors):
    """The factors need a gradient of their own, which is none of the transform's."""
    return grad(lambda x: model(x).square().sum()), (X,)


def by_sample(model, factors):
    return vmap(grad(loss_of(model)), in_dims=(None, 0)), (factors, X)


def tangent(model, factors):
    return lambda x: jvp(model, (x,), (torch.ones_like(x),))[1], (X,)


def batch(model, factors):
    """A method of the model: of a module itself, torch would trace the text that names it."""
    return vmap(model.__call__), (X,)


def several(model, factors):
    """Models side by side, trained by an ordinary backward pass."""
    stacked = {name: torch.stack([one, 2 * one]).requires_grad_() for name, one in factors.items()}
    return vmap(lambda factors, x: functional_call(model, factors, (x,)), in_dims=(0, None)), (stacked, X)


def tensors_of(found, given):
    """Return the tensors of a result, and the gradients of what was given."""
    leaves = torch.utils._pytree.tree_leaves(found)
    trained = [one for one in torch.utils._pytree.tree_leaves(given) if one.requires_grad]
    return [*leaves, *(torch.autograd.grad(leaves[0].square().sum(), trained) if trained else [])]


MORE = [by_x, by_sample, tangent, batch, several] if IS_THOROUGH else []


@pytest.mark.parametrize("ask", [by_factors, *MORE])
def test_a_transform_in_compiled_code_adds_no_gradient_at_an_index(ask):
    """Transforms hide from a compiler whether a factor needs a gradient."""
    model, factors = adapted()
    called, given = ask(model, factors)
    wanted = tensors_of(called(*given), given)
    backend = compiled.Keeping()
    found = tensors_of(torch.compile(called, fullgraph=True, backend=backend)(*given), given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert backend.graphs
    assert compiled.added_at_an_index(backend.graphs) == []


@left_to_laws("it starts a process, and torch takes seconds to import")
def test_to_import_the_binding_does_not_import_the_compiler():
    probe = "import sys, tnadapt_torch; sys.exit(10 + ('torch._dynamo' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr


@left_to_laws("it exports a program")
def test_an_exported_program_can_be_loaded_without_this_package():
    model, _ = adapted()
    program = torch.export.export(model, (X,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.index_select.default" in names
    assert [name for name in names if not name.startswith("aten.")] == []


@left_to_laws("it compiles once more")
def test_torch_keeps_the_graph_of_a_training_step_for_the_next_process():
    checked = []

    def check(graph, inputs):
        autograd_cache.check_cacheable(graph)  # it raises for a graph that is not kept
        checked.append(graph)
        return graph.forward

    model, _ = adapted()
    torch.compile(model, fullgraph=True, backend=check)(X)
    assert checked


@left_to_laws("the C++ compiler takes seconds")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="no vectors, and so no tiles")
@pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="pytorch/pytorch issue 191837. If this passes, torch is mended: call index_select in _row_at of "
    "tnadapt_torch/_run/refs.py from this release of torch on, and without _Taken once no older one is supported",
)
def test_inductor_adds_a_transposed_matrix_at_the_right_index(two_threads):
    """No number lands outside of the array here: the place is the first, and the array has room behind it."""

    def put(matrix, place):
        return matrix.new_zeros(3, *matrix.T.shape).index_add(0, place, matrix.T[None])

    given = hosts.normal(64, 48), torch.tensor([0])
    torch.testing.assert_close(torch.compile(put, fullgraph=True)(*given), put(*given))
