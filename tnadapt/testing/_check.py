"""Every law on one spec: bound to sites at random, and the smallest case told where a law fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tnadapt._errors import LawError
from tnadapt._language import Adapter, AdapterSpec
from tnadapt._signature import answers
from tnadapt.families import SpecLike, spec_of
from tnadapt.testing._laws import LAWS, Law
from tnadapt.testing._strategies import adapters

__all__ = ["Held", "check"]


@dataclass(frozen=True)
class Held:
    """A law that held, what it states, and on how many adapters it was tried."""

    law: str
    statement: str
    examples: int


@answers(LawError)
def check(
    spec: SpecLike,
    *,
    examples: int = 25,
    rank: int | Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    laws: Sequence[Law] = LAWS,
    tell: Callable[[Held], None] | None = None,
) -> tuple[Held, ...]:
    """Try every law on a spec bound to random sites, and give back which held.

    Args:
        spec: your own, or a family, or the name of one.
        examples: on how many adapters each law is tried.
        rank: as for `bind`; from 1 to 3 by default.
        sizes: as for `bind`, where the spec needs some.
        laws: which laws; all by default.
        tell: called after each law that held, to show progress.

    Raises:
        LawError: the first law that does not hold, with the smallest adapter found that breaks it; no examples.
    """
    if examples < 1:
        raise LawError(f"check: examples must be at least 1, got {examples}")
    table, found = spec_of(spec, "check"), []
    for law in laws:
        held = Held(law.__name__, " ".join((law.__doc__ or "").split()), _try(law, table, examples, rank, sizes))
        found.append(held)
        if tell is not None:
            tell(held)
    return tuple(found)


def _try(
    law: Law,
    spec: AdapterSpec,
    examples: int,
    rank: int | Mapping[str, int] | None,
    sizes: Mapping[str, int] | None,
) -> int:
    tried: list[Adapter] = []

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,  # the same answer at every call
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(adapter=adapters(spec, rank=rank, sizes=sizes), seed=st.integers(0, 2**16))
    def holds(adapter: Adapter, seed: int) -> None:
        tried.append(adapter)
        law(adapter, np.random.default_rng(seed))

    try:
        holds()
    except LawError as error:
        statement = " ".join((law.__doc__ or "").split())
        raise LawError(
            f"{spec.name}: breaks the law {law.__name__}: {statement}\nHowever, {error}.\n"
            f"The smallest case found (the last one tried):\n{tried[-1]}"
        ) from error
    return len(tried)
