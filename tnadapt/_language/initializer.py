"""Initializers: the starting values of factors, described without sizes."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tnadapt._errors import SpecError
from tnadapt._language.notation import modes_of
from tnadapt._signature import answers, mistake, told

__all__ = [
    "Initializer",
    "constant",
    "controlled_z",
    "cyclic",
    "host",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "orthogonal",
    "rotary",
    "row_norms",
    "uniform",
    "zeros",
]

Drawn = Literal["constant", "normal", "uniform", "orthogonal", "identity", "cyclic", "controlled_z", "rotary"]
Read = Literal["svd", "tt_svd", "hosvd_core", "t_svd", "tensor_cur", "row_norms"]  # from the host's weights
HostWeight = Literal["host", "host_mask"]  # the weight, the pattern of its nonzeros
HostPart = Literal["host_left", "host_values", "host_right"]  # of its SVD, in the order of U, S, V^T
Host = Literal[HostWeight, HostPart]
Kind = Literal[Drawn, Read, Host]

READ, HOST = frozenset(get_args(Read)), frozenset(get_args(Host))
HOST_WEIGHTS = get_args(HostWeight)
"""The initializers that are the whole weight of a host, or the pattern of its nonzeros."""
HOST_PARTS = get_args(HostPart)
"""The initializers that are parts of the SVD of a host's weight, in the order of U, S, V^T."""
PATTERNS = frozenset({"cyclic", "rotary"})
AMOUNTS = dict.fromkeys((*get_args(Drawn), *get_args(Read), *get_args(Host)), "gain")
AMOUNTS |= {"constant": "value", "normal": "std", "uniform": "bound", "rotary": "base"}
TINY, HUGE = 1e-30, 1e30  # products of numbers in this range fit in float32


@dataclass(frozen=True)
class Initializer:
    """The starting values of a factor, scaled by `amount / sqrt(fan)`, where fan is a product of mode sizes.

    `amount` is the standard deviation of "normal", the half-width of "uniform", the value of "constant", and the gain
    of every other kind. `fan` may name any mode of the network, including modes that the factor does not have. `power`
    is the power of the singular values by which singular vectors are multiplied, and `share` the power of the spec's
    scale that divides them.
    """

    kind: Kind
    amount: float
    fan: tuple[str, ...] = ()
    power: float = 0.0
    share: float = 0.0

    @property
    def is_zero(self) -> bool:
        """Whether every entry is exactly 0."""
        return self.amount == 0

    @property
    def is_read(self) -> bool:
        """Whether the values are read from the host's weights."""
        return self.kind in READ

    @property
    def is_host(self) -> bool:
        """Whether the values are the host's own weight or follow from it, and are not an array of the adapter."""
        return self.kind in HOST

    @property
    def is_magnitude(self) -> bool:
        """Whether the values are the lengths of the rows of the weight with its update, which the factor then sets."""
        return self.kind == "row_norms"

    @property
    def is_pattern(self) -> bool:
        """Whether the sizes of a factor set its values, so that the values for smaller sizes are no part of them."""
        return self.kind in PATTERNS

    @property
    def is_redrawn(self) -> bool:
        """Whether a seed gives the same bits on every machine. It does not if a linear algebra library is involved."""
        return self.kind != "orthogonal" and not self.is_read and not self.is_host

    def faults(self) -> list[str]:
        """List the faults of this initializer, apart from the spec that uses it."""
        if self.kind not in AMOUNTS:
            return [f"initializer: expected one of {', '.join(AMOUNTS)}, got {self.kind!r}"]
        is_number = isinstance(self.amount, int | float) and not isinstance(self.amount, bool)
        if not is_number or (self.amount != 0 and not TINY <= abs(self.amount) <= HUGE):
            what = AMOUNTS[self.kind]
            return [f"{self.kind}: expected a {what} of 0 or of {TINY} to {HUGE} in size, got {self.amount!r}"]
        if self.kind == "rotary" and self.amount <= 0:
            return [f"rotary: expected a base above 0, got {self.amount!r}"]
        if isinstance(self.power, bool) or self.power not in (0, 0.5, 1):
            return [f"{self.kind}: expected a power of the singular values of 0, 0.5 or 1, got {self.power!r}"]
        if isinstance(self.share, bool) or self.share not in (0, 0.5, 1):
            return [f"{self.kind}: expected a share of the scale of 0, 0.5 or 1, got {self.share!r}"]
        is_fixed = self.is_host or self.is_magnitude
        is_changed = is_fixed and (self.amount, *self.fan, self.power, self.share) != (1, 0, 0)
        what = "the host's weight as it is" if self.is_host else "the lengths as they are"
        todo = f"{self.kind}: expected {what}, got {self}; multiply by a constant factor"
        return [todo] if is_changed else []

    def __str__(self) -> str:
        """Return a text such as normal(std=0.5 / sqrt(in)), or the words zeros and ones."""
        if self.kind == "constant" and self.amount in (0, 1):
            return "zeros" if self.is_zero else "ones"
        name = AMOUNTS.get(self.kind, "amount")
        fan = f" / sqrt({'*'.join(self.fan)})" if self.fan else ""
        gain = "" if self.amount == 1 and name == "gain" else f"{name}={self.amount:.6g}{fan}"
        words = [gain, *([f"power={self.power:g}"] if self.power else [])]
        words += [f"share={self.share:g}"] if self.share else []
        return f"{self.kind}({', '.join(filter(None, words))})"


