"""The words of a spec: laws for starting values, factors, and rules for the scale. None of them knows a size."""

import math
from dataclasses import dataclass

from tnadapt._language.notation import modes_of

__all__ = [
    "Factor",
    "Init",
    "Scale",
    "constant",
    "cur",
    "cyclic",
    "frozen",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "orthogonal",
    "over_rank",
    "over_sqrt_rank",
    "projection",
    "raw",
    "sign",
    "singular",
    "train",
    "trainable",
    "tubal",
    "uniform",
    "zeros",
]

LAWS = {"constant": "value", "normal": "std", "uniform": "bound", "orthogonal": "gain", "identity": "gain"}
READ = ("singular", "train", "projection", "tubal", "cur")  # from the host's weights
LAWS |= {"cyclic": "gain", "sign": "gain"} | dict.fromkeys(READ, "gain")
TINY, HUGE = 1e-30, 1e30  # float32 holds what is made of these
MAPS = {"rotation": 2, "householder": 1, "cayley": 0}  # how many of a node's last modes are not held
RULES = ("over_rank", "over_sqrt_rank", "raw")


@dataclass(frozen=True)
class Init:
    """A law for starting values: entries of size `amount / sqrt(fan)`, where fan is the product of the modes' sizes.

    `law` is one of constant, normal (amount: standard deviation), uniform (amount: half-width), orthogonal, identity,
    cyclic (amount: gain), and those that are read from the host's weights. The fan may name any mode of the network,
    also one that the factor does not carry. `power` is that of the singular values which the vectors are multiplied by.
    """

    law: str
    amount: float
    fan: tuple[str, ...] = ()
    power: float = 0.0

    @property
    def is_zero(self) -> bool:
        """Whether every value drawn by this law is exactly 0."""
        return self.amount == 0

    @property
    def is_redrawn(self) -> bool:
        """Whether the same seed gives the same bits on every machine: not where a linear algebra library has a say."""
        return self.law != "orthogonal" and not self.is_read

    @property
    def is_read(self) -> bool:
        """Whether the values come from the host's weights."""
        return self.law in READ

    def faults(self) -> list[str]:
        """What is wrong with this law by itself."""
        if self.law not in LAWS:
            return [f"unknown law {self.law!r}; known: {', '.join(LAWS)}"]
        is_number = isinstance(self.amount, int | float) and not isinstance(self.amount, bool)
        if not is_number or (self.amount != 0 and not TINY <= abs(self.amount) <= HUGE):
            return [
                f"law {self.law}: its {LAWS[self.law]} must be 0 or from {TINY} to {HUGE} in size, got {self.amount!r}"
            ]
        if isinstance(self.power, bool) or self.power not in (0, 0.5, 1):
            return [f"law {self.law}: the power of the singular values must be 0, 0.5 or 1, got {self.power!r}"]
        return []

    def __str__(self) -> str:
        """As in normal(std=0.5 / sqrt(in)); plain words for zeros and ones."""
        if self.law == "constant" and self.amount in (0, 1):
            return "zeros" if self.is_zero else "ones"
        fan = f" / sqrt({'*'.join(self.fan)})" if self.fan else ""
        gain = (
            ""
            if self.amount == 1 and LAWS.get(self.law) == "gain"
            else f"{LAWS.get(self.law, 'amount')}={self.amount:.6g}{fan}"
        )
        words = [gain, *([f"power={self.power:g}"] if self.power else [])]
        return f"{self.law}({', '.join(filter(None, words))})"


def zeros() -> Init:
    """Every entry 0: the law of the one factor that makes dW = 0 at the start."""
    return Init("constant", 0.0)


def ones() -> Init:
    """Every entry 1."""
    return Init("constant", 1.0)


def constant(value: float) -> Init:
    """Every entry `value`."""
    return Init("constant", float(value))


def normal(std: float = 1.0, *, fan: str = "") -> Init:
    """Independent normal entries of standard deviation std / sqrt(fan); `fan` names modes, as in "in"."""
    return Init("normal", float(std), modes_of(fan))


def uniform(bound: float = 1.0, *, fan: str = "") -> Init:
    """Independent uniform entries in +-bound / sqrt(fan); `fan` names modes, as in "in"."""
    return Init("uniform", float(bound), modes_of(fan))


def kaiming_uniform(fan: str, *, slope: float = math.sqrt(5.0)) -> Init:
    """Uniform in +-sqrt(6 / ((1 + slope^2) fan)); with the default slope that is +-1 / sqrt(fan).

    The fan is said in modes, since an einsum has no fan of its own. Source: He et al. 2015, the leaky form; slope
    sqrt(5) is what LoRA uses.
    """
    return uniform(math.sqrt(6.0 / (1.0 + slope**2)), fan=fan)


def kaiming_normal(fan: str, *, slope: float = math.sqrt(5.0)) -> Init:
    """Normal of variance 2 / ((1 + slope^2) fan); with the default slope that is 1 / (3 fan). Source: as above."""
    return normal(math.sqrt(2.0 / (1.0 + slope**2)), fan=fan)


def orthogonal(gain: float = 1.0) -> Init:
    """Gain times an orthogonal matrix: the first mode that is no site mode against all others, drawn anew a site."""
    return Init("orthogonal", float(gain))


