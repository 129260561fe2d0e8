"""A plain training loop: a classifier on an encoder, batches of texts of similar length, AdamW."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import transformers
from sentences import SPLITS, Example, bigram_shift
from torch import Tensor, nn
from tqdm import tqdm

BATCH = 32
LONGEST_TEXT = 128  # tokens; longer texts are truncated
WARMUP = 0.1  # fraction of the steps


@dataclass(frozen=True)
class Split:
    """Token ids and class numbers of the texts of one split."""

    tokens: Sequence[Tensor]
    labels: Tensor


class Classifier(nn.Module):
    """An encoder, the mean over its token states, one linear layer."""

    def __init__(self, encoder: nn.Module, hidden: int, classes: int) -> None:
        """Args: the encoder, the size of its token states, the number of classes."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden, classes)

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean state of the unpadded tokens, (text, hidden). Both arguments are (text, token)."""
        states: Tensor = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the logits, (text, class)."""
        logits: Tensor = self.head(self.features(tokens, mask))
        return logits


def load_classifier(model: str, classes: int, seed: int) -> Classifier:
    """Load the pretrained encoder and add a new head. The model is in eval mode, so dropout is off."""
    torch.manual_seed(seed)
    encoder = transformers.AutoModel.from_pretrained(model, local_files_only=True)
    return Classifier(encoder, encoder.config.hidden_size, classes).eval()


def encode(examples: Sequence[Example], split: str, model: str) -> Split:
    """Turn the texts of one split into token ids, and their labels, in sorted order, into class numbers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    names = sorted({example.label for example in examples})
    chosen = [example for example in examples if example.split == split]
    ids = tokenizer([example.text for example in chosen], truncation=True, max_length=LONGEST_TEXT)["input_ids"]
    labels = torch.tensor([names.index(example.label) for example in chosen])
    return Split([torch.tensor(text) for text in ids], labels)


def shifted_texts(model: str, *, size: int = 4_000) -> tuple[Split, Split]:
    """Return the training and the test texts of bigram shift, for the tokenizer of a model."""
    examples = bigram_shift(size=size)
    train, test = (encode(examples, split, model) for split in SPLITS)
    return train, test


def parted(split: Split, order: Sequence[int]) -> tuple[Split, Split]:
    """Part training texts, in this order, into three quarters to train on and one quarter to validate on."""
    border = len(order) * 3 // 4
    first, last = (
        Split([split.tokens[n] for n in some], split.labels[list(some)]) for some in (order[:border], order[border:])
    )
    return first, last


def padded(split: Split, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of the chosen texts, both (text, length of the longest of them)."""
    rows = [split.tokens[i] for i in chosen]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), mask


def by_length(split: Split, order: Sequence[int]) -> list[list[int]]:
    """Make batches of texts of similar length, so that there is little padding. `order` breaks ties."""
    ranked = sorted(order, key=lambda i: len(split.tokens[i]))
    return [ranked[i : i + BATCH] for i in range(0, len(ranked), BATCH)]


def random_batches(split: Split, steps: int, seed: int) -> list[list[int]]:
    """Make `steps` batches. Every text occurs once before any occurs again."""
    rng = random.Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        epoch = by_length(split, rng.sample(range(len(split.tokens)), len(split.tokens)))
        batches.extend(rng.sample(epoch, len(epoch)))
    return batches[:steps]


@torch.no_grad()
def over_all(split: Split, answer: Callable[[Tensor, Tensor], Tensor], title: str) -> Tensor:
    """Return the outputs for all texts of a split, in their original order."""
    batches = by_length(split, range(len(split.tokens)))
    answers = torch.cat([answer(*padded(split, batch)) for batch in tqdm(batches, title, leave=False)])
    return answers[torch.tensor(list(chain.from_iterable(batches))).argsort()]


@dataclass(frozen=True)
class Trained:
    """What training took and gave: the clock's seconds of each step, seconds of the processor, the losses."""

    times: tuple[float, ...]
    processor_seconds: float
    losses: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The time by the clock of all steps."""
        return sum(self.times)

    @property
    def step_time(self) -> float:
        """The median time of a step."""
        return statistics.median(self.times)

    @property
    def diverged(self) -> bool:
        """Whether the loss ended above its start, or was no number."""
        end = self.losses[-5:]
        return not all(map(math.isfinite, self.losses)) or sum(end) / len(end) > max(self.losses[0], 1.0) + 1.0


def fit(
    loss_of: Callable[[list[int]], Tensor],
    groups: list[dict[str, Any]],
    batches: Sequence[list[int]],
    title: str,
) -> Trained:
    """Train with AdamW without weight decay, one step per batch; the rate rises over a tenth of them, then falls to 0.

    `groups` are parameter groups of torch.optim with learning rates. A loss that is no number ends the training.
    """
    steps, optimizer = len(batches), torch.optim.AdamW(groups, weight_decay=0.0)
    warm = max(1.0, WARMUP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (1.0 - step / steps)
    )
    processor, times, losses = time.process_time(), list[float](), list[float]()
    bar = tqdm(batches, title, unit="step")
    for batch in bar:
        start = time.perf_counter()
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if not math.isfinite(losses[-1]):
            break
    bar.close()
    return Trained(tuple(times), time.process_time() - processor, tuple(losses))


def accuracy(logits: Tensor, split: Split) -> float:
    """Return the fraction of correct predictions."""
    return (logits.argmax(1) == split.labels).double().mean().item()