def expect_modes(given: object, where: str, word: str = "") -> tuple[str, ...]:
    """Return the modes that a string names. Raises SpecError for anything else.

    `where` is the function that begins the message, `word` the argument that has to be passed by name.
    """
    if isinstance(given, str):
        return modes_of(given)
    words = given if isinstance(given, list | tuple) and all(isinstance(one, str) for one in given) else ["out", "r"]
    todo = f'Write {where}({word}{"=" if word else ""}"{" ".join(words)}").'
    raise mistake(SpecError, where, f"{word or 'modes'} as one string", told(given), todo)


def call_of_initializer(given: object) -> str:
    """Say what to write instead of a value that is not an initializer, such as the function `normal` or its name."""
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    known = ("zeros", "ones", *get_args(Drawn), *get_args(Read), "kaiming_uniform", "kaiming_normal")
    if name not in known:
        return "Write init=normal(), or another of tnadapt.initializers."
    asked = {"constant": "0.5", "kaiming_uniform": '"in"', "kaiming_normal": '"in"'}.get(name, "")
    return f"Write init={name}({asked})."


def _number(given: object, where: str, word: str) -> float:
    """Return the number as a float. Raises SpecError for anything else."""
    if not isinstance(given, str | bool) and hasattr(given, "__float__"):
        try:
            return float(given)
        except (TypeError, ValueError, OverflowError):
            pass
    todo = f"Write {where}(0.5)."
    if isinstance(given, str):
        try:
            todo = f"Write {where}({float(given)})."
        except ValueError:
            todo = f'Write {where}(fan="{given}").' if where in ("normal", "uniform") else todo
    raise mistake(SpecError, where, f"a number as {word}", told(given), todo)


@answers(SpecError)
def zeros() -> Initializer:
    """Start every entry at 0, as for the one factor that makes dW = 0 at the start."""
    return Initializer("constant", 0.0)


@answers(SpecError)
def ones() -> Initializer:
    """Start every entry at 1."""
    return Initializer("constant", 1.0)


@answers(SpecError)
def constant(value: float) -> Initializer:
    """Start every entry at `value`."""
    return Initializer("constant", _number(value, "constant", "value"))


@answers(SpecError)
def normal(std: float = 1.0, *, fan: str = "") -> Initializer:
    """Draw normal entries of standard deviation std / sqrt(fan); `fan` names modes, as in "in"."""
    return Initializer("normal", _number(std, "normal", "std"), expect_modes(fan, "normal", "fan"))


@answers(SpecError)
def uniform(bound: float = 1.0, *, fan: str = "") -> Initializer:
    """Draw uniform entries in +-bound / sqrt(fan); `fan` names modes, as in "in"."""
    return Initializer("uniform", _number(bound, "uniform", "bound"), expect_modes(fan, "uniform", "fan"))


