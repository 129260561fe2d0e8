"""Flags of `requires_grad` that PEFT sets for every adapter where it should set those of one."""

from collections.abc import Iterable, Mapping

from torch import nn

__all__: list[str] = []


def flags_of(model: nn.Module, *inside: str) -> dict[str, bool]:
    """Return the flags of a model's parameters by name; only of those whose path has one of these words, if given."""
    found = ((name, parameter.requires_grad) for name, parameter in model.named_parameters())
    return {name: flag for name, flag in found if not inside or not {*name.split(".")}.isdisjoint(inside)}


def put_flags(model: nn.Module, flags: Mapping[str, bool], without: Iterable[str] = ()) -> None:
    """Set the flags of the parameters that the model still has, except of those below one of these paths."""
    skipped = tuple(f"{path}." for path in without)
    for name, parameter in model.named_parameters():
        if name in flags and not name.startswith(skipped):
            parameter.requires_grad_(flags[name])
