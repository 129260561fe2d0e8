"""The task of the demo: questions of reasoning_gym, which makes as many as are asked for, and their short answers."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import reasoning_gym
import torch
from reasoning_gym.factory import DATASETS
from sentences import DataError
from torch import Tensor

IGNORED = -100  # the label of a token that is not part of an answer
TEST_SEED = 1_000_003  # questions to test on: the same for every training seed
SPARE = 2  # more questions are made than asked for, by this factor, since some occur twice
SYSTEM = "Reply with the answer alone."  # so that a model need not learn the form to be right
LONGEST_ANSWER = 64  # tokens


@dataclass(frozen=True)
class Question:
    """A question and its answer, one line of text."""

    text: str
    answer: str


@dataclass(frozen=True)
class Encoded:
    """A question as token ids: those of the prompt, and those of the answer with the end of a turn."""

    prompt: Sequence[int]
    answer: Sequence[int]


def make_questions(task: str, train: int, test: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Return different questions to train on and to test on.

    Raises:
        DataError: there is no such task, or it does not have as many different questions.
    """
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.3)
        raise DataError(f"no task {task!r} in reasoning_gym; near: {', '.join(near) or 'chain_sum, word_sorting'}")
    tests = generate(task, test, TEST_SEED, ())
    return generate(task, train, seed, {question.text for question in tests}), tests


def generate(task: str, size: int, seed: int, taken: Sequence[str] | set[str]) -> list[Question]:
    """Make `size` different questions, none of which is taken. Raises DataError if there are too few."""
    found: dict[str, Question] = {}
    for item in reasoning_gym.create_dataset(task, size=SPARE * size + 50, seed=seed):
        text, answer = str(item["question"]).strip(), str(item["answer"]).strip()
        if text not in taken and answer and "\n" not in answer:
            found.setdefault(text, Question(text, answer))
        if len(found) == size:
            return list(found.values())
    raise DataError(f"task {task!r}: expected {size} different questions with answers of one line, got {len(found)}")


def encode(questions: Sequence[Question], tokenizer: Any) -> list[Encoded]:
    """Turn questions into the tokens of a conversation, or of plain text where the tokenizer has no template.

    Raises:
        DataError: an answer is long.
    """
    rows = []
    for question in questions:
        if tokenizer.chat_template:
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        else:
            prompt = f"{question.text}\nAnswer:"
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(
            question.answer if tokenizer.chat_template else f" {question.answer}", add_special_tokens=False
        )["input_ids"]
        if len(answer) > LONGEST_ANSWER:
            raise DataError(f"expected answers of at most {LONGEST_ANSWER} tokens, got {question.answer[:60]!r} ...")
        rows.append(Encoded(ids, [*answer, tokenizer.eos_token_id]))
    return rows


@dataclass(frozen=True)
class Batch:
    """Tokens (text, token) padded on the left, their mask, and the labels of the last tokens."""

    tokens: Tensor
    mask: Tensor
    labels: Tensor

    def loss(self, model: Any) -> Tensor:
        """Return the mean cross entropy of the tokens of the answers; no other logits are computed."""
        kept = self.labels.shape[1] + 1
        places = (self.mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=self.tokens, attention_mask=self.mask, position_ids=places, logits_to_keep=kept, use_cache=False
        ).logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED
        )


def batch_of(rows: Sequence[Encoded], pad: int, device: str, *, with_answers: bool = True) -> Batch:
    """Make a batch of prompts, with or without their answers."""
    texts = [[*row.prompt, *row.answer] if with_answers else list(row.prompt) for row in rows]
    answers = [list(row.answer) for row in rows]
    length, last = max(map(len, texts)), max(map(len, answers))
    return Batch(
        torch.tensor([[pad] * (length - len(text)) + text for text in texts], device=device),
        torch.tensor([[0] * (length - len(text)) + [1] * len(text) for text in texts], device=device),
        torch.tensor([[IGNORED] * (last - len(answer)) + answer for answer in answers], device=device),
    )


def most_frequent(train: Sequence[Question], test: Sequence[Question]) -> tuple[str, float]:
    """Return the most frequent answer of the training questions, and the share of the test that it answers."""
    answer = Counter(question.answer for question in train).most_common(1)[0][0]
    return answer, sum(question.answer == answer for question in test) / len(test)
