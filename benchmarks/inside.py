"""Time layers with updates of full rank: added to the output, called in the weight where planned, and always folded."""

import torch
from timing import arguments, medians, report
from torch import nn

from tnadapt import families, magnitude, plan
from tnadapt_torch import attach

CASES = {
    "hira": (families.hira(), {"rank": 16}),
    "losa": (families.losa(), {"rank": 16}),
    "oft": (families.oft(), {}),
    "ssb": (families.ssb(), {}),
    "monarch": (families.monarch(), {"rank": 16}),
    "tera": (families.tera(), {"rank": 16}),
    "loha": (families.loha(), {"rank": 16}),
    "lora": (families.lora(), {"rank": 16}),
    "magnitude of lora": (magnitude(families.lora()), {"rank": 16}),
}
WIDTH, TOKENS = 1024, 2048


def main() -> None:
    """Print the table: times of a forward and a backward pass, as multiples of those of the layer alone."""
    options = arguments(__doc__ or "")
    where = {"dtype": getattr(torch, options.dtype), "device": options.device}
    x = torch.randn(TOKENS, WIDTH, **where).requires_grad_()
    rows = []
    for name, (spec, words) in CASES.items():
        layers = {way: nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(**where) for way in ("alone", "added", "as planned")}
        states = {way: attach(layers[way], spec, target_modules=["0"], **words) for way in ("added", "as planned")}
        update = states["added"].updates["0"]
        getattr(update, "below", update).may_fold = False
        if where["dtype"] in (torch.float32, torch.float64):
            layers["folded"] = nn.Sequential(nn.Linear(WIDTH, WIDTH)).to(**where)
            attach(layers["folded"], spec, target_modules=["0"], fold=True, **words)
        times = medians({way: _step(layer, x) for way, layer in layers.items()}, options.rounds)
        network = states["as planned"].adapter.networks[0]
        row = {"spec": name, "in the weight": plan(network, tokens=1024).pays_to_fold}
        rows.append(row | {way: time / times["alone"] for way, time in times.items() if way != "alone"})
    report(options, rows)


def _step(layer: nn.Module, x: torch.Tensor):
    """Return a function that runs both passes of a layer."""

    def run() -> None:
        layer(x).square().mean().backward()

    return run


if __name__ == "__main__":
    main()
