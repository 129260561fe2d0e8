"""The parser of the command line: its commands, their options and their help."""

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tnadapt._command.arguments import rank_of, scale_of, sizes_by_name, spec_named, whole_number
from tnadapt._command.completion import SHELLS, Suggestions
from tnadapt._command.new import add_name
from tnadapt._compression import SWEEPS
from tnadapt._report import LIMIT, TOKENS
from tnadapt._version import __version__

__all__: list[str] = []

FAULT = 2  # the exit status of an error
RANK = 8
MODEL = "roberta-large"  # the model whose sizes are shown where none is named; its widths are powers of 2
SPEC = "FAMILY|FILE.py:NAME"

HELP = partial(argparse.RawDescriptionHelpFormatter, max_help_position=26)  # examples keep their lines
Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """A command: what it does in one line, and examples of it."""

    about: str
    examples: tuple[str, ...]


COMMANDS = {
    "show": Command(
        "print a spec, its report, its plan and its diagram",
        ("tnadapt show lora", "tnadapt show lorta --sites llama-2-7b --rank 8", "tnadapt show my_adapter.py:my_spec"),
    ),
    "compare": Command(
        "compare several specs on one model, in one table",
        ("tnadapt compare lora lotr vera", "tnadapt compare lora lotr --sites gpt2 --budget 50000"),
    ),
    "draw": Command(
        "draw a spec; with --sites, also sizes and minimum cut",
        ("tnadapt draw lotr", "tnadapt draw vera --sites gpt2 -o vera.svg"),
    ),
    "check": Command(
        "test every law on a spec, bound to random sites",
        ("tnadapt check lotr", "tnadapt check my_adapter.py:my_spec --examples 100"),
    ),
    "compress": Command(
        "find the closest adapter of another spec to a trained one",
        ("tnadapt compress my_lora --to lotr -o lotr.safetensors",),
    ),
    "new": Command("write a spec, its test and its picture into a new folder", ("tnadapt new my_adapter",)),
    "list": Command("list the families and the models", ("tnadapt list", "tnadapt list --json")),
    "completion": Command(
        "print a script that completes this command in a shell",
        (
            "source <(tnadapt completion bash)",
            'eval "$(tnadapt completion zsh)"',
            "tnadapt completion fish | source",
        ),
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as are all errors of this command."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(FAULT, f"tnadapt: {message}; see {self.prog} --help\n")


def make_parser(runs: Mapping[str, Run], suggestions: Suggestions | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Args:
        runs: the function that runs each command.
        suggestions: the choices of specs and models, for a parser that is completed. A parser that reads arguments
            has none, since it takes files in place of these names.
    """
    first = [COMMANDS[name].examples[-1 if name == "compare" else 0] for name in COMMANDS if name != "completion"]
    parser = Parser(
        prog="tnadapt",
        description="Tensor-network adapters, from the command line.",
        epilog=_examples([*first, "tnadapt show --help"]),
        formatter_class=HELP,
        add_help=False,
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    about = parser.add_argument_group("options")
    about.add_argument("-h", "--help", action="help", help="show this help, and exit")
    about.add_argument("-V", "--version", action="version", version=f"tnadapt {__version__}", help="show the version")
    made: dict[str, argparse.ArgumentParser] = {}
    for name, run in runs.items():
        one = COMMANDS[name]
        made[name] = commands.add_parser(
            name,
            help=one.about,
            description=f"{one.about[0].upper()}{one.about[1:]}.",
            epilog=_examples(one.examples),
            formatter_class=HELP,
        )
        made[name].set_defaults(run=run, several=name == "compare")
    add_name(made["new"])
    _add_specs(made, suggestions)
    _add_sites(made, suggestions)
    _add_figures(made)
    made["completion"].add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def _examples(lines: Collection[str]) -> str:
    return "\n".join([f"example{'s' * (len(lines) > 1)}:", *(f"  {line}" for line in lines)])


def _add_specs(made: Mapping[str, argparse.ArgumentParser], suggestions: Suggestions | None) -> None:
    """Add what each command is about: specs, or an adapter and the spec of another."""
    spec: dict[str, Any] = {"type": spec_named, "metavar": SPEC, "choices": suggestions.specs if suggestions else None}
    told = "the name of a family, or a spec in a Python file"
    for name in ("show", "draw", "check"):
        made[name].add_argument("spec", help=told, **spec)
    made["compare"].add_argument("specs", nargs="+", help=told, **spec)
    picture = made["draw"].add_argument(
        "-o", "--output", type=Path, metavar="FILE.svg", help="write an SVG; else print text"
    )
    laws, smaller = made["check"], made["compress"]
    laws.add_argument("--examples", type=whole_number, default=25, metavar="N", help="adapters per law (default 25)")
    laws.add_argument("--rank", type=rank_of, metavar="R", help="rank of every bond, or p=8,q=4 (default random)")
    source = smaller.add_argument("source", type=Path, metavar="DIR|FILE", help="a PEFT checkpoint, or a tnadapt file")
    smaller.add_argument("--to", required=True, help="the spec of the new adapter", **spec)
    output = smaller.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="safetensors file to write"
    )
    smaller.add_argument("--rank", type=rank_of, metavar="R", help=f"rank of every bond, or p=8,q=4 (default {RANK})")
    smaller.add_argument("--seed", type=int, default=0, help="seed of the frozen factors and of random starting values")
    smaller.add_argument(
        "--sweeps", type=whole_number, default=SWEEPS, metavar="N", help=f"most sweeps (default {SWEEPS})"
    )
    for action in (picture, source, output):
        if suggestions:
            vars(action)["complete"] = suggestions.files  # where shtab looks for it


def _add_sites(made: Mapping[str, argparse.ArgumentParser], suggestions: Suggestions | None) -> None:
    """Add the options that bind a spec to the weights of a model."""
    for name in ("show", "compare", "draw"):
        one = made[name]
        default = "default: none, a diagram without sizes" if name == "draw" else f"default {MODEL}"
        text = f"the name of a model, or a Hugging Face config.json ({default})"
        one.add_argument("--sites", metavar="MODEL", help=text, choices=suggestions.models if suggestions else None)
        one.add_argument(
            "--target-modules", nargs="+", metavar="NAME", help="names, suffixes or all-linear (default query, value)"
        )
        ranks = one.add_mutually_exclusive_group()
        ranks.add_argument("--rank", type=rank_of, metavar="R", help=f"rank of every bond, or p=8,q=4 (default {RANK})")
        if name == "compare":
            ranks.add_argument(
                "--budget", type=whole_number, metavar="N", help="use the largest rank with at most N trainable entries"
            )
        one.add_argument("--seed", type=int, default=0, help="seed of the frozen factors (default 0)")


def _add_figures(made: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add the options of scales, of sizes, and of what is computed and printed."""
    for name in ("show", "compare"):
        made[name].add_argument(
            "--tokens", type=whole_number, default=TOKENS, help=f"tokens per call, for costs (default {TOKENS})"
        )
        made[name].add_argument(
            "--limit",
            type=whole_number,
            default=LIMIT,
            help=f"largest Jacobian, for degrees of freedom (default {LIMIT})",
        )
    for name in ("show", "compare", "compress", "draw"):
        one = made[name]
        one.add_argument("--alpha", type=float, help="alpha to use instead of the scale's")
        one.add_argument("--scale", type=scale_of, metavar="unit|unit:1.6|2", help="scale to use instead of the spec's")
    for name in ("show", "compare", "compress", "draw", "check"):
        made[name].add_argument(
            "--sizes", type=sizes_by_name, default={}, metavar="head=12", help="sizes of individual modes"
        )
    for name in ("show", "compare", "compress", "check", "list"):
        made[name].add_argument("--json", action="store_true", help="print JSON")
