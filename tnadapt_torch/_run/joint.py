"""Products of factors alone for all sites at once, as one autograd function that any backward passes may use."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from tnadapt.binding import FactorProducts, equation_of

__all__: list[str] = []

GROUP = "(group)"  # the axis of what several groups have arrays of; no mode of a spec can have a name with brackets
MOST_MODES = 52  # that an einsum of torch has letters for
MARK = (0, 52417)  # the shape of a tensor without numbers that no layer saves
Modes = tuple[str, ...]


@dataclass(frozen=True)
class Operand:
    """The axes of a node's array over all sites, and of how many tensors it is stacked along the first one."""

    modes: Modes
    count: int = 1


@dataclass(frozen=True)
class Step:
    """A product of two numbers, and its gradients: each from that of the product, and from the other number."""

    left: int
    right: int
    forward: str
    to_left: str
    to_right: str


@dataclass(frozen=True)
class Joined:
    """A product for all sites: its number, its axes over the sites with their lengths, its shape at one, its leaves."""

    number: int
    batch: Modes
    lengths: tuple[int, ...]
    shape: tuple[int, ...]
    leaves: frozenset[int]

    @property
    def rows(self) -> int:
        """The number of places along the sites."""
        return math.prod(self.lengths)

    def row(self, index: Mapping[str, int]) -> int:
        """Return the row of a site, given its index along each axis."""
        found = 0
        for mode, length in zip(self.batch, self.lengths, strict=True):
            found = found * length + index[mode]
        return found

    def group(self, row: int) -> int | None:
        """Return the group of a row; None if all groups share it."""
        return row // (self.rows // self.lengths[0]) if GROUP in self.batch else None


@dataclass(frozen=True, eq=False)
class Recipe:
    """How products are made of operands, which are these nodes. Step n makes number len(operands) + n."""

    nodes: tuple[int, ...]
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    made: tuple[Joined, ...]

    def parts(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Yield what belongs to each operand, of a sequence with one item for each tensor."""
        at = 0
        for operand in self.operands:
            yield items[at : at + operand.count]
            at += operand.count

    @cached_property
    def inner(self) -> frozenset[int]:
        """The numbers that steps read."""
        return frozenset(side for step in self.steps for side in (step.left, step.right))

    def values(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the operands as one tensor each, and what the steps make of them that other steps read."""
        found: list[Tensor | None] = []
        found += (part[0] if len(part) == 1 else torch.stack(tuple(part)) for part in self.parts(tensors))
        for number, step in enumerate(self.steps, len(self.operands)):
            found.append(self.value(step, found) if number in self.inner else None)
        return found

    def value(self, step: Step, values: Sequence[Tensor | None]) -> Tensor:
        """Return what a step makes."""
        return torch.einsum(step.forward, values[step.left], values[step.right])

    def needs(self, given: Sequence[bool]) -> list[bool]:
        """Return which of the values need a gradient, given which of the tensors do."""
        found = [any(part) for part in self.parts(given)]
        for step in self.steps:
            found.append(found[step.left] or found[step.right])
        return found

    def reads(self, given: Sequence[bool]) -> list[bool]:
        """Return the values of which tensors some gradient depends on."""
        needs = self.needs(given)
        below = [{number} for number in range(len(self.operands))]
        read: set[int] = set()
        for step in self.steps:
            read |= below[step.right] if needs[step.left] else set()
            read |= below[step.left] if needs[step.right] else set()
            below.append(below[step.left] | below[step.right])
        return [number in read for number, one in enumerate(self.operands) for _ in range(one.count)]


def recipe_of(
    products: FactorProducts, names: Sequence[str], over: Sequence[str], operands: Sequence[Operand | None]
) -> Recipe | None:
    """Return how to make some of the products; None where an operand is None, or a step has too many modes.

    `operands` has one for each node. What is made of an operand keeps its axes of `over` and the one of groups, first.
    """
    nodes = sorted({leaf for name in names for leaf in products.leaves(products.made[name])})
    given = [one for one in (operands[node] for node in nodes) if one is not None]
    if len(given) < len(nodes):
        return None
    known = {node: number for number, node in enumerate(nodes)}
    modes = [one.modes for one in given]
    ends = {number: products.modes[name] for name, number in products.made.items()}
    steps: list[Step] = []
    for number, step in enumerate(products.steps, len(products.nodes)):
        if step.left in known and step.right in known:
            left, right = known[step.left], known[step.right]
            batch = [mode for mode in (GROUP, *over) if mode in {*modes[left], *modes[right]}]
            made = (*batch, *ends.get(number, step.modes))
            if len({*modes[left], *modes[right]}) > MOST_MODES:
                return None
            steps.append(_step(left, right, modes[left], modes[right], made))
            known[number] = len(modes)
            modes.append(made)
    sizes = {**products.network.sizes, GROUP: max(one.count for one in given)}
    joined = []
    for name in names:
        number, inner = known[products.made[name]], products.modes[name]
        batch = [mode for mode in modes[number] if mode not in inner]
        leaves = frozenset(known[leaf] for leaf in products.leaves(products.made[name]))
        lengths, shape = (tuple(sizes[mode] for mode in some) for some in (batch, inner))
        joined.append(Joined(number, tuple(batch), lengths, shape, leaves))
    return Recipe(tuple(nodes), tuple(given), tuple(steps), tuple(joined))


def _step(left: int, right: int, one: Modes, other: Modes, made: Modes) -> Step:
    to_left, to_right = equation_of((made, other), one), equation_of((made, one), other)
    return Step(left, right, equation_of((one, other), made), to_left, to_right)


class Spendable(Protocol):
    """What is told that a backward pass has used the products."""

    def end(self) -> None:
        """Let go of the products."""
        ...


class _Made(torch.autograd.Function):
    """The rows of all products, from the tensors of all operands.

    It saves factors alone, and makes the products again in the backward pass. So checkpoints see nothing of it, several
    backward passes may use it, and it has derivatives of any order. A factor gets a gradient only if some row has one
    that it is a part of: as if each site made its own products.
    """

    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, dtype: torch.dtype | None, kept: "weakref.ref[Spendable] | None", *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the rows of all products, one product after another, in the given dtype or that of the factors."""
        with _alone(tensors[0]):
            values = recipe.values(tensors)
            needs = recipe.needs(ctx.needs_input_grad[3:])
            rows: list[Tensor] = []
            fixed: list[Tensor] = []
            for one in recipe.made:
                whole = values[one.number]
                if whole is None:
                    whole = recipe.value(recipe.steps[one.number - len(recipe.operands)], values)
                made = whole.reshape(one.rows, *one.shape).contiguous()
                own = (made if dtype is None else made.to(dtype)).unbind(0)
                rows += own
                fixed += () if needs[one.number] else own
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)
        ctx.recipe, ctx.kept, ctx.tensors = recipe, kept, tensors
        ctx.plain = [one.detach() for one in tensors]  # these hold the values if a factor gets others through .data
        ctx.seen = [(one.data_ptr(), one._version) for one in tensors]
        return tuple(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tensors. Raise RuntimeError if one has changed since the forward pass."""
        if ctx.kept is not None and (kept := ctx.kept()) is not None:
            kept.end()
        read = ctx.recipe.reads(ctx.needs_input_grad[3:])
        now = [(one.data_ptr(), one._version) for one in ctx.tensors]
        if any(one != was and is_read for one, was, is_read in zip(now, ctx.seen, read, strict=True)):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                "factor, of which products were made in a block of fixed().\nChange factors after the backward pass."
            )
        with _alone(ctx.tensors[0]):
            tensors = ctx.tensors if torch.is_grad_enabled() else ctx.plain
            return None, None, None, *_gradients(ctx.recipe, tensors, grads, ctx.needs_input_grad[3:])


