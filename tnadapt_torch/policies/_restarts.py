"""Train an adapter as a chain of links: at each restart its update is kept, and its factors begin anew."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tnadapt import Adapter, SiteError, to_json
from tnadapt.binding import answers
from tnadapt.policies import Chain, save_chain
from tnadapt_torch._host import place_params, start_params
from tnadapt_torch._sharded import once
from tnadapt_torch._state import AdapterState, check_open, copy_values, set_values, shared_by, to_numpy
from tnadapt_torch.policies._chain_file import check_beside
from tnadapt_torch.policies._chosen import check_choosable, choose
from tnadapt_torch.policies._finished import Beside, Finished, InWeights
from tnadapt_torch.policies._moments import check_held, reset_moments
from tnadapt_torch.policies._saved import Saved, read_saved, samples_of

__all__ = ["Restarts"]


class Restarts:
    """A chain of links, each an adapter with a fresh start: call `step()` once after each step of the optimizer.

    Every `every` steps the running link ends. Its update is kept in the weights or beside them, all factors take fresh
    starting values of the seed plus the number of the link, and the optimizer's state of the factors is dropped.
    Nothing is random but what follows from the seed, so all processes of a data-parallel training do the same.
    """

    @answers(SiteError, "Restarts")
    def __init__(
        self,
        state: AdapterState,
        optimizer: torch.optim.Optimizer,
        *,
        every: int,
        warmup_steps: int = 0,
        prune: float | None = None,
        sites: int | None = None,
        beside: bool | None = None,
    ) -> None:
        """Check the adapter and the optimizer, and begin the first link where the adapter is.

        Args:
            state: an attached adapter whose update is 0 at the start.
            optimizer: the optimizer that holds all its trained factors.
            every: the number of steps of a link.
            warmup_steps: in how many steps of each link `warmup` rises to 1.
            prune: instead of dropping the optimizer's state, set this random fraction of each moment to zero.
            sites: train only this many weights in each link, drawn anew; the update of the others is 0.
            beside: keep finished links as further adapters that are not trained, instead of adding them to the weights;
                by default only if a weight is quantized.

        Raises:
            SiteError: an argument is not valid; the adapter is detached, merged or wrapped by PEFT, reads the host's
                weight, has a start that is not 0, several tasks or modules_to_save; or nothing can be merged into a
                weight and `beside` is False.
        """
        _check_state(state)
        base = state.adapter
        _check_number("every", every, 1)
        _check_number("warmup_steps", warmup_steps, 0, every)
        is_fraction = isinstance(prune, int | float) and not isinstance(prune, bool) and 0 <= prune <= 1
        if prune is not None and not is_fraction:
            raise SiteError(
                f"prune: expected a fraction from 0 to 1, got {prune!r}.\nWrite prune=0.999, or leave it out."
            )
        check_beside(beside, "Restarts")
        check_held(optimizer, list(state.parameters()))
        if sites is not None:
            check_choosable(base, sites)
        beside = any(weight.storage for weight in state.weights.values()) if beside is None else beside
        if beside and base.reads_weights:
            raise SiteError(
                f"adapter {state.name!r}: expected a start that follows from a seed, got one that is read from the "
                "host's weights, which do not have the finished links.\nUse a spec whose start is drawn."
            )
        self.state, self.optimizer, self.base = state, optimizer, base
        self.every, self.warmup_steps, self.prune, self.sites = every, warmup_steps, prune, sites
        self.steps = 0
        self._finished: Finished = Beside(state) if beside else InWeights(state)
        self._past: list[tuple[Adapter, dict[str, Tensor]]] = []
        self._weights = samples_of(state)
        self._choose()

    def step(self) -> None:
        """Count one step of the optimizer, and end the running link if it was its last one.

        Raises:
            SiteError: the adapter was merged or detached; a weight was changed by something else, or is read by another
                adapter; or an update is not finite. The model, the optimizer and the count of steps are as before.
        """
        check_open(self.state)
        if (self.steps + 1) % self.every == 0:
            self._restart()
        self.steps += 1

    def warmup(self, step: int) -> float:
        """Return the factor of the learning rate after this many steps; it begins anew with each link.

        It rises linearly to 1 in `warmup_steps` steps: torch.optim.lr_scheduler.LambdaLR(optimizer, restarts.warmup).
        """
        return min(1.0, (step % self.every + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    @property
    def links(self) -> Chain:
        """The finished links and, unless it has not begun, the running one."""
        past = list(self._past)
        if self.steps % self.every or not past:
            past.append((self.state.adapter, copy_values(self.state)))
        return Chain([(adapter, {name: to_numpy(value) for name, value in params.items()}) for adapter, params in past])

    @property
    def chosen(self) -> list[str]:
        """The paths of the weights that are trained in the running link."""
        return list(self._chosen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save `links` to one file, which `tnadapt.policies.load_chain` reads.

        If processes share the host by fully_shard or tensor parallelism, call this on each. The first one writes.
        """
        once(shared_by(self.state), partial(save_chain, path, self.links))

    def merged(self) -> dict[str, Tensor]:
        """Return the weights with all links, the running one included, in their stored layout, by the path of the site.

        The links are summed in float32 or better before they are added, and each weight is rounded once. Raises
        SiteError if the links are beside the weights.
        """
        check_open(self.state)
        self.state.check_host()
        return self._finished.merged()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs: plain values and tensors on the CPU.

        The state of the optimizer is not in it, nor the weights: their originals are those of the model to resume on.
        """
        running = (self.state.adapter, copy_values(self.state))
        links = [{"seed": adapter.seed, "params": dict(params)} for adapter, params in [*self._past, running]]
        return self._options() | {"steps": self.steps, "links": links, "weights": dict(self._weights)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume: finished links, the running link and the count of steps, on a policy that was made on the originals.

        The weights may be those from before the first link, those that the policy left, or already those with the
        finished links, as a program loads them that restores the model of a checkpoint first. Load the state of the
        optimizer and of its schedule as usual, before or after.

        Raises:
            SiteError: the state dict is that of another adapter, other options or other originals; the weights are
                others, or another adapter reads one; or links that are beside the weights are not those of the state
                dict. Nothing is changed.
        """
        check_open(self.state)
        self.state.check_host()
        saved = read_saved(state_dict, self._options(), self.base, self._weights)
        before = (self.state.adapter, copy_values(self.state))
        try:
            self._finished.load(saved.links)
        except BaseException:
            set_values(self.state, *before)
            raise
        self._resume(saved)

    def _resume(self, saved: Saved) -> None:
        set_values(self.state, *saved.running)
        self._past, self.steps = list(saved.links), saved.steps
        self._choose()

    def _options(self) -> dict[str, Any]:
        beside = isinstance(self._finished, Beside)
        names = {"every": self.every, "warmup_steps": self.warmup_steps, "prune": self.prune, "sites": self.sites}
        return {"adapter": to_json(self.base), "beside": beside} | names

    def _restart(self) -> None:
        """Keep the update of the running link and begin the next one, or leave everything as it was."""
        state, number = self.state, len(self._past) + 1
        state.check_host()
        check_held(self.optimizer, list(state.parameters()))  # wrappers exchange parameters: their moments would stay
        self._finished.check()
        ended = (state.adapter, copy_values(state))
        adapter = replace(self.base, seed=self.base.seed + number)
        take_back = self._finished.add(*ended)
        try:
            set_values(state, adapter, place_params(adapter, state.weights, start_params(adapter, state.weights)))
        except BaseException:
            take_back()
            set_values(state, *ended)
            raise
        self._past.append(ended)
        reset_moments(self.optimizer, list(state.parameters()), self.prune, adapter.seed)
        self._choose()

    def _choose(self) -> None:
        every = sorted(self.state.weights)
        self._chosen = every if self.sites is None else choose(self.state, self.sites, self.state.adapter.seed)


