"""Call a linear layer together with its update: one gradient of x for both, and for all layers that read the same x."""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _autograd
from torch.autograd import forward_ad
from torch.nn import functional

from tnadapt_torch._run.call import is_dropping
from tnadapt_torch._run.entry import Parts
from tnadapt_torch._run.products import Node, multiply_all
from tnadapt_torch._run.refs import read_all
from tnadapt_torch._run.site import SiteUpdate

__all__: list[str] = []

PLAIN = (Tensor, nn.Parameter)
Seen = list[tuple[int, int, bool]]  # where each factor lies, its version, and whether it needs a gradient
LINEAR = nn.Linear.forward


@dataclass(frozen=True)
class Lead:
    """What the first of the siblings makes of x: the rows, and which of these products each layer takes.

    Rows that layers share are among them once.
    """

    rows: tuple[tuple[Parts, int], ...]
    members: "dict[Layer, tuple[Parts, tuple[int, ...]]]"

    def is_valid(self, place: int) -> bool:
        """Return whether the layers still have these parts."""
        return all(layer.update.parts_at(place) is parts for layer, (parts, _) in self.members.items())


@dataclass(eq=False)
class Reading:
    """One x on its way through the layers that read it, in one thread.

    `handed` is x as the last of these layers hands it on. `products` are those that wait for a layer, with what was
    seen of the factors that they were made of.
    """

    node: Node
    x: Tensor
    state: tuple[Any, ...]
    handed: Tensor
    products: "dict[Layer, tuple[list[Tensor], Seen]]"
    is_spent: bool = False


_local = threading.local()  # one reading for each thread: that of the layers that were called last


def forget_reading() -> None:
    """Let go of the x that was read last in this thread, and of the graph that it is in."""
    _local.reading = None


