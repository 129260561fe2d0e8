"""Compare a compiled training step of a Llama layer with that of the frozen base, and of PEFT 0.21.2 where it compiles.

Before anything is timed, the gradients of each compiled model are compared with those of the same model uncompiled.
"""

import copy
from collections.abc import Callable
from typing import Any

import peft
import torch
from peers import CASES, PROJECTIONS, SHAPE, TOKENS, step_of
from timing import arguments, medians, report
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import tnadapt_torch
from tnadapt import families

WORDS = 64  # few, so that the layer takes most of the time
METHODS: dict[str, tuple[int, Callable[[], Any], Callable[[], Any] | None]] = {
    "LoRA": CASES["LoRA"],
    "VeRA": CASES["VeRA"],
    "LoTR": (32, families.lotr, None),
}
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of the largest entry of a gradient; products sum in another order


def layer_of(options: Any) -> LlamaForCausalLM:
    """Make the same Llama of one layer each time, from its configuration."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=WORDS, max_position_embeddings=TOKENS, **SHAPE | {"num_hidden_layers": 1})
    return LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))


def wake(model: nn.Module) -> nn.Module:
    """Give what is trained random values, so that each of its parts has a gradient."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def models_of(name: str, options: Any) -> dict[str, nn.Module]:
    """Return the frozen base, and the adapted models."""
    rank, family, config = METHODS[name]
    ours = layer_of(options)
    tnadapt_torch.attach(ours, family(), target_modules=PROJECTIONS, rank=rank, seed=0).to(options.device)
    models = {"base": layer_of(options).requires_grad_(False).train(), "tnadapt": wake(ours)}
    if config is not None:
        models["PEFT"] = wake(peft.get_peft_model(layer_of(options), config()))
    return models


def gradients(model: nn.Module, called: Callable[..., Any], embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the embeddings and of what is trained."""
    model.zero_grad()
    embeddings.grad = None
    called(inputs_embeds=embeddings, labels=labels).loss.backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()} | {"embeddings": embeddings.grad}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


def check(name: str, found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """End the program if gradients differ."""
    if found.keys() != wanted.keys():
        raise SystemExit(
            f"{name}: only one of the compiled and the eager step has gradients of {found.keys() ^ wanted.keys()}."
        )
    for path, one in found.items():
        other = wanted[path].float()
        error = float((one.float() - other).abs().max() / other.abs().max().clamp_min(1e-12))
        if not error <= tolerance:
            raise SystemExit(
                f"{name}: the compiled gradient of {path} differs from the eager one by {error:.2g} of it."
            )


def compiled_step(name: str, model: nn.Module, embeddings: Tensor, labels: Tensor, options: Any) -> Callable[[], None]:
    """Return a step of the compiled model, whose gradients have been compared."""
    called = torch.compile(model)
    wanted = gradients(model, model, embeddings, labels)
    check(name, gradients(model, called, embeddings, labels), wanted, TOLERANCE[options.dtype])
    return step_of(called, embeddings, labels)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    embeddings = torch.randn(1, TOKENS, SHAPE["hidden_size"], device=options.device)
    embeddings = embeddings.to(getattr(torch, options.dtype)).requires_grad_()
    labels = torch.randint(0, WORDS, (1, TOKENS), device=options.device)
    rows = []
    for name in METHODS:
        torch.compiler.reset()
        models = models_of(name, options)
        eager = {f"{who}, eager": step_of(copy.deepcopy(model), embeddings, labels) for who, model in models.items()}
        steps = {
            who: compiled_step(f"{name}, {who}", model, embeddings, labels, options) for who, model in models.items()
        }
        times = medians(steps | eager, options.rounds)
        rows.append(
            {
                "method": name,
                "compiled ms": 1e3 * times["tnadapt"],
                "/ compiled base": times["tnadapt"] / times["base"],
                "PEFT / compiled base": times["PEFT"] / times["base"] if "PEFT" in times else "",
                "eager / eager base": times["tnadapt, eager"] / times["base, eager"],
                "compiled / eager": times["tnadapt"] / times["tnadapt, eager"],
            }
        )
    report(options, rows)


if __name__ == "__main__":
    main()
