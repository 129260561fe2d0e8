"""What PEFT writes to the file of an adapter, and what it reads from one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tnadapt import FormatError
from tnadapt.binding import check_patterns
from tnadapt_torch._state import AdapterState, stored_factors, to_numpy
from tnadapt_torch.peft._checkpoint import SEED, STEM, check_factors, drawn_factors, is_drawn, read_seed
from tnadapt_torch.peft._config import TnConfig
from tnadapt_torch.peft._marks import MERGED, check_merged, marks_of
from tnadapt_torch.peft._states import reseed
from tnadapt_torch.peft._targets import SAVED

if TYPE_CHECKING:
    from tnadapt_torch.peft._tuner import TnModel

__all__: list[str] = []


class StoredTuner(BaseTuner):  # type: ignore[misc]
    """The part of the tuner that PEFT calls to save and to load."""

    tnadapt_states: nn.ModuleDict

    @property
    def tnadapt_merged(self) -> bool:
        """Whether adapters are merged. torch.distributed.checkpoint looks up each key of a state dict so."""
        return bool(marks_of(cast("TnModel", self), ""))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(marks_of(cast("TnModel", self), prefix))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        check_merged(cast("TnModel", self), state_dict, prefix)  # torch loads the modules inside after this one
        plain = {key: value for key, value in state_dict.items() if key != f"{prefix}{MERGED}"}
        super()._load_from_state_dict(plain, prefix, *rest)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: TnConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Select the factors that a file must hold; the adapter itself is stored in adapter_config.json.

        Sharded tensors are gathered, so every process must call this.

        Raises:
            FormatError: a factor is not in the state dict.
        """
        state = cls._state_of(model, adapter_name)
        config.seal(state.adapter)
        for key, value in state_dict.items():
            if f".{SAVED}.{adapter_name}." in key:
                state_dict[key] = _whole(value)  # PEFT reads these next
        here = f"{STEM}{adapter_name}.factors."
        if missing := [name for name in state.adapter.slots if f"{here}{name}" not in state_dict]:
            raise FormatError(
                f"get_peft_model_state_dict: expected a state dict of the whole PEFT model, "
                f"got one without {here}{missing[0]}."
            )
        values = {name: _whole(state_dict[f"{here}{name}"]) for name in state.adapter.slots}
        kept = {f"{here}{name}": values[name] for name in stored_factors(state.adapter, values)}
        return kept | ({SEED: torch.tensor(state.adapter.seed)} if is_drawn(state.adapter) else {})

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Turn "base_model.tnadapt_states.default.factors.A" into "base_model.tnadapt_states.A"."""
        here = f"{STEM}{adapter_name}.factors."
        if key.startswith(here):
            return f"{STEM}{key.removeprefix(here)}"
        return key  # of a module that is trained in full: PEFT has removed the name already

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TnConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map the keys of a file to those of the model.

        Raise FormatError unless keys and shapes, and the values of fixed patterns, fit this adapter.
        """
        state = cls._state_of(model, adapter_name)
        shapes = {key: tuple(value.shape) for key, value in state_dict.items() if key.startswith(STEM)}
        check_factors("the checkpoint", state.adapter, shapes)
        names = [name for name, slot in state.adapter.slots.items() if slot.is_fixed and f"{STEM}{name}" in shapes]
        check_patterns(state.adapter, {name: to_numpy(state_dict[f"{STEM}{name}"]) for name in names})
        known = model.state_dict().keys()
        if odd := sorted(key for key in state_dict if not key.startswith(STEM) and key not in known and key != SEED):
            raise FormatError(f"the checkpoint: expected keys of this model, got {odd[0]}.\nNothing was loaded.")
        seed = read_seed(state_dict, state.adapter, is_known=config.seed is not None)
        if seed != state.adapter.seed:
            reseed(state, seed)
        whole = drawn_factors(state.adapter) | state_dict
        whole.pop(SEED, None)
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, whole)
        sharded = {key: value for key, value in model.state_dict().items() if isinstance(value, DTensor)}
        return {key: _sharded(value, sharded[key]) if key in sharded else value for key, value in mapped.items()}

    @staticmethod
    def _state_of(model: nn.Module, adapter_name: str) -> AdapterState:
        tuner = next(module for module in model.modules() if isinstance(module, StoredTuner))
        return cast("AdapterState", tuner.tnadapt_states[adapter_name])


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _sharded(value: Tensor, like: DTensor) -> Tensor:
    if isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
