"""A Llama-shaped model without a head, the methods that are put on it, and its steps."""

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from by_hand import FORMULAS, put_by_hand
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

import tnadapt_torch
from tnadapt import families

__all__ = [
    "GROUPS",
    "METHODS",
    "PROJECTIONS",
    "Method",
    "Shape",
    "adapted",
    "by_hand",
    "by_peft",
    "host_of",
    "methods",
    "step_of",
]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # that read one x


@dataclass(frozen=True)
class Shape:
    """The sizes of a host."""

    hidden: int
    inner: int
    heads: int
    key_heads: int
    layers: int = 2


@dataclass(frozen=True)
class Method:
    """A method on a host: the words of `attach`, and PEFT's configuration by name, if PEFT has the method."""

    family: str
    words: Mapping[str, Any]
    peft: str | None = None
    peft_words: Mapping[str, Any] = field(default_factory=dict)


def methods(shape: Shape) -> dict[str, Method]:
    """Return the methods of the tables, with ranks for a host."""
    rank, vera = 16, max(64, shape.hidden // 16)
    tera = {f"r_{side}{n}": one for side in "oi" for n, one in enumerate((8, 4, 4), 1)}
    return {
        "LoRA": Method("lora", {"rank": rank}, "LoraConfig", {"r": rank, "lora_alpha": rank}),
        "LoTR": Method("lotr", {"rank": 32}),
        "LoRTA": Method("lorta", {"rank": 32, "sizes": {"head": shape.heads}}),
        "VeRA": Method("vera", {"rank": vera}, "VeraConfig", {"r": vera, "save_projection": False}),
        "MetaTT": Method("metatt", {"rank": 32}),
        "FacT-TT": Method("fact_tt", {"rank": 32}),
        "TT-LoRA": Method("tt_lora", {"rank": 8}),
        "TLoRA": Method("tlora", {"rank": 32}),
        "LoHa": Method("loha", {"rank": 8}, "LoHaConfig", {"r": 8, "alpha": 8}),
        "LoKr": Method("lokr", {"rank": 8}, "LoKrConfig", {"r": 8, "alpha": 8}),
        "GraLoRA": Method(
            "gralora", {"rank": 4, "sizes": {"o1": 4, "i1": 4}}, "GraloraConfig", {"r": 16, "alpha": 16, "gralora_k": 4}
        ),
        "TeRA": Method("tera", {"rank": tera}),
        "Monarch": Method("monarch", {"rank": 8, "sizes": {"i1": 4, "o2": 4}}),
    }


METHODS = tuple(methods(Shape(64, 96, 8, 2)))


def host_of(shape: Shape, device: str, dtype: torch.dtype) -> LlamaModel:
    """Make the frozen host, the same each time. There is no head: a step ends in the gradient of the last layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
    )
    config.use_cache = False
    with torch.device(device):
        return LlamaModel(config).to(dtype).requires_grad_(False)


def beside(host: nn.Module) -> Any:
    """Return a copy of a host that has its weights themselves, which nobody changes."""
    return copy.deepcopy(host, {id(one): one for one in (*host.parameters(), *host.buffers())})


def adapted(host: nn.Module, method: Method) -> tuple[Any, Any]:
    """Return a host beside with an adapter of tnadapt, and its state, whose values are random.

    An update that is 0, as at the start, could be left out of compiled code.
    """
    model = beside(host)
    spec = getattr(families, method.family)()
    state = tnadapt_torch.attach(model, spec, target_modules=list(PROJECTIONS), seed=0, **method.words)
    state.to(next(host.parameters()).device)
    fill(state)
    return model, state


def fill(module: nn.Module) -> None:
    """Give random values to what is trained in a module."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn_like(parameter))


def by_hand(host: nn.Module, method: Method, state: Any) -> Any:
    """Return a host beside with hand-written layers that have the factors of a state."""
    model = beside(host)
    put_by_hand(model, state, FORMULAS[method.family])
    return model


def by_peft(host: nn.Module, method: Method) -> Any:
    """Return a host beside with PEFT's adapter, or None where PEFT has no such method or is not installed."""
    if method.peft is None or importlib.util.find_spec("peft") is None:
        return None
    peft = importlib.import_module("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of VeRA, on what is saved
        config = getattr(peft, method.peft)(target_modules=list(PROJECTIONS), **method.peft_words)
        model = peft.get_peft_model(beside(host), config).to(next(host.parameters()).device)
    fill(model)
    return model.train()


def step_of(model: Callable[..., Any], trained: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], None]:
    """Return a step: forward, and backward of a random gradient. Gradients are dropped after it."""
    parameters = [one for one in trained.parameters() if one.requires_grad]

    def step() -> None:
        model(inputs_embeds=x).last_hidden_state.backward(cotangent)
        x.grad = None
        for one in parameters:
            one.grad = None

    return step
