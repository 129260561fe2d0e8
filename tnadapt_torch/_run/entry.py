"""Split the update of a layer in two: products of x with matrices made of factors, and what is done with them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import TypeGuard, cast

import torch
from torch import Tensor, fx

from tnadapt import plan
from tnadapt.binding import Network, Objective, Plan
from tnadapt_torch._run.layout import lay_out
from tnadapt_torch._run.lower import write_in_place
from tnadapt_torch._run.refs import Ref, read_in
from tnadapt_torch._run.ways import MACHINES, Convolved, Given, Laid, Modes, Way
from tnadapt_torch._run.writer import Code, Writer

__all__: list[str] = []

X = 0  # the number of x among the operands of a plan


@dataclass(frozen=True)
class Rows:
    """A matrix (row, in) of factors. x times its transpose is what an update makes of x first.

    `nodes` are the numbers of the factors that `make` takes. A single factor that is stored like this, or transposed,
    is `bare`: layers that share it can share the product.
    """

    nodes: tuple[int, ...]
    make: Callable[..., Tensor]
    count: int
    is_bare: bool = False
    is_turned: bool = False


@dataclass(frozen=True)
class Entry:
    """An update in two parts. `finish` takes (y, *products, *factors): it adds to y in place, and returns the sum.

    The products are those of x with the rows, times the scale.
    """

    scale: float
    rows: tuple[Rows, ...]
    finish: Code
    nodes: tuple[int, ...]  # of the factors that `finish` takes


@dataclass(frozen=True, eq=False)
class Parts:
    """An update in two parts, with the references to the factors of each: of the rows by which x is multiplied first.

    `others` are those that the rest of the update reads.
    """

    entry: Entry
    inner: tuple[tuple[Ref, ...], ...]
    others: tuple[Ref, ...]

    @cached_property
    def all_inner(self) -> tuple[Ref, ...]:
        """The references to the factors of all rows."""
        return tuple(ref for refs in self.inner for ref in refs)

    def factors(self, dtype: torch.dtype) -> list[Tensor]:
        """Read the factors of all rows as they are stored, and products of factors in a dtype."""
        return [read_in(ref, dtype) for ref in self.all_inner]

    def rows(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the matrices (row, in) by which x is multiplied."""
        return [self.row(number, factors) for number in range(len(self.inner))]

    def row(self, number: int, factors: Sequence[Tensor]) -> Tensor:
        """Return one of these matrices, given the factors of all."""
        start = sum(len(refs) for refs in self.inner[:number])
        own = factors[start : start + len(self.inner[number])]
        if any(one.dtype != own[0].dtype for one in own):  # as where fully_shard casts those that are trained
            own = [one.to(reduce(torch.promote_types, [one.dtype for one in own])) for one in own]
        return self.entry.rows[number].make(*own)

    def has_row_of(self, number: int, other: "Parts", row: int) -> bool:
        """Return whether one of the matrices is one of another update: both are the same factor, stored alike."""
        mine, its = self.entry.rows[number], other.entry.rows[row]
        is_bare = mine.is_bare and its.is_bare and mine.is_turned == its.is_turned and mine.count == its.count
        return is_bare and self.inner[number] == other.inner[row]


@lru_cache(maxsize=4096)
def lower_entry(
    network: Network,
    tokens: int,
    *,
    training: bool = True,
    x_needs_grad: bool = True,
    objective: str | Objective = "training",
    machine: str = "cpu",
) -> Entry | None:
    """Write an update in two parts, in the order of the plan for these arguments.

    Returns None where x first meets factors that have only some of its modes, or the entries of a mode one by one.
    """
    order = plan(network, "apply", tokens=tokens, training=training, x_needs_grad=x_needs_grad, objective=objective)
    if order.convolutions:
        return None
    terms = lay_out(order, MACHINES[machine])
    met = [way for _, term in terms for way in _first_products(term)]
    ends = [id(way) for _, way in terms]
    firsts = {id(way): way for way in met if _is_entry(way, network) and id(way) not in ends}
    if not met or not all(id(way) in firsts for way in met):
        return None
    products = list(firsts.values())
    rows = tuple(_rows_of(order, way) for way in products)
    finish, nodes = _finish(order, terms, products)
    return Entry(network.scale, rows, finish, nodes)


