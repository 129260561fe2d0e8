"""Translate a plan into straight-line torch code: mm, bmm, mul, and a last step that adds to the host's output."""

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import torch
from torch import fx

from tnadapt import plan
from tnadapt.binding import Network, Objective, Plan
from tnadapt_torch._run.layout import lay_out
from tnadapt_torch._run.ways import MACHINES
from tnadapt_torch._run.writer import Code, Writer

__all__: list[str] = []

IN_PLACE: Mapping[object, str] = {torch.addmm: "addmm_", torch.add: "add_"}


def write_in_place(graph: fx.Graph, y: fx.Node, result: fx.Node) -> fx.Node:
    """Turn each addition to y into one in place: nobody else has y, and no backward pass needs it.

    Returns the node of the result.
    """
    own = {y}
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first not in own:
            continue
        if node.op == "call_function" and node.target in IN_PLACE:
            with graph.inserting_before(node):
                made = graph.call_method(IN_PLACE[node.target], node.args, node.kwargs)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            own.add(made)
            result = made if node is result else result
        elif node.op == "call_method" and node.target == "reshape":
            own.add(node)
    return result


@lru_cache(maxsize=4096)
def lower_apply(
    network: Network,
    tokens: int,
    *,
    training: bool = True,
    x_needs_grad: bool = True,
    fft: bool = True,
    host_product: bool = False,
    objective: str | Objective = "training",
    in_place: bool = False,
    compiled: bool = False,
    machine: str = "cpu",
) -> Code:
    """Write a function (y, x, *factors) -> y plus the scaled update of x, as a new tensor unless it is `in_place`.

    With a host_product it is (y, x, product, *factors), where product (token, out) is x times the host's weight.
    The code is optimized for about this many tokens, these gradients and this type of device, and is correct for any.
    y (token, out) and x (token, in) have the same dtype. The factors are those of one site, in the order of the
    network's nodes, without those that `nodes_read` leaves out for the same arguments.

    Code that is to be compiled ends in plain additions, and has the scale in the smallest factor.
    """
    order = _plan(network, tokens, training, x_needs_grad, fft, host_product, objective)
    writer = Writer(order)
    result, x = writer.input("y"), writer.input("x")
    product = writer.input("product") if host_product else x
    given = [x, *[product] * (len(order.operands) - len(network.nodes) - 1)]
    operands = [writer.split(one, modes) for one, modes in zip(given, order.inputs, strict=False)] + writer.factors(x)
    total = writer.add_terms(result, lay_out(order, MACHINES[machine]), operands, compiled=compiled)
    return writer.function(write_in_place(writer.graph, result, total) if in_place else total)


def nodes_read(
    network: Network,
    tokens: int,
    *,
    training: bool = True,
    x_needs_grad: bool = True,
    fft: bool = True,
    host_product: bool = False,
    objective: str | Objective = "training",
) -> list[int]:
    """Return the numbers of the nodes that the code of `lower_apply` takes: not those that something stands for."""
    order = _plan(network, tokens, training, x_needs_grad, fft, host_product, objective)
    return [number for number, name in enumerate(network.nodes) if name not in order.unread]


def _plan(  # noqa: PLR0917  (the keywords of the two functions above)
    network: Network,
    tokens: int,
    training: bool,
    x_needs_grad: bool,
    fft: bool,
    host_product: bool,
    objective: str | Objective,
) -> Plan:
    return plan(
        network,
        "apply",
        tokens=tokens,
        training=training,
        x_needs_grad=x_needs_grad,
        fft=fft,
        host_product=host_product,
        objective=objective,
    )


@lru_cache(maxsize=4096)
def lower_delta(network: Network) -> Code:
    """Write a function (*factors) -> the scaled dense update of one site, in the weight's shape (out axis first)."""
    order = plan(network, "delta")
    writer = Writer(order)
    factors = writer.factors()
    total: fx.Node | None = None
    for sign, way in lay_out(order):
        dense = writer.ordered(writer.node(way, factors), way.order, order.answer)
        if total is not None:
            total = writer.graph.call_function(torch.add if sign > 0 else torch.sub, (total, dense))
        else:
            total = dense if sign > 0 else writer.graph.call_function(torch.neg, (dense,))
    whole = writer.reshape(cast("fx.Node", total), network.axes)
    return writer.function(writer.graph.call_function(torch.mul, (whole, network.scale)))
