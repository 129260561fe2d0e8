"""What each code of a site is made for, by its place in a list: how many tokens, and which gradients."""

from typing import TypedDict

from tnadapt.binding import BUCKETS, FIXED, TRAINING, Objective

__all__: list[str] = []

# What needs a gradient: one row of codes each, one column per bucket. The last three are for blocks of `fixed()`.
NEEDS = (
    "nothing",
    "factors",
    "factors and x",
    "nothing, and products of factors are kept",
    "factors, of which products are made for all sites",
    "factors and x, and products are made for all sites",
)
KEPT, JOINED = 3, 4  # the first rows of these
MOST = KEPT * len(BUCKETS) + len(BUCKETS) - 1  # of the codes without gradients, the one for the most tokens
MORE = BUCKETS[1:]  # the first tokens of each bucket but the first, which an empty batch belongs to as well
COMPILED = len(NEEDS) * len(BUCKETS)  # torch.compile and torch.jit.trace get one code, whatever the tokens are
COMPILED_FOR = 2 * len(BUCKETS) + BUCKETS.index(1024)
CODES = COMPILED + 1  # and as many for a DTensor, and as many as both with the product of x and the host's weight


class Asked(TypedDict):
    """What a plan of one place in the codes is made for."""

    tokens: int
    training: bool
    x_needs_grad: bool
    fft: bool
    host_product: bool
    objective: Objective


def is_joined(place: int) -> bool:
    """Return whether the code at a place reads products of factors that are made for all sites."""
    return JOINED * len(BUCKETS) <= place % CODES < COMPILED


def asked_at(place: int, machine: str, *, host_product: bool) -> Asked:
    """Return what the code at a place is made for on a type of device: tokens, and what needs a gradient."""
    at = place % CODES
    need, bucket = divmod(COMPILED_FOR if at == COMPILED else at, len(BUCKETS))
    # The inductor of torch 2.13 gives wrong gradients of the product of two spectra, without an error; and the backward
    # pass of such a product fails on DTensors.
    fft = place < COMPILED
    is_fixed = need == KEPT
    need = need - JOINED + 1 if need >= JOINED else need
    return Asked(
        tokens=BUCKETS[bucket],
        training=need > 0 and not is_fixed,
        x_needs_grad=need > 1 and not is_fixed,
        fft=fft,
        host_product=host_product,
        objective=(FIXED if is_fixed else TRAINING)[machine],
    )
