"""Error messages for calls with wrong arguments: what was expected, what was passed, and what to write instead."""

import difflib
import functools
import inspect
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from tnadapt._errors import SpecError, TnadaptError

__all__: list[str] = []

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
MANY = 8  # the most names in one message

PEFT = {  # PEFT's name of an argument -> ours, if the function has it
    "r": "rank",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "layers_pattern": "layers_to_transform",
    "target_modules": "target",
    "target": "target_modules",
}
ELSEWHERE = {  # our or PEFT's name of an argument -> where it belongs, if the function does not have it
    "use_dora": "Write magnitude(families.lora()) as the spec.",
    "use_rslora": "Write families.lora(rank_stabilized=True) as the spec.",
    "init_lora_weights": "The start belongs to the spec: families.lora(gaussian=True), families.pissa() and others.",
    "bias": "Leave it out: no adapter trains biases. Those of a whole module are trained by modules_to_save=[...].",
    "fan_in_fan_out": "Leave it out: the layout of a weight is found.",
    "task_type": "Leave it out: the task is found, or is an argument of save_as_lora.",
    "rank": "Pass the rank when you bind the spec: spec.bind(sites, rank=8), or attach(model, spec, rank=8).",
    "alpha": "Alpha is an argument of the family, of the scale rule, of bind and of attach.",
    "dropout": "Dropout is an argument of tnadapt_torch.attach.",
    "sizes": "Pass sizes when you bind the spec: spec.bind(sites, sizes={...}), or attach(..., sizes={...}).",
    "seed": "Pass the seed when you bind the spec: spec.bind(sites, seed=0), or attach(..., seed=0).",
    "target_modules": "Name the targets when you choose the sites: attach(model, spec, target_modules=[...]).",
}


def answers(error: type[TnadaptError], name: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function raise this error, not TypeError, for a call that does not match its signature.

    A valid call costs nothing extra, since the arguments are examined only after the call has failed.

    Args:
        error: the class to raise.
        name: the name that begins the message; the function's own by default.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def answered(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError:
                if fault := _fault(name or function.__name__, signature, args, kwargs):
                    raise mistake(error, *fault) from None
                raise

        return answered

    return decorate


def answers_when_made(error: type[TnadaptError]) -> Callable[[type[T]], type[T]]:
    """Do the same as `answers` for the constructor of a class, whose name begins the message."""

    def decorate(made: type[T]) -> type[T]:
        made.__init__ = answers(error, made.__name__)(made.__init__)  # type: ignore[method-assign]
        return made

    return decorate


def mistake(error: type[TnadaptError], where: str, expected: str, given: str, todo: str) -> TnadaptError:
    """Return an error in the common form: where, what was expected, what was passed; on the next line what to do."""
    text = f"expected {expected}, got {given}.\n{todo}"
    return SpecError(where, [text], "") if issubclass(error, SpecError) else error(f"{where}: {text}")


def expect_flag(given: object, where: str, word: str, error: type[TnadaptError]) -> None:
    """Raise `error` unless an argument is True or False: a word such as "no" would count as True."""
    if not isinstance(given, bool):
        raise mistake(error, where, f"True or False as {word}", told(given), f"Write {word}=True.")


def expect_names(given: object, where: str, word: str, error: type[TnadaptError]) -> list[str]:
    """Return the names in a collection. Raises `error` for anything else, including a single string."""
    if isinstance(given, Collection) and not isinstance(given, str | bytes):
        names = list(given)
        if all(isinstance(name, str) for name in names):
            return names
    example = given if isinstance(given, str) else "q_proj"
    raise mistake(error, where, f"a list of names as {word}", told(given), f'Write {word}=["{example}"].')


def told(value: object) -> str:
    """Describe a value in at most one line, however large it is."""
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        names = [repr(key) for key in list(value)[:MANY] if isinstance(key, str)]
        return f"a {kind} of {', '.join(names)}" if names else f"a {kind}"
    if value is None or isinstance(value, str | bytes | int | float | complex | list | tuple | set | frozenset):
        return reprlib.repr(value)
    own = getattr(value, "name", None) or getattr(getattr(value, "spec", None), "name", None)
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(own, str):
        return f"the {kind} of shape {tuple(shape)}"
    return f"the {kind} {own!r}" if isinstance(own, str) else f"a value of type {kind}"


def near(name: str, known: Collection[str]) -> str:
    """Return the sentence that lists the known names nearest to this one."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return f"The nearest names are {', '.join(found)}." if len(found) > 1 else f"The only name is {found[0]}."


def _fault(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, str, str, str] | None:
    """Return where, what was expected, what was given and what to do; None if the arguments match the signature."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    else:
        return None
    taken = {word: one for word, one in signature.parameters.items() if word != "self"}
    placed = [word for word, one in taken.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    given = len(args) - ("self" in signature.parameters)
    if wrong := [word for word in kwargs if word not in signature.parameters]:
        return name, "a known argument", repr(wrong[0]), _remedy(name, wrong[0], list(taken))
    if given > len(placed):
        named = ", ".join(f"{word}=" for word in taken if word not in placed)
        others = "the others" if placed else "all arguments"
        todo = f"Pass {others} by name: {named}." if named else f"Write {name}({', '.join(placed)})."
        most = f"at most {len(placed)}" if placed else "no"
        return name, f"{most} positional argument{'s' * (len(placed) != 1)}", str(given), todo
    needed = [word for word, one in taken.items() if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if missing := [word for word in needed if word not in kwargs and word not in placed[: max(given, 0)]]:
        words = ", ".join(word if word in placed else f"{word}=..." for word in needed)
        return name, f"the argument {missing[0]!r}", "none", f"Write {name}({words})."
    return name, "each argument once", reason, f"Its arguments are {', '.join(taken)}."


def _remedy(name: str, word: str, taken: list[str]) -> str:
    """Say what to write instead of an argument that the function does not have."""
    ours = PEFT.get(word, word)
    if ours in taken:
        return f"PEFT's {word} is called {ours} here."
    if known := ELSEWHERE.get(ours) or ELSEWHERE.get(word):
        return known
    return near(word, taken) if taken else f"Write {name}()."
