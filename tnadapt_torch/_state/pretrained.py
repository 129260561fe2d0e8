"""What `save_pretrained` of an adapted model writes: the model, and each adapter in a file beside it."""

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tnadapt import TnadaptError
from tnadapt_torch._state.checkpoint import CONFIG, write_trained
from tnadapt_torch._state.given import PLACE, Given
from tnadapt_torch._state.known import states_of
from tnadapt_torch._state.plain import Plain, values_for
from tnadapt_torch._state.replicas import check_factors, shared_by
from tnadapt_torch._state.state import AdapterState
from tnadapt_torch._state.store import write_file

__all__: list[str] = []

FORMAT = "save_original_format"
UNSAVED = (
    "it was not saved: it is merged into weights that PEFT does not save.\n"
    "Call unmerge() and save again, or save the model that PEFT wraps."
)
NOWHERE = "it was not saved: expected a folder to save the model in, got {}.\nSave it with state.save(path)."
UNREAD = (
    "its file is in the checkpoint, but the Trainer does not read it with a model of PEFT.\n"
    "A resumed run, and the best model at the end, would have the factors of another step. Save it with "
    "state.save(path) and load it yourself, or freeze it."
)
CHECKPOINT = re.compile(r"checkpoint-\d+")  # the folders that the Trainer resumes from

_absorbed: "WeakKeyDictionary[nn.Module, set[str]]" = WeakKeyDictionary()  # hosts, and adapters that stay merged there
_in_work: ContextVar[frozenset[AdapterState]] = ContextVar("_in_work", default=frozenset())  # of a save around this one


class Saving:
    """Stands before `save_pretrained` of a module of the host, in its attributes, and is copied and pickled with it.

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
        save = self._save
        given = Given(save, type(self.module), args, kwargs)
        directory, values, states = given.directory, given.get("state_dict"), self._concerned()
        token = _in_work.set(_in_work.get() | set(states))
        result = None
        try:
            if directory is not None and _is_alone(states, directory):
                if given.is_writing:
                    write_trained(self.module, directory, states, values)
            else:
                result = self._save_whole(save, given, states)
        finally:
            _in_work.reset(token)
        if given.is_writing:
            for name, what in self._write_beside(given, values, states):
                warnings.warn(f"save_pretrained: adapter {name!r}: {what}", stacklevel=2)
        return result

    @property
    def _save(self) -> Callable[..., Any]:
        return self.before or MethodType(getattr(type(self.module), PLACE), self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the method: a pipeline of diffusers passes on only what it finds there."""
        return inspect.signature(self._save)

    def _concerned(self) -> list[AdapterState]:
        """Return the adapters with a weight in the module: first those before whose host it lies, and its parts'."""
        parts = (each for each in self.module.modules() if isinstance(each, AdapterState))
        return _with_weights_in(self.module, (*self.states, *parts, *states_of(self.module)))

    def _save_whole(self, save: Callable[..., Any], given: Given, states: Collection[AdapterState]) -> Any:
        """Call the method, which takes the state dict of the plain model.

        The Trainer resumes by `load_state_dict`, so that a checkpoint has the keys of the model. Those of an earlier
        release, which transformers writes for a mixture of experts, would be ignored, and so would renamed factors.
        """
        is_resumed = _is_checkpoint(given.directory)
        if is_resumed and FORMAT in given.parameters and FORMAT not in given.named:
            given.put(FORMAT, False)
        is_whole = is_resumed or given.directory is None
        plain = Plain(self.module, states, [] if is_whole else self._apart(states))
        values = given.get("state_dict")
        if values is not None:
            edited = dict(values)
            plain.edit(edited)
            given.put("state_dict", edited)
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
        self, given: Given, values: Mapping[str, Any] | None, states: Collection[AdapterState]
    ) -> list[tuple[str, str]]:
        """Write the files of the adapters; return the name of each that a warning is about, and the warning."""
        here = [state for state in states if state.merged is None and state not in _in_work.get()]
        directory = given.directory
        if directory is None or not directory.is_dir():
            return [(state.name, NOWHERE.format("none" if directory is None else directory)) for state in here]
        inside, notes, written = set(self.module.modules()), list[tuple[str, str]](), set[Path]()
        for state in here:
            path = directory / f"{state.child_name}.safetensors"
            if path in written:  # by an adapter of the model, or of another part of it
                what = f"it was not saved: another of its name is in {path}.\nSave it with state.save(path)."
            else:
                what = self._keep(state, path, values or {}, inside)
            written |= {path} if what in ("", UNREAD) else set()
            if not what and given.get("push_to_hub"):
                what = f"{path} was written, but not uploaded.\nUpload it yourself."
            notes += [(state.name, what)] if what else []
        merged = [state.name for state in states if state.merged is not None]
        if not _saves_weights(self.module):
            return notes + [(name, UNSAVED) for name in merged]
        gone = sorted(name for module in inside for name in _absorbed.get(module, ()))
        stale = {name: directory / f"tnadapt_{name}.safetensors" for name in (*merged, *gone)}
        return notes + [(name, _stale(path)) for name, path in stale.items() if path not in written and path.exists()]

    def _keep(self, state: AdapterState, path: Path, values: Mapping[str, Any], inside: Collection[nn.Module]) -> str:
        """Save an adapter to a file, with the values of a state dict that was given; or return a warning."""
        is_here = state.model in inside
        if is_here and shared_by(state) is None:
            try:
                write_file(state, path, values_for(state, self.module, values))
            except TnadaptError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # a full disk, say: to go on would lose what was trained
                return f"it was not saved: {error}\nSave it with state.save(path)."
            is_trained = any(factor.requires_grad for factor in state.parameters())
            is_lost = _is_checkpoint(path.parent) and not _saves_weights(self.module) and is_trained
            return UNREAD if is_lost else ""
        if is_here and state.run is not None and state.run.has(path.parent):
            return ""  # the callback saves it, with all processes
        why = "all processes that share it must save it together"
        if not is_here:
            is_part = any(each is self.module for each in state.model.modules())
            why = (
                "it is on a model that holds this one" if is_part else "it is on another model with a part of this one"
            )
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
    """Return whether the host has what the adapter needs to be saved, and the factors their values."""
    try:
        state.check_host()
        check_factors(state)
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
    """Return whether an attached adapter serves a module or its parts, or an update was merged into them for good."""
    return any(each in _absorbed for each in module.modules()) or bool(_with_weights_in(module, states_of(module)))


def _with_weights_in(module: nn.Module, states: Iterable[AdapterState]) -> list[AdapterState]:
    inside = {id(each) for each in module.modules()}
    found = (state for state in dict.fromkeys(states) if state.host)
    return [state for state in found if any(id(weight.module) in inside for weight in state.weights.values())]


def _is_checkpoint(directory: Path | None) -> bool:
    return directory is not None and CHECKPOINT.fullmatch(directory.name) is not None
