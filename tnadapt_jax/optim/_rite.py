"""LoRA-RITE for every bond with two trained factors: steps that do not depend on how the two share the update."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import Pair, Side, Unfolding, answers, expect_adapter, pairs
from tnadapt_jax._lower import wide_of
from tnadapt_jax.optim._trained import across, arrays, expect_number, expect_trained, matrices, product, stacked

__all__ = ["Rite", "RiteState"]

Arrays = Mapping[str, Array]
Rate = float | Callable[[Array], Any]


class RiteState(NamedTuple):
    """The number of steps taken, and by the name of each factor its moments and its basis in float32 or wider."""

    steps: Array
    moment: dict[str, Array]
    second: dict[str, Array]
    basis: dict[str, Array]


class Seen(NamedTuple):
    """The trained factors at one step."""

    grads: Arrays
    held: Arrays


@dataclass(frozen=True)
class Settings:
    """The arguments of `Rite` that are numbers."""

    betas: tuple[float, float]
    eps: float
    clip: float
    skip: float
    weight_decay: float


@answers(SiteError)
def Rite(
    adapter: Adapter,
    *,
    lr: Rate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    clip: float = 1.0,
    skip: float = 1.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return LoRA-RITE (Yen et al. 2024, arXiv:2410.20625) for an adapter whose trained factors are halves of pairs.

    A pair is two trained factors with one bond, as LoRA's A and B. Any other pair with the same product, such as
    (A g, B g^-T), takes the same steps; those of Adam differ. Stacked factors are a batch of pairs. The arithmetic is
    in float32 or wider. Trained arrays that are in no term (magnitudes) take steps of AdamW. `update` takes the trained
    factors as params, and returns what is to be added to them.

    Args:
        adapter: a spec bound to sites.
        lr: the learning rate, or a schedule: a function of the number of steps taken.
            Begin with an eighth to a quarter of AdamW's. From B = 0, the first step changes the
            entries of LoRA's update by lr |scale| sqrt(r / in) in root mean square, whatever A is: sqrt(3) times as
            much as AdamW at the same rate. From the second step on A moves the update as well, as fast as B.
        betas: the decay of the first and of the second moments.
        eps: is added to the square roots of the eigenvalues of the second moments.
        clip: the largest norm of all unmagnified gradients together; 0 for no limit.
        skip: a factor whose unmagnified gradient has a larger root mean square gets a gradient of 0; 0 for never.
        weight_decay: decoupled, as in AdamW. Not invariant: it shrinks the factors, not their product.

    Raises:
        PlanError: a trained factor is in no pair, with the reasons. Use Preconditioned for such adapters.
        SiteError: a number out of range. `update` raises it for trees that do not fit the adapter.
    """
    where = "Rite"
    expect_adapter(adapter, where)
    if not isinstance(betas, tuple | list) or len(betas) != 2:  # noqa: PLR2004
        raise SiteError(f"{where}: expected two numbers as betas, got {betas!r}.\nWrite betas=(0.9, 0.999).")
    first, second = (expect_number(beta, where, "beta", below=1) for beta in betas)
    settings = Settings(
        (first, second),
        expect_number(eps, where, "eps"),
        expect_number(clip, where, "clip"),
        expect_number(skip, where, "skip"),
        expect_number(weight_decay, where, "weight_decay"),
    )
    rate = lr if callable(lr) else expect_number(lr, where, "lr")
    batches = _batches(pairs(adapter))
    names = {side.name for batch in batches for pair in batch for side in (pair.left, pair.right)}
    alone = tuple(name for name, slot in adapter.slots.items() if slot.factor.trainable and name not in names)

    def init(params: optax.Params) -> RiteState:
        held = expect_trained(adapter, where, params, "values")
        return _start(batches, {name: held[name] for name in alone}, wide_of(*held.values()))

    def update(
        updates: optax.Updates, state: RiteState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RiteState]:
        grads = expect_trained(adapter, where, updates, "gradients")
        held = expect_trained(adapter, where, params, "values")
        now = rate(state.steps) if callable(rate) else rate
        return _update(batches, settings, now, state, Seen(grads, held))

    return optax.GradientTransformation(init, update)


Batch = list[Pair]  # pairs of equal shapes


def _batches(some: Iterable[Pair]) -> list[Batch]:
    found: dict[object, Batch] = {}
    for pair in some:
        found.setdefault((pair.left.unfolding, pair.right.unfolding), []).append(pair)
    return list(found.values())


def _start(batches: Sequence[Batch], alone: Arrays, dtype: Any) -> RiteState:
    """Return the state before the first step; `alone` has the arrays that are in no pair."""
    state = RiteState(jnp.zeros((), jnp.int32), {}, {}, {})
    for name, value in alone.items():
        state.moment[name] = state.second[name] = jnp.zeros(value.shape, dtype)
    for pair in (pair for batch in batches for pair in batch):
        for side, other in ((pair.left, pair.right), (pair.right, pair.left)):
            batch, rows, rank = side.unfolding.shape
            own, thin = min(rows, rank), min(other.unfolding.shape[1], rank)
            state.moment[side.name] = jnp.zeros((batch, rows, thin), dtype)
            state.second[side.name] = jnp.zeros((batch, thin, thin), dtype)
            state.basis[side.name] = jnp.zeros((batch, rows, own), dtype)
    return state


