"""LoRA-RITE for every bond with two trained factors: steps that do not depend on how the two share the update."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from tnadapt import SiteError
from tnadapt.binding import Pair, Unfolding, answers, pairs
from tnadapt_torch._sharded import laid_like, whole
from tnadapt_torch._state import AdapterState
from tnadapt_torch.optim._trained import arrays, check_trained, evaluated, expect_number, expect_state, matrices

__all__ = ["Rite"]

LOOKED_AT = 10  # the step at which it is asked whether anything was trained

KEPT = ("step", "moment", "second", "basis")  # the last only of factors
Settings = dict[str, Any]


class Rite(Optimizer):
    """LoRA-RITE (Yen et al. 2024, arXiv:2410.20625) for adapters in which each trained factor is half of a pair.

    A pair is two trained factors with one bond, as LoRA's A and B. Any other pair with the same product, such as
    (A g, B g^-T), takes the same steps; those of Adam differ. Stacked factors are a batch of pairs. The arithmetic is
    in float32 or better. Parameters of modules_to_save, and trained arrays that are in no term (magnitudes), take steps
    of AdamW at the same rates; so do parameters that are added by `add_param_group`.
    """

    @answers(SiteError, "Rite")
    def __init__(
        self,
        state: AdapterState,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        clip: float = 1.0,
        skip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        """Find the pairs of an adapter.

        Args:
            state: what `attach` or `load` returned.
            lr: the learning rate.
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
            SiteError: a number out of range; or factors are merged, offloaded or held in flat parts.
        """
        where = "Rite"
        self.adapted = expect_state(state, where)
        if not isinstance(betas, tuple | list) or len(betas) != 2:  # noqa: PLR2004
            raise SiteError(f"{where}: expected two numbers as betas, got {betas!r}.\nWrite betas=(0.9, 0.999).")
        defaults = {
            "lr": expect_number(lr, where, "lr"),
            "betas": tuple(expect_number(beta, where, "beta", below=1) for beta in betas),
            "weight_decay": expect_number(weight_decay, where, "weight_decay"),
            "eps": expect_number(eps, where, "eps"),
            "clip": expect_number(clip, where, "clip"),
            "skip": expect_number(skip, where, "skip"),
        }
        self.pairs, self.networks = pairs(state.adapter), state.adapter.networks
        params = check_trained(state, where, _names(self.pairs))
        groups: list[Settings] = [{"params": [params[name] for name in _names(self.pairs)]}]
        own = {*_names(self.pairs)}
        trained = [name for name, slot in state.adapter.slots.items() if slot.factor.trainable]
        alone = [state.params()[name] for name in trained if name not in own]
        saved = [value for value in (*alone, *state.saved.values().values()) if value.requires_grad]
        super().__init__(groups + ([{"params": [*dict.fromkeys(saved)]}] if saved else []), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. All of it is computed before anything changes.

        A pair without gradients stands still.

        Raises:
            SiteError: no parameter has a gradient, or one factor of a pair alone; values or gradients are not finite;
                or factors are merged, offloaded, held in flat parts, or not those that the optimizer was made for.
        """
        loss = evaluated(closure)
        params = check_trained(self.adapted, "Rite", _names(self.pairs))
        factors, *others = self.param_groups
        is_other = [id(params[name]) for name in _names(self.pairs)] != list(map(id, factors["params"]))
        if is_other or self.networks != self.adapted.adapter.networks:
            raise SiteError("Rite: expected the factors it was made for, got others.\nMake the optimizer again.")
        plain = [(value, group) for group in others for value in group["params"] if value.grad is not None]
        with torch.autocast(factors["params"][0].device.type, enabled=False):
            batches = self._batches(params)
            made = _factor_steps(batches, factors) if batches else []
        if not batches and not plain:
            raise SiteError("Rite: expected gradients, got none.\nCall loss.backward() before step().")
        made += [_plain_step(value, self.state.get(value, {}), group) for value, group in plain]
        for value, changed, kept in made:
            value.copy_(laid_like(changed, value))
            self.state[value].update(kept)
        return loss

    def _batches(self, params: Mapping[str, Tensor]) -> "list[tuple[Half, Half]]":
        """Return the pairs that have gradients, those of equal shapes, dtypes and ages together."""
        found: dict[object, list[tuple[Tensor, Tensor]]] = {}
        folds: dict[object, tuple[Unfolding, Unfolding]] = {}
        for pair in self.pairs:
            one, other = params[pair.left.name], params[pair.right.name]
            if one.grad is None and other.grad is None:
                continue
            if one.grad is None or other.grad is None:
                missing = pair.left.name if one.grad is None else pair.right.name
                raise SiteError(
                    f"Rite: expected gradients of both factors on the bond {pair.bond!r}, got none of {missing!r}.\n"
                    "Both must be trained. Use another optimizer if one is to stand still."
                )
            fold = (pair.left.unfolding, pair.right.unfolding)
            key = (*fold, one.dtype, other.dtype, one.device, self.state.get(one, {}).get("step", 0))
            found.setdefault(key, []).append((one, other))
            folds[key] = fold
        batches = []
        for alike, some in found.items():
            left, right = (
                Half(values, fold, [self.state.get(value, {}) for value in values])
                for values, fold in zip(zip(*some, strict=True), folds[alike], strict=True)
            )
            batches.append((left, right))
        return batches

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. Its moments keep the dtype of the arithmetic, so that training resumes exactly.

        Raises:
            SiteError: the state is that of another optimizer, or of factors of other sizes. Nothing is changed.
        """
        sizes = [each for pair in self.pairs for each in _sizes(pair)]
        for number, kept in state_dict["state"].items():
            if not {*KEPT} >= kept.keys() >= {"step", "moment", "second"}:
                raise SiteError(f"Rite: expected a state with {', '.join(KEPT)}, got {', '.join(kept)}.\nLoad its own.")
            found = tuple(tuple(kept[key].shape) for key in ("moment", "basis") if key in kept)
            if number < len(sizes) and found != sizes[number]:
                wanted = " and ".join(map(str, sizes[number]))
                raise SiteError(
                    f"Rite: expected a moment and a basis of shapes {wanted} for {_names(self.pairs)[number]!r}, got "
                    f"{' and '.join(map(str, found))}.\nLoad the state of an optimizer of an adapter of the same ranks."
                )
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        values = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, value in zip(numbers, values, strict=True):
            kept = state_dict["state"].get(number, {})
            tensors = {key: each for key, each in kept.items() if isinstance(each, Tensor)}
            self.state[value].update({key: each.to(value.device, copy=True) for key, each in tensors.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: with the groups and the moments, the adapter, and so its model."""
        return super().__getstate__() | {"adapted": self.adapted, "pairs": self.pairs, "networks": self.networks}


