"""The cards of docs/reference/families.md: one for each family, with its picture, its equation, its spec and counts."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tnadapt import AdapterSpec, families

__all__ = ["Bound", "Words", "card", "markup", "words_of"]

SIGNS = {"alpha": "&alpha;", "sum": "&Sigma;", "kron": "&otimes;", "dW": "&Delta;W"}
ENDS = (", ", "; ", " with ", " over ")  # what an equation of a docstring ends before


@dataclass(frozen=True)
class Bound:
    """A family on one model: its trained numbers, the bound on the rank of an update, and the sizes if unusual."""

    trained: int
    rank: int
    sizes: str = ""


@dataclass(frozen=True)
class Words:
    """What the first line of a family's docstring says. The equation may be empty."""

    name: str
    equation: str
    words: str
    source: str


def words_of(family: str) -> Words:
    """Take the first line of a docstring apart. Raises ValueError unless it is "name: equation, words (source)."."""
    first = (getattr(families, family).__doc__ or "").partition("\n")[0]
    said = re.fullmatch(r"(.*?): (.*) \(([^()]*)\)\.", first) or re.fullmatch(r"(.*?), (.*) \(([^()]*)\)\.", first)
    if said is None:
        raise ValueError(f"{family}: expected a docstring that begins 'name: words (source).', got {first!r}")
    name, text, source = said[1], said[2], said[3].rpartition(", ")[2]
    if " = " not in text and " is " not in text:
        return Words(name, "", text, source)
    equation = text[: _end(text)]
    return Words(name, equation, text[len(equation) :].lstrip(",; "), source)


def _end(text: str) -> int:
    """Return where the equation ends: before the first comma, semicolon, "with" or "over" outside brackets."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and at > text.find("dW") and text.startswith(ENDS, at):
            return at
    return len(text)


def markup(equation: str) -> str:
    """Return an equation in HTML: Greek letters, subscripts and the mark of a transpose."""
    text = html.escape(equation, quote=False)
    for word, sign in SIGNS.items():
        text = re.sub(rf"\b{word}(?![a-z])", sign, text)
    text = re.sub(r"\bx_(\w+)", r"&times;<sub>\1</sub>", text)
    text = re.sub(r"([\w;])_(\w+)", r"\1<sub>\2</sub>", text)
    text = re.sub(r"\^T\b", "<sup>T</sup>", text)
    return re.sub(r"\.\.+", "&hellip;", text.replace(" * ", " &lowast; ").replace(" - ", " &minus; "))


def _link(source: str) -> str:
    kind, _, name = source.partition(":")
    address = {"arXiv": "https://arxiv.org/abs/", "openreview": "https://openreview.net/forum?id="}
    return f"[{source}]({address[kind]}{name})"


def card(family: str, picture: str, bounds: Mapping[str, Bound | None]) -> str:
    """Format a card. `bounds` has the counts by model, None for one whose axes the family does not fit."""
    spec: AdapterSpec = getattr(families, family)()
    said = words_of(family)
    lines = str(spec).splitlines()[1:]
    parts = ['<div class="family" markdown>', f"### {said.name} {{ #{family} }}"]
    parts.append(f"![{said.name.partition(',')[0]}: {picture}](../pictures/{family}.svg){{ loading=lazy }}")
    parts += [f'<p class="equation">{markup(said.equation)}</p>'] * bool(said.equation)
    parts += [f"{markup(_sentence(said.words))}."] * bool(said.words)
    parts.append("\n".join(["```text", *(line.removeprefix("  ") for line in lines), "```"]))
    parts.append("\n".join(["| model | trained | rank at most |", "|---|---:|---:|", *_rows(bounds)]))
    parts.append(f"[`families.{family}`][tnadapt.families.{family}] · {_link(said.source)}")
    return "\n\n".join([*parts, "</div>"])


def _sentence(words: str) -> str:
    """Begin with a capital, unless the first word is the name of a factor."""
    return words if words[1:2] in (" ", "_") and words[0] != "a" else words[:1].upper() + words[1:]


def _rows(bounds: Mapping[str, Bound | None]) -> list[str]:
    rows = []
    for model, one in bounds.items():
        if one is None:
            rows.append(f"| {model} | no power of two | |")
            continue
        sizes = f"<br><small>{one.sizes}</small>" if one.sizes else ""
        rows.append(f"| {model}{sizes} | {one.trained:,} | {one.rank:,} |")
    return rows
