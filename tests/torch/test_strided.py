"""Products of batches of matrices that lie in any order: values, gradients, and where each array lies."""

import itertools

import pytest
import torch
from torch.func import grad, jvp, vmap

from tests.torch import hosts
from tnadapt import families, grid
from tnadapt_torch._run.lower import lower_apply
from tnadapt_torch._run.strided import multiply
from tnadapt_torch._run.ways import FORMS

BATCH, ROWS, SUMMED, COLUMNS = 3, 5, 4, 6
every_form = pytest.mark.parametrize("form", FORMS)


def lying(form, *shape, seed=1, dtype=torch.float64):
    """Make a batch of matrices of this shape whose axes lie in the order of the form."""
    made = hosts.normal(*(shape[axis] for axis in form), seed=seed, dtype=dtype)
    return made.permute([form.index(axis) for axis in range(3)])


def both(form=FORMS[0], of_left=FORMS[0], of_right=FORMS[0], dtype=torch.float64):
    left = lying(of_left, BATCH, ROWS, SUMMED, dtype=dtype)
    right = lying(of_right, BATCH, SUMMED, COLUMNS, seed=2, dtype=dtype)
    return left.requires_grad_(), right.requires_grad_(), form


@pytest.mark.parametrize(("form", "of_left", "of_right"), [*itertools.product(FORMS, repeat=3)])
def test_the_result_and_the_gradients_lie_where_they_should(form, of_left, of_right):
    left, right, _ = both(form, of_left, of_right)
    made = multiply(left, right, form)
    wanted = (left @ right).permute(form)
    assert made.is_contiguous()
    hosts.close(made, wanted, 1e-14)
    pull = torch.randn_like(made)
    found = torch.autograd.grad(made, (left, right), pull)
    for one, other, side in zip(found, torch.autograd.grad(wanted, (left, right), pull), (left, right), strict=True):
        hosts.close(one, other, 1e-14)
        assert one.stride() == side.stride()


@every_form
def test_gradients_of_every_order_are_right(form):
    left, right, _ = both(form, FORMS[2], FORMS[3])
    torch.autograd.gradcheck(multiply, (left, right, form))
    torch.autograd.gradgradcheck(multiply, (left, right, form))


@every_form
def test_many_gradients_are_taken_at_once(form):
    """As torch.autograd.grad and the Jacobians of torch.autograd.functional do: by a map of their own."""
    left, right, _ = both(form, FORMS[2], FORMS[3])
    made, wanted = multiply(left, right[:1], form), (left @ right[:1]).permute(form)
    pulls = hosts.normal(2, *made.shape, dtype=torch.float64)
    answers = [torch.autograd.grad(some, (left, right), pulls, is_grads_batched=True) for some in (made, wanted)]
    for one, other in zip(*answers, strict=True):
        hosts.close(one, other, 1e-14)


@every_form
@pytest.mark.parametrize("side", [0, 1])
def test_only_what_a_gradient_needs_is_kept(form, side):
    sides = [*both(form)[:2]]
    sides[side] = sides[side].detach()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        made = multiply(*sides, form)
    assert [one.data_ptr() for one in kept] == [sides[side].data_ptr()]
    (found,) = torch.autograd.grad(made.sum(), sides[1 - side])
    (wanted,) = torch.autograd.grad((sides[0] @ sides[1]).sum(), sides[1 - side])
    hosts.close(found, wanted, 1e-14)


