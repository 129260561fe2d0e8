"""Test every law on one spec bound to random sites, and report the smallest adapter that breaks a law."""

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
    """A law that a spec satisfied: its name, its statement, and the number of adapters it was tested on."""

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
    """Test every law on a spec bound to random sites.

    Args:
        spec: a spec of your own, a family or the name of a family.
        examples: the number of adapters to test each law on.
        rank: as for `bind`; random from 1 to 3 by default.
        sizes: as for `bind`, if the spec needs any.
        laws: the laws to test; all of them by default.
        tell: called after each law that the spec satisfies, to show progress.

    Returns:
        The laws, all of which the spec satisfies.

    Raises:
        LawError: for the first law that the spec breaks, with the smallest adapter found that breaks it; or if
            `examples` is less than 1.
    """
    if examples < 1:
        raise LawError(f"check: expected at least 1 example, got {examples}.")
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
        derandomize=True,  # every call tests the same adapters
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
            f"{spec.name}: law {law.__name__}: {error}.\nThe law states: {statement}\n"
            f"The smallest case found (the last one tested):\n{tried[-1]}"
        ) from error
    return len(tried)
