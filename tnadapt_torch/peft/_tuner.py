"""The PEFT tuner for any spec: it owns the state of each adapter once and gives each layer the update of its site."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, _get_submodules
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tnadapt import SiteError
from tnadapt.binding import answers
from tnadapt_torch._host import check_weights, plain_path, slow_down, speed_up
from tnadapt_torch._state import AdapterState
from tnadapt_torch.peft._checkpoint import STATES
from tnadapt_torch.peft._config import PREFIX, TnConfig
from tnadapt_torch.peft._flags import flags_of, put_flags
from tnadapt_torch.peft._layer import TnLayer, TnLinear, TnParameters
from tnadapt_torch.peft._modules import path_of, put_back, put_in_everywhere, take_out_everywhere
from tnadapt_torch.peft._rows import expect_rows, repeats, use_rows
from tnadapt_torch.peft._states import check_name, new_state
from tnadapt_torch.peft._stored import StoredTuner
from tnadapt_torch.peft._sum import check_apart, check_weights_of_sum, config_of_sum, fill
from tnadapt_torch.peft._targets import SAVED, find_targets, keys_in_full
from tnadapt_torch.peft._watch import Watch

__all__ = ["TnModel"]

HALF = {torch.float16, torch.bfloat16}


class TnModel(StoredTuner):
    """A model with tnadapt adapters under PEFT: `peft_model.base_model`.

    `tnadapt_states` holds the `AdapterState` of each adapter by name. Each state is registered as a child once; the
    layers keep plain references, so factors stay shared after casts, loads and copies.
    """

    tnadapt_states: nn.ModuleDict

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = TnLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _pre_injection_hook(self, model: nn.Module, config: TnConfig, adapter_name: str) -> None:
        self.tnadapt_states = nn.ModuleDict()
        self.flags_away: dict[str, bool] | None = None  # those of adapters and saved modules while they are disabled
        self.unwatched: set[str] = set()  # the adapters that have not trained yet
        self.watch: RemovableHandle | None = None
        self.copies: tuple[str, ...] = ()  # the beginnings of paths inside of modules that are trained in full

    # ------------------------------------------------------------------ adapters come and go

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
        self.copies = tuple(f"{path}." for path, each in before.items() if isinstance(each, AuxiliaryTrainingWrapper))
        flags, away = flags_of(self), self.flags_away
        others = flags_of(self, STATES)
        state = self._new_state(model, adapter_name)
        self.tnadapt_states[adapter_name] = state
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
            put_in_everywhere(model)
            self._check_all_served(state)
            put_flags(self, others)
            slow_down(model, self._layers().values())
            self.unwatched.add(adapter_name)
            self.start_watch()
        except BaseException:
            for layer in self._layers().values():
                layer.drop(adapter_name)
            del self.tnadapt_states[adapter_name]
            put_back(model, before)
            put_flags(self, flags)
            speed_up(model, self._layers().values())
            raise
        finally:
            self.flags_away = away

    def _new_state(self, model: nn.Module, adapter_name: str) -> AdapterState:
        config: TnConfig = self.peft_config[adapter_name]
        saved = keys_in_full(model, self.peft_config.values())
        check_name(adapter_name, self.states(), self.states().values(), saved)
        config = self._prepare_adapter_config(config, self.get_model_config(model))
        weights = find_targets(model, config, self._check_target_module_exists)
        if config.reads_weights and any(layer.merged for layer in self._layers().values()):
            raise SiteError(
                f"adapter {adapter_name!r}: expected a model without merged adapters to read starting values from, "
                "got one with merged adapters.\nCall unmerge_adapter() first."
            )
        state = new_state(model, config, weights, adapter_name)
        check_name(adapter_name, self.states(), [state], saved)
        return state.train(model.training)

    def _check_all_served(self, state: AdapterState) -> None:
        """Raise SiteError unless each weight of an adapter has a layer."""
        served = {path for layer in self._layers().values() for path in layer.tnadapt_updates.get(state.name, ())}
        if missing := [path for path in state.weights if path not in served]:
            raise SiteError(
                f"{missing[0]}: expected a module that PEFT replaces by a layer of this method, got one that it left.\n"
                "Remove it from target_modules."
            )

    def _check_target_module_exists(self, peft_config: TnConfig, key: str) -> object:
        """Match a path as PEFT does, but not inside of modules that are trained in full: each adapter has a copy."""
        return not key.startswith(self.copies) and super()._check_target_module_exists(peft_config, key)

    def _prepare_adapter_config(self, peft_config: TnConfig, model_config: dict[str, Any]) -> TnConfig:
        """Fill in the default targets of PEFT for this model type, unless parameters are named."""
        if peft_config.target_modules is None and peft_config.target_parameters:
            return peft_config
        return cast("TnConfig", super()._prepare_adapter_config(peft_config, model_config))

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
        """Add the adapter to a linear layer, or to the parameter with this name of another module."""
        key = plain_path(current_key)
        path = key if parameter_name is None else f"{key}.{parameter_name}"
        if isinstance(target, TnLayer):
            layer = target
        else:
            layer = (TnLinear if parameter_name is None else TnParameters)(target, key)
            setattr(parent, target_name, layer)
        state = self.states()[adapter_name]
        if isinstance(layer, TnLinear) and path in state.folded:
            layer.folded.add(adapter_name)
        if path in state.folded:
            state.updates[path].write_dense()  # the compiler cannot trace how it is written
        if isinstance(layer, TnParameters):
            weight = state.weights[path]
            layer.layouts[path] = weight.name, weight.layout
        layer.add(adapter_name, state, path, state.updates[path])

    def _inject_parameters(
        self, peft_config: TnConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        weights = self.states()[adapter_name].weights
        named = {path: weight for path, weight in weights.items() if not weight.is_called}
        for weight in named.values():
            key = path_of(model, weight.module)
            parent, target, target_name = _get_submodules(model, key)
            self._create_and_replace(peft_config, adapter_name, target, target_name, parent, key, weight.name)
        return list(named)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a module in place of another, as it is: ours own nothing that would have to follow the device."""
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from every layer, and its factors from the model. The flags of the others stay."""
        flags, active = flags_of(self, STATES), set(self.active_adapters)
        super().delete_adapter(adapter_name)
        self.unwatched.discard(adapter_name)
        del self.tnadapt_states[adapter_name]
        put_flags(self, flags, without=[f"{STATES}.{name}" for name in {*self.active_adapters} - active])
        speed_up(self.model, [layer for layer in self._layers().values() if layer.tnadapt_updates])

    @answers(SiteError)
    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "cat"
    ) -> None:
        """Add an adapter whose update is exactly the weighted sum of those of others. It is not made active.

        Args:
            adapters: the names of the adapters to sum. They have one spec; their ranks, alphas and targets may differ.
            weights: the weight of each adapter, of any sign.
            adapter_name: the name of the new adapter.
            combination_type: "cat", as PEFT calls this sum; the only type.

        Raises:
            SiteError: an argument is not valid, or a sum of updates of this spec is not an update of this spec.
        """
        check_weights_of_sum(adapters, weights, self.states(), combination_type)
        if adapter_name in self.peft_config:
            raise SiteError(f"adapter_name: expected a name that is not in use, got {adapter_name!r}.")
        states = [self.states()[name] for name in adapters]
        self.peft_config[adapter_name] = config_of_sum([self.peft_config[name] for name in adapters], states)
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            del self.peft_config[adapter_name]
            raise
        try:
            check_apart(self.states()[adapter_name], states)
            fill(self.states()[adapter_name], states, weights)
        except BaseException:
            self.delete_adapter(adapter_name)
            raise

    # ------------------------------------------------------------------ which adapters are in use

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        """Disable or enable all adapters. PEFT would make each active one trainable again; here the flags stay."""
        if not enabled and self.flags_away is None:
            self.flags_away = flags_of(self, STATES, SAVED)
        super()._enable_adapter_layers(enabled)
        if enabled and self.flags_away is not None:
            put_flags(self, self.flags_away)
            self.flags_away = None

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active: they are trained, unless `inference_mode` is True, and all others are frozen."""
        super().set_adapter(adapter_name, inference_mode)
        self.start_watch()
        if self.flags_away is not None:
            self.flags_away = flags_of(self, STATES, SAVED)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train or freeze adapters."""
        super().set_requires_grad(adapter_names, requires_grad)
        if self.flags_away is not None:
            self.flags_away |= flags_of(self, *([adapter_names] if isinstance(adapter_names, str) else adapter_names))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Let each row of a batch use the adapter that `adapter_names` names, in a `with` block.

        Raises:
            SiteError: a name is unknown, the model is in training mode, or an argument is not supported.
        """
        if kwargs.get("alora_offsets") is not None:
            raise SiteError("alora_offsets: expected none, got some.\nThey are for one method of PEFT. Leave them out.")
        if (given := kwargs.get("adapter_names")) is None:
            yield
            return
        names = expect_rows(given, self.states(), is_training=self.training)
        with use_rows(self.model, self._layers(), names, repeats(kwargs)):
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; `adapter_names` has the name of an adapter for each row."""
        if "adapter_names" not in kwargs:
            return self.model(*args, **kwargs)
        with self._enable_peft_forward_hooks(*args, **kwargs):
            return self.model(*args, **{word: value for word, value in kwargs.items() if word != "adapter_names"})

    def start_watch(self) -> None:
        """Wait for the first training forward of the active adapters, if one of them has had none."""
        if self.watch is None and self.unwatched.intersection(self.active_adapters):
            self.watch = self.model.register_forward_hook(Watch(self))

    def end_watch(self) -> None:
        """Stop waiting for the first training forward."""
        if self.watch is not None:
            self.watch.remove()
            self.watch = None

    # ------------------------------------------------------------------ values

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast half-precision factors to float32, or all factors to the dtype of the weights they update."""
        state = self.states()[adapter_name]
        dtypes = {parameter.dtype for parameter in state.params().values()}
        if autocast_adapter_dtype:
            if dtypes & HALF:
                state.to(torch.float32)
            return
        stored = [getattr(each.module, "compute_dtype", each.tensor.dtype) for each in state.weights.values()]
        floats = [dtype for dtype in stored if dtype is not None and dtype.is_floating_point]
        if floats:
            state.to(reduce(torch.promote_types, floats))

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into every layer or none. The weights from before are kept for unmerging.

        Raises:
            SiteError: a sum is not finite, or a weight is shared or quantized.
        """
        layers = self._layers()
        check_weights(self.model, {path: weight for each in layers.values() for path, weight in each.weights.items()})
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
        self.end_watch()
        host: nn.Module = super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)
        take_out_everywhere(host)
        speed_up(host, [])
        return host

    def states(self) -> dict[str, AdapterState]:
        """Return the state of each adapter by name, which has `parameter_groups`, `norms` and `params`."""
        return cast("dict[str, AdapterState]", dict(self.tnadapt_states.items()))

    def _layers(self) -> dict[str, TnLayer]:
        return {path: module for path, module in self.model.named_modules() if isinstance(module, TnLayer)}