def identity(gain: float = 1.0) -> Init:
    """Gain where the indices along all modes but the site modes are equal, else 0: a core that passes what it gets."""
    return Init("identity", float(gain))


def cyclic() -> Init:
    """1 where the index along the first mode is the sum of the others', modulo its size; else 0.

    It joins tensors along the sites by the t-product (Kilmer and Martin 2011), a convolution.
    """
    return Init("cyclic", 1.0)


def sign() -> Init:
    """1, but -1 where the index along every mode is the last: the controlled sign gate CZ of two qubits."""
    return Init("sign", 1.0)


def singular(power: float = 0.0, *, gain: float = 1.0) -> Init:
    """Read from the host: leading singular vectors of its weights, times the singular values to a power of 0, 0.5 or 1.

    The vectors are those of the factor's modes of the weight; the weights of sites whose mode the factor does not carry
    stand side by side, as in the HOSVD. A factor of in modes alone is paired with the one of the out modes.
    """
    return Init("singular", float(gain), power=power)


def train() -> Init:
    """Read from the host: a core of the tensor train of its weights; its cores have this law, by the order of names."""
    return Init("train", 1.0)


def projection() -> Init:
    """Read from the host: its weights contracted with all other factors, the best core where those are orthonormal."""
    return Init("projection", 1.0)


def tubal(power: float = 0.0) -> Init:
    """Read from the host: the left, right or middle part of the t-SVD of its weights along the sites.

    A factor carries the bond that a `cyclic` factor joins to the sites. Powers of singular values as in `singular`.
    """
    return Init("tubal", 1.0, power=power)


def cur() -> Init:
    """Read from the host: the columns, the rows or the middle part of the tensor CUR of its weights along the sites."""
    return Init("cur", 1.0)


@dataclass(frozen=True)
class Factor:
    """A node of the network: its modes in order, the law of its starting values, trainable or frozen.

    With a `map`, what is held and trained are not the node's entries but what they are made of: angles for a rotation,
    a vector for a Householder reflection, a matrix for a Cayley transform. The law is that of what is held.
    """

    modes: tuple[str, ...]
    init: Init
    trainable: bool
    map: str = ""

    @property
    def held(self) -> tuple[str, ...]:
        """The modes of what is held: those of the node, but for those that the map makes."""
        return self.modes[: len(self.modes) - MAPS.get(self.map, 0)]

    @property
    def is_zero(self) -> bool:
        """Whether every entry of the node is 0 at the start: no map makes 0 of 0."""
        return self.init.is_zero and not self.map

    def __str__(self) -> str:
        """As in trainable "out p" normal(std=1)."""
        made = f"{self.map} of " if self.map else ""
        return f'{"trainable" if self.trainable else "frozen"} "{" ".join(self.modes)}" {made}{self.init}'


def trainable(modes: str, *, init: Init | None = None, map: str = "") -> Factor:
    """A factor that is trained. `modes` as in "site p q"; "" is a scalar. Without a law: normal().

    `map` makes the last two modes: "rotation" (2 x 2 from an angle; neither is held), "householder" (n x n from a
    vector along the first of them) or "cayley" (n x n orthogonal, from as many numbers).
    """
    return Factor(modes_of(modes), init or normal(), trainable=True, map=map)


def frozen(modes: str, *, init: Init | None = None) -> Factor:
    """A factor that keeps its starting values. One that carries no site mode is one and the same for all groups."""
    return Factor(modes_of(modes), init or normal(), trainable=False)


@dataclass(frozen=True)
class Scale:
    """A rule for the number that multiplies the update: alpha, alpha / rank, or alpha / sqrt(rank)."""

    rule: str
    alpha: float
    bond: str = ""

    def faults(self) -> list[str]:
        """What is wrong with this rule by itself."""
        found = [] if self.rule in RULES else [f"unknown scale rule {self.rule!r}; known: {', '.join(RULES)}"]
        is_number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not is_number or not -HUGE <= self.alpha <= HUGE:
            found.append(f"scale: alpha must be a finite number, got {self.alpha!r}")
        return found

    def at(self, rank: int) -> float:
        """The scale of a network whose bond `bond` has this size, as a python float."""
        return float(self.alpha) / {"over_rank": rank, "over_sqrt_rank": math.sqrt(rank), "raw": 1.0}[self.rule]

    def __str__(self) -> str:
        """As in 16 / sqrt(r)."""
        divisor = {"over_rank": f" / {self.bond}", "over_sqrt_rank": f" / sqrt({self.bond})"}
        return f"{self.alpha:g}{divisor.get(self.rule, '')}"


def over_rank(bond: str, *, alpha: float = 1.0) -> Scale:
    """Scale alpha / size of `bond`, as in LoRA."""
    return Scale("over_rank", alpha, bond)


def over_sqrt_rank(bond: str, *, alpha: float = 1.0) -> Scale:
    """Scale alpha / sqrt(size of `bond`), as in rsLoRA (arXiv:2312.03732)."""
    return Scale("over_sqrt_rank", alpha, bond)


def raw(alpha: float = 1.0) -> Scale:
    """Scale alpha itself, divided by nothing."""
    return Scale("raw", alpha)
