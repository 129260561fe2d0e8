"""An immutable, hashable mapping from names to values, used by specs, sites and networks."""

from collections.abc import ItemsView, Iterator, Mapping
from typing import Generic, TypeVar

__all__: list[str] = []

V = TypeVar("V")


class FrozenMap(Mapping[str, V], Generic[V]):
    """An immutable mapping that keeps its order. Equality and hash depend on the items, not on their order."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V]) -> None:
        """Copy the items of a mapping."""
        self._items = dict(items)

    def __getitem__(self, name: str) -> V:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> ItemsView[str, V]:
        """Return those of a dict, which are faster than what a Mapping has."""
        return self._items.items()

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)
