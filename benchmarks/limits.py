"""The least that an adapter adds to a frozen host in one step: flops, bytes of tokens x width, and launches.

Nothing is part of the limit that could be part of the host's own products: the update is summed into y, and its
gradient into that of x, while these are made. What is left, in training:

* flops: those of the plans, or of folding the update into the weight where that pays;
* bytes: x once for all layers that read it, and once more if a factor at x is trained; the gradient of y once a layer;
* launches: for all layers that read one x, its product with their factors, its gradient, and the gradient of factors at
  x if they are trained; for each layer, the update, and the gradients of the intermediate and of the factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llama import GROUPS

from tnadapt import Adapter, plan
from tnadapt.binding import Plan

__all__ = ["Limit", "Speeds", "limit_of"]


@dataclass(frozen=True)
class Speeds:
    """What a device does in a second, and the seconds of a launch; `overlaps` says that it computes meanwhile."""

    flops: float
    bytes: float
    launch: float
    overlaps: bool


@dataclass(frozen=True)
class Limit:
    """The least that an adapter adds to one step."""

    flops: int
    bytes: int
    launches: int

    def seconds(self, speeds: Speeds, *, launches: bool = True) -> float:
        """Return the seconds at these speeds, without launches for code that a graph replays."""
        work = self.flops / speeds.flops + self.bytes / speeds.bytes
        waits = self.launches * speeds.launch * launches
        return max(work, waits) if speeds.overlaps else work + waits


def limit_of(adapter: Adapter, *, tokens: int, training: bool, size: int) -> Limit:
    """Return the limit of an adapter on a Llama, for arrays of numbers of `size` bytes."""
    flops = moved = launches = 0
    for paths in _groups(adapter):
        orders = [plan(adapter.find(path)[0].network, tokens=tokens, training=training) for path in paths]
        networks = [order.network for order in orders]
        inner = networks[0].volume(networks[0].in_modes)
        again = training and any(_trains_at_x(order) for order in orders)
        forward = not all(order.pays_to_fold for order in orders)
        moved += tokens * inner * (forward + again)
        launches += forward + training + again
        flops += sum(_flops(order) for order in orders)
        moved += training * tokens * sum(network.volume(network.out_modes) for network in networks)
        launches += len(orders) * (3 if training else 1)
    return Limit(flops, size * moved, launches)


def _groups(adapter: Adapter) -> list[Sequence[str]]:
    """Return the paths of sites that read the same x."""
    found: dict[tuple[str, int], list[str]] = {}
    for site in adapter.sites:
        parent, _, name = site.path.rpartition(".")
        number = next(number for number, group in enumerate(GROUPS) if name in group)
        found.setdefault((parent, number), []).append(site.path)
    return list(found.values())


def _flops(order: Plan) -> int:
    """Return the flops of both passes; folded, those of the dense update and of its gradient."""
    if not order.pays_to_fold:
        return order.forward_flops + order.backward_flops
    network = order.network
    update = plan(network, "delta", training=order.training)
    gradient = 2 * order.tokens * network.volume(network.out_modes) * network.volume(network.in_modes)
    return update.forward_flops + update.backward_flops + gradient * order.training


def _trains_at_x(order: Plan) -> bool:
    """Return whether the gradient of what x is multiplied by needs x."""
    if order.pays_to_fold:
        return True
    x = order.operands.index("(x)")
    for step in order.steps:
        if x in (step.left, step.right):
            other = step.left if step.right == x else step.right
            if other >= len(order.operands):
                return order.steps[other - len(order.operands)].when != "once"
            node = order.network.nodes[order.operands[other]]
            return order.network.factors[node.factor].trainable
    return False