def _sizes(pair: Pair) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the shapes of the moment and of the basis of each half of a pair."""
    found = []
    for side, other in ((pair.left, pair.right), (pair.right, pair.left)):
        batch, rows, rank = side.unfolding.shape
        found.append(((batch, rows, min(other.unfolding.shape[1], rank)), (batch, rows, min(rows, rank))))
    return tuple(found)


def _names(some: Sequence[Pair]) -> list[str]:
    return [side.name for pair in some for side in (pair.left, pair.right)]


class Half:
    """One factor of each pair of a batch, as matrices (copies, batch, rows, bond), with their QR decompositions."""

    def __init__(self, values: Sequence[Tensor], fold: Unfolding, states: Sequence[Settings]) -> None:
        """Read the values and the gradients, in float32 or better. Raises SiteError if some are not finite."""
        self.values, self.fold, self.states = values, fold, states
        self.now = matrices(torch.stack([single(value) for value in values]), fold)
        self.grad = matrices(torch.stack([single(cast("Tensor", value.grad)) for value in values]), fold)
        if not (torch.isfinite(self.now).all() and torch.isfinite(self.grad).all()):
            raise SiteError("Rite: expected finite factors and gradients, got NaN or infinity.\nNothing was changed.")
        self.basis, rest = torch.linalg.qr(self.now)
        self.inverse = torch.linalg.pinv(rest)

    @property
    def age(self) -> int:
        """The number of steps taken."""
        return int(self.states[0].get("step", 0))

    def unmagnify(self, other: "Half", skip: float) -> None:
        """Express the gradient in the basis of the other factor, where it does not depend on that factor's size."""
        self.grad = self.grad @ other.inverse
        if skip:
            size = self.grad.square().mean((-2, -1), keepdim=True).sqrt()
            self.grad = torch.where(size > skip, torch.zeros_like(self.grad), self.grad)

    def step(self, other: "Half", group: Settings) -> list[tuple[Tensor, Tensor, Settings]]:
        """Return each factor with its new value and its new state."""
        age, (first, second) = self.age + 1, (_decay(beta, self.age + 1) for beta in group["betas"])
        spread = (1 - second) * self.grad.mT @ self.grad / self.grad.shape[-2]
        mean = torch.zeros_like(self.grad)
        if age > 1:  # the moments are in the basis that the other factor had
            turn = other.basis.mT @ other._kept("basis")
            spread = spread + second * turn @ self._kept("second") @ turn.mT
            mean = first * self._kept("moment") @ turn.mT
        spread = (spread + spread.mT) / 2
        sizes, axes = torch.linalg.eigh(spread)
        sizes = 1 / (sizes.clamp(min=0).sqrt() + group["eps"])
        mean = mean + (1 - first) * (self.grad @ axes * sizes[..., None, :] @ axes.mT)
        rate = group["lr"]
        changed = self.now * (1 - rate * group["weight_decay"]) - rate * mean @ other.inverse.mT
        kept = {"moment": mean, "second": spread, "basis": self.basis}
        states = [{key: value[n] for key, value in kept.items()} | {"step": age} for n in range(len(self.values))]
        return list(zip(self.values, arrays(changed, self.fold), states, strict=True))

    @property
    def moves(self) -> bool:
        """Whether this factor has a gradient now or had one before. Asking waits for the device."""
        return bool(self.grad.any()) or bool(self._kept("moment").any())

    def _kept(self, key: str) -> Tensor:
        return torch.stack([state[key] for state in self.states]).to(self.now.dtype)  # factors may have been cast


