"""The state dict of a plain model: without its adapters, and with each folded weight under its own key."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tnadapt_torch._host import plain_path

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

FOLDED = "parametrizations.{}.original"


class Plain:
    """What changes in a state dict of an adapted model so that the plain model reads it."""

    def __init__(
        self, module: nn.Module, states: "Collection[AdapterState]", left_out: "Collection[AdapterState]"
    ) -> None:
        """Find the keys of the folded weights of some adapters, and those of the adapters to leave out."""
        wanted = {id(state) for state in left_out}
        found = module.named_modules(remove_duplicate=False)  # one module may lie at several paths
        self.prefixes = tuple(f"{path}." for path, each in found if id(each) in wanted)
        self.names = _plain_names(module, states) if any(state.folded for state in states) else {}

    def edit(self, values: dict[str, Any]) -> None:
        """Change a state dict in place."""
        for key in [key for key in values if key.startswith(self.prefixes)] if self.prefixes else ():
            del values[key]
        for key, name in self.names.items():
            if key in values:
                values[name] = values.pop(key)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Edit each state dict of a module that is taken in the block, but not those that other threads take."""
        here = get_ident()

        def edit(module: nn.Module, values: dict[str, Any], prefix: str, metadata: Any) -> None:
            if not prefix and get_ident() == here:
                self.edit(values)

        handle = module.register_state_dict_post_hook(edit)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            handle.remove()


def values_for(state: "AdapterState", module: nn.Module, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a state dict of a module that holds an adapter has of the adapter's file, by the keys of the file.

    Such a state dict may have other values than the model, such as means over the last steps.
    """
    paths = {id(each): path for path, each in module.named_modules()}
    if not values or id(state) not in paths:
        return {}
    found = {plain_path(key): value for key, value in values.items()}
    own, host = (plain_path(paths[id(each)]) for each in (state, state.model))
    keys = {name: f"{own}.factors.{name}" for name in state.adapter.slots}
    if state.saved.is_trained:  # otherwise the model, and so the state dict, has the originals
        keys |= {key: f"{host}.{key}" if host else key for key in state.saved.values()}
    return {name: found[key] for name, key in keys.items() if isinstance(found.get(key), Tensor)}


def _plain_names(module: nn.Module, states: "Collection[AdapterState]") -> Mapping[str, str]:
    """Return the key of the plain model for the key of each folded weight.

    A weight that the user parametrized as well, and a tied one under its other name, keep their keys.
    """
    folded = [weight for state in states for weight in state.folded.values() if weight.is_alone]
    names = {id(weight.parameter): weight.name for weight in folded}
    held = {key: names[id(each)] for key, each in module.state_dict(keep_vars=True).items() if id(each) in names}
    ends = {key: (FOLDED.format(name), name) for key, name in held.items()}
    return {key: key.removesuffix(end) + name for key, (end, name) in ends.items() if key.endswith(end)}
