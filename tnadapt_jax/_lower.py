"""Run a plan with jax operations: dot_general for steps that sum, a broadcast product for steps that do not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from tnadapt import plan
from tnadapt.binding import Convolution, Network, Plan, run
from tnadapt_jax._explicit import brought_to, dot, free_of, gathered, merge_axes, spec_of, split_axes

__all__: list[str] = []

Modes = tuple[str, ...]
Precision = lax.Precision | None
ANY = 1024  # tokens where their number is a symbol


@dataclass(frozen=True)
class Laid:
    """An operand or an intermediate: its values, the mode of each axis, and whether it depends on x."""

    value: Array
    modes: Modes
    active: bool = False


def apply_network(
    network: Network,
    factors: Sequence[Array],
    x: Array,
    *,
    product: Array | None = None,
    precision: Precision = None,
) -> Array:
    """Return the scaled update of x at one site: x (..., in axes) -> (..., out). All arrays have one dtype.

    `product` (..., out) is x times the host's weight, if it is at hand: terms that begin with it read it. The leading
    axes of x remain separate axes, so that each keeps its sharding. The plan is made for exactly the product of their
    sizes, or for 1,024 if a size is a symbol. Nothing is checked here.
    """
    lead = x.shape[: x.ndim - len(network.axes) + 1]
    order = plan(network, "apply", tokens=tokens_of(lead), host_product=product is not None)
    names = tuple(f"(token {axis})" for axis in range(len(lead)))
    inner = [[network.sizes[mode] for mode in modes] for modes in network.axes[1:]]
    split = split_axes(x, [*([size] for size in lead), *inner])
    laid = [Laid(split, (*names, *network.in_modes), active=True)]
    if product is not None:
        for _, *modes in order.inputs[1 : len(order.operands) - len(factors)]:
            sizes = [network.sizes[mode] for mode in modes]
            own = split_axes(product, [*([size] for size in lead), sizes])
            laid.append(Laid(own, (*names, *modes), active=True))
    answer = run(order, [*laid, *_factors(order, factors)], _Backend(order, names, precision))
    return _rest_of_scale(order, merge_axes(answer.value, [*[1] * len(lead), len(network.out_modes)]))


def tokens_of(lead: Sequence[Any]) -> int:
    """Return the number of tokens to plan for: exactly that of these leading axes, if each size is a number.

    A program that is exported for any batch runs one plan at all of them: that for 1,024 tokens, as the PyTorch binding
    takes under torch.compile, or for more if the sizes that are known are more. A plan for few tokens could multiply
    factors first, at a cost that many tokens do not need.
    """
    known = math.prod(size for size in lead if isinstance(size, int))
    return max(known, 1 if all(isinstance(size, int) for size in lead) else ANY)


def wide_of(*values: Array) -> DTypeLike:
    """Return float64 if any value has that dtype, else float32: the dtype for updates and merged weights."""
    is_double = any(jnp.result_type(value) == np.float64 for value in values)
    return np.dtype(np.float64 if is_double else np.float32)


def make_delta(network: Network, factors: Sequence[Array], *, precision: Precision) -> Array:
    """Return the scaled dense update of one site, in the weight's shape (out axis first)."""
    order = plan(network, "delta")
    answer = run(order, _factors(order, factors), _Backend(order, (), precision))
    return _rest_of_scale(order, merge_axes(answer.value, [len(modes) for modes in network.axes]))


def _rest_of_scale(order: Plan, value: Array) -> Array:
    """Return a sum times the scale, if no factors of its terms take the scale instead."""
    scale = order.network.scale
    return value if scale == 1.0 or _scaled(order) else value * scale


def _factors(order: Plan, factors: Sequence[Array]) -> list[Laid]:
    """Return the factors of one site, with one small factor of each term multiplied by the scale."""
    modes = order.inputs[len(order.inputs) - len(factors) :]
    scale = order.network.scale  # a python float: it takes the dtype of what it multiplies
    chosen = _scaled(order)
    named = zip(order.network.nodes, factors, strict=True)
    scaled = [value * scale if name in chosen and scale != 1.0 else value for name, value in named]
    laid = [Laid(value, of_value) for value, of_value in zip(scaled, modes, strict=True)]
    return [_in_order(factor, order.network) for factor in laid]


def _scaled(order: Plan) -> frozenset[str]:
    """Return nodes of which each term has exactly one, small ones where possible; none if there are no such nodes.

    Of a pattern that a convolution replaces, the convolution knows the entry, and nobody reads the array.
    """
    network = order.network
    if order.host_product:  # a term may have no factor but the weight, which nobody reads
        return frozenset()
    chosen: set[str] = set()
    seen = {order.operands[how.pattern] for how in order.convolutions}
    for term in network.terms:
        free = [name for name in term.nodes if name not in seen]
        seen |= {*term.nodes}
        if not chosen & {*term.nodes}:
            if not free:
                return frozenset()
            chosen.add(min(free, key=lambda name: (network.volume(network.local_modes(name)), network.nodes[name])))
    return frozenset(chosen if all(len(chosen & {*term.nodes}) == 1 for term in network.terms) else ())


def _in_order(laid: Laid, network: Network) -> Laid:
    """Transpose a product of factors to the weight's order of modes; otherwise the activations would be transposed."""
    places = {mode: place for place, mode in enumerate((*network.out_modes, *network.in_modes))}
    outer = iter(sorted((mode for mode in laid.modes if mode in places), key=places.__getitem__))
    modes = tuple(next(outer) if mode in places else mode for mode in laid.modes)
    return Laid(_turned(laid, modes), modes)


