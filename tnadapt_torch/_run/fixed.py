"""Products of factors alone, made once while the factors stay as they are: for calls without gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, fx

from tnadapt_torch._run.gradient import is_transformed
from tnadapt_torch._run.refs import Ref, read_all
from tnadapt_torch._run.writer import Code

__all__: list[str] = []

Fixed = dict[tuple[Any, ...], "Made"]  # by code, place of the factors, dtype and device


@dataclass(frozen=True)
class Made:
    """What was made of factors, and what was seen of them: where they lie, of which dtype, and their versions."""

    seen: list[tuple[int, torch.dtype, int]]
    tensors: Sequence[Tensor]
    refs: Sequence[Ref]  # kept, so that nothing else gets their place


def run_code(code: Code, carried: Sequence[Tensor], refs: Sequence[Ref], fixed: Fixed | None, most: int) -> Tensor:
    """Run a code on what a call brings, which is of one dtype and on one device, and on factors.

    With `fixed`, what the code makes of factors alone is kept there, and read from there. At most so many numbers are
    kept beside the factors: a dense update of each layer would double the model.
    """
    like = carried[0]
    if fixed is None or not may_keep(like):
        return code(*carried, *read_all(refs, like))
    free, rest = split(code, len(carried))
    factors = [ref.read() for ref in refs]
    if free is None and all(one.dtype == like.dtype and one.device == like.device for one in factors):
        return code(*carried, *factors)
    key = (code, id(refs), like.dtype, like.device)
    found = fixed.get(key)
    if any(one.is_inference() for one in factors):  # which have no version
        return code(*carried, *read_all(refs, like))
    seen = [(one.data_ptr(), one.dtype, one._version) for one in factors]
    if found is None or found.seen != seen:
        read = read_all(refs, like)
        tensors = read if free is None else free(*read)
        own = [one.untyped_storage().data_ptr() for one in factors]
        found = Made(seen, tensors, refs)
        if sum(one.numel() for one in tensors if one.untyped_storage().data_ptr() not in own) <= most:
            fixed[key] = found
    return (code if free is None else rest)(*carried, *found.tensors)


def may_keep(like: Tensor) -> bool:
    """Return whether what a call makes of factors may be kept: it has values, and no gradient."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(like) is not Tensor:
        return False
    return not (torch._C._len_torch_dispatch_stack() or is_transformed() or torch._C._get_tracing_state())


@lru_cache(maxsize=4096)
def split(code: Code, carried: int) -> tuple[Callable[..., Sequence[Tensor]] | None, Code]:
    """Split a code in two: (*factors) -> tensors, and (*carried, *tensors) -> the result of the code.

    The first arguments of the code are those that a call brings, `carried` of them. If it only views factors, there is
    no first part, and the second is the code itself.
    """
    module = cast("fx.GraphModule", code.__self__)  # type: ignore[attr-defined]
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    live = set(inputs[:carried])
    for node in module.graph.nodes:
        if any(source in live for source in node.all_input_nodes):
            live.add(node)
    nodes = [node for node in module.graph.nodes if node.op != "output"]
    if not any(node.op == "call_function" or node.target == "contiguous" for node in nodes if node not in live):
        return None, code
    bound = [node for node in nodes if node not in live and any(user in live for user in node.users)]
    free, rest = fx.Graph(), fx.Graph()
    names: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in live:
            names[node] = free.node_copy(node, names.__getitem__)
    free.output(tuple(names[node] for node in bound))
    names = {node: rest.node_copy(node) for node in inputs[:carried]}
    names |= {node: rest.placeholder(f"made_{number}") for number, node in enumerate(bound)}
    for node in nodes:
        if node in live and node.op != "placeholder":
            names[node] = rest.node_copy(node, names.__getitem__)
    rest.output(names[cast("fx.Node", module.graph.output_node().args[0])])
    first, second = (fx.GraphModule(torch.nn.Module(), graph).forward for graph in (free, rest))
    return cast("Callable[..., Sequence[Tensor]]", first), cast("Code", second)
