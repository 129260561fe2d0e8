"""One walk: a host, what the book expects of it, and the checks after every event."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.torch.walk import oracle
from tests.torch.walk.book import Book
from tests.torch.walk.kinds import KINDS
from tnadapt import SiteError
from tnadapt_torch import AdapterState

OURS = "tnadapt_"  # begins the name of every adapter's child module
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}  # of whole models: several layers deep


class Walk:
    """A model under test, its book, and the things that an event leaves for later ones."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.kind = KINDS[kind]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: nn.Module = self.kind.make().double()
            prune(self.model, [f"{path}.weight" for path in self.kind.linears])
        self.book = Book(self.kind, self.model)
        self.folder = folder
        self.types = {path: type(module) for path, module in self.model.named_modules()}
        self.others: list[tuple[nn.Module, Book]] = []  # models that were left behind, and must not change
        self.compiled: list[Callable[[Tensor], Tensor]] = []
        self.snapshots: list[Any] = []
        self.idents: dict[str, int] = {}
        self.count = 0  # of adapters so far, for their names
        self.has_compiled = False
        self.has_traced = False
        self.shape: tuple[int, ...] | None = None  # of inputs, while blocks are compiled
        self.is_over = False
        self.note_idents()

    # ---- what is there

    def states(self) -> dict[str, AdapterState]:
        return states_of(self.model)

    def host(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def tolerance(self) -> float:
        return TOLERANCE[self.book.dtype] + max((entry.error for entry in self.book.entries.values()), default=0.0)

    def input(self, rng: random.Random, shape: tuple[int, ...] | None = None) -> Tensor:
        x = self.kind.input(rng, shape or self.shape)
        return x.to(self.book.dtype) if x.is_floating_point() else x

    def wanted(self, x: Tensor) -> Tensor:
        return oracle.output(self.book, self.states(), x)

    def compile_blocks(self, paths: Sequence[str], shape: tuple[int, ...]) -> None:
        """Compile blocks in place, for inputs of one shape.

        torch guards no hooks unless it is told to, and would run the code of one block for another with other hooks.
        """
        torch._dynamo.config.skip_nnmodule_hook_guards = not any(self.book.hooks.values())
        self.shape, self.has_compiled, self.has_traced = shape, True, True
        for path in paths:
            self.host(path).compile(backend="eager")

    def uncompile_blocks(self) -> None:
        """Undo `compile` of single modules, before what cannot run compiled code."""
        self.shape = None
        for module in self.model.modules():
            module.__dict__.pop("_compiled_call_impl", None)

    # ---- checks

    def note_idents(self) -> None:
        """Remember which objects the parameters and modules are, after an event that may exchange them."""
        self.idents = idents(self.model)

    def note_cast(self, dtype: torch.dtype) -> None:
        """Enter a cast of the whole model."""
        self.book.cast(dtype)
        for name, state in self.states().items():
            held = state.params()
            drawn = [key for key, value in held.items() if is_trainable(value) and f"{key}:start" not in held]
            self.book.entries[name].is_rounded |= (
                dtype == torch.bfloat16 and state.spec.start == "centered" and bool(drawn)
            )

    def note_values(self) -> None:
        """Remember the values of the factors, after an event that changes them."""
        for name, state in self.states().items():
            self.book.entries[name].values = {key: value.detach().clone() for key, value in state.params().items()}

    def check(self, rng: random.Random) -> None:
        """Compare everything that can be seen of the model with the book."""
        x = self.input(rng)
        with torch.no_grad():
            self.compare(self.model(x), x)
        self.check_host()

    def compare(self, found: Tensor, x: Tensor, what: str = "output", tolerance: float | None = None) -> None:
        oracle.assert_close(found, self.wanted(x), tolerance or self.tolerance(), what)

    def check_host(self) -> None:
        """Compare names, values and flags of the host's tensors, and the identity of parameters and modules."""
        check_tensors(self.model, self.book)
        check_flags(self.model, self.book)
        check_values(self.model, self.book)
        now = idents(self.model)
        changed = [name for name, one in self.idents.items() if name in now and now[name] != one]
        assert not changed, f"exchanged: {changed}"
        assert self.states().keys() == self.book.entries.keys(), "another set of adapters is attached"

    # ---- operations that may be refused

    def attempt(self, act: Callable[[], Any], refusal: str = "never", errors: Any = SiteError) -> bool:
        """Do something that is refused "never", "maybe" or "always". Return whether it was done.

        What was refused must have changed nothing; the check after the event sees to that.
        """
        try:
            act()
        except errors as error:
            if refusal == "never":
                raise
            message = str(error)
            assert "expected" in message or "must" in message, f"the error does not say what was expected: {message}"
            return False
        assert refusal != "always", "expected an error of the library, got none"
        return True

    # ---- the end

    def close(self, rng: random.Random) -> None:
        """Detach everything, in any order, from this model and those that were left behind: each is as at the start."""
        for model, book in [(self.model, self.book), *self.others]:
            self.model, self.book = model, book
            self.note_idents()
            self.check(rng)
            for name in rng.sample(sorted(book.entries), len(book.entries)):
                self.states()[name].detach()
                book.detach(name)
                self.check(rng)
            check_clean(model, book, self.types)


def prune(model: nn.Module, keys: Sequence[str]) -> None:
    """Set a fifth of the entries of each weight to 0, for adapters that keep the zeros."""
    with torch.no_grad():
        for key in keys:
            weight = model.get_parameter(key)
            weight.mul_(torch.rand_like(weight) > 0.2)


def states_of(model: nn.Module) -> dict[str, AdapterState]:
    return {module.name: module for module in model.modules() if isinstance(module, AdapterState)}


def is_ours(name: str) -> bool:
    return any(word.startswith(OURS) for word in name.split("."))


def idents(model: nn.Module) -> dict[str, int]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_modules()]
    return {name: id(value) for name, value in named if "parametrizations" not in name}


