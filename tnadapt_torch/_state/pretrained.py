"""What `save_pretrained` of an adapted model writes: the model, and each adapter in a file beside it."""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tnadapt import TnadaptError
from tnadapt_torch._state.replicas import shared_by

if TYPE_CHECKING:
    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

PLACE = "save_pretrained"  # the attribute of a module in which a `Saving` stands before the method of its class
WEIGHTS = "model.safetensors"  # the file that the Trainer looks for in a checkpoint
CHECKPOINT = re.compile(r"checkpoint-\d+")
FOLDED = "parametrizations.{}.original"


class Saving:
    """Stands before `save_pretrained` of a module of the host, and is copied and pickled with it.

    Without it the folder would have the factors among the weights of the model, where `from_pretrained` ignores them,
    and a folded weight under a key that it does not find.
    """

    def __init__(
        self, module: nn.Module, states: "tuple[AdapterState, ...]", before: Callable[..., Any] | None
    ) -> None:
        """Store the module, the adapters, and what the user had put in this place before."""
        self.module, self.states, self.before = module, states, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model, and each adapter that is not merged as tnadapt_<adapter_name>.safetensors beside it.

        In a checkpoint of a `CheckpointCallback`, write what is trained and nothing else. Warns of an adapter that
        cannot be saved here.
        """
        save = self.before or MethodType(getattr(type(self.module), PLACE), self.module)
        given = inspect.signature(save).bind(*args, **kwargs)
        directory = Path(next(iter(given.arguments.values())))
        is_writing = bool(given.arguments.get("is_main_process", True))
        result = None
        if self._is_alone(directory):
            if is_writing:
                self._write_trained(directory, given.arguments.get("state_dict"))
        else:
            if any(state.folded for state in self.states) and "state_dict" in inspect.signature(save).parameters:
                given.arguments["state_dict"] = self._plain(given.arguments.get("state_dict"))
            result = save(*given.args, **given.kwargs)
        if is_writing and directory.is_dir():
            inside, written = {id(module) for module in self.module.modules()}, set[Path]()
            own = type(self.states[0])  # adapters that were attached to a part of the module are its children, too
            others = (each for each in self.module.modules() if type(each) is own and each not in self.states)
            for state in (*self.states, *others):
                if any(id(weight.module) in inside for weight in state.weights.values()):
                    path = directory / f"{state.child_name}.safetensors"
                    twice = f"it was not saved: another of its name is in {path}.\nSave it with state.save(path)."
                    is_taken = path in written  # by an adapter of the model, or of another part of it
                    what = twice if is_taken else self._keep(state, path, is_here=id(state.model) in inside)
                    written.add(path)
                    if not what and given.arguments.get("push_to_hub") and state.merged is None:
                        what = f"{path} was written, but not uploaded.\nUpload it yourself."
                    if what:
                        warnings.warn(f"save_pretrained: adapter {state.name!r}: {what}", stacklevel=2)
        return result

    def _keep(self, state: "AdapterState", path: Path, *, is_here: bool) -> str:
        """Save an adapter to a file, or return a warning. A merged one is in the weights, and is not saved again."""
        if state.merged is not None:
            stale = (
                f"its update is in the weights that were saved, and {path} is from an earlier save.\n"
                "If you load that file onto this model, the update counts twice. Remove the file."
            )
            return stale if path.exists() else ""
        if is_here and shared_by(state) is None:
            try:
                state.save(path)
            except TnadaptError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # a full disk, say: to go on would lose what was trained
                return f"it was not saved: {error}\nSave it with state.save(path)."
            return ""
        if is_here and self._is_checkpoint(path.parent, state):
            return ""  # the callback saves it, with all processes
        why = "all processes that share it must save it together" if is_here else "it is on a model that holds this one"
        return f"it was not saved: {why}.\nSave it with state.save(path)."

    def _plain(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the state dict with the keys of the plain model for weights with folded updates.

        A weight that the user parametrized as well keeps its key.
        """
        held = self.module.state_dict(keep_vars=True)
        folded = [weight for state in self.states for weight in state.folded.values() if weight.is_alone]
        names = {id(weight.parameter): weight.name for weight in folded}
        values = self.module.state_dict() if given is None else given
        ends = {key: FOLDED.format(names[id(each)]) for key, each in held.items() if id(each) in names}
        plain = {key: key.removesuffix(end) for key, end in ends.items() if key.endswith(end)}  # not of a tied weight
        return {plain[key] + names[id(held[key])] if key in plain else key: value for key, value in values.items()}

    def _is_alone(self, directory: Path) -> bool:
        """Return whether a folder is a checkpoint that shall have what is trained alone, and can have it."""
        if not any(self._is_checkpoint(directory, state) for state in self.states):
            return False
        return all(state.merged is None and shared_by(state) is None for state in self.states)

    @staticmethod
    def _is_checkpoint(directory: Path, state: "AdapterState") -> bool:
        """Return whether a folder is a checkpoint of the run of a `CheckpointCallback`."""
        if state.run is None or not CHECKPOINT.fullmatch(directory.name):
            return False
        return directory.resolve().is_relative_to(state.run)

    def _write_trained(self, directory: Path, given: Mapping[str, Tensor] | None) -> None:
        """Write the factors, and all else that changes in training, under their keys in the state dict of the model.

        There is no config.json, so that nobody takes the folder for a model.
        """
        held = self.module.state_dict(keep_vars=True)
        wanted = {id(value) for value in held.values() if isinstance(value, nn.Parameter) and value.requires_grad}
        norms = [module for module in self.module.modules() if isinstance(module, _NormBase)]
        saved = [module for state in self.states for module in state.saved.modules.values()]
        for module in (*self.states, *norms, *saved):
            wanted |= {id(value) for value in module.state_dict(keep_vars=True).values()}
        values = held if given is None else given
        chosen = {
            key: values[key].detach().clone(memory_format=torch.contiguous_format)  # tied ones would share a storage
            for key, value in held.items()
            if id(value) in wanted and key in values
        }
        directory.mkdir(parents=True, exist_ok=True)
        save_file(chosen, directory / WEIGHTS, metadata={"format": "pt"})


class Saved:
    """One adapter before `save_pretrained` of the modules of its host that have such a method, until it is removed."""

    def __init__(self, state: "AdapterState", host: nn.Module) -> None:
        """Stand before the methods."""
        self.state = state
        self.modules = [module for module in host.modules() if callable(getattr(type(module), PLACE, None))]
        for module in self.modules:
            found = vars(module).get(PLACE)
            known = found if isinstance(found, Saving) else Saving(module, (), found)
            vars(module)[PLACE] = Saving(module, (*known.states, state), known.before)

    def remove(self) -> None:
        """Leave the methods as they were, unless other adapters are there."""
        for module in self.modules:
            found = vars(module).get(PLACE)
            if not isinstance(found, Saving):
                continue  # which the user has put there since
            left = tuple(state for state in found.states if state is not self.state)
            del vars(module)[PLACE]
            if left or found.before is not None:
                vars(module)[PLACE] = Saving(module, left, found.before) if left else found.before
