"""What the schedules of bonds have in common: a decision of the core, applied to a model and to its optimizer."""

import copy
from collections.abc import Mapping
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

import torch

from tnadapt import SiteError
from tnadapt.binding import mistake, told
from tnadapt.policies import Change, cut
from tnadapt_torch._state import AdapterState, check_open, check_whole
from tnadapt_torch.policies._hidden import Hidden

__all__: list[str] = []

Shapes = Literal["change", "keep"]


class Policy(Protocol):
    """A schedule of the core."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


P = TypeVar("P", bound=Policy)


class Schedule(Generic[P]):
    """A policy of the core, with the adapter and the optimizer that it changes. A step that fails changes nothing."""

    kind: type[P]

    def __init__(
        self, state: AdapterState, optimizer: torch.optim.Optimizer, policy: P, shapes: Shapes = "change"
    ) -> None:
        """Check the arguments. Raises SiteError for wrong ones, and a merged or detached adapter, or one under PEFT."""
        where = type(self).__name__
        if not isinstance(state, AdapterState):
            todo = f"Write {where}(state, optimizer, ...) with the state that attach returned."
            raise mistake(SiteError, where, "the state of an adapter", told(state), todo)
        if not isinstance(optimizer, torch.optim.Optimizer):
            todo = f"Write {where}(state, optimizer, ...)."
            raise mistake(SiteError, where, "an optimizer of torch", told(optimizer), todo)
        if not isinstance(policy, self.kind):
            todo = f"Write {where}(state, optimizer, {self.kind.__name__}(...))."
            raise mistake(SiteError, where, f"a {self.kind.__name__}", told(policy), todo)
        if shapes not in get_args(Shapes):
            raise mistake(SiteError, where, "'change' or 'keep' as shapes", told(shapes), 'Write shapes="keep".')
        check_open(state)
        self.state, self.optimizer, self.policy, self.shapes = state, optimizer, copy.deepcopy(policy), shapes
        self.hidden = Hidden(state, optimizer)
        self.is_checked = False

    def step(self) -> None:
        """Take one step: call it once after each `optimizer.step()`, and before the gradients are set to zero.

        Raises:
            SiteError: the adapter is merged, detached or under PEFT; a gradient is missing; or shapes cannot change,
                as under DistributedDataParallel. Nothing is changed then.
        """
        self._check()
        policy = copy.deepcopy(self.policy)
        self._act(policy)
        self.policy = policy

    def finish(self) -> None:
        """Cut the slices that were hidden because shapes had to stay; without such, do nothing.

        The parameters must be able to change shape now: take the model out of its wrapper first.

        Raises:
            SiteError: as `state.resize` raises it.
        """
        check_open(self.state)
        if self.hidden.alive:
            state = self.state
            state.resize(cut(state.adapter, state.arrays(), self.hidden.alive), self.optimizer)
            self.hidden.alive = {}
        self.shapes = "change"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data. Save it beside the adapter's file and the optimizer's state."""
        alive = {name: list(places) for name, places in self.hidden.alive.items()}
        return {"policy": self.policy.state_dict(), "alive": alive}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, after the adapter was loaded from the file of the same step.

        Raises:
            SiteError: the state is of another schedule, or does not fit the bonds of the adapter. Nothing is changed
                then.
        """
        where = type(self).__name__
        if not isinstance(state, Mapping) or {*state} != {"policy", "alive"}:
            todo = f"Pass what state_dict() of a {where} returned."
            raise mistake(SiteError, where, "a state of policy, alive", told(state), todo)
        policy, hidden = copy.deepcopy(self.policy), Hidden(self.state, self.optimizer)
        policy.load_state_dict(state["policy"])
        hidden.alive = {name: tuple(places) for name, places in state["alive"].items()}
        self._fits(policy, hidden)
        if hidden.alive and self.shapes == "change":
            raise SiteError(
                f'{where}: expected a state without hidden slices for shapes="change", got one that hides slices of '
                f"{', '.join(sorted(hidden.alive)[:3])}.\n"
                'Make the schedule with shapes="keep".'
            )
        self.policy, self.hidden = policy, hidden

    def _act(self, policy: P) -> None:
        """Let a copy of the policy take a step, and apply what it decides."""
        raise NotImplementedError

    def _fits(self, policy: P, hidden: Hidden) -> None:
        """Raise SiteError unless a loaded policy fits the adapter."""

    def _check(self) -> None:
        check_open(self.state)
        if self.shapes == "change" and not self.is_checked:  # a wrapper stands around the model by now, if ever
            try:
                check_whole(self.state)
            except SiteError as error:
                todo = f'\nOr pass shapes="keep" to {type(self).__name__}.' if self._can_keep else ""
                raise SiteError(f"{error}{todo}") from None
            self.is_checked = True

    @property
    def _can_keep(self) -> bool:
        return True

    def _change(self, change: Change) -> None:
        self.state.resize(change, self.optimizer)
