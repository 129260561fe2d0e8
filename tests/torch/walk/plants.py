"""Faults planted around the public functions and methods of the binding, however it is written."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tnadapt_torch
from tests.torch.walk.circumstances import Plant
from tnadapt import SiteError
from tnadapt_torch import AdapterState
from tnadapt_torch._host import Hosted

# ---- the functions that attach and load


def after_attach(act: Callable[[nn.Module, AdapterState, list[AdapterState]], None]) -> Plant:
    """Do something to the model after each attach, given the new adapter and those that were there."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = tnadapt_torch.attach

        def attach(model: nn.Module, *args: Any, **words: Any) -> AdapterState:
            earlier = [one for one in model.modules() if isinstance(one, AdapterState)]
            state = true(model, *args, **words)
            act(model, state, earlier)
            return state

        patch.setattr(tnadapt_torch, "attach", attach)

    return plant


def misserves(condition: Callable[[AdapterState], Any]) -> Plant:
    """Serve the last weight of an adapter wrongly if the adapter has some property."""

    def act(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
        if condition(state):
            path = list(state.adapter.weights)[-1]
            owner = path if isinstance(model.get_submodule(path), nn.Linear) else path.rpartition(".")[0]
            model.get_submodule(owner).register_forward_hook(lambda module, args, y: 1.01 * y)

    return after_attach(act)


def misserves_words(word: str) -> Plant:
    """Serve the last weight wrongly if attach was given some argument."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = tnadapt_torch.attach

        def attach(model: nn.Module, *args: Any, **words: Any) -> AdapterState:
            state = true(model, *args, **words)
            if words.get(word):
                path = list(state.adapter.weights)[-1]
                owner = model.get_submodule(path.rpartition(".")[0] if word == "target_parameters" else path)
                owner.register_forward_hook(lambda module, args, y: 1.01 * y)
            return state

        patch.setattr(tnadapt_torch, "attach", attach)

    return plant


def thaw_host(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
    next(value for name, value in model.named_parameters() if "tnadapt" not in name).requires_grad_(True)


def freeze_earlier(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
    for other in earlier:
        other.requires_grad_(False)


def thaw_earlier(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
    for other in earlier:
        other.requires_grad_(True)


def freeze_host(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
    for name, value in model.named_parameters():
        if "tnadapt" not in name:
            value.requires_grad_(False)


def freezes_when_refused(patch: pytest.MonkeyPatch) -> None:
    true = tnadapt_torch.attach

    def attach(model: nn.Module, *args: Any, **words: Any) -> AdapterState:
        try:
            return true(model, *args, **words)
        except SiteError:
            model.requires_grad_(False)
            raise

    patch.setattr(tnadapt_torch, "attach", attach)


def loses_a_factor(name: str) -> Plant:
    """Give an adapter that was read from a file another value of its first factor."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = getattr(tnadapt_torch, name)

        def load(*args: Any, **words: Any) -> AdapterState:
            state = true(*args, **words)
            spoil(state)
            return state

        patch.setattr(tnadapt_torch, name, load)

    return plant


def spoil(state: AdapterState) -> None:
    with torch.no_grad():
        next(iter(state.parameters())).mul_(1.5)


# ---- methods of the state


def around(name: str, act: Callable[..., Any]) -> Plant:
    """Replace a method: `act` gets the true one, the state and the arguments."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = getattr(AdapterState, name)
        patch.setattr(AdapterState, name, lambda self, *args, **words: act(true, self, *args, **words))

    return plant


def stored(state: AdapterState, path: str) -> nn.Parameter:
    return state.model.get_parameter(f"{path}.weight")


def merge_and_change(true: Any, state: AdapterState) -> None:
    true(state)
    with torch.no_grad():
        stored(state, next(iter(state.adapter.weights))).mul_(1.001)


def merge_without_lengths(true: Any, state: AdapterState) -> None:
    """Merge the update below a magnitude: the rows keep the lengths that the host gave them."""
    true(state)
    for path, weight in state.weights.items() if state.spec.magnitude else ():
        was, held = (weight.unlay(one.detach()) for one in (state.merged.originals[path], weight.parameter))
        lengths = [one.norm(dim=-1, keepdim=True) for one in (was, held)]
        with torch.no_grad():
            weight.parameter.mul_(weight.lay(lengths[0] / lengths[1]))


def unmerge_by_subtracting(true: Any, state: AdapterState) -> None:
    weight = stored(state, next(iter(state.adapter.weights)))
    true(state)
    with torch.no_grad():
        weight.copy_(torch.nextafter(weight, weight + 1))  # what rounding leaves of a difference of sums


def detach_and_freeze(true: Any, state: AdapterState) -> None:
    host = state.model
    true(state)
    next(value for name, value in host.named_parameters() if "tnadapt" not in name).requires_grad_(False)


def detach_with_update(true: Any, state: AdapterState) -> None:
    if not state.active:
        state.unmerge()
    true(state)


def detach_everything(true: Any, state: AdapterState) -> None:
    """Remove the user's parametrizations with the adapter."""
    modules = [state.model.get_submodule(path) for path in state.adapter.weights]
    true(state)
    for module in modules:
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def flags_by_identity(patch: pytest.MonkeyPatch) -> None:
    """Put flags back on the parameters that were there at attach, whether or not the host still holds them."""
    known: set[int] = set()
    kept: list[Any] = []  # alive, so that no other object gets the same id

    def note(model: nn.Module, state: AdapterState, earlier: list[AdapterState]) -> None:
        kept.extend(model.parameters())
        known.update(map(id, model.parameters()))

    after_attach(note)(patch)

    def detach(true: Any, state: AdapterState) -> None:
        host = state.model
        true(state)
        for value in host.parameters():
            if id(value) not in known:
                value.requires_grad_(False)

    around("detach", detach)(patch)


def disabled_in_name(true: Any, state: AdapterState) -> Any:
    return true(state) if state.merged else nullcontext()


def ignore_task(true: Any, state: AdapterState, task: str) -> None:
    if task == "unknown":
        true(state, task)


def reads(change: Callable[[Any, Tensor], Tensor]) -> Plant:
    """Change what an adapter reads as the host's weight."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = Hosted.read
        patch.setattr(Hosted, "read", lambda self: change(self, true(self)))

    return plant


def as_at_first(hosted: Any, weight: Tensor) -> Tensor:
    """Return the values that were read first, whatever they are now, with the gradient of the present ones."""
    return vars(hosted).setdefault("first", weight.detach().clone()) + (weight - weight.detach())


def reads_what_computes(patch: pytest.MonkeyPatch) -> None:
    """Read the weight that the layer computes with, which has the updates that are folded into it."""

    def read(self: Any) -> Tensor:
        if self.is_mask or self.owner.merged:
            return true(self)
        given = self.owner.enabled
        try:
            self.owner.enabled = False
            return self.weight.unlay(getattr(self.weight.module, self.weight.name))[self.rectangle].reshape(self.shape)
        finally:
            self.owner.enabled = given

    true = Hosted.read
    patch.setattr(Hosted, "read", read)


def checks_nothing(module: str, name: str) -> Plant:
    return lambda patch: patch.setattr(f"tnadapt_torch.{module}.{name}", lambda *args: None)


def silent_norms(true: Any, state: AdapterState) -> Any:
    try:
        return true(state)
    except SiteError:
        return {}


def rebinds_if(condition: Callable[[nn.Module, nn.Module], bool]) -> Plant:
    """Make new parameters of the factors in casts that fulfil a condition."""

    def apply(true: Any, state: AdapterState, fn: Any, *args: Any) -> Any:
        before = next(state.parameters()).dtype
        found = true(state, fn, *args)
        if condition(before, next(state.parameters()).dtype):
            for module in state.modules():
                for name, value in list(module._parameters.items()):
                    module._parameters[name] = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
        return found

    return around("_apply", apply)


def loses_on_bfloat16(true: Any, state: AdapterState, fn: Any, *args: Any) -> Any:
    found = true(state, fn, *args)
    if next(state.parameters()).dtype == torch.bfloat16:
        spoil(state)
    return found


def cannot_swap(true: Any, state: AdapterState, fn: Any, *args: Any) -> Any:
    if torch.__future__.get_swap_module_params_on_conversion():
        raise RuntimeError("_apply(): Couldn't swap")
    return true(state, fn, *args)


def loses_when_copied(true: Any, state: AdapterState, *args: Any) -> None:
    true(state, *args)
    spoil(state)