class Siblings:
    """Layers of one parent whose inputs have one width. Those that follow the first may read the same x.

    Whether they do is seen at each call; all that is made for them in advance is a product with a few rows. Which
    layers these are depends on the model alone, so that equal runs are equal to the last bit.
    """

    def __init__(self) -> None:
        """Begin without layers."""
        self.layers: list[Layer] = []
        self._leads: dict[int, Lead] = {}

    def take(self, layer: "Layer", x: Tensor, state: tuple[Any, ...], factors: Sequence[Tensor]) -> Reading | None:
        """Return the reading that has products for a layer: of the same x and factors, in the same state of autograd.

        A layer that reads another x, or the last one that waits, ends the reading.
        """
        reading: Reading | None = getattr(_local, "reading", None)
        if reading is None:
            return None
        is_same = reading.x is x and reading.state == state and not reading.is_spent
        found = reading.products.get(layer)
        if not is_same or found is None or found[1] != _seen(factors):
            _local.reading = None
            return None
        if len(reading.products) == 1:
            _local.reading = None
        return reading

    def lead(self, place: int) -> Lead | None:
        """Return what the first layer makes of x for the codes at a place; None if that is for itself alone."""
        found = self._leads.get(place)
        if found is None or not found.is_valid(place):
            self._leads[place] = found = self._find_lead(place)
        return found if len(found.members) > 1 else None

    def _find_lead(self, place: int) -> Lead:
        rows: list[tuple[Parts, int]] = []
        members: dict[Layer, tuple[Parts, tuple[int, ...]]] = {}
        scale = 1.0
        for layer in self.layers:
            parts = layer.update.parts_at(place)
            if parts is None or (members and parts.entry.scale != scale):
                continue
            scale = parts.entry.scale
            taken = []
            for number in range(len(parts.entry.rows)):
                same = (at for at, (other, row) in enumerate(rows) if parts.has_row_of(number, other, row))
                taken.append(next(same, len(rows)))
                if taken[-1] == len(rows):
                    rows.append((parts, number))
            members[layer] = parts, tuple(taken)
        return Lead(tuple(rows), members)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what a thread reads, and without codes."""
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.layers = state["layers"]


class Layer:
    """A plain linear layer with one update, called at once where nothing has to come between them."""

    def __init__(self, update: SiteUpdate, siblings: Siblings) -> None:
        """Join the siblings of the layer."""
        self.update = update
        self.siblings = siblings
        siblings.layers.append(self)

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the output of the layer with the update added, or None for a call that this cannot serve.

        It serves calls of a frozen weight of the dtype of x, without dropout and autocast, and outside of everything
        that sees or transforms single operations.
        """
        if len(args) + len(kwargs) != 1:
            return None
        x: Any = args[0] if args else kwargs.get("input")
        held, update = module._parameters, self.update
        weight = held.get("weight")
        if type(weight) is not nn.Parameter or type(x) not in PLAIN or x.dtype != weight.dtype or "bias" not in held:
            return None
        bias = held["bias"]
        if not update.owner.active or is_dropping(update.owner) or x.device != weight.device or _is_watched(x):
            return None
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])  # noqa: PLR2004
        place = update.place_of(flat)
        if not torch.is_grad_enabled():
            forget_reading()
            total = update.add_in_place(functional.linear(flat, weight, bias), flat, place)
        elif weight.requires_grad or (bias is not None and bias.requires_grad) or x.dtype == torch.float16:
            return None  # the products are scaled first, which may be too large for float16
        else:
            parts = update.parts_at(place)
            factors = [] if parts is None else parts.factors(x.dtype)
            if parts is None or not all(type(one) in PLAIN and one.device == x.device for one in factors):
                return None
            y, *products = self._train(place, parts, factors, (x, weight, bias))
            total = parts.entry.finish(y, *products, *read_all(parts.others, y))
        update.was_called = True
        return total if flat is x else total.view(*x.shape[:-1], total.shape[-1])

    def _train(
        self, place: int, parts: Parts, factors: Sequence[Tensor], given: tuple[Tensor, nn.Parameter, Tensor | None]
    ) -> Sequence[Tensor]:
        """Return the output without the update, and the products of x for it."""
        x, siblings = given[0], self.siblings
        # Layers that read a leaf may have backward passes of their own.
        is_alone = len(siblings.layers) == 1 or x.grad_fn is None
        lead = siblings.lead(place) if not is_alone and self is siblings.layers[0] else None
        state = () if is_alone else (x._version, x.data_ptr(), _autograd._top_saved_tensors_default_hooks(True))
        if is_alone or self is siblings.layers[0]:
            forget_reading()
            if lead is not None:
                return self._lead(lead, state, given)
            return multiply_all(None, parts.entry.scale, *given, *parts.rows(factors))
        reading = siblings.take(self, x, state, factors)
        if reading is None:
            return multiply_all(None, parts.entry.scale, *given, *parts.rows(factors))
        products, _ = reading.products.pop(self)
        y, reading.handed = multiply_all(reading.node, 1.0, reading.handed, *given[1:])
        return y, *products

    def _lead(
        self, lead: Lead, state: tuple[Any, ...], given: tuple[Tensor, nn.Parameter, Tensor | None]
    ) -> Sequence[Tensor]:
        """Make the products of all siblings, and leave those of the others for their calls."""
        x = given[0]
        factors = {layer: parts.factors(x.dtype) for layer, (parts, _) in lead.members.items()}
        by_parts = {id(parts): factors[layer] for layer, (parts, _) in lead.members.items()}
        rows = [parts.row(number, by_parts[id(parts)]) for parts, number in lead.rows]
        if not all(type(row) in PLAIN and row.device == x.device for row in rows):
            mine, _ = lead.members[self]
            return multiply_all(None, mine.entry.scale, *given, *mine.rows(factors[self]))
        node = Node()
        y, *made, handed = multiply_all(node, lead.members[self][0].entry.scale, *given, *rows)
        products = {
            layer: ([made[number] for number in taken], _seen(factors[layer]))
            for layer, (_, taken) in lead.members.items()
        }
        own, _ = products.pop(self)
        _local.reading = reading = Reading(node, x, state, handed, products)
        node.reading = weakref.ref(reading)
        return y, *own


def join_layer(update: SiteUpdate, path: str, families: dict[tuple[str, int], Siblings]) -> None:
    """Let a plain linear layer be called together with its update, and know the siblings that may read the same x.

    These have names and one parent. Layers with numbers follow one another, or are chosen from. An update that reads
    the product of its layer waits for that one, so it is added afterwards.
    """
    if update.reads_product:
        return
    parent, _, name = path.rpartition(".")
    siblings = Siblings() if name.isdigit() else families.setdefault((parent, update.width), Siblings())
    update.layer = Layer(update, siblings)


def _seen(factors: Sequence[Tensor]) -> Seen:
    """Return what tells whether factors are the same, with the same values."""
    return [(one.data_ptr(), one._version, one.requires_grad) for one in factors]


def _is_watched(x: Tensor) -> bool:
    """Return whether something sees or changes single operations: a mode, autocast, torch.func, torch.jit, and such."""
    return (
        x.is_nested
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or functional.linear is not torch._C._nn.linear
        or nn.Linear.forward is not LINEAR
    )