def _factor_steps(batches: Sequence[tuple[Half, Half]], group: Settings) -> list[tuple[Tensor, Tensor, Settings]]:
    """Return each factor with its new value and its new state."""
    halves = [(half, other) for left, right in batches for half, other in ((left, right), (right, left))]
    for half, other in halves:
        half.unmagnify(other, group["skip"])
    if all(half.age + 1 == LOOKED_AT for half, _ in halves) and not any(half.moves for half, _ in halves):
        warnings.warn(
            f"Rite: expected a gradient below skip={group['skip']} in one of the first {LOOKED_AT} steps, got none: "
            "nothing was trained.\nAverage the loss instead of summing it, or pass skip=0.",
            stacklevel=4,
        )
    if clip := group["clip"]:
        device = halves[0][0].grad.device
        norm = torch.stack([half.grad.square().sum().to(device) for half, _ in halves]).sum().sqrt()
        for half, _ in halves:
            half.grad = half.grad * (clip / norm.clamp(min=clip)).to(half.grad)
    return [made for half, other in halves for made in half.step(other, group)]


def _decay(beta: float, age: int) -> float:
    """Return a decay such that a moment needs no correction later; it is 0 at age 1."""
    return float(beta * (1 - beta ** (age - 1)) / (1 - beta**age))


def _plain_step(value: Tensor, kept: Settings, group: Settings) -> tuple[Tensor, Tensor, Settings]:
    """Return a parameter with its new value and its new state, by AdamW."""
    now, grad, age = single(value), single(cast("Tensor", value.grad)), kept.get("step", 0) + 1
    first, second = (_decay(beta, age) for beta in group["betas"])
    mean, square = (1 - first) * grad, (1 - second) * grad.square()
    if age > 1:
        mean, square = mean + first * kept["moment"], square + second * kept["second"]
    rate = group["lr"]
    changed = now * (1 - rate * group["weight_decay"]) - rate * mean / (square.sqrt() + group["eps"])
    return value, changed, {"step": age, "moment": mean, "second": square}


def single(value: Tensor) -> Tensor:
    """Return a tensor, with its values of all processes, in float32, or in float64 if it has that dtype."""
    return whole(value.detach()).to(torch.promote_types(value.dtype, torch.float32))
