"""What `save_pretrained` of an adapted model writes: the model, and each adapter in a file beside it."""

import inspect
import re
import warnings
from collections.abc import Callable, Collection
from contextvars import ContextVar
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tnadapt import TnadaptError
from tnadapt_torch._state.checkpoint import CONFIG, write_trained
from tnadapt_torch._state.plain import Plain
from tnadapt_torch._state.replicas import shared_by
from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []

PLACE = "save_pretrained"  # the attribute of a module in which a `Saving` stands before the method of its class
FORMAT = "save_original_format"
UNSAVED = (
    "it was not saved: it is merged into weights that PEFT does not save.\n"
    "Call unmerge() and save again, or save the model that PEFT wraps."
)
CHECKPOINT = re.compile(r"checkpoint-\d+")  # the folders that the Trainer resumes from

_absorbed: "WeakKeyDictionary[nn.Module, set[str]]" = WeakKeyDictionary()  # hosts, and adapters that stay merged there
_in_work: ContextVar[frozenset[AdapterState]] = ContextVar("_in_work", default=frozenset())  # of a save around this one


class Saving:
    """Stands before `save_pretrained` of a module of the host, and is copied and pickled with it.

    Without it the folder would have the factors among the weights of the model, where `from_pretrained` ignores them,
    and a folded weight under a key that it does not find.
    """

    def __init__(self, module: nn.Module, states: tuple[AdapterState, ...], before: Callable[..., Any] | None) -> None:
        """Store the module, the adapters, and what the user had put in this place before."""
        self.module, self.states, self.before = module, states, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model, and each adapter that is not merged as tnadapt_<adapter_name>.safetensors beside it.

        The file of the model is that of the plain model: it has no entry of an adapter that has its own file. In a
        folder checkpoint-<step> it has the factors, too, since the Trainer resumes from it. In a checkpoint of a
        `CheckpointCallback`, write what is trained and nothing else. Warns of an adapter that cannot be saved here.
        """
        save = self.before or MethodType(getattr(type(self.module), PLACE), self.module)
        given = inspect.signature(save).bind(*args, **kwargs)
        directory = Path(next(iter(given.arguments.values())))
        is_writing = bool(given.arguments.get("is_main_process", True))
        states = self._concerned()
        token = _in_work.set(_in_work.get() | set(states))
        result = None
        try:
            if _is_alone(states, directory):
                if is_writing:
                    write_trained(self.module, directory, states, given.arguments.get("state_dict"))
            else:
                result = self._save_whole(save, given, directory, states)
        finally:
            _in_work.reset(token)
        if is_writing and directory.is_dir():
            for name, what in self._write_beside(directory, states, bool(given.arguments.get("push_to_hub"))):
                warnings.warn(f"save_pretrained: adapter {name!r}: {what}", stacklevel=2)
        return result

    def _concerned(self) -> list[AdapterState]:
        """Return the adapters with a weight in the module: those before whose host it lies, and those of its parts."""
        modules = list(self.module.modules())
        inside = {id(module) for module in modules}
        parts = (each for each in modules if isinstance(each, AdapterState) and each.host and each not in self.states)
        found = (*self.states, *parts)
        return [state for state in found if any(id(weight.module) in inside for weight in state.weights.values())]

    def _save_whole(
        self, save: Callable[..., Any], given: inspect.BoundArguments, directory: Path, states: Collection[AdapterState]
    ) -> Any:
        """Call the method, which takes the state dict of the plain model.

        The Trainer resumes by `load_state_dict`, so that a checkpoint has the keys of the model. Those of an earlier
        release, which transformers writes for a mixture of experts, would be ignored, and so would renamed factors.
        """
        is_resumed = CHECKPOINT.fullmatch(directory.name) is not None
        if is_resumed and FORMAT in inspect.signature(save).parameters:
            given.arguments.setdefault(FORMAT, False)
        plain = Plain(self.module, states, [] if is_resumed else self._apart(states))
        if given.arguments.get("state_dict") is not None:
            given.arguments["state_dict"] = dict(given.arguments["state_dict"])
            plain.edit(given.arguments["state_dict"])
        with plain.applied(self.module):  # a quantizer takes the state dict of the model, whatever is given
            return save(*given.args, **given.kwargs)

    def _apart(self, states: Collection[AdapterState]) -> list[AdapterState]:
        """Return the adapters that the file of the model need not hold: they have their own file, or are merged."""
        inside, found = set(self.module.modules()), dict[str, AdapterState]()
        for state in states:
            if state.merged is None and state.model in inside and shared_by(state) is None and _is_whole(state):
                found.setdefault(state.child_name, state)  # the second of one name is not saved
        return [*found.values(), *(state for state in states if state.merged is not None)]

    def _write_beside(
        self, directory: Path, states: Collection[AdapterState], is_uploaded: bool
    ) -> list[tuple[str, str]]:
        """Write the files of the adapters; return the name of each that a warning is about, and the warning."""
        inside, notes = set(self.module.modules()), list[tuple[str, str]]()
        written = set[Path]()
        for state in (each for each in states if each.merged is None and each not in _in_work.get()):
            path = directory / f"{state.child_name}.safetensors"
            if path in written:  # by an adapter of the model, or of another part of it
                what = f"it was not saved: another of its name is in {path}.\nSave it with state.save(path)."
            else:
                what = self._keep(state, path, is_here=state.model in inside)
            written.add(path)
            if not what and is_uploaded:
                what = f"{path} was written, but not uploaded.\nUpload it yourself."
            notes += [(state.name, what)] if what else []
        merged = [state.name for state in states if state.merged is not None]
        if not _saves_weights(self.module):
            return notes + [(name, UNSAVED) for name in merged]
        gone = sorted(name for module in inside for name in _absorbed.get(module, ()))
        stale = {name: directory / f"tnadapt_{name}.safetensors" for name in (*merged, *gone)}
        return notes + [(name, _stale(path)) for name, path in stale.items() if path not in written and path.exists()]

    def _keep(self, state: AdapterState, path: Path, *, is_here: bool) -> str:
        """Save an adapter to a file, or return a warning."""
        if is_here and shared_by(state) is None:
            try:
                state.save(path)
            except TnadaptError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # a full disk, say: to go on would lose what was trained
                return f"it was not saved: {error}\nSave it with state.save(path)."
            return ""
        if is_here and state.run is not None and state.run.has(path.parent):
            return ""  # the callback saves it, with all processes
        why = "all processes that share it must save it together" if is_here else "it is on a model that holds this one"
        return f"it was not saved: {why}.\nSave it with state.save(path)."


def _stale(path: Path) -> str:
    return (
        f"its update is in the weights that were saved, and {path} is from an earlier save.\n"
        "If you load that file onto this model, the update counts twice. Remove the file."
    )


def _saves_weights(module: nn.Module) -> bool:
    """Return whether the method of a module saves its weights: with layers of PEFT, it saves these alone."""
    return not (getattr(module, "_hf_peft_config_loaded", False) or hasattr(module, "get_base_model"))


def _is_whole(state: AdapterState) -> bool:
    """Return whether the host has what the adapter needs to be saved, or the update itself."""
    try:
        state.check_host()
    except TnadaptError:
        return False
    return True


def _is_alone(states: Collection[AdapterState], directory: Path) -> bool:
    """Return whether a folder is a checkpoint that shall have what is trained alone, and can have it.

    With the config.json of an earlier run, such a checkpoint would look like a model without most of its weights.
    """
    here = [state.run for state in states if state.run is not None and state.run.has(directory)]
    if not here or any(run.is_uploaded for run in here) or (directory / CONFIG).exists():
        return False
    return all(state.merged is None and shared_by(state) is None for state in states)


class Saved:
    """One adapter before `save_pretrained` of the modules of its host that have such a method, until it is removed."""

    def __init__(self, state: AdapterState, host: nn.Module) -> None:
        """Stand before the methods."""
        self.state = state
        self.modules = [module for module in host.modules() if callable(getattr(type(module), PLACE, None))]
        for module in self.modules:
            found = vars(module).get(PLACE)
            known = found if isinstance(found, Saving) else Saving(module, (), found)
            vars(module)[PLACE] = Saving(module, (*known.states, state), known.before)

    def remove(self) -> None:
        """Leave the methods as they were, unless other adapters are there."""
        if self.state.merged is not None:
            _absorbed.setdefault(self.state.model, set()).add(self.state.name)
        for module in self.modules:
            found = vars(module).get(PLACE)
            if not isinstance(found, Saving):
                continue  # which the user has put there since
            left = tuple(state for state in found.states if state is not self.state)
            del vars(module)[PLACE]
            if left or found.before is not None:
                vars(module)[PLACE] = Saving(module, left, found.before) if left else found.before


def is_concerned(module: nn.Module) -> bool:
    """Return whether a module holds an attached adapter, or an update that was merged into it for good."""
    return any(each in _absorbed or (isinstance(each, AdapterState) and each.host) for each in module.modules())
