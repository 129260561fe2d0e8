"""Steps of a Llama-shaped model in each regime: ratios to the frozen base, to PEFT, by hand, and to the counted limit.

    python benchmarks/regimes.py --record                        all regimes and methods
    python benchmarks/regimes.py --regimes compiled --methods LoRA VeRA
    python benchmarks/regimes.py --device cuda --dtype bfloat16 --seconds 240

A step is forward and backward, without an optimizer; factors are float32, as by default in both libraries. Each row
times its contestants in turn, the base among them. The limit is the base of that row and the limit of limits.py at the
speeds of calibrate.py, measured before. Compiled code is timed only if its gradients are those of eager code; on CUDA
it runs in CUDA graphs. Since to compile takes long, compiled code by hand is LoRA alone, and on a CPU there are five
methods unless --methods names others. What does not fit into --seconds is left out, and the table says so.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from calibrate import QUICK, speeds_of
from limits import Speeds, limit_of
from llama import METHODS, Method, Shape, adapted, beside, by_hand, by_peft, host_of, methods, step_of
from timing import medians, parsed, parser_of, report
from torch import Tensor, nn

CPU = Shape(hidden=512, inner=1408, heads=8, key_heads=2)
CUDA = Shape(hidden=4096, inner=14336, heads=32, key_heads=8)
COMPILED_ON_CPU = ("LoRA", "LoTR", "VeRA", "TT-LoRA", "Monarch")
SMALL = Shape(hidden=64, inner=96, heads=4, key_heads=2, layers=1)


@dataclass(frozen=True)
class Regime:
    """How a step is taken; `tokens` None is many, as many as suit the device."""

    title: str
    tokens: int | None = None
    compiled: bool = False
    training: bool = True


REGIMES = {
    "many": Regime("many tokens, eager"),
    "compiled": Regime("many tokens, compiled", compiled=True),
    "256": Regime("256 tokens, eager", 256),
    "64": Regime("64 tokens, eager", 64),
    "1": Regime("one token, no grad", 1, training=False),
}


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share: the host and how it is run, its inputs, and the speeds of the device."""

    regime: Regime
    shape: Shape
    host: nn.Module
    x: Tensor
    cotangent: Tensor
    speeds: Speeds
    rounds: int

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.x.shape[1]


class CompileError(Exception):
    """Code that does not compile, or does not compute what eager code does."""


def sizes_of(regime: Regime, options: argparse.Namespace) -> tuple[Shape, int]:
    """Return the shape of the host, with one layer where it is compiled since that takes long, and the tokens."""
    cuda = options.device.startswith("cuda")
    shape = SMALL if options.quick else CUDA if cuda else CPU
    tokens = regime.tokens or (32 if options.quick else 4096 if cuda else 512)
    return replace(shape, layers=1) if regime.compiled else shape, tokens


def setting_of(regime: Regime, options: argparse.Namespace, speeds: Speeds) -> Setting:
    """Make the host and the inputs of a regime."""
    shape, tokens = sizes_of(regime, options)
    dtype = getattr(torch, options.dtype)
    host = host_of(shape, options.device, dtype).train(regime.training)
    torch.manual_seed(2)
    x, cotangent = (torch.randn(1, tokens, shape.hidden, device=options.device).to(dtype) for _ in range(2))
    return Setting(regime, shape, host, x.requires_grad_(regime.training), cotangent, speeds, options.rounds)


def row_of(setting: Setting, name: str) -> dict[str, Any]:
    """Time one method beside the frozen base, PEFT and hand-written code."""
    method = methods(setting.shape)[name]
    times, state = _times(setting, method)
    least = limit_of(
        state.adapter, tokens=setting.tokens, training=setting.regime.training, size=setting.x.element_size()
    )
    base, ours = times["base"], times["tnadapt"]
    limit = base + least.seconds(setting.speeds, launches=not setting.regime.compiled)
    row: dict[str, Any] = {"method": name, "base ms": 1e3 * base, "tnadapt ms": 1e3 * ours, "/ base": ours / base}
    row |= {f"/ {other}": ours / times[other] if other in times else "-" for other in ("PEFT", "by hand")}
    row |= {f"{other} / base": times[other] / base if other in times else "-" for other in ("PEFT", "by hand")}
    return row | {"limit / base": limit / base, "/ limit": ours / limit}


