"""Train an adapter of a language model on the answers alone, and let the model answer, greedily and in batches."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reasoning import Encoded, batch_of
from torch import Tensor
from tqdm import tqdm

BATCH = 4  # questions of a training step
AT_ONCE = 16  # questions that are answered in one batch
WARMUP = 0.1  # share of the steps
SPARE_TOKENS = 6  # an answer may be longer than the longest that is expected


@dataclass(frozen=True)
class Trained:
    """What training took and gave: seconds by the clock and of the processor, and the loss of each step."""

    seconds: float
    processor_seconds: float
    losses: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether the loss ended above its start, or was no number."""
        end = self.losses[-5:]
        return not all(map(math.isfinite, self.losses)) or sum(end) / len(end) > max(self.losses[0], 1.0) + 1.0


def random_batches(count: int, steps: int, seed: int) -> list[list[int]]:
    """Return which questions each step takes: every question once before any comes again."""
    rng, order = random.Random(seed), list[int]()
    while len(order) < steps * BATCH:
        order += rng.sample(range(count), count)
    return [order[i : i + BATCH] for i in range(0, steps * BATCH, BATCH)]


def train(
    model: Any, groups: list[dict[str, Any]], rows: Sequence[Encoded], batches: Sequence[Sequence[int]], title: str
) -> Trained:
    """Train with AdamW without weight decay, one step per batch; the rate rises over a tenth of them, then falls to 0.

    `groups` are parameter groups of torch.optim with learning rates. A loss that is no number ends the training.
    """
    steps, optimizer = len(batches), torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1.0, WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (1.0 - step / steps)
    )
    pad, device, losses = model.config.pad_token_id or 0, model.device, list[float]()
    clock, processor = time.perf_counter(), time.process_time()
    bar = tqdm(batches, title, unit="step")
    for chosen in bar:
        loss = batch_of([rows[i] for i in chosen], pad, device).loss(model)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if not math.isfinite(losses[-1]):
            break
    bar.close()
    return Trained(time.perf_counter() - clock, time.process_time() - processor, tuple(losses))


def in_batches(rows: Sequence[Encoded]) -> list[list[int]]:
    """Return the numbers of the rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    return [order[i : i + AT_ONCE] for i in range(0, len(order), AT_ONCE)]


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, rows: Sequence[Encoded], title: str) -> list[str]:
    """Return the answers to all questions, in their order: greedily, so that the same model gives the same answers."""
    pad, longest = tokenizer.pad_token_id, max(len(row.answer) for row in rows) + SPARE_TOKENS
    answers = [""] * len(rows)
    for chosen in tqdm(in_batches(rows), title, leave=False):
        batch = batch_of([rows[i] for i in chosen], pad, model.device, with_answers=False)
        texts = model.generate(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        )
        given = tokenizer.batch_decode(texts[:, batch.tokens.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, given, strict=True):
            answers[i] = text.strip()
    return answers


@torch.inference_mode()
def test_loss(model: Any, rows: Sequence[Encoded], title: str) -> float:
    """Return the mean over questions of the cross entropy of their answers, (mean over the tokens of a batch)."""
    total = 0.0
    for chosen in tqdm(in_batches(rows), title, leave=False):
        total += (
            len(chosen)
            * batch_of([rows[i] for i in chosen], model.config.pad_token_id or 0, model.device).loss(model).item()
        )
    return total / len(rows)


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """Return the logits of the first tokens of the answers, (text, vocabulary)."""
    batch = batch_of(rows, model.config.pad_token_id or 0, model.device, with_answers=False)
    places = (batch.mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(
        input_ids=batch.tokens, attention_mask=batch.mask, position_ids=places, logits_to_keep=1, use_cache=False
    ).logits[:, 0]
    return logits
