"""Freeze a host for training and put its flags back: by path, since loads, casts and wrappers replace parameters."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

__all__: list[str] = []


@dataclass
class Flags:
    """The flags of `requires_grad` that an attach set, by the path of the parameter: what it was before, what was set.

    A flag that the user changed since then stays as the user left it.
    """

    set: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def freeze(self, host: nn.Module, trained: Iterable[nn.Parameter], kept: Iterable[nn.Parameter]) -> None:
        """Freeze a host, except for the parameters that are trained in full and those whose flags others set."""
        on, skipped = {id(each) for each in trained}, {id(each) for each in kept}
        for path, parameter in host.named_parameters(remove_duplicate=False):
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
        owners = [
            (flags, is_later, {id(value): path for path, value in other.named_parameters(remove_duplicate=False)})
            for other, flags, is_later in others
        ]
        for path, parameter in _by_path(host, self.set):
            before, present = self.set[path]
            frozen = False
            for flags, is_later, paths in owners:
                if there := paths.get(id(parameter)):
                    known, frozen = flags.set.get(there), True
                    if is_later or not known:
                        flags.set[there] = before, bool(known and known[1])
            if parameter.requires_grad == present:
                parameter.requires_grad_(before and not frozen)


def _by_path(host: nn.Module, paths: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a host has now at these paths, or below a parametrization at them."""
    found = dict(host.named_parameters(remove_duplicate=False))
    for path in paths:
        owner, _, name = path.rpartition(".")
        for key in (path, f"{owner}.parametrizations.{name}.original".lstrip(".")):
            if key in found:
                yield path, found[key]
