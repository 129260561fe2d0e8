"""Time a step with a magnitude as a multiple of the step without it: ours on any spec, and PEFT's DoRA on its LoRA."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from timing import arguments, medians, report
from torch import nn

from tnadapt import families, magnitude
from tnadapt_torch import attach

SHAPES = ((2048, 2048), (5632, 2048))  # of Llama weights, (out, in)
SPECS = {"lora": families.lora(), "lotr": families.lotr(), "vera": families.vera()}
TOKENS, RANK = 512, 16


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "")
    where = {"dtype": getattr(torch, options.dtype), "device": options.device}
    x = torch.randn(TOKENS, SHAPES[0][1], **where).requires_grad_()
    steps = {}
    for name, spec in SPECS.items():
        for kind, one in (("alone", spec), ("magnitude", magnitude(spec))):
            layers = _layers(where)
            attach(layers, one, target_modules="all-linear", rank=RANK)
            steps[name, kind] = _step(layers, x)
    for kind, is_dora in (("alone", False), ("magnitude", True)):
        config = LoraConfig(r=RANK, target_modules=["0", "1"], use_dora=is_dora)
        steps["lora of PEFT", kind] = _step(inject_adapter_in_model(config, _layers(where)), x)
    times = medians({"/".join(name): run for name, run in steps.items()}, options.rounds)
    names = list(dict.fromkeys(name for name, _ in steps))
    report(options, [{"spec": name, "ratio": times[f"{name}/magnitude"] / times[f"{name}/alone"]} for name in names])


def _layers(where: dict[str, object]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(inner, outer, bias=False) for outer, inner in SHAPES]).to(**where)


def _step(layers: nn.ModuleList, x: torch.Tensor):
    """Return a function that runs both passes of all layers."""

    def run() -> None:
        sum(layer(x).square().mean() for layer in layers).backward()

    return run


if __name__ == "__main__":
    main()
