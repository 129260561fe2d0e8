"""Strings that name modes: words separated by spaces; round brackets join the modes of one split axis."""

import re

__all__: list[str] = []

Axis = tuple[str, ...]

_TOKEN = re.compile(r"[()]|[^\s()]+")


def modes_of(text: str) -> tuple[str, ...]:
    """The modes that "site p q" names, in order. Brackets have no meaning here and come back as words of their own."""
    return tuple(_TOKEN.findall(text))


def axes_of(text: str) -> tuple[Axis, ...]:
    """The axes that "(head dim) in" names: one tuple of modes an axis, outermost mode first.

    Raises ValueError for brackets that do not close, do not open, nest, or hold nothing.
    """
    axes: list[Axis] = []
    group: list[str] | None = None
    for token in modes_of(text):
        if token == "(":
            if group is not None:
                raise ValueError(
                    f"{text!r}: a bracket inside a bracket; an axis splits in one step, as in '(head dim)'"
                )
            group = []
        elif token == ")":
            if not group:
                raise ValueError(f"{text!r}: ')' closes nothing; an axis that splits is written '(head dim)'")
            axes.append(tuple(group))
            group = None
        elif group is not None:
            group.append(token)
        else:
            axes.append((token,))
    if group is not None:
        raise ValueError(f"{text!r}: '(' is never closed")
    return tuple(axes)


def text_of(axes: tuple[Axis, ...]) -> str:
    """The inverse of `axes_of`: one blank between words, brackets only where an axis splits."""
    return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