def _times(setting: Setting, method: Method) -> tuple[dict[str, float], Any]:
    """Return the seconds of each contestant that there is, and the state of tnadapt."""
    model, state = adapted(setting.host, method)
    models = {"base": (beside(setting.host), setting.host), "tnadapt": (model, state)}
    if (theirs := by_peft(setting.host, method)) is not None:
        models["PEFT"] = (theirs.train(setting.regime.training), theirs)
    if not setting.regime.compiled or method.family == "lora":
        hand = by_hand(setting.host, method, state)
        models["by hand"] = (hand, hand)
    steps = {}
    for name, pair in models.items():
        try:
            steps[name] = _step(setting, name, *pair)
        except Exception as error:  # whatever it is, it is what a user meets
            if name in ("base", "tnadapt") or not setting.regime.compiled:
                raise CompileError(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
            print(f"{name} of {method.family} is left out: {error}", file=sys.stderr)
    return medians(steps, setting.rounds), state


def _step(setting: Setting, name: str, model: nn.Module, trained: nn.Module) -> Callable[[], None]:
    """Return what is timed of a contestant, compiled and compared with eager code first if the regime says so."""
    x, cotangent = setting.x, setting.cotangent
    if not setting.regime.training:

        def call() -> None:
            with torch.no_grad():
                model(inputs_embeds=x)

        return call
    if not setting.regime.compiled:
        return step_of(model, trained, x, cotangent)
    graphs = x.device.type == "cuda"
    run = torch.compile(model, fullgraph=name != "PEFT", dynamic=False, mode="reduce-overhead" if graphs else None)
    check_gradients((run, model), trained, x, cotangent)
    inner = step_of(run, trained, x, cotangent)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        inner()

    return step if graphs else inner


def check_gradients(
    pair: tuple[Callable[..., Any], nn.Module], trained: nn.Module, x: Tensor, cotangent: Tensor
) -> None:
    """Raise CompileError if compiled code has other gradients than eager code: what drops work looks fast."""
    leaves = [x, *(one for one in trained.parameters() if one.requires_grad)]
    found, wanted = (
        [one.clone() for one in torch.autograd.grad(call(inputs_embeds=x).last_hidden_state, leaves, cotangent)]
        for call in pair
    )
    most = 1e-3 if x.dtype == torch.float32 else 6e-2
    for one, other in zip(found, wanted, strict=True):
        error = float((one - other).norm() / other.norm())
        if not error <= most:
            raise CompileError(f"compiled gradients are off by {error:.1e}")


def table(regime: Regime, options: argparse.Namespace, speeds: Speeds, end: float) -> list[Mapping[str, Any]]:
    """Return the rows of a regime: those that fit before the end, and those whose code fails with the reason."""
    setting, rows, left = setting_of(regime, options, speeds), [], []
    few = regime.compiled and not options.device.startswith("cuda")
    for name in options.methods or (COMPILED_ON_CPU if few else METHODS):
        if time.monotonic() > end:
            left.append(name)
            continue
        try:
            rows.append(row_of(setting, name))
        except CompileError as error:
            rows.append({"method": f"{name}: {error}"})
        finally:
            if regime.compiled:
                torch.compiler.reset()
        print(f"{regime.title}, {rows[-1]['method']}", file=sys.stderr, flush=True)
    if left:
        rows.append({"method": f"left out for lack of time: {', '.join(left)}"})
    heads = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "-") for column in heads} for row in rows]


def main() -> None:
    """Print one table for each regime."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many seconds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which say nothing of the device")
    options = parsed(parser)
    end = time.monotonic() + options.seconds
    speeds = speeds_of(options, QUICK if options.quick else None)
    for name in sorted(options.regimes, key=lambda name: REGIMES[name].compiled):  # the slowest last
        regime = REGIMES[name]
        shape, tokens = sizes_of(regime, options)
        size = f"{shape.layers} x {shape.hidden} wide, {tokens:,} token{'s' * (tokens > 1)}"
        report(options, table(regime, options, speeds, end), f"{regime.title} ({size})")


if __name__ == "__main__":
    main()
