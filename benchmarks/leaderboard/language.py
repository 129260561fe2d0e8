"""Questions of reasoning_gym for SmolLM2-135M-Instruct: all linear layers of its blocks are adapted."""

import sys
import sysconfig
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))
from language_training import random_batches
from reasoning import IGNORED, Encoded, batch_of, encode, make_questions
from sentences import prose
from smollm import load_model, unpacked

__all__ = ["KINDS", "loader"]

KINDS = ("family_relationships", "spell_backward", "chain_sum", "letter_counting")  # kinship, text, sums, counting
STEPS, TRAIN, SCORED, AT_ONCE, FIXED = 40, 400, 100, 20, 40
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Language:
    """The questions of each split as tokens, and sentences that have nothing to do with them."""

    splits: dict[str, list[Encoded]]
    fixed: Sequence[Sequence[int]]
    pad: int
    steps: int
    device: str
    layers: int | None = None  # of the host; None for all
    targets: Collection[str] = TARGETS

    def host(self, seed: int) -> nn.Module:
        """Return the language model in float32, perhaps its first layers alone; it is the same for every seed."""
        model: nn.Module = load_model(unpacked())[0]
        model.model.layers = model.model.layers[: self.layers]
        return model

    def heads(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return no groups: the head stays as it is."""
        return []

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        """Return the mean cross entropy of the answers of a step."""
        rows = self.splits["train"]
        chosen = random_batches(len(rows), self.steps, seed)[step]
        return batch_of([rows[i] for i in chosen], self.pad, self.device).loss(model)

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return the share of answers that are right, and the loss, on the validation split."""
        return self._score(model, "validation")

    def test(self, model: nn.Module) -> tuple[float, int]:
        """Return the share of answers that are right on the test split, and its size."""
        return self._score(model, "test")[0], len(self.splits["test"])

    @torch.inference_mode()
    def forgetting(self, model: nn.Module) -> float | None:
        """Return the loss on sentences of Python's docstrings."""
        total, tokens = 0.0, 0
        for row in self.fixed:
            ids = torch.tensor([row], device=self.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += len(row) - 1
        return total / tokens

    @torch.inference_mode()
    def _score(self, model: nn.Module, split: str) -> tuple[float, float]:
        """Score without generating: greedy decoding gives an answer if each of its tokens is the likeliest so far."""
        right, total, rows = 0, 0.0, self.splits[split]
        for start in range(0, len(rows), AT_ONCE):
            batch = batch_of(rows[start : start + AT_ONCE], self.pad, self.device)
            kept = batch.labels.shape[1] + 1
            places = (batch.mask.cumsum(1) - 1).clamp(min=0)
            logits = model(
                input_ids=batch.tokens,
                attention_mask=batch.mask,
                position_ids=places,
                logits_to_keep=kept,
                use_cache=False,
            ).logits[:, :-1]
            meant = batch.labels != IGNORED
            right += int(((logits.argmax(-1) == batch.labels) | ~meant).all(1).sum())
            losses = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="none"
            ).reshape(batch.labels.shape)
            total += float((losses.sum(1) / meant.sum(1)).sum())
        return right / len(rows), total / len(rows)


def loader(kind: str) -> Callable[[bool, str], Language]:
    """Return a function that loads the task of a kind of question; a quick one has 2 steps and 2 layers."""
    return partial(_load, kind)


@lru_cache(1)
def _load(kind: str, quick: bool, device: str) -> Language:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    _, tokenizer = load_model(unpacked())
    size = 8 if quick else SCORED
    train, test = make_questions(kind, (16 if quick else TRAIN) + size, size, seed=0)
    texts = prose(Path(sysconfig.get_paths()["stdlib"]))
    known = [tokenizer(" ".join(words) + ".")["input_ids"] for words in texts[:: len(texts) // (4 if quick else FIXED)]]
    return Language(
        {
            "train": encode(train[size:], tokenizer),
            "validation": encode(train[:size], tokenizer),
            "test": encode(test, tokenizer),
        },
        known,
        tokenizer.pad_token_id,
        2 if quick else STEPS,
        device,
        2 if quick else None,
    )
