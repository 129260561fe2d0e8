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
from torch.nn.functional import linear

from tnadapt_torch._run.call import is_dropping
from tnadapt_torch._run.entry import Parts
from tnadapt_torch._run.refs import read_all
from tnadapt_torch._run.site import SiteUpdate

__all__: list[str] = []

PLAIN = (Tensor, nn.Parameter)
Seen = list[tuple[int, int]]  # where each factor lies, and its version


class _Products(torch.autograd.Function):
    """The products of x with a weight and with the rows of factors, and x itself for the next layer that reads it.

    Autograd would make a gradient of x for each of them and add these up. Here each product adds its own to the last.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (as torch hands them on)
        ctx: Any,
        node: "Node | None",
        scale: float,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rows: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return x W^T + bias of shape (token, out), a product (token, row) for each of the rows, and x if it is read.

        The rows of several layers are one matrix. Their products are multiplied by the scale.
        """
        flat = x.reshape(-1, x.shape[-1])
        made: Sequence[Tensor] = ()
        ctx.matrix = None
        if rows:
            matrix = rows[0] if len(rows) == 1 else torch.cat(rows)
            matrix = matrix if matrix.dtype == x.dtype else matrix.to(x.dtype)
            ctx.matrix = None if matrix is rows[0] else matrix
            whole = _scaled(flat, matrix.t(), scale)
            made = (whole,) if len(rows) == 1 else torch.split(whole, [len(one) for one in rows], 1)
        ctx.save_for_backward(x if any(ctx.needs_input_grad[5:]) else None, weight, *rows)
        ctx.set_materialize_grads(False)
        ctx.node, ctx.scale, ctx.shape = node, scale, x.shape
        return (linear(flat, weight, bias), *made, *(() if node is None else (x,)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the rows. That of x is written into the one of the next layer.

        The tensors that are saved are inputs alone, and the products are plain ones, so that it has a gradient itself.
        """
        x, weight, *rows = ctx.saved_tensors
        output, *made = grads
        total = None
        if ctx.node is not None:
            ctx.node.end()
            total = made.pop()
        needs_x, needs_rows = ctx.needs_input_grad[2], ctx.needs_input_grad[5:]
        if total is not None:
            total = total.reshape(-1, weight.shape[1])
        if needs_x and output is not None:
            total = output.mm(weight) if total is None else total.addmm_(output, weight)
        parts: list[Tensor | None] = [None] * len(rows)
        used = [number for number, grad in enumerate(made) if grad is not None]
        if used:
            given = [grad for grad in made if grad is not None]
            inner = given[0] if len(given) == 1 else torch.cat(given, 1)
            if needs_x:
                matrix = _matrix(ctx, rows, used, inner.dtype)
                total = (
                    _scaled(inner, matrix, ctx.scale) if total is None else total.addmm_(inner, matrix, alpha=ctx.scale)
                )
            if any(needs_rows):
                flat = x.reshape(-1, x.shape[-1])
                whole = _scaled(
                    inner.t(), flat, ctx.scale
                )  # in this order no short side is innermost, which is slow on a CPU
                pieces = torch.split(whole, [len(rows[number]) for number in used])
                for number, piece in zip(used, pieces, strict=True):
                    parts[number] = piece.to(rows[number].dtype) if needs_rows[number] else None
        return (None, None, None if total is None else total.reshape(ctx.shape), None, None, *parts)


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return a product times a scale, by one call of a library."""
    if scale == 1.0:
        return left.mm(right)
    return torch.addmm(left.new_empty(()), left, right, beta=0.0, alpha=scale)


def _matrix(ctx: Any, rows: Sequence[Tensor], used: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the rows that have a gradient as one matrix; that of the forward pass, unless it needs a gradient."""
    if ctx.matrix is not None and len(used) == len(rows) and not torch.is_grad_enabled():
        whole: Tensor = ctx.matrix
        return whole
    some = [rows[number] for number in used]
    return (some[0] if len(some) == 1 else torch.cat(some)).to(dtype)


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


class Node:
    """The part of the graph that layers which read one x share. It is spent once a backward pass has used it.

    It knows the reading without holding it: the tensors of a reading hold the graph, and that holds this.
    """

    def __init__(self) -> None:
        """Begin without a reading."""
        self.reading: weakref.ref[Reading] | None = None

    def end(self) -> None:
        """Note that a backward pass uses it, and let go of what the reading holds."""
        reading = None if self.reading is None else self.reading()
        if reading is not None:
            reading.is_spent = True
            reading.x = reading.handed = torch.empty(0)
            reading.products.clear()


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
            total = update.add_in_place(linear(flat, weight, bias), flat, place)
        elif weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        else:
            parts = update.parts_at(place)
            factors = [] if parts is None else parts.factors()
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
        if (
            len(siblings.layers) == 1 or x.grad_fn is None
        ):  # layers that read a leaf may have backward passes of their own
            return _products(None, parts.entry.scale, *given, *parts.rows(factors))
        state = (x._version, _autograd._top_saved_tensors_default_hooks(True))
        if self is siblings.layers[0]:
            lead = siblings.lead(place)
            return (
                _products(None, parts.entry.scale, *given, *parts.rows(factors))
                if lead is None
                else self._lead(lead, state, given)
            )
        reading = siblings.take(self, x, state, factors)
        if reading is None:
            return _products(None, parts.entry.scale, *given, *parts.rows(factors))
        products, _ = reading.products.pop(self)
        y, reading.handed = _products(reading.node, 1.0, reading.handed, *given[1:])
        return y, *products

    def _lead(
        self, lead: Lead, state: tuple[Any, ...], given: tuple[Tensor, nn.Parameter, Tensor | None]
    ) -> Sequence[Tensor]:
        """Make the products of all siblings, and leave those of the others for their calls."""
        x = given[0]
        factors = {layer: parts.factors() for layer, (parts, _) in lead.members.items()}
        by_parts = {id(parts): factors[layer] for layer, (parts, _) in lead.members.items()}
        rows = [parts.row(number, by_parts[id(parts)]) for parts, number in lead.rows]
        if not all(type(row) in PLAIN and row.device == x.device for row in rows):
            mine, _ = lead.members[self]
            return _products(None, mine.entry.scale, *given, *mine.rows(factors[self]))
        node = Node()
        y, *made, handed = _products(node, lead.members[self][0].entry.scale, *given, *rows)
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

    These have names and one parent. Layers with numbers follow one another, or are chosen from.
    """
    parent, _, name = path.rpartition(".")
    siblings = Siblings() if name.isdigit() else families.setdefault((parent, update.width), Siblings())
    update.layer = Layer(update, siblings)


def _products(node: Node | None, scale: float, *given: Tensor | None) -> Sequence[Tensor]:
    made: Sequence[Tensor] = _Products.apply(node, scale, *given)  # type: ignore[no-untyped-call]
    return made


def _seen(factors: Sequence[Tensor]) -> Seen:
    """Return what tells whether factors are the same, with the same values."""
    return [(one.data_ptr(), one._version) for one in factors]


def _is_watched(x: Tensor) -> bool:
    """Return whether something sees or changes single operations: a mode, autocast, torch.func, torch.jit, and such."""
    return (
        x.is_nested
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )
