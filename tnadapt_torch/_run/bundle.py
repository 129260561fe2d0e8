"""The sites that make their products of factors together, in a block of `fixed()`: those of equal networks."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._C import _autograd
from torch.autograd import forward_ad

from tnadapt import plan
from tnadapt.binding import FactorProducts, Group, Network, part_products, shared_by
from tnadapt_torch._run.asked import Asked
from tnadapt_torch._run.fixed import Fixed
from tnadapt_torch._run.gradient import is_transformed
from tnadapt_torch._run.joint import GROUP, Operand, Recipe, make_rows, mark, recipe_of
from tnadapt_torch._run.refs import Held, Joint, Leading, Ref, Row

__all__: list[str] = []

WASTE = 2  # a product may have at most so many times as many rows as there are sites
PLAIN = (Tensor, nn.Parameter)


class Owner(Protocol):
    """The attributes of an adapter that hold products of factors while a block is open, and are None elsewhere."""

    products: Fixed | None
    joint: "Rows | None"


class Update(Protocol):
    """The attribute of a site's update that has its references to factors."""

    refs: tuple[Ref, ...]


class Kept:
    """The rows of the products of all sites, and what was seen of the factors, until a backward pass has used them."""

    def __init__(self, owner: Owner) -> None:
        """Begin without rows."""
        self.owner = owner
        self.rows: list[Sequence[Tensor]] = []
        self.seen: list[tuple[Tensor, int, int, bool] | None] = []

    def end(self) -> None:
        """Let go of the rows, and of all products: the factors are about to change, and not every optimizer counts."""
        self.rows, self.seen = [], []
        if self.owner.products:
            self.owner.products.clear()

    def is_valid(self, holders: Iterable[tuple[int, Held]]) -> bool:
        """Return whether some of the factors are as they were."""
        seen = self.seen
        for number, held in holders:
            one, was = held.kept, seen[number] if seen else None
            if was is None or one is not was[0]:
                return False
            if one._version != was[2] or one.data_ptr() != was[1] or one.requires_grad != was[3]:
                return False
        return True


@dataclass(frozen=True, eq=False)
class Shared:
    """Products of the sites of a bundle: how they are made for all, and each by itself for one site."""

    products: FactorProducts
    recipe: Recipe
    single: Mapping[str, Recipe]
    names: tuple[str, ...]


Rows = dict[tuple[Shared, torch.dtype | None], Kept]


@dataclass(eq=False)
class Bundle:
    """Sites of equal networks. `tables` has, for each node, what their groups read: one tensor, or one each."""

    owner: Owner
    network: Network
    sites: int
    tables: tuple[tuple[Held | Leading, ...] | None, ...]
    _known: dict[tuple[int, str], Shared | str] = field(default_factory=dict)

    def shared(self, asked: Asked, machine: str, most: int) -> Shared | str:
        """Return the products for calls of so many tokens, at most so many numbers for a site; or why there are none.

        If the sites would share too many numbers, they share those that each would make for itself. The first layer,
        whose x needs no gradient, takes what the others have.
        """
        key = (asked["tokens"], machine)
        if key not in self._known:
            goals = [shared_by(machine, self.sites), asked["objective"]]
            found = [self._find(Asked(**{**asked, "objective": goal, "x_needs_grad": True}), most) for goal in goals]
            self._known[key] = next((one for one in found if isinstance(one, Shared)), found[0])
        return self._known[key]

    def _find(self, asked: Asked, most: int) -> Shared | str:
        order = plan(self.network, **asked)
        products = part_products(order)
        if products is None:
            return "no product of factors pays"
        if order.factor_products > most:
            return "products of factors are too large"
        trained = [name for name in products.made if products.network.is_trained(name)]
        recipe = recipe_of(products, [*products.made], self.network.over, self.operands)
        if not trained or recipe is None or max(one.rows for one in recipe.made) > WASTE * self.sites:
            return "not all sites can make them at once"
        alone = [Operand(self.network.local_modes(node)) for node in self.network.nodes]
        single = {name: recipe_of(products, [name], (), alone) for name in products.made}
        whole = {name: one for name, one in single.items() if one is not None}
        return Shared(products, recipe, whole, tuple(products.made))

    @cached_property
    def operands(self) -> list[Operand | None]:
        """The axes of each node over all sites."""
        found: list[Operand | None] = []
        for node, table in zip(self.network.nodes.values(), self.tables, strict=True):
            axes = (GROUP,) if table is not None and len(table) > 1 else ()
            found.append(None if table is None else Operand((*axes, *node.modes), len(table)))
        return found

    @cached_property
    def holders(self) -> dict[Held, int]:
        """The numbers of all that holds a tensor."""
        every = [bare_of(one) for table in self.tables if table is not None for one in table]
        return {held: number for number, held in enumerate(dict.fromkeys(every))}

    def rows(
        self, shared: Shared, dtype: torch.dtype | None, holders: Iterable[tuple[int, Held]]
    ) -> list[Sequence[Tensor]] | None:
        """Return the rows of all products, made anew if one of some factors is not as it was.

        None if they cannot be made for all sites, or in a backward pass, which would make them for each of its parts.
        """
        joint = self.owner.joint
        if joint is None:
            return None
        kept = joint.get((shared, dtype))
        rows = kept.rows if kept is not None and kept.is_valid(holders) else None
        if rows:
            return rows
        if torch._C._current_graph_task_id() >= 0:
            return None
        if (tensors := self._tensors(shared.recipe)) is None:
            return None
        kept = Kept(self.owner)
        kept.seen = [_seen(held) for held in self.holders]
        kept.rows = rows = make_rows(shared.recipe, dtype, weakref.ref(kept), tensors)
        joint[shared, dtype] = kept
        return rows

    def _tensors(self, recipe: Recipe) -> list[Tensor] | None:
        """Return the tensors that a recipe takes, or None if they are no plain ones of one dtype on one device."""
        tables = [table for node in recipe.nodes if (table := self.tables[node]) is not None]
        kinds = set()
        for one in (bare_of(one).kept for table in tables for one in table):
            if one is None or type(one) not in PLAIN or one.is_meta or one.is_inference():
                return None
            kinds.add((one.dtype, one.device))
        if len(kinds) > 1:
            return None
        return [one.read() for table in tables for one in table]


@dataclass(frozen=True, eq=False)
class Member:
    """One site of a bundle: its references to factors, and its index along each site mode and among the groups."""

    bundle: Bundle
    refs: tuple[Ref, ...]
    index: Mapping[str, int]
    _holders: dict[tuple[Shared, int], list[tuple[int, Held]]] = field(default_factory=dict)

    def joined(self, shared: Shared) -> tuple[Ref, ...]:
        """Return the references of what is left of the network, in the order of its nodes."""
        old = dict(zip(self.bundle.network.nodes, self.refs, strict=True))
        found: list[Ref] = []
        for name in shared.products.network.nodes:
            if name in shared.single:
                number = shared.names.index(name)
                row = shared.recipe.made[number].row(self.index)
                found.append(Joint(self, shared, number, row))
            else:
                found.append(old[name])
        return tuple(found)

    def holders(self, shared: Shared, number: int) -> list[tuple[int, Held]]:
        """Return what holds the tensors of one of the site's products, with its number in the bundle."""
        if (shared, number) not in self._holders:
            refs = [self.refs[node] for node in shared.single[shared.names[number]].nodes]
            held = dict.fromkeys(bare_of(ref.stack.held if isinstance(ref, Row) else ref) for ref in refs)
            self._holders[shared, number] = [(self.bundle.holders[one], one) for one in held]
        return self._holders[shared, number]

    def read(self, shared: Shared, number: int, row: int, dtype: torch.dtype | None) -> Tensor:
        """Return a product at this site: its row of what is made for all, or made by itself."""
        rows = self.bundle.rows(shared, dtype, self.holders(shared, number))
        if rows is not None:
            found = rows[number][row]
        else:
            recipe = shared.single[shared.names[number]]
            found = make_rows(recipe, dtype, None, _alike([self.refs[node].read() for node in recipe.nodes]))[0][0]
        is_seen = _autograd._top_saved_tensors_default_hooks(True) is not None
        return mark(found) if is_seen and found.requires_grad else found


def bare_of(one: object) -> Held:
    """Return what holds the tensor of a reference to all of it or to its leading part."""
    held = one.held if isinstance(one, Leading) else one
    if not isinstance(held, Held):
        raise TypeError(f"expected a factor that is held, got {held!r}")
    return held


def _alike(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors on one device and of one dtype: without values if one has none, so that it is missed later."""
    devices, dtypes = ({*map(kind, tensors)} for kind in (lambda one: one.device, lambda one: one.dtype))
    if len(devices) == len(dtypes) == 1:
        return tensors
    device = next((one for one in devices if one.type == "meta"), tensors[0].device)
    return [one.to(device, reduce(torch.promote_types, dtypes)) for one in tensors]


def _seen(held: Held) -> tuple[Tensor, int, int, bool] | None:
    one = held.kept
    return None if one is None else (one, one.data_ptr(), one._version, one.requires_grad)


def may_join(x: Tensor) -> bool:
    """Return whether a call with gradients may use products of all sites: nothing sees or changes its operations."""
    if type(x) not in PLAIN or torch.compiler.is_compiling() or is_transformed() or forward_ad._current_level >= 0:
        return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
    )


def bundle_sites(owner: Owner, groups: Iterable[Group], updates: Mapping[str, Update]) -> dict[str, Member]:
    """Return the members of bundles by path: sites of equal networks, two or more.

    `updates` has those that may be members. A group with another one is left out.
    """
    alike: dict[Network, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.network, []).append(group)
    found: dict[str, Member] = {}
    for network, some in alike.items():
        whole = [group for group in some if all(site.path in updates for site in group.sites)]
        sites = sum(len(group.sites) for group in whole)
        if sites < WASTE:
            continue
        firsts = [updates[group.sites[0].path].refs for group in whole]
        shapes = [tuple(network.sizes[mode] for mode in node.modes) for node in network.nodes.values()]
        tables = tuple(_table([refs[number] for refs in firsts], shape) for number, shape in enumerate(shapes))
        bundle = Bundle(owner, network, sites, tables)
        for number, group in enumerate(whole):
            for site in group.sites:
                index = {**group.index(site), GROUP: number}
                found[site.path] = Member(bundle, updates[site.path].refs, index)
    return found


def _table(refs: Sequence[Ref], shape: tuple[int, ...]) -> tuple[Held | Leading, ...] | None:
    """Return what the groups read of one node: one tensor for all, or one each; None for what is not a plain factor.

    That includes rows of an array that is made for other sites too, so that its axes are longer.
    """
    bare = [ref.stack.held if isinstance(ref, Row) else ref for ref in refs]
    found = {bare_of(one): one for one in bare if isinstance(one, Held | Leading)}
    if any(isinstance(one, Held) and (one.kept is None or tuple(one.kept.shape) != shape) for one in bare):
        return None
    if len(found) not in (1, len(refs)) or not all(isinstance(one, Held | Leading) for one in bare):
        return None
    return tuple(found.values())
