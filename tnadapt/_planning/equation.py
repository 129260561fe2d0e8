"""Modes as the letters of an einsum."""

from collections.abc import Iterable

import opt_einsum

__all__ = ["equation_of"]

Modes = tuple[str, ...]


def equation_of(inputs: Iterable[Modes], answer: Modes) -> str:
    """Write a contraction as an einsum equation, in opt_einsum's symbols: any number of modes has one."""
    terms = [*inputs, answer]
    symbols = {
        mode: opt_einsum.get_symbol(n) for n, mode in enumerate(dict.fromkeys(m for term in terms for m in term))
    }
    words = ["".join(symbols[mode] for mode in term) for term in terms]
    return f"{','.join(words[:-1])}->{words[-1]}"
