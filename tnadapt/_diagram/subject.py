"""What a diagram shows, of a spec or of a network: which factors carry which modes, and the column of each factor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tnadapt._language import Axis, Factor

__all__: list[str] = []


@dataclass(frozen=True)
class Subject:
    """The parts that a spec and a network have in common. A spec has no sizes and no cut."""

    axes: tuple[Axis, ...]
    over: tuple[str, ...]
    factors: Mapping[str, Factor]
    sizes: Mapping[str, int] = field(default_factory=dict)
    cut: tuple[str, ...] = ()

    @property
    def outs(self) -> tuple[str, ...]:
        """The modes of the first axis. Their legs point to the left."""
        return self.axes[0]

    @property
    def ins(self) -> tuple[str, ...]:
        """The modes of all other axes. Their legs point to the right."""
        return tuple(mode for axis in self.axes[1:] for mode in axis)

    @cached_property
    def local(self) -> dict[str, tuple[str, ...]]:
        """The modes of each factor, without site modes."""
        return {
            name: tuple(mode for mode in factor.modes if mode not in self.over) for name, factor in self.factors.items()
        }

    @cached_property
    def carriers(self) -> dict[str, list[str]]:
        """The factors that carry each mode, without site modes."""
        inner = [mode for modes in self.local.values() for mode in modes]
        modes = dict.fromkeys([*self.outs, *self.ins, *inner])
        return {mode: [name for name in self.factors if mode in self.local[name]] for mode in modes}

    def is_dot(self, mode: str) -> bool:
        """Return whether a mode joins more than two ends. An open leg counts as one end."""
        is_summed = mode not in (*self.outs, *self.ins)
        return len(self.carriers[mode]) > 1 + is_summed

    def label(self, mode: str) -> str:
        """Return the label of a mode: its name and size, as in r = 8, or its name alone in a spec."""
        return f"{mode} = {self.sizes[mode]:,}" if mode in self.sizes else mode

    def is_shared(self, name: str) -> bool:
        """Return whether sites share a factor: it carries no site mode, and there are some or it is for all sites."""
        one = self.factors[name]
        if one.init.is_host or {*one.modes} & {*self.over}:
            return False
        return bool(self.over) or one.shared or not one.trainable

    @cached_property
    def vectors(self) -> dict[str, list[str]]:
        """Mode -> the factors that carry no other mode, drawn at its dot: diagonals, and the vectors of a CP form."""
        found: dict[str, list[str]] = {}
        for name, modes in self.local.items():
            if len(modes) == 1 and self.is_dot(modes[0]):
                found.setdefault(modes[0], []).append(name)
        return found

    @cached_property
    def scalars(self) -> list[str]:
        """The factors without any mode at one site."""
        return [name for name, modes in self.local.items() if not modes]

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each factor from left to right, from its distances to the out legs and to the in legs."""
        lone = {*self.scalars, *(name for names in self.vectors.values() for name in names)}
        away = [self._distances(modes, lone) for modes in (self.outs, self.ins)]
        share = {name: _share(away[0].get(name), away[1].get(name)) for name in self.factors if name not in lone}
        ranks = {value: rank for rank, value in enumerate(sorted(set(share.values())))}
        return {name: ranks[value] for name, value in share.items()}

    def _distances(self, modes: Iterable[str], lone: set[str]) -> dict[str, int]:
        """Return the number of factors on the shortest path from these modes to each factor, including it."""
        found: dict[str, int] = {}
        waiting, seen = [(mode, 1) for mode in modes], set(modes)
        for mode, steps in waiting:
            for name in self.carriers[mode]:
                if name not in found and name not in lone:
                    found[name] = steps
                    further = [other for other in self.local[name] if other not in seen]
                    seen |= set(further)
                    waiting += [(other, steps + 1) for other in further]
        return found


def _share(out: int | None, into: int | None) -> float:
    """Return a position from 0 (out legs) to 1 (in legs). A factor not connected to one side stays near the other."""
    if out is not None and into is not None:
        return out / (out + into)
    if out is not None:
        return out / (2 * out + 1)
    return 0.5 if into is None else (into + 1) / (2 * into + 1)
