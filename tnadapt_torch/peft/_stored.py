"""What PEFT writes to the file of an adapter, and what it reads from one."""

from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from tnadapt import FormatError
from tnadapt_torch._state import AdapterState, stored_factors
from tnadapt_torch.peft._checkpoint import SEED, STEM, check_factors, drawn_factors, is_drawn, read_seed
from tnadapt_torch.peft._config import TnConfig
from tnadapt_torch.peft._states import reseed

__all__: list[str] = []


class StoredTuner(BaseTuner):  # type: ignore[misc]
    """The part of the tuner that PEFT calls to save and to load."""

    tnadapt_states: nn.ModuleDict

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: TnConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Select the factors that a file must hold; the adapter itself is stored in adapter_config.json."""
        state = cls._state_of(model, adapter_name)
        config.seal(state.adapter)
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        stored = {f"{STEM}{adapter_name}.factors.{name}" for name in stored_factors(state.adapter, state.params())}
        kept = {key: value for key, value in found.items() if key in stored}
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
        """Map the keys of a file to those of the model. Raise FormatError unless keys and shapes fit this adapter."""
        state = cls._state_of(model, adapter_name)
        shapes = {key: tuple(value.shape) for key, value in state_dict.items() if key.startswith(STEM)}
        check_factors("the checkpoint", state.adapter, shapes)
        known = model.state_dict().keys()
        if odd := sorted(key for key in state_dict if not key.startswith(STEM) and key not in known and key != SEED):
            raise FormatError(f"the checkpoint: expected keys of this model, got {odd[0]}.\nNothing was loaded.")
        seed = read_seed(state_dict, state.adapter, is_known=config.seed is not None)
        if seed != state.adapter.seed:
            reseed(state, seed)
        whole = drawn_factors(state.adapter) | state_dict
        whole.pop(SEED, None)
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, whole)
        return mapped

    @staticmethod
    def _state_of(model: nn.Module, adapter_name: str) -> AdapterState:
        tuner = next(module for module in model.modules() if isinstance(module, StoredTuner))
        return cast("AdapterState", tuner.tnadapt_states[adapter_name])
