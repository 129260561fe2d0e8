"""An immutable, hashable mapping: how specs, sites and networks hold what has a name."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

__all__: list[str] = []

V = TypeVar("V")


class FrozenMap(Mapping[str, V], Generic[V]):
    """A mapping that keeps its order, never changes, and is equal and hashed by value, whatever the order."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V]) -> None:
        """Args: the mapping to copy."""
        self._items = dict(items)

    def __getitem__(self, name: str) -> V:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)
