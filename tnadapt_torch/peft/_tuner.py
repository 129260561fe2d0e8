"""The PEFT tuner for any spec: it owns the state of each adapter once and gives each layer the hook of its site."""

from typing import cast

import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from tnadapt import Adapter, FormatError, SiteError, init, sites_of
from tnadapt.binding import redraw
from tnadapt_torch._host import HostWeights, Weight, check_linear, check_weights, linear_weight
from tnadapt_torch._state import AdapterState, make_hooks, stored_factors
from tnadapt_torch.peft._config import PREFIX, STEM, PeftType, TnConfig, check_factors
from tnadapt_torch.peft._layer import TnLinear

__all__ = ["TnModel"]


class TnModel(BaseTuner):  # type: ignore[misc]
    """A model with tnadapt adapters under PEFT: `peft_model.base_model`.

    `tnadapt_states` holds the `AdapterState` of each adapter by name. Each state is registered as a child once; the
    layers keep plain references, so factors stay shared after casts, loads and copies.
    """

    tnadapt_states: nn.ModuleDict

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = TnLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _pre_injection_hook(self, model: nn.Module, config: TnConfig, adapter_name: str) -> None:
        self.tnadapt_states = nn.ModuleDict()

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter to the model. An injection that fails leaves the model unchanged.

        Raises:
            SiteError: the config does not match or fit the model.
            FormatError: the adapter was saved from another model.
        """
        before = dict(model.named_modules(remove_duplicate=False))
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        state = self._new_state(model, adapter_name)
        self.tnadapt_states[adapter_name] = state
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except BaseException:
            for layer in self._layers(model).values():
                layer.drop(adapter_name)
            del self.tnadapt_states[adapter_name]
            _put_back(model, before)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise

    def _new_state(self, model: nn.Module, adapter_name: str) -> AdapterState:
        config = self.peft_config[adapter_name]
        weights = self._targets(model, config)
        adapter = config.spec.bind(
            sites_of(
                {path: weight.shape for path, weight in weights.items()},
                among=[name for name, _ in model.named_parameters()],
            ),
            rank=config.rank,
            sizes=config.sizes,
            alpha=config.alpha,
            seed=config.seed,
        )
        config.check(adapter)
        device = next(iter(weights.values())).parameter.device
        device = torch.device("cpu") if device.type == "meta" else device
        start = init(adapter, HostWeights(weights))
        params = {name: torch.from_numpy(value).float().to(device) for name, value in start.items()}
        state = AdapterState(adapter, params, name=adapter_name, dropout=config.dropout)
        self._check_names(adapter_name, state)
        state.hooks, state.weights = make_hooks(state), weights
        return state.train(model.training)

    def _targets(self, model: nn.Module, config: TnConfig) -> dict[str, Weight]:
        """Find the weights of the base layers that the rules of PEFT match, by path."""
        config = _maybe_include_all_linear_layers(
            self._prepare_adapter_config(config, self.get_model_config(model)), model
        )
        found: dict[str, nn.Module] = {}
        layers: list[str] = []  # the modules below these paths belong to tuner layers
        for path, module in model.named_modules():
            if not path or path.startswith(tuple(layers)):
                continue
            if isinstance(module, BaseTunerLayer):
                layers.append(f"{path}.")
            if self._check_target_module_exists(config, path):
                found[path] = module.base_layer if isinstance(module, TnLinear) else module
        if not found:
            raise SiteError(
                f"target_modules: expected a rule that matches a module and does not exclude it, "
                f"got {config.target_modules!r}."
            )
        check_linear(found)
        return {path: linear_weight(module, path) for path, module in found.items()}

    def _check_names(self, name: str, state: AdapterState) -> None:
        """Raise SiteError if an adapter has the name of a factor or a group, since PEFT finds keys by such names."""
        keys = [key for each in (state, *self.states().values()) for key in each.adapter.slots]
        named = {part for key in [f"{STEM}factors", *keys] for part in key.split(".")}
        if taken := sorted({name, *self.tnadapt_states} & named):
            raise SiteError(
                f"adapter_name: expected a name that no factor or group has, got {taken[0]!r}.\nChoose another name."
            )

    def _create_and_replace(  # noqa: PLR0917  (as PEFT calls it)
        self,
        peft_config: TnConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        state = self.states()[adapter_name]
        if isinstance(target, TnLinear):
            layer = target
        else:
            layer = TnLinear(target, current_key)
            self._replace_module(parent, target_name, layer, target)
        layer.add(adapter_name, state, state.hooks[current_key])

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from every layer, and its factors from the model."""
        super().delete_adapter(adapter_name)
        del self.tnadapt_states[adapter_name]

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into every layer or none. The weights from before are kept for unmerging.

        Raises:
            SiteError: a sum is not finite, or a weight is shared or quantized.
        """
        layers = self._layers(self.model)
        weights = {path: linear_weight(layer.get_base_layer(), path) for path, layer in layers.items()}
        check_weights(self.model, weights)
        done = {path: len(layer.merges) for path, layer in layers.items()}
        try:
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        except BaseException:
            for path, layer in layers.items():
                layer.unmerge_to(done[path])
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Merge into every layer or none, then restore the base layers."""
        if merge:
            self.merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        host: nn.Module = super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)
        return host

    def states(self) -> dict[str, AdapterState]:
        """Return the state of each adapter by name, which has `parameter_groups`, `norms` and `params`."""
        return cast("dict[str, AdapterState]", dict(self.tnadapt_states.items()))

    @staticmethod
    def _layers(model: nn.Module) -> dict[str, TnLinear]:
        return {path: module for path, module in model.named_modules() if isinstance(module, TnLinear)}

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
        return {key: value for key, value in found.items() if key in stored}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Turn "base_model.tnadapt_states.default.factors.A" into "base_model.tnadapt_states.A"."""
        here = f"{STEM}{adapter_name}.factors."
        if key.startswith(here):
            return f"{STEM}{key.removeprefix(here)}"
        other: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return other

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TnConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map the keys of a file to those of the model. Raise FormatError unless keys and shapes fit this adapter."""
        adapter = cls._state_of(model, adapter_name).adapter
        shapes = {key: tuple(value.shape) for key, value in state_dict.items() if key.startswith(STEM)}
        check_factors("the checkpoint", adapter, shapes)
        known = model.state_dict().keys()
        if odd := sorted(key for key in state_dict if not key.startswith(STEM) and key not in known):
            raise FormatError(f"the checkpoint: expected keys of this model, got {odd[0]}.\nNothing was loaded.")
        whole = _drawn(adapter) | state_dict
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, whole)
        return mapped

    @staticmethod
    def _state_of(model: nn.Module, adapter_name: str) -> AdapterState:
        tuner = next(module for module in model.modules() if isinstance(module, TnModel))
        return tuner.states()[adapter_name]


def _put_back(model: nn.Module, before: dict[str, nn.Module]) -> None:
    """Restore the modules of a model and remove new ones. In `before`, parents come before their children."""
    for path, module in before.items():
        parent, _, name = path.rpartition(".")
        if path and model.get_submodule(parent)._modules[name] is not module:
            model.get_submodule(parent)._modules[name] = module
    for path in dict(model.named_modules(remove_duplicate=False)).keys() - before.keys():
        parent, _, name = path.rpartition(".")
        if parent in before:
            del before[parent]._modules[name]


def _drawn(adapter: Adapter) -> dict[str, Tensor]:
    """Draw the frozen factors that a file does not store, by their keys in the file."""
    slots = adapter.slots
    if all(slot.is_stored for slot in slots.values()):
        return {}
    values = redraw(adapter)
    return {f"{STEM}{name}": torch.from_numpy(values[name]).float() for name in slots if not slots[name].is_stored}


# `peft.utils.register_peft_method` accepts only the members of PEFT's own enum. All it does is fill these three tables,
# which PEFT reads by name.
PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.TNADAPT] = TnConfig
PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.TNADAPT] = PREFIX
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.TNADAPT] = TnModel
