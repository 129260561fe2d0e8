"""Compiled code beside eager code: the output, and the gradients of x and of every factor."""

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters
from torch._inductor.decomposition import select_decomp_table

from tests.table import FAMILIES
from tests.torch import hosts
from tnadapt_torch import AdapterState, attach

AT_AN_INDEX = ("index_add", "index_put", "index_reduce", "scatter_add", "scatter_reduce")


class Projection(nn.Linear):
    """A layer into whose weight no update is folded, since a subclass may use it otherwise."""


class Layer(nn.Module):
    """Two linear layers, with even axes, of two shapes. Updates are added to one; the other takes them if that pays."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Projection(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Counting:
    """A compiler backend that compiles nothing, and counts the graphs. If `both`, it traces the backward pass too."""

    def __init__(self, *, both: bool) -> None:
        self.before = counters["stats"]["unique_graphs"]
        self.trace = lookup_backend("aot_eager" if both else "eager")

    @property
    def graphs(self) -> int:
        """Count the graphs since this backend was made; torch may call it twice for one graph."""
        return counters["stats"]["unique_graphs"] - self.before

    def __call__(self, graph, inputs):
        return self.trace(graph, inputs)


class Keeping:
    """A compiler backend that keeps the graphs of both passes, in the operations that Inductor gets."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.Graph] = []
        self.trace = aot_autograd(fw_compiler=self.keep, bw_compiler=self.keep, decompositions=select_decomp_table())

    def keep(self, graph, inputs):
        self.graphs.append(graph.graph)
        return make_boxed_func(graph.forward)

    def __call__(self, graph, inputs):
        return self.trace(graph, inputs)


def added_at_an_index(graphs: list[torch.fx.Graph]) -> list[str]:
    """Return the names of the operations that add numbers at an index."""
    names = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return [name for name in names if any(word in name for word in AT_AN_INDEX)]


def host(layers: int = 1, dtype: torch.dtype = torch.float64) -> Stack:
    """Make a stack, with the same numbers at every call."""
    torch.manual_seed(0)
    return Stack(layers).to(dtype).train()


def adapt(model: nn.Module, name: str, adapter_name: str = "default") -> AdapterState:
    """Attach a case of the table to all linear layers, with an update that is not 0, in float32 or better."""
    case = FAMILIES[name]
    state = attach(
        model,
        case.spec,
        target_modules="all-linear",
        rank=case.rank,
        sizes=case.sizes,
        seed=0,
        overparametrized=True,
        adapter_name=adapter_name,
    )
    if next(model.parameters()).dtype == torch.float64:  # so that a different order of summation does not matter
        state.double()
    return hosts.wake(state, seed=len(adapter_name), size=0.3)


def answers(model: nn.Module, x: Tensor, called: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the output of a model, or of its compiled form, and the gradients of x and of all that is trained."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (model if called is None else called)(x)
    y.square().sum().backward()
    return {"output": y.detach(), "x": x.grad} | hosts.grads(model)


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each tensor, in parts of its largest entry. Both must have the same tensors."""
    assert found.keys() == wanted.keys(), f"gradients of {found.keys() ^ wanted.keys()} on one side only"
    measured = {}
    for name, one in found.items():
        other = wanted[name].double()
        assert one.shape == other.shape, name
        largest = max(other.abs().max().item(), 1e-3) if other.numel() else 1.0
        measured[name] = (one.double() - other).abs().max().item() / largest if other.numel() else 0.0
    return measured


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Assert that the same tensors have a gradient, and that each equals the other to a part of its largest entry."""
    for name, error in errors(found, wanted).items():
        assert error <= tolerance, f"{name}: off by {error:.3g} of the largest entry"
