"""Compare a training step of a Llama-shaped model with tnadapt, with PEFT 0.21.2, and with the frozen base."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from timing import arguments, medians, report
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import tnadapt_torch
from tnadapt import families

TOKENS, RANK, VERA_RANK = 512, 8, 64
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
    "LoRA": (RANK, families.lora, lambda: peft.LoraConfig(r=RANK, target_modules=PROJECTIONS)),
    "VeRA": (
        VERA_RANK,
        families.vera,
        lambda: peft.VeraConfig(r=VERA_RANK, target_modules=PROJECTIONS, save_projection=False),
    ),
    "LoHa": (RANK, families.loha, lambda: peft.LoHaConfig(r=RANK, alpha=RANK, target_modules=PROJECTIONS)),
    "LoKr": (RANK, families.lokr, lambda: peft.LoKrConfig(r=RANK, alpha=RANK, target_modules=PROJECTIONS)),
}


def model_of(options: Any) -> LlamaForCausalLM:
    """Make the same small Llama each time, from its configuration."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=1000, max_position_embeddings=TOKENS, **SHAPE)
    return LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))


def step_of(model: nn.Module, embeddings: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a step: forward, backward and AdamW. If nothing is trainable, backward to the embeddings only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        model(inputs_embeds=embeddings, labels=labels).loss.backward()
        embeddings.grad = None
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    embeddings = torch.randn(1, TOKENS, SHAPE["hidden_size"], device=options.device)
    embeddings = embeddings.to(getattr(torch, options.dtype)).requires_grad_()
    labels = torch.randint(0, 1000, (1, TOKENS), device=options.device)
    base = model_of(options).requires_grad_(False)
    rows = []
    for name, (rank, family, config) in CASES.items():
        ours = model_of(options)
        tnadapt_torch.attach(ours, family(), target_modules=PROJECTIONS, rank=rank, seed=0).to(options.device)
        theirs = peft.get_peft_model(model_of(options), config())
        models = {"base": base, "tnadapt": ours, "PEFT": theirs}
        steps = {name: step_of(model.train(), embeddings, labels) for name, model in models.items()}
        times = medians(steps, options.rounds)
        rows.append(
            {
                "method": name,
                "tnadapt ms": 1e3 * times["tnadapt"],
                "/ PEFT": times["tnadapt"] / times["PEFT"],
                "/ frozen base": times["tnadapt"] / times["base"],
                "PEFT / frozen base": times["PEFT"] / times["base"],
            }
        )
    report(options, rows)


if __name__ == "__main__":
    main()
