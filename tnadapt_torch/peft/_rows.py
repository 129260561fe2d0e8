"""Batches whose rows use different adapters: which row uses which, from the call to the layers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt.binding import told

__all__: list[str] = []

BASE = "__base__"  # PEFT's name for rows without an adapter


class Rows:
    """The name of the adapter of each row. The places of equal names are looked up once per device, for all layers."""

    def __init__(self, names: Sequence[str]) -> None:
        """Store the names in the order of the rows."""
        self.names = tuple(names)
        self._split: dict[torch.device, tuple[list[tuple[str, Tensor]], Tensor]] = {}

    def split(self, device: torch.device) -> tuple[list[tuple[str, Tensor]], Tensor]:
        """Return each name with the places of its rows, and the permutation that puts these rows in order again."""
        if device not in self._split:
            groups: dict[str, list[int]] = {}
            for place, name in enumerate(self.names):
                groups.setdefault(name, []).append(place)
            order = torch.tensor([place for places in groups.values() for place in places], dtype=torch.long)
            at = torch.split(order.to(device), [len(places) for places in groups.values()])
            self._split[device] = list(zip(groups, at, strict=True)), order.argsort().to(device)
        return self._split[device]

    def check(self, path: str, x: Tensor, merged: Collection[str]) -> None:
        """Raise SiteError unless there is one name for each row of the input of a layer, and no adapter is merged."""
        if merged:
            raise SiteError(
                f"adapter_names: expected a model without merged adapters, got {', '.join(merged)} in {path}.\n"
                "Call unmerge_adapter() first."
            )
        if len(x) != len(self.names):
            raise SiteError(
                f"adapter_names: expected one name per row, got {len(self.names)} names and {len(x)} rows at {path}.\n"
                "The first axis of the input of an adapted layer must be that of the batch."
            )


def expect_rows(given: object, known: Collection[str], *, is_training: bool) -> list[str]:
    """Return the names of adapters that a call was given, one per row.

    Raises:
        SiteError: they are not a list of names of adapters, or the model is in training mode.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise SiteError(
            f'adapter_names: expected a list of names, got {told(given)}.\nWrite adapter_names=["default"].'
        )
    if is_training:
        raise SiteError(
            "adapter_names: expected a model in evaluation mode, got one in training mode.\nCall model.eval() first."
        )
    if wrong := sorted({*given} - {*known, BASE}):
        raise SiteError(
            f"adapter_names: expected names of this model's adapters ({', '.join(known)}), or {BASE!r}, "
            f"got {', '.join(map(repr, wrong))}."
        )
    return list(given)


def repeats(words: Mapping[str, Any]) -> int:
    """Return how many times `generate` repeats each row, for beams or for several answers."""
    config = words.get("generation_config")
    asked = [words.get(word, getattr(config, word, None)) for word in ("num_beams", "num_return_sequences")]
    return max(int(number) for number in (*asked, 1) if number is not None)


@contextmanager
def use_rows(model: nn.Module, layers: Mapping[str, Any], names: list[str], times: int) -> Iterator[None]:
    """Let each row of a batch use its adapter, in a `with` block. An encoder does not see the repeated rows."""
    once, repeated = Rows(names), Rows([name for name in names for _ in range(times)])
    encoder = _encoder_of(model) if times > 1 else None
    inside = {id(module) for module in encoder.modules()} if encoder is not None else set()
    handles = []
    try:
        for module in model.modules():
            rows = once if id(module) in inside else repeated
            if isinstance(module, AuxiliaryTrainingWrapper):
                handles.append(module.register_forward_pre_hook(partial(_name_rows, rows), with_kwargs=True))
        for layer in layers.values():
            layer.rows = once if id(layer) in inside else repeated
        yield
    finally:
        for layer in layers.values():
            layer.rows = None
        for handle in handles:
            handle.remove()


def _name_rows(rows: Rows, module: AuxiliaryTrainingWrapper, args: Any, kwargs: dict[str, Any]) -> Any:
    """Tell a module that is trained in full the names it has a copy for; other rows use its original."""
    return args, kwargs | {"adapter_names": [name if name in module._adapters else BASE for name in rows.names]}


def _encoder_of(model: nn.Module) -> nn.Module | None:
    """Return the encoder of an encoder-decoder model."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    found = model.get_encoder()  # type: ignore[operator]  # the models of transformers have it
    return found if found is not model else None