@answers(SpecError)
def kaiming_uniform(fan: str, *, slope: float = math.sqrt(5.0)) -> Initializer:
    """Draw uniform entries in +-sqrt(6 / ((1 + slope^2) fan)); with the default slope that is +-1 / sqrt(fan).

    `fan` names modes, since the factors of a contraction have no fan of their own. Source: He et al. 2015, for leaky
    ReLU; LoRA uses slope sqrt(5).
    """
    modes = " ".join(expect_modes(fan, "kaiming_uniform", "fan"))
    return uniform(math.sqrt(6.0 / (1.0 + _number(slope, "kaiming_uniform", "slope") ** 2)), fan=modes)


@answers(SpecError)
def kaiming_normal(fan: str, *, slope: float = math.sqrt(5.0)) -> Initializer:
    """Draw normal entries of variance 2 / ((1 + slope^2) fan); with the default slope that is 1 / (3 fan).

    Source: as for `kaiming_uniform`.
    """
    modes = " ".join(expect_modes(fan, "kaiming_normal", "fan"))
    return normal(math.sqrt(2.0 / (1.0 + _number(slope, "kaiming_normal", "slope") ** 2)), fan=modes)


@answers(SpecError)
def orthogonal(gain: float = 1.0) -> Initializer:
    """Draw an orthogonal matrix per site, times `gain`. Its rows are the first mode that is not a site mode."""
    return Initializer("orthogonal", _number(gain, "orthogonal", "gain"))


@answers(SpecError)
def identity(gain: float = 1.0) -> Initializer:
    """Set `gain` where the indices along all modes except the site modes are equal, and 0 elsewhere.

    In a factor with only one other mode, as in "layer t", the indices along the site modes have to be equal as well.
    """
    return Initializer("identity", _number(gain, "identity", "gain"))


@answers(SpecError)
def cyclic() -> Initializer:
    """Set 1 where the index along the first mode is the sum of the other indices, modulo its size; 0 elsewhere.

    This tensor multiplies others by the t-product, a circular convolution along the sites (Kilmer and Martin 2011).
    """
    return Initializer("cyclic", 1.0)


@answers(SpecError)
def controlled_z() -> Initializer:
    """Set -1 where every index is the last one, and 1 elsewhere: the controlled-Z gate of two qubits."""
    return Initializer("controlled_z", 1.0)


@answers(SpecError)
def rotary(base: float = 10000.0) -> Initializer:
    """Set the rotations of RoPE: along three modes, the matrix that rotates a row at a position (arXiv:2104.09864).

    frozen("h a i", init=rotary()) has at position h the matrix that turns the pair (k, k + n/2) of the n entries, for
    k < n/2, by the angle h base^(-2k/n). The modes a and i must have the same, even size n.
    """
    return Initializer("rotary", _number(base, "rotary", "base"))


@answers(SpecError)
def host(part: Literal["", "mask", "left", "values", "right"] = "") -> Initializer:
    """Read the host's weight of each site, which is never drawn, counted or stored: frozen("out in", init=host()).

    "mask" is 1 where the weight is not 0, and 0 elsewhere. The parts of its thin SVD are U for "left" (out modes and a
    bond), the singular values for "values" (that bond) and V^T for "right" (the bond and in modes); the bond has the
    length of the shorter side.
    """
    kinds: dict[str, Kind] = {
        "": "host",
        "mask": "host_mask",
        "left": "host_left",
        "values": "host_values",
        "right": "host_right",
    }
    if part not in kinds:
        wanted = "'', 'mask', 'left', 'values' or 'right' as part"
        raise mistake(SpecError, "host", wanted, told(part), 'Write host("left").')
    return Initializer(kinds[part], 1.0)


@answers(SpecError)
def row_norms() -> Initializer:
    """Set the length of each row of the host's weight with the starting update: a magnitude, as `magnitude` adds it."""
    return Initializer("row_norms", 1.0)