def _gradients(
    recipe: Recipe, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], given: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of the tensors that need one, by operations that have gradients themselves."""
    values, needs = recipe.values(tensors), recipe.needs(given)
    known: dict[int, Tensor] = {}
    used: list[set[int | None]] = [set() for _ in recipe.operands]  # the groups that have a gradient, by operand
    at = 0
    for one in recipe.made:
        rows, at = grads[at : at + one.rows], at + one.rows
        if all(row is None for row in rows):
            continue
        groups = {one.group(number) for number, row in enumerate(rows) if row is not None}
        for leaf in one.leaves:
            used[leaf] |= groups
        whole = _stacked(rows).to(tensors[0].dtype).reshape(*one.lengths, *one.shape)
        known[one.number] = known[one.number] + whole if one.number in known else whole
    for number, step in reversed([*enumerate(recipe.steps, len(recipe.operands))]):
        grad = known.pop(number, None)
        sides = ((step.left, step.right, step.to_left), (step.right, step.left, step.to_right))
        for side, other, equation in sides:
            if grad is not None and needs[side]:
                more = torch.einsum(equation, grad, values[other])
                known[side] = known[side] + more if side in known else more
    found: list[Tensor | None] = []
    for number, needed in enumerate(recipe.parts(given)):
        grad, groups = known.get(number), used[number]
        parts = [grad] if len(needed) == 1 or grad is None else grad.unbind(0)
        is_used = [grad is not None and (len(needed) == 1 or None in groups or n in groups) for n in range(len(needed))]
        parts = [parts[0]] * len(needed) if grad is None else parts
        found += [part if use and need else None for part, use, need in zip(parts, is_used, needed, strict=True)]
    return found


def _stacked(rows: Sequence[Tensor | None]) -> Tensor:
    """Stack the gradients of rows, with zeros for those that have none."""
    one = next(row for row in rows if row is not None)
    zero = one.new_zeros(()).expand(one.shape) if any(row is None for row in rows) else one
    return torch.stack([zero if row is None else row for row in rows])


def _alone(like: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast: the products have the dtype of the factors."""
    if not torch._C._is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


class _Mark(torch.autograd.Function):
    """The identity. It saves a tensor like no other, which checkpoints compare with what is saved again.

    A region that is recomputed outside of the block would save other tensors than it did, some of them perhaps alike.
    """

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        ctx.save_for_backward(row.new_empty(MARK))
        return row.view_as(row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def make_rows(
    recipe: Recipe, dtype: torch.dtype | None, kept: "weakref.ref[Spendable] | None", tensors: Sequence[Tensor]
) -> list[Sequence[Tensor]]:
    """Return the rows of each product."""
    rows: Sequence[Tensor] = _Made.apply(recipe, dtype, kept, *tensors)  # type: ignore[no-untyped-call]
    found, at = [], 0
    for one in recipe.made:
        found.append(rows[at : at + one.rows])
        at += one.rows
    return found


def mark(row: Tensor) -> Tensor:
    """Return a row so that what saves tensors in its own way, such as a checkpoint, knows that it is one."""
    marked: Tensor = _Mark.apply(row)  # type: ignore[no-untyped-call]
    return marked