class _Half:
    """One factor of each pair of a batch, as matrices (copies, batch, rows, bond), with their QR decompositions."""

    def __init__(self, sides: Sequence[Side], seen: Seen, state: RiteState) -> None:
        self.names = [side.name for side in sides]
        dtype = state.moment[self.names[0]].dtype
        self.fold: Unfolding = sides[0].unfolding
        self.now = matrices(stacked((seen.held[name] for name in self.names), dtype), self.fold)
        self.grad = matrices(stacked((seen.grads[name] for name in self.names), dtype), self.fold)
        self.moment, self.second, self.old = (
            stacked((kept[name] for name in self.names), dtype) for kept in (state.moment, state.second, state.basis)
        )
        self.basis, rest = jnp.linalg.qr(self.now)
        self.inverse = jnp.linalg.pinv(rest, rtol=max(rest.shape[-2:]) * float(np.finfo(dtype).eps))

    def unmagnify(self, other: "_Half", skip: float) -> None:
        """Express the gradient in the basis of the other factor, where it does not depend on that factor's size."""
        self.grad = product(self.grad, other.inverse)
        if skip:
            size = jnp.sqrt(jnp.mean(jnp.square(self.grad), axis=(-2, -1), keepdims=True))
            self.grad = jnp.where(size > skip, jnp.zeros_like(self.grad), self.grad)

    def step(self, other: "_Half", decays: Sequence[Array], settings: Settings, rate: Any) -> Array:
        """Change the moments. Return what is to be added, as matrices."""
        first, second = decays
        turn = product(across(other.basis), other.old)  # the moments are in the basis that the other factor had
        square = product(across(self.grad), self.grad) / self.grad.shape[-2]
        spread = (1 - second) * square + second * product(turn, self.second, across(turn))
        self.second = (spread + across(spread)) / 2
        sizes, axes = jnp.linalg.eigh(self.second)
        sizes = 1 / (jnp.sqrt(jnp.maximum(sizes, 0)) + settings.eps)
        mean = product(product(self.grad, axes) * sizes[..., None, :], across(axes))
        self.moment = first * product(self.moment, across(turn)) + (1 - first) * mean
        added: Array = -rate * (product(self.moment, across(other.inverse)) + settings.weight_decay * self.now)
        return added


def _update(
    batches: Sequence[Batch], settings: Settings, rate: Any, state: RiteState, seen: Seen
) -> tuple[dict[str, Array], RiteState]:
    """Return what is to be added to each factor, and the new state."""
    dtype = next(iter(state.moment.values())).dtype
    both = [
        (_Half([pair.left for pair in batch], seen, state), _Half([pair.right for pair in batch], seen, state))
        for batch in batches
    ]
    halves = [(half, other) for left, right in both for half, other in ((left, right), (right, left))]
    for half, other in halves:
        half.unmagnify(other, settings.skip)
    if settings.clip:
        norm = jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(half.grad)) for half, _ in halves])))
        for half, _ in halves:
            half.grad = half.grad * (settings.clip / jnp.maximum(norm, settings.clip))
    decays = [_decay(beta, lax.convert_element_type(state.steps, dtype)) for beta in settings.betas]
    step = lax.convert_element_type(rate, dtype)
    made: dict[str, Array] = {}
    new = RiteState(state.steps + 1, {}, {}, {})
    for half, other in halves:
        added = arrays(half.step(other, decays, settings, step), half.fold)
        for n, name in enumerate(half.names):
            made[name] = lax.convert_element_type(added[n], seen.grads[name].dtype)
            new.moment[name], new.second[name], new.basis[name] = half.moment[n], half.second[n], half.basis[n]
    for name in seen.grads.keys() - made.keys():
        grad, now = (lax.convert_element_type(some[name], dtype) for some in seen)
        new.moment[name] = decays[0] * state.moment[name] + (1 - decays[0]) * grad
        new.second[name] = decays[1] * state.second[name] + (1 - decays[1]) * jnp.square(grad)
        change = new.moment[name] / (jnp.sqrt(new.second[name]) + settings.eps) + settings.weight_decay * now
        made[name] = lax.convert_element_type(-step * change, seen.grads[name].dtype)
    return {name: made[name] for name in seen.grads}, new


def _decay(beta: float, count: Array) -> Array:
    """Return a decay such that a moment needs no correction later; it is 0 at the first step, where `count` is 0."""
    if beta == 0:
        return jnp.zeros_like(count)
    log = math.log(beta)
    return beta * jnp.expm1(count * log) / jnp.expm1((count + 1) * log)
