"""Train an adapter of a language model on the answers alone, and let the model answer, greedily and in batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from reasoning import Encoded, batch_of
from torch import Tensor
from tqdm import tqdm
from training import Trained, fit

BATCH = 4  # questions of a training step
AT_ONCE = 16  # questions that are answered in one batch
SPARE_TOKENS = 6  # an answer may be longer than the longest that is expected


def random_batches(count: int, steps: int, seed: int) -> list[list[int]]:
    """Return which questions each step takes: every question once before any comes again."""
    rng, order = random.Random(seed), list[int]()
    while len(order) < steps * BATCH:
        order += rng.sample(range(count), count)
    return [order[i : i + BATCH] for i in range(0, steps * BATCH, BATCH)]


def train(
    model: Any, groups: list[dict[str, Any]], rows: Sequence[Encoded], batches: Sequence[list[int]], title: str
) -> Trained:
    """Train on the answers of the questions of each batch; `groups` are parameter groups with learning rates."""
    pad, device = model.config.pad_token_id or 0, model.device
    return fit(lambda chosen: batch_of([rows[i] for i in chosen], pad, device).loss(model), groups, batches, title)


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
