"""Gradients divided by the Gram matrix of a factor's environment, in front of any optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from tnadapt import SiteError
from tnadapt.binding import COUNTS, Environment, Part, answers, environments, mistake, told
from tnadapt_torch._run import lower_delta, map_factor
from tnadapt_torch._sharded import laid_like, whole
from tnadapt_torch._state import AdapterState
from tnadapt_torch.optim._rite import Rite
from tnadapt_torch.optim._trained import arrays, check_trained, evaluated, expect_number, expect_state, matrices

__all__ = ["Preconditioned"]

NOISE = 16  # rounding errors of a Gram matrix of n rows are below this many times n eps
Known = tuple[Environment, Mapping[str, Part]]


class Preconditioned(Optimizer):
    """An optimizer that sees preconditioned gradients: (E + damping)^-1 grad on the bonds of each factor.

    E is the Gram matrix of the factor's environment: for LoRA B^T B for A and A A^T for B (Zhang and Pilanci 2024,
    arXiv:2402.02347). With plain SGD and no damping, a step changes the update in the same way however it is split into
    factors. The groups of parameters, the state and the state dict are those of the optimizer that is wrapped.
    The gradients of parameters that are no factors, and of trained arrays that are in no term (magnitudes), stay.
    """

    @answers(SiteError, "Preconditioned")
    def __init__(self, state: AdapterState, optimizer: Optimizer, *, damping: float = 1e-6) -> None:
        """Wrap an optimizer of the factors of an adapter.

        Args:
            state: what `attach` or `load` returned.
            optimizer: any torch optimizer, such as `torch.optim.SGD(state.parameters(), lr=1e-2)`.
            damping: is added to each Gram matrix. With 0, directions that have no effect on the update stand still.

        Raises:
            PlanError: a factor has no Gram matrix, with the reasons: see `tnadapt.binding.environments`.
            SiteError: the optimizer has none of the factors, or needs a closure; or factors are merged, offloaded or
                held in flat parts.
        """
        where = "Preconditioned"
        self.adapted = expect_state(state, where)
        self.damping = expect_number(damping, where, "damping")
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS | Preconditioned | Rite):
            todo = "Write Preconditioned(state, torch.optim.SGD(state.parameters(), lr=1e-2))."
            raise mistake(SiteError, where, "an optimizer that steps without a closure", told(optimizer), todo)
        self.environments, self.networks = environments(state.adapter), state.adapter.networks
        check_trained(state, where, self.environments)
        self.inner = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()
        if not self._found():
            raise SiteError(
                f"{where}: expected an optimizer of the adapter's factors, got one of other parameters.\n"
                "Give it state.parameters()."
            )

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, self.inner.defaults

    def _found(self) -> dict[str, Tensor]:
        """Return the factors that the optimizer changes, by name. Bonds may have other sizes than at the last step."""
        if self.networks != self.adapted.adapter.networks:
            adapter = self.adapted.adapter
            self.environments, self.networks = environments(adapter), adapter.networks
        params = check_trained(self.adapted, "Preconditioned", self.environments)
        own = {id(value) for group in self.inner.param_groups for value in group["params"]}
        return {name: params[name] for name in self.environments if id(params[name]) in own}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition the gradients and let the optimizer step. The gradients are then again what they were.

        Raises:
            SiteError: no factor has a gradient; values or gradients are not finite; or factors are merged, offloaded or
                held in flat parts.
        """
        loss = evaluated(closure)
        found = {name: value for name, value in self._found().items() if value.grad is not None}
        if not found:
            raise SiteError(
                "Preconditioned: expected gradients of the factors, got none.\nCall loss.backward() before step()."
            )
        plain = {name: value.grad for name, value in found.items() if value.grad is not None}
        _check_finite({name: (value.detach(), plain[name]) for name, value in found.items()})
        better = preconditioned(self.adapted, self.environments, plain, self.damping)
        try:
            for name, value in found.items():
                value.grad = better[name]
            self.inner.step()
        finally:
            for name, value in found.items():
                value.grad = plain[name]
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer that is wrapped."""
        if self.param_groups is not self.inner.param_groups:  # torch adds them one by one when this is made
            self.param_groups.append(param_group)
        else:
            self.inner.add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the optimizer that is wrapped."""
        self.inner.load_state_dict(state_dict)
        self._share()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer that is wrapped."""
        return self.inner.state_dict()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the optimizer that is wrapped does."""
        self.inner.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: the optimizer that is wrapped, and the adapter, and so its model."""
        own = ("adapted", "damping", "environments", "networks", "inner")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy."""
        super().__setstate__(state)
        self._share()


