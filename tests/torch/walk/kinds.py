"""What the events may do with each host: which parts can be hosts of their own, be trained in full, be fused."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.torch.walk import hosts


@dataclass(frozen=True)
class Kind:
    """A host and what the events may do with it."""

    make: Callable[[], hosts.Host]
    plain: Callable[[Any, Tensor], Tensor]
    linears: tuple[str, ...]
    blocks: tuple[str, ...]
    parents: tuple[str, ...] = ("",)
    saveable: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, list[str]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names of a tied tensor -> the first one
    transposed: tuple[str, ...] = ()  # names of layers that store their weight as (in, out)
    reads_ids: bool = False
    has_second_derivative: bool = False  # torch's fused attention has none on a CPU, token ids have no derivative
    is_small: bool = True  # enough to be compiled as a whole in a walk
    most_axes: int = 4  # of an input, without its last one

    def layout(self, key: str) -> tuple[str, ...]:
        """Return the role of each stored axis of a weight."""
        turned = key.split(".")[-2] in self.transposed if "." in key else False
        return tuple(self.parameters.get(key, "in out" if turned else "out in").split())

    def input(self, rng: random.Random, shape: tuple[int, ...] | None = None) -> Tensor:
        """Draw an input: token ids (batch, length), or numbers (batch, length, width)."""
        lead = shape or (rng.randint(1, 3), rng.randint(1, 5))
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        if self.reads_ids:
            return torch.randint(0, hosts.WORDS, lead, generator=generator)
        return torch.randn(*lead, hosts.WIDTH, generator=generator, dtype=torch.float64)


def _paths(stack: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{stack}.{n}.{name}" for n in range(2) for name in names)


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA: dict[str, Any] = {
    "plain": hosts.plain_llama,
    "linears": (
        *_paths("model.layers", *(f"self_attn.{name}" for name in _ATTENTION), "gate_proj", "up_proj", "down_proj"),
        "lm_head",
    ),
    "blocks": ("model.layers.0", "model.layers.1"),
    "parents": ("", "model"),
    "saveable": ("model.ln_f", "model.embed", "lm_head"),
    "reads_ids": True,
    "is_small": False,
}
KINDS = {
    "mlp": Kind(
        hosts.Mlp,
        hosts.plain_mlp,
        linears=(*_paths("body.layers", "up", "down"), "head"),
        blocks=("body.layers.0", "body.layers.1"),
        parents=("", "body"),
        saveable=("head", "body.layers.1.norm"),
        has_second_derivative=True,
    ),
    "llama": Kind(hosts.Llama, **_LLAMA),
    "tied llama": Kind(hosts.tied_llama, aliases={"lm_head.weight": "model.embed.weight"}, **_LLAMA),
    "pair": Kind(
        hosts.Pair,
        hosts.plain_pair,
        linears=(*_paths("encoder.layers", *_ATTENTION), *_paths("decoder.layers", *_ATTENTION), "lm_head"),
        blocks=("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"),
        parents=("", "encoder", "decoder"),
        saveable=("shared", "lm_head"),
        aliases=dict.fromkeys(("encoder.embed.weight", "decoder.embed.weight", "lm_head.weight"), "shared.weight"),
        reads_ids=True,
        is_small=False,
    ),
    "encoder": Kind(
        hosts.Encoder,
        hosts.plain_encoder,
        linears=(*_paths("stack.layers", "linear1", "linear2"), "head"),
        blocks=("stack.layers.0", "stack.layers.1"),
        parents=("", "stack"),
        saveable=("head", "stack.layers.1.norm2"),
        parameters=dict.fromkeys(_paths("stack.layers", "self_attn.in_proj_weight"), "out in"),
        most_axes=2,
    ),
    "gpt": Kind(
        hosts.Gpt,
        hosts.plain_gpt,
        linears=(*_paths("h", "c_attn", "c_proj"), "score"),
        blocks=("h.0", "h.1"),
        saveable=("score",),
        fused={"c_attn": ["q", "k", "v"]},
        transposed=("c_attn", "c_proj"),
        has_second_derivative=True,
    ),
    "mixture": Kind(
        hosts.Mixture,
        hosts.plain_mixture,
        linears=(*_paths("layers", "router"), "head"),
        blocks=("layers.0", "layers.1"),
        saveable=("head",),
        parameters=dict.fromkeys(_paths("layers", "up"), "expert in out")
        | dict.fromkeys(_paths("layers", "down"), "expert out in"),
        has_second_derivative=True,
    ),
}
