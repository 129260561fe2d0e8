"""Parse strings that name modes: words separated by spaces, with round brackets around the modes of a split axis."""

import re

__all__: list[str] = []

Axis = tuple[str, ...]

_TOKEN = re.compile(r"[()]|[^\s()]+")


def modes_of(text: str) -> tuple[str, ...]:
    """Return the modes named by a string such as "site p q", in order. A bracket is returned as a word of its own."""
    return tuple(_TOKEN.findall(text))


def axes_of(text: str) -> tuple[Axis, ...]:
    """Return the axes named by a string such as "(head dim) in": one tuple of modes per axis, outermost mode first.

    Raises ValueError for brackets that are unbalanced, nested or empty.
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
    """Return the string that names these axes: single spaces, and brackets only around a split axis."""
    return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