def _check_finite(tensors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    flags = {name: [torch.isfinite(whole(each)).all() for each in some] for name, some in tensors.items()}
    for name, some in flags.items():  # read after all are computed, so that a GPU does not wait for each
        if not all(some):
            raise SiteError(
                f"Preconditioned: expected finite factors and gradients, got NaN or infinity in {name!r}.\n"
                "Nothing was changed."
            )


def preconditioned(
    state: AdapterState, known: Mapping[str, Known], grads: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor]:
    """Return the preconditioned gradients by name, in the dtypes of the gradients.

    Arrays of equal environments are treated together: their matrices have the same sizes.
    """
    values = Values(state)
    alike: dict[tuple[Environment, torch.dtype, torch.device], list[str]] = {}
    for name, grad in grads.items():
        alike.setdefault((known[name][0], grad.dtype, grad.device), []).append(name)
    found: dict[str, Tensor] = {}
    for (_, _, device), names in alike.items():
        environment = known[names[0]][0]
        with torch.autocast(device.type, enabled=False):
            each = [values.grams(*known[name]) for name in names]
            grams = [torch.stack(copies) for copies in zip(*each, strict=True)]
            stacked = torch.stack([wide(grads[name]) for name in names])
            made = solve(environment, grams, stacked, damping)
        for name, value in zip(names, made, strict=True):
            found[name] = laid_like(value.to(grads[name].dtype), grads[name])
    return found


def solve(environment: Environment, grams: Sequence[Tensor], grads: Tensor, damping: float) -> Tensor:
    """Return (E + damping)^-1 grad for several arrays at once, by the eigenvectors of each piece of E.

    Without damping, directions in which E is 0 up to rounding get 0, as by a pseudoinverse.

    Args:
        environment: what the arrays have in common.
        grams: the matrices of each of its pieces. shape: (copies, batch, rows, rows)
        grads: shape: (copies, *shape of the array)
        damping: is added to E.
    """
    strength = torch.full_like(grads, environment.times)
    bases = []
    for piece, gram in zip(environment.pieces, grams, strict=True):
        if gram.shape[-1] == 1:  # a number for each index: nothing to turn
            strength = arrays(matrices(strength, piece.unfolding) * gram, piece.unfolding)
            continue
        values, basis = torch.linalg.eigh(gram)
        noise = 0.0 if damping else NOISE * values.shape[-1] * torch.finfo(values.dtype).eps
        values = torch.where(values > noise * values[..., -1:], values, torch.zeros_like(values))
        along = matrices(strength, piece.unfolding) * values[..., None]
        strength = arrays(along, piece.unfolding)
        grads = arrays(basis.mT @ matrices(grads, piece.unfolding), piece.unfolding)
        bases.append((piece.unfolding, basis))
    divisor = strength + damping
    grads = torch.where(divisor > 0, grads / divisor, torch.zeros_like(grads))
    for fold, basis in bases:
        grads = arrays(basis @ matrices(grads, fold), fold)
    return grads


def wide(value: Tensor) -> Tensor:
    """Return a tensor, with its values of all processes, in float64, or in float32 on a device that has no better."""
    return whole(value.detach()).to(torch.float32 if value.device.type == "mps" else torch.float64)


class Values:
    """The nodes of an adapter over all sites of their groups, in float64, each read once."""

    def __init__(self, state: AdapterState) -> None:
        """Store the factors and the starting values."""
        self.held = dict(state.start.named_buffers()) | state.params()
        self.read: dict[object, Tensor] = {}

    def grams(self, environment: Environment, parts: Mapping[str, Part]) -> list[Tensor]:
        """Return the Gram matrices of the pieces of an environment. shape: (batch, rows, rows)."""
        found = []
        for piece in environment.pieces:
            named = [self._node(parts[source]) for source in piece.sources if source != COUNTS]
            if COUNTS in piece.sources:
                like = named[0] if named else wide(next(iter(self.held.values())))
                named.insert(piece.sources.index(COUNTS), torch.from_numpy(environment.counts()).to(like))
            found.append(lower_delta(piece.network)(*named))
        return found

    def _node(self, part: Part) -> Tensor:
        key = (part.name, tuple(at.stop for at in part.stack))
        if key not in self.read:
            self.read[key] = map_factor(part.factor.map, wide(self.held[part.name])[part.stack])
        return self.read[key]
