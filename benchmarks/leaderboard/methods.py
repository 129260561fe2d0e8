"""The methods of the table: families of tnadapt, with the papers' scales or with balanced ones, and PEFT's own."""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import nn

import tnadapt
from tnadapt import LORA_STEP, AdapterSpec, SiteError, families, unit
from tnadapt.binding import file_size
from tnadapt_torch import attach

__all__ = ["KAPPAS", "METHODS", "Adapted", "MethodError"]

KAPPA = 6.0  # that of the library, which a test compares


class MethodError(Exception):
    """A method that does not fit a model."""


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter: its parameter groups at a learning rate, its trained numbers, the size of its file."""

    model: nn.Module
    groups: Callable[[float], list[dict[str, Any]]]
    numbers: int
    size: Callable[[], int]


Method = Callable[[nn.Module, Collection[str], int], Adapted]


def ours(
    spec: AdapterSpec, rank: int | None, sizes: Mapping[str, int], *, balanced: bool, kappa: float = KAPPA
) -> Method:
    """Return a family at its paper's scale and one rate for all factors, or at `unit` and balanced rates.

    Rates are balanced with another `kappa` by multiplying those of the factors that do not move first.
    """

    def adapt(model: nn.Module, targets: Collection[str], seed: int) -> Adapted:
        try:
            state = attach(
                model,
                spec,
                target_modules=list(targets),
                rank=rank,
                sizes=sizes or None,
                seed=seed,
                scale=unit(LORA_STEP) if balanced else None,
                overparametrized=True,
            )
        except SiteError as error:
            raise MethodError(str(error).partition("\n")[0]) from error
        size = file_size(state.adapter)
        numbers = tnadapt.count(state.adapter).trainable

        def groups(rate: float) -> list[dict[str, Any]]:
            found = state.parameter_groups(lr=rate, balance=balanced)
            return [one if one["lr"] == rate else one | {"lr": one["lr"] * kappa / KAPPA} for one in found]

        return Adapted(model, groups, numbers, lambda: size)

    return adapt


def of_peft(make: Callable[[list[str]], peft.PeftConfig]) -> Method:
    """Return a method of PEFT, with one rate for all of its factors."""

    def adapt(model: nn.Module, targets: Collection[str], seed: int) -> Adapted:
        torch.manual_seed(seed)
        try:
            wrapped = peft.get_peft_model(model, make(sorted(targets)))  # type: ignore[arg-type]  # any module will do
        except (ValueError, TypeError, KeyError) as error:
            raise MethodError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        trained = [value for value in model.parameters() if value.requires_grad]
        return Adapted(
            model,  # its layers were exchanged in place
            lambda rate: [{"params": trained, "lr": rate}],
            sum(value.numel() for value in trained),
            lambda: _file_size(wrapped),
        )

    return adapt


def _file_size(model: peft.PeftModel) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file({name: value.contiguous() for name, value in peft.get_peft_model_state_dict(model).items()}, path)
        return path.stat().st_size


FAMILIES: dict[str, tuple[AdapterSpec, int | None, dict[str, int]]] = {
    "LoRA r8": (families.lora(alpha=8), 8, {}),
    "LoTR r16": (families.lotr(), 16, {}),
    "MetaTT r16": (families.metatt(), 16, {}),
    "FacT-TT r16": (families.fact_tt(), 16, {}),
    "CaRA r32": (families.cara(), 32, {"head": 4}),
    "TT-LoRA r8": (families.tt_lora(), 8, {}),
    "LoRTA r32": (families.lorta(), 32, {"head": 4}),
    "VeRA r64": (families.vera(), 64, {}),
    "LoHa r8": (families.loha(), 8, {}),
    "LoKr r8": (families.lokr(), 8, {}),
    "TLoRA r32": (families.tlora(), 32, {}),
    "RandLoRA r16": (families.randlora(), 16, {}),
    "TeRA r8": (families.tera(), 8, {}),
}

METHODS: dict[str, Method] = {
    **{name: ours(spec, rank, sizes, balanced=False) for name, (spec, rank, sizes) in FAMILIES.items()},
    **{f"{name} unit": ours(spec, rank, sizes, balanced=True) for name, (spec, rank, sizes) in FAMILIES.items()},
    "PEFT LoRA r8": of_peft(lambda targets: peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets)),
    "PEFT rsLoRA r8": of_peft(
        lambda targets: peft.LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=targets)
    ),
    "PEFT DoRA r8": of_peft(lambda targets: peft.LoraConfig(r=8, lora_alpha=8, use_dora=True, target_modules=targets)),
    "PEFT LoHa r8": of_peft(lambda targets: peft.LoHaConfig(r=8, alpha=8, target_modules=targets)),
    "PEFT LoKr r8": of_peft(lambda targets: peft.LoKrConfig(r=8, alpha=8, target_modules=targets)),
    "PEFT VeRA r64": of_peft(lambda targets: peft.VeraConfig(r=64, target_modules=targets)),
    "PEFT OFT": of_peft(lambda targets: peft.OFTConfig(oft_block_size=32, target_modules=targets)),
}

KAPPAS: dict[str, Method] = {
    f"{name} unit kappa {kappa:g}": ours(*FAMILIES[name], balanced=True, kappa=kappa)
    for name in ("LoRA r8", "LoTR r16", "MetaTT r16")
    for kappa in (1.5, 3.0, 12.0, 24.0)
}