def _first_products(way: Laid) -> Iterator[Way | Convolved | Given]:
    """Yield the steps of a term that read x, or x itself where no step does."""
    if isinstance(way, Given):
        if way.number == X:
            yield way
        return
    if _is_x(way.left) or _is_x(way.right):
        yield way
    for side in (way.left, way.right):
        if not isinstance(side, Given):
            yield from _first_products(side)


def _is_x(way: Laid) -> bool:
    return isinstance(way, Given) and way.number == X


def _is_entry(way: Laid, network: Network) -> TypeGuard[Way]:
    """Return whether a step multiplies x by a matrix: it sums over all modes of x, and over nothing else."""
    return isinstance(way, Way) and not way.roles.batch and {*way.roles.summed} == {*network.in_modes}


def _parted(way: Way) -> tuple[Laid, Modes]:
    """Return what x is multiplied by, and its other modes in the order that the product has them in."""
    other, free = (way.right, way.roles.right) if _is_x(way.left) else (way.left, way.roles.left)
    return other, tuple(mode for mode in way.order if mode in free)


def _rows_of(order: Plan, way: Way) -> Rows:
    other, free = _parted(way)
    columns = order.network.in_modes
    count = math.prod(map(order.size, free))
    if isinstance(other, Given):
        modes, shape = other.order, (count, order.network.volume(columns))
        if modes in ((*free, *columns), (*columns, *free)):
            is_turned = modes != (*free, *columns)
            return Rows((other.number - 1,), _viewed(shape, is_turned=is_turned), count, True, is_turned)
    writer = Writer(order)
    given = writer.factors()
    node = writer.node(other, [given[0], *given])  # x is not read
    wanted = (*free, *columns)
    if other.order == (*columns, *free) and free:
        node = writer.turned(writer.reshape(node, (columns, free)))
    else:
        node = writer.reshape(writer.ordered(node, other.order, wanted), (free, columns))
    code, nodes = _closed(writer, node, given)
    return Rows(nodes, code, count)


def _viewed(shape: tuple[int, int], *, is_turned: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that views a factor as a matrix (row, in)."""

    def view(factor: Tensor) -> Tensor:
        if is_turned:
            return factor.reshape(shape[::-1]).t()
        return factor if factor.ndim == len(shape) else factor.reshape(shape)

    return view


def _finish(order: Plan, terms: Sequence[tuple[int, Laid]], firsts: Sequence[Way]) -> tuple[Code, tuple[int, ...]]:
    """Write what is done with the products of x, and return it with the numbers of the factors that it reads."""
    writer = Writer(order)
    writer.scale = 1.0
    y = writer.input("y")
    for number, way in enumerate(firsts):
        product = writer.input(f"product_{number}")
        if len(way.order) == 1:  # x times a vector
            node = writer.reshape(product, [(way.order[0],)])
        elif way.order[0] in order.inputs[X]:
            node = writer.split(product, way.order)
        else:
            turned = writer.turned(product)
            node = turned if len(way.order) == 2 else writer.reshape(turned, [(mode,) for mode in way.order])  # noqa: PLR2004
        writer.made[id(way)] = node
    factors = writer.factors()
    result = writer.add_terms(y, terms, [factors[0], *factors])
    return _closed(writer, write_in_place(writer.graph, y, result), factors)


def _closed(writer: Writer, result: fx.Node, factors: Sequence[fx.Node]) -> tuple[Code, tuple[int, ...]]:
    """End the code, without arguments for factors that nothing reads. Return it, and the numbers of the others."""
    writer.graph.output(result)
    writer.graph.eliminate_dead_code()
    read = []
    for number, node in enumerate(factors):
        if node.users:
            read.append(number)
        elif node in list(writer.graph.nodes):
            writer.graph.erase_node(node)
    module = fx.GraphModule(torch.nn.Module(), writer.graph)
    return cast("Code", module.forward), tuple(read)