def check_tensors(model: nn.Module, book: Book) -> None:
    held = {key: value for key, value in model.state_dict().items() if not is_ours(key)}
    wanted = {name: value for key, value in book.tensors.items() for name in book.names_of(key)}
    assert held.keys() == wanted.keys(), f"names of the host's tensors: {held.keys() ^ wanted.keys()}"
    for name, value in wanted.items():
        found = held[name]
        assert found.dtype == value.dtype, f"{name}: expected {value.dtype}, got {found.dtype}"
        if not torch.equal(found, value):
            error = (found.double() - value.double()).abs().max().item()
            raise AssertionError(f"{name}: not bit for bit as expected, off by {error:.3g}")


def check_flags(model: nn.Module, book: Book) -> None:
    found = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False) if not is_ours(name)}
    book.flags |= {key: found[key] for key in book.loose}
    wanted = {name: flag for key, flag in book.flags.items() for name in book.names_of(key)}
    wrong = {name: flag for name, flag in found.items() if flag != wanted[name]}
    assert not wrong, f"flags of requires_grad: {wrong}"
    for name, state in states_of(model).items():
        frozen = {key for key, value in state.params().items() if is_trainable(value) and not value.requires_grad}
        assert frozen == book.entries[name].frozen, f"frozen factors of {name}: {frozen}"


def check_values(model: nn.Module, book: Book) -> None:
    """Compare the factors bit for bit with those that the last training or cast left."""
    for name, state in states_of(model).items():
        held, wanted = state.params(), book.entries[name].values
        assert held.keys() == wanted.keys(), f"factors of {name}: {held.keys() ^ wanted.keys()}"
        for key, value in wanted.items():
            assert held[key].dtype == value.dtype, f"{name} {key}: expected {value.dtype}, got {held[key].dtype}"
            assert torch.equal(held[key], value), f"{name} {key}: not bit for bit as it was"


def is_trainable(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter)


def check_clean(model: nn.Module, book: Book, types: dict[str, type]) -> None:
    """Check that nothing of an adapter is left on a model."""
    for path, module in model.named_modules():
        kept = [name for name in module.__dict__ if "tnadapt" in name.lower()]
        assert not kept, f"{path}: {kept} left behind"
        if "parametrizations" not in path and not any(key.rpartition(".")[0] == path for key in book.wraps):
            assert type(module) is types[path], f"{path}: its class is not the one from before"
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        assert hooks == len(book.hooks.get(path, [])), f"{path}: {hooks} hooks"
