"""The data of the demo: bigram shift on sentences from Python's docstrings, or a CSV file of yours.

Bigram shift asks whether two neighbouring words of a sentence have been swapped. It is the
word-order task of SentEval (Conneau et al. 2018, arXiv:1805.01070). The sentences come from the docstrings
of the standard library, which every machine has; its files are parsed, never imported.
"""

from __future__ import annotations

import ast
import csv
import os
import random
import re
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

SPLITS = ("train", "test")
TEST_SHARE = 0.2
FEWEST_CLASSES = 2
SKIPPED_FOLDERS = {"__phello__", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
PROSE = re.compile(r"[A-Z][a-z]*(?:,? [A-Za-z]+(?:['-][a-z]+)*)*\.")  # plain words, commas, one full stop
END_OF_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z])")


class DataError(ValueError):
    """A data file is invalid. The message is one line that names the file and the problem."""


@dataclass(frozen=True)
class Example:
    """One labelled text; `split` is "train" or "test"."""

    text: str
    label: str
    split: str


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` on success, so that no partial file is seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)  # mkstemp makes it private
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def docstrings(root: Path) -> Iterator[str]:
    """Yield every docstring of the Python files below `root`, in the order of their paths."""
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (
            OSError,
            SyntaxError,
            ValueError,
        ):  # unreadable, for another Python version, or not UTF-8: skip it
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def prose(root: Path, *, shortest: int = 8, longest: int = 24) -> list[list[str]]:
    """Find plain sentences of `shortest` to `longest` words: sorted lists of words, without the full stop.

    Sentences with the same words in any order count as one, so no shifted sentence has its original in the data.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for docstring in docstrings(root):
        for paragraph in re.split(r"\n\s*\n", docstring):
            for sentence in END_OF_SENTENCE.split(" ".join(paragraph.split())):
                words = sentence.removesuffix(".").split()
                if shortest <= len(words) <= longest and PROSE.fullmatch(sentence):
                    found.setdefault(tuple(sorted(word.lower() for word in words)), words)
    return sorted(found.values())


def shifted(words: list[str], rng: random.Random) -> list[str]:
    """Swap one pair of different neighbours, and capitalize the first word again."""
    words = [words[0].lower(), *words[1:]]
    places = [i for i in range(len(words) - 1) if words[i].lower() != words[i + 1].lower()]
    place = rng.choice(places)
    words[place : place + 2] = reversed(words[place : place + 2])
    return [words[0][0].upper() + words[0][1:], *words[1:]]


def bigram_shift(*, size: int = 4_000, seed: int = 0, root: Path | None = None) -> list[Example]:
    """Make the task: at most `size` sentences, half of them shifted, split once into train and test.

    Args:
        size: the number of sentences, rounded down to a multiple of ten.
        seed: for the choice of sentences, the swaps and the split.
        root: the folder of the Python files; by default the standard library.
    """
    rng = random.Random(seed)
    sentences = prose(root or Path(sysconfig.get_paths()["stdlib"]))
    rng.shuffle(sentences)
    size = min(size, len(sentences)) // 10 * 10  # so that both splits are balanced
    examples = []
    for number, words in enumerate(sentences[:size]):
        text, label = (shifted(words, rng), "shifted") if number % 2 else (words, "intact")
        split = "train" if number < size * (1 - TEST_SHARE) else "test"
        examples.append(Example(" ".join(text) + ".", label, split))
    return examples


def write_csv(examples: Iterable[Example], path: Path) -> None:
    """Write the examples as CSV with the columns text, label and split."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        writer.writerows([example.text, example.label, example.split] for example in examples)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the cells of each row. Raise DataError for an invalid file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            columns = reader.fieldnames
            if not columns:
                raise DataError(f"{path}: the file is empty; wanted the columns text,label")
            if missing := [name for name in ("text", "label") if name not in columns]:
                raise DataError(f"{path}: no column {' or '.join(missing)}; the columns are {', '.join(columns)}")
            for row in reader:
                if None in row:
                    wanted = f"wanted {len(columns)} cells, got more; put a text with commas in quotes"
                    raise DataError(f"{path}, line {reader.line_num}: {wanted}")
                yield reader.line_num, {name: (row[name] or "").strip() for name in columns}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {error}") from error


def read_csv(path: Path, *, seed: int = 0) -> list[Example]:
    """Read examples from a CSV file with the columns text, label and, optionally, split.

    Without a split column, one fifth of each class becomes the test set. If a text is repeated, its first row
    counts.

    Raises:
        DataError: the file is missing, not UTF-8 or empty, lacks a column, has an empty cell, fewer than two
            classes, or a class that does not occur in both splits.
    """
    examples: dict[str, Example] = {}
    for line, row in read_rows(path):
        for name, cell in row.items():
            if name in ("text", "label") and not cell:
                raise DataError(f"{path}, line {line}: the {name} is missing")
        if "split" in row and row["split"] not in SPLITS:
            raise DataError(f"{path}, line {line}: the split is {row['split']!r}; wanted train or test")
        examples.setdefault(row["text"], Example(row["text"], row["label"], row.get("split", "")))
    labels = sorted({example.label for example in examples.values()})
    if len(labels) < FEWEST_CLASSES:
        raise DataError(f"{path}: {len(examples)} texts of {len(labels)} classes; wanted two classes or more")
    found = list(examples.values())
    if not all(example.split for example in found):
        found = split_by_label(found, seed)
    for label in labels:
        if absent := set(SPLITS) - {example.split for example in found if example.label == label}:
            raise DataError(f"{path}: label {label!r} has no example in the {' and the '.join(sorted(absent))} split")
    return found


def split_by_label(examples: Iterable[Example], seed: int) -> list[Example]:
    """Put a fifth of each class, at least one example, into the test set, and the rest into the training set."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    wanted = {label: max(1, round(n * TEST_SHARE)) for label, n in Counter(e.label for e in shuffled).items()}
    seen: Counter[str] = Counter()
    split = []
    for example in shuffled:
        seen[example.label] += 1
        split.append(replace(example, split="test" if seen[example.label] <= wanted[example.label] else "train"))
    return split
