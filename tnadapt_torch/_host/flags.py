"""Freeze a host for training and put its flags back: by path, since loads, casts and wrappers replace parameters."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import nn

__all__: list[str] = []

MADE = (".original0", ".original1", "_orig")  # ends of the names that torch gives to what makes a weight


@dataclass(frozen=True)
class Flag:
    """A flag that an attach set: what it was before, what was set, and the turn of the attach among those of the host.

    The flags that several adapters set on one parameter form a stack by turn. What lies on a flag begins with what that
    flag set, unless the user changed it in between.
    """

    before: bool
    present: bool
    turn: int


@dataclass
class Flags:
    """The flags of `requires_grad` that an attach set, by the path of the parameter.

    A flag that the user changed since then stays as the user left it.
    """

    set: dict[str, Flag] = field(default_factory=dict)

    def freeze(
        self, host: nn.Module, trained: Iterable[nn.Parameter], kept: Iterable[nn.Parameter], *, turn: int
    ) -> None:
        """Freeze a host, except for the parameters that are trained in full and those whose flags others set."""
        on, skipped = {id(each) for each in trained}, {id(each) for each in kept}
        for path, parameter in _parameters(host):
            if id(parameter) in on or id(parameter) not in skipped:
                self.set[path] = Flag(parameter.requires_grad, id(parameter) in on, turn)
        for parameter, paths in _names(host, self.set).items():
            if (flag := _Place(self, paths).flag) is not None:
                parameter.requires_grad_(flag.present)

    def restore(self, host: nn.Module, others: Iterable[tuple[nn.Module, "Flags"]] = ()) -> None:
        """Put the flags back. A parameter that another adapted host has too stays frozen until that one is restored.

        Args:
            host: the model whose flags were set.
            others: the other adapted hosts, and their flags.
        """
        owners = [(flags, _names(other, flags.set)) for other, flags in others]
        for parameter, paths in _names(host, self.set).items():
            if (mine := _Place(self, paths).flag) is None:
                continue
            after = _take_out(mine, [_Place(flags, names[parameter]) for flags, names in owners if parameter in names])
            can = parameter.is_floating_point() or parameter.is_complex()  # not if quantized in the meantime
            if after is not None and parameter.requires_grad == mine.present:
                parameter.requires_grad_(after and can)


@dataclass(frozen=True)
class _Place:
    """Where an adapter keeps the flag of a parameter: its flags, and the names that its host has for the parameter."""

    flags: Flags
    paths: list[str]

    @property
    def flag(self) -> Flag | None:
        """The flag, if the adapter set one."""
        return next((self.flags.set[path] for path in self.paths if path in self.flags.set), None)

    def put(self, flag: Flag) -> None:
        """Store a flag under every name."""
        self.flags.set |= dict.fromkeys(self.paths, flag)


def _take_out(mine: Flag, places: list[_Place]) -> bool | None:
    """Take a flag out of the stack of a parameter. Return the flag that it leaves, or None if another lies on it.

    If it is the lowest one, an adapter that set no flag inherits it, so that the parameter stays frozen until the last
    adapter is gone.
    """
    stack = sorted(((flag, place) for place in places if (flag := place.flag)), key=lambda pair: pair[0].turn)
    upper = [pair for pair in stack if pair[0].turn > mine.turn]
    heirs = [place for place in places if not place.flag] if upper == stack else []
    after = mine.before and not heirs
    for heir in heirs[:1]:
        heir.put(replace(mine, present=False))
    if not upper:
        return after
    flag, place = upper[0]
    if flag.before == mine.present:
        place.put(replace(flag, before=after))
    return None


def _parameters(host: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters under all their names; a parametrized one has the name of the weight that it belongs to."""
    for path, parameter in host.named_parameters(remove_duplicate=False):
        yield path.replace("parametrizations.", "").removesuffix(".original"), parameter


def _names(host: nn.Module, known: Collection[str]) -> dict[nn.Parameter, list[str]]:
    """Return the names of each parameter, which are several if it is tied.

    A known name is that of the parameter which pruning or a norm made of the one that had it.
    """
    found = list(_parameters(host))
    present = {path for path, _ in found}
    names: dict[nn.Parameter, list[str]] = {}
    for path, parameter in found:
        before = (name for name in _renamed(path) if name in known and name not in present)
        names.setdefault(parameter, []).append(path if path in known else next(before, path))
    return names


def _renamed(path: str) -> list[str]:
    """Return the names that a parameter may have had before torch parametrized, normed or pruned it, or undid that."""
    stem = next((path.removesuffix(end) for end in MADE if path.endswith(end)), path)
    return [stem, *(stem + end for end in MADE)]