class _Backend:
    """The steps of one plan as jax operations. `lead` are the axes that replace the plan's token axis."""

    def __init__(self, order: Plan, lead: Modes, precision: Precision) -> None:
        self.order, self.lead, self.precision = order, lead, precision

    def contract(self, left: Laid, right: Laid, kept: Modes, wanted: Modes) -> Laid:
        """Multiply and sum, as specified by the core's `Backend`."""
        kept, wanted = _spelled(kept, self.order, self.lead), _spelled(wanted, self.order, self.lead)
        made = _step(left, right, kept, wanted, self.precision)
        return made if made.active else _in_order(made, self.order.network)

    def convolve(self, left: Laid, right: Laid, kept: Modes, how: Convolution) -> Laid:
        """Multiply the spectra, as specified by the core's `Backend`."""
        spectra = [
            _spectrum(side, mode, how.made, conjugated=how.conjugated == name)
            for name, side, mode in (("left", left, how.left), ("right", right, how.right))
        ]
        made = _step(spectra[0], spectra[1], _spelled(kept, self.order, self.lead), (), self.precision)
        value = jnp.fft.irfft(made.value, how.size, axis=made.modes.index(how.made)) * how.amount
        laid = Laid(lax.convert_element_type(value, left.value.dtype), made.modes, made.active)
        return laid if laid.active else _in_order(laid, self.order.network)

    def ordered(self, value: Laid, modes: Modes) -> Laid:
        """Transpose, as specified by the core's `Backend`."""
        modes = _spelled(modes, self.order, self.lead)
        return Laid(_turned(value, modes), modes, value.active)

    def add(self, values: Sequence[tuple[int, Laid]]) -> Laid:
        """Add and subtract, as specified by the core's `Backend`."""
        (sign, first), *others = values
        total = first.value if sign > 0 else -first.value
        for sign, other in others:
            value = brought_to(other.value, spec_of(total))
            total = total + value if sign > 0 else total - value
        return Laid(total, first.modes, first.active)


def _spelled(modes: Modes, order: Plan, lead: Modes) -> Modes:
    """Return these modes with the plan's token axis replaced by the leading axes of x."""
    if order.ask != "apply":
        return modes
    token = order.answer[0]
    return tuple(word for mode in modes for word in (lead if mode == token else (mode,)))


def _step(left: Laid, right: Laid, kept: Modes, wanted: Modes, precision: Precision) -> Laid:
    """Run one pairwise step. An activation is the left operand; else the operand with the first wanted mode is."""
    if right.active or (not left.active and wanted and wanted[0] in right.modes and wanted[0] not in left.modes):
        left, right = right, left
    both = [mode for mode in left.modes if mode in right.modes]
    active = left.active or right.active
    if all(mode in kept for mode in both):
        return Laid(*_entrywise(left, right), active)
    batch = [mode for mode in both if mode in kept]
    summed = [mode for mode in both if mode not in kept]
    axes = [(tuple(map(left.modes.index, some)), tuple(map(right.modes.index, some))) for some in (summed, batch)]
    value = dot(left.value, right.value, (axes[0], axes[1]), precision)
    free = [mode for side in (left, right) for mode in side.modes if mode not in both]
    return Laid(value, (*batch, *free), active)


def _spectrum(laid: Laid, mode: str, made: str, *, conjugated: bool) -> Laid:
    """Transform along a mode, which gets another name. No transform takes less than float32."""
    wide = laid.value.dtype if laid.value.dtype == jnp.float64 else jnp.float32
    axis = laid.modes.index(mode)
    value = jnp.fft.rfft(gathered(lax.convert_element_type(laid.value, wide), axis), axis=axis)
    modes = tuple(made if one == mode else one for one in laid.modes)
    return Laid(jnp.conj(value) if conjugated else value, modes, laid.active)


def _entrywise(left: Laid, right: Laid) -> tuple[Array, Modes]:
    """Multiply without summation. The axes of the larger operand come first, then those that only the other has."""
    big, small = (left, right) if _size(left) >= _size(right) else (right, left)
    modes = (*big.modes, *(mode for mode in small.modes if mode not in big.modes))
    if (spec := spec_of(big.value)) is not None and (own := spec_of(small.value)) is not None:
        free = free_of(own, spec)
        wanted = [spec[big.modes.index(mode)] if mode in big.modes else free[n] for n, mode in enumerate(small.modes)]
        small = Laid(brought_to(small.value, tuple(wanted)), small.modes)
    return jnp.multiply(_spread(big, modes), _spread(small, modes)), modes


def _size(laid: Laid) -> int:
    """Return the number of entries, with a size that is a symbol as large as plans assume."""
    return math.prod(size if isinstance(size, int) else ANY for size in laid.value.shape)


def _spread(laid: Laid, modes: Modes) -> Array:
    """Return the value with one axis per mode, of length 1 for the modes that it lacks."""
    value = _turned(laid, tuple(mode for mode in modes if mode in laid.modes))
    return lax.expand_dims(value, [axis for axis, mode in enumerate(modes) if mode not in laid.modes])


def _turned(laid: Laid, modes: Modes) -> Array:
    """Return the value with its axes in this order."""
    if laid.modes == modes:
        return laid.value
    return lax.transpose(laid.value, [laid.modes.index(mode) for mode in modes])