@every_form
@pytest.mark.parametrize("side", [0, 1])
def test_one_matrix_is_repeated(form, side):
    sides = [*both(form)[:2]]
    sides[side] = sides[side][:1].detach().requires_grad_()
    made, wanted = multiply(*sides, form), (sides[0] @ sides[1]).permute(form)
    hosts.close(made, wanted, 1e-14)
    for found, other in zip(*(torch.autograd.grad(some.square().sum(), sides) for some in (made, wanted)), strict=True):
        hosts.close(found, other, 1e-14)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_lies_elsewhere_is_copied_once(form, dtype):
    left, right, _ = both(form, dtype=dtype)
    made = multiply(left, right, form)
    pull = torch.randn(made.shape[::-1], dtype=dtype).permute(2, 1, 0)
    found = torch.autograd.grad(made, (left, right), pull)
    wanted = torch.autograd.grad((left @ right).permute(form), (left, right), pull)
    for one, other in zip(found, wanted, strict=True):
        hosts.close(one, other, 1e-6 if dtype == torch.float32 else 1e-2)


@every_form
@pytest.mark.parametrize("empty", ["batch", "rows"])
def test_nothing_times_something_is_nothing(form, empty):
    left, right, _ = both(form)
    if empty == "batch":
        left, right = left[:0], right[:1]
    else:
        left = left[:, :0]
    made = multiply(left, right, form)
    assert made.shape == (left @ right).permute(form).shape
    made.sum().backward()


@every_form
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_cannot_write_into_an_array_gets_a_view(form):
    left, right = (side.detach() for side in both(form)[:2])
    wanted = (left @ right).permute(form)
    hosts.close(vmap(lambda one: multiply(one, right, form))(torch.stack([-left, left]))[1], wanted, 1e-14)
    value, tangent = jvp(lambda one: multiply(one, right, form), (left,), (left,))
    hosts.close(value, wanted, 1e-14)
    hosts.close(tangent, wanted, 1e-14)
    hosts.close(
        grad(lambda one: (multiply(one, right, form) * wanted).sum() / 2)(left), (left @ right @ right.mT) / 2, 1e-14
    )
    hosts.close(
        torch.jit.trace(lambda one, other: multiply(one, other, form), (left, right))(left, right), wanted, 1e-14
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multiply(left.float(), right.float(), form).dtype == torch.bfloat16


def test_a_product_of_arrays_that_lie_anyhow_is_right():
    """As of an x that the user transposed."""
    left, right = hosts.normal(SUMMED, ROWS, BATCH).permute(2, 1, 0), hosts.normal(BATCH, SUMMED, 2 * COLUMNS)[..., ::2]
    left, right = left.requires_grad_(), right.requires_grad_()
    made = multiply(left, right, FORMS[2])
    wanted = (left @ right).permute(FORMS[2])
    for one, other in zip(
        *(torch.autograd.grad(some.square().sum(), (left, right)) for some in (made, wanted)), strict=True
    ):
        hosts.close(one, other)


@pytest.mark.parametrize("case", ["btt", "monarch", "krona"])
def test_the_code_of_a_family_is_one_graph_of_plain_products_under_a_compiler(case):
    """At sizes for which it writes in order. The gradients of x and of every factor are those of eager code."""
    spec, sizes = {
        "btt": (families.btt(), {"rank": 1}),
        "monarch": (families.monarch(), {"rank": 2}),
        "krona": (families.krona(), {}),
    }[case]
    network = spec.bind(grid(layers=1, kinds={"q": (64, 64)}), **sizes).networks[0]
    code = lower_apply(network, 8192)
    shapes = [[network.sizes[mode] for mode in network.local_modes(node)] for node in network.nodes]
    given = [hosts.normal(*shape, seed=seed) for seed, shape in enumerate([(96, 64), (96, 64), *shapes])]
    ran = []
    compiled = torch.compile(code, fullgraph=True, backend=lambda graph, _: ran.append(graph) or graph.forward)
    answers = []
    for run in (code, compiled):
        leaves = [one.clone().requires_grad_() for one in given]
        made = run(*leaves)
        answers.append([made, *torch.autograd.grad(made.square().sum(), leaves)])
    for one, other in zip(*answers, strict=True):
        hosts.close(other, one)
    (graph,) = ran
    assert "multiply" in code.__self__.code
    assert any(node.target in (torch.bmm, torch.matmul) for node in graph.graph.nodes)