def _check_state(state: AdapterState) -> None:
    """Raise SiteError for an adapter that cannot be trained as a chain."""
    if not isinstance(state, AdapterState):
        raise SiteError(
            f"Restarts: expected an attached adapter, got {type(state).__name__}.\nPass what attach or load returned."
        )
    check_open(state)
    state.check_host()
    where, adapter = f"adapter {state.name!r}", state.adapter
    if adapter.hosts:
        raise SiteError(
            f"{where}: expected a spec whose update follows from its factors, got {adapter.spec.name}, whose update "
            "reads the host's weight.\nSuch a link would change with every later one. Train it as one adapter."
        )
    if adapter.spec.start == "free":
        raise SiteError(
            f'{where}: expected an update of 0 at the start, got {adapter.spec.name} with start="free".\n'
            'Each restart would change the model. Write the spec with start="centered".'
        )
    if len(state.tasks) > 1:
        raise SiteError(
            f"{where}: expected one task, got {', '.join(state.tasks)}.\nWeights take the links of one task."
        )
    if state.saved.modules:
        raise SiteError(
            f"{where}: expected no modules_to_save, got {', '.join(state.saved.modules)}.\n"
            "A chain has factors alone. Attach without modules_to_save."
        )


def _check_number(what: str, value: object, least: int, most: int | None = None) -> None:
    is_valid = isinstance(value, int) and not isinstance(value, bool) and least <= value
    if not is_valid or (most is not None and isinstance(value, int) and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SiteError(f"{what}: expected an integer {limit}, got {value!r}.")
