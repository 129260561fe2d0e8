"""Freeze a host for training and put its flags back: by path, since loads, casts and wrappers replace parameters."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

__all__: list[str] = []

MADE = (".original0", ".original1", "_orig")  # ends of the names that torch gives to what makes a weight


@dataclass
class Flags:
    """The flags of `requires_grad` that an attach set, by the path of the parameter: what it was before, what was set.

    A flag that the user changed since then stays as the user left it.
    """

    set: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def freeze(self, host: nn.Module, trained: Iterable[nn.Parameter], kept: Iterable[nn.Parameter]) -> None:
        """Freeze a host, except for the parameters that are trained in full and those whose flags others set."""
        on, skipped = {id(each) for each in trained}, {id(each) for each in kept}
        for path, parameter in _parameters(host):
            if id(parameter) in on or id(parameter) not in skipped:
                self.set[path] = parameter.requires_grad, id(parameter) in on
        for path, parameter in _by_path(host, self.set):
            parameter.requires_grad_(self.set[path][1])

    def restore(self, host: nn.Module, others: Iterable[tuple[nn.Module, "Flags", bool]] = ()) -> None:
        """Put the flags back. A parameter that another adapted host has too stays frozen until that one is restored.

        Args:
            host: the model whose flags were set.
            others: the other adapted hosts, their flags, and whether each was set after this one. What was there before
                these flags is then what was there before the later ones.
        """
        owners = [(flags, is_later, _names(other)) for other, flags, is_later in others]
        for path, parameter in list(_by_path(host, self.set)):
            before, present = self.set[path]
            frozen = False
            for flags, is_later, names in owners:
                for there in names.get(id(parameter), ()):
                    known, frozen = flags.set.get(there), True
                    if is_later or not known:
                        flags.set[there] = before, bool(known and known[1])
            can = parameter.is_floating_point() or parameter.is_complex()  # not if quantized in the meantime
            if parameter.requires_grad == present:
                parameter.requires_grad_(before and not frozen and can)


def _parameters(host: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters under all their names; a parametrized one has the name of the weight that it belongs to."""
    for path, parameter in host.named_parameters(remove_duplicate=False):
        yield path.replace("parametrizations.", "").removesuffix(".original"), parameter


def _names(host: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter, which are several if it is tied."""
    found: dict[int, list[str]] = {}
    for path, parameter in _parameters(host):
        found.setdefault(id(parameter), []).append(path)
    return found


def _by_path(host: nn.Module, paths: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a host has now for these names, of which pruning or a norm may have made others."""
    found = list(_parameters(host))
    names = {path for path, _ in found}
    for path, parameter in found:
        known = (name for name in _renamed(path) if name in paths and name not in names)
        name = path if path in paths else next(known, None)
        if name is not None:
            yield name, parameter


def _renamed(path: str) -> list[str]:
    """Return the names that a parameter may have had before torch parametrized, normed or pruned it, or undid that."""
    stem = next((path.removesuffix(end) for end in MADE if path.endswith(end)), path)
    return [stem, *(stem + end for end in MADE)]
