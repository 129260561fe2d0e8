"""The command `tnadapt`: show, compare, check, draw, begin and compress. An error is one line and status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from tnadapt import families
from tnadapt._command.arguments import Rank, rank_of, scale_of, sizes_by_name, spec_named, whole_number
from tnadapt._command.compress import add_words, compress_checkpoint
from tnadapt._command.new import add_name, make_adapter
from tnadapt._command.terminal import output, print_json, print_lines, table_of
from tnadapt._diagram import draw
from tnadapt._errors import FormatError, LawError, SiteError, SpecError, TnadaptError
from tnadapt._files import write_atomically
from tnadapt._hosts import CONFIGS, Host, Site, find_host
from tnadapt._language import Adapter, AdapterSpec, Network, count
from tnadapt._planning import plan
from tnadapt._report import LIMIT, TOKENS, compare, report
from tnadapt._structure import fit_rank

__all__: list[str] = []

RANK, PAIR = 8, 2
BROKEN, FAULT, INTERRUPTED = 1, 2, 130  # exit statuses: a law is broken; an error; Ctrl-C
HEAD = "head"  # the mode whose size the host gives


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. Without `arguments`, use those of the process."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.run(options))
    except TnadaptError as error:
        return _fail(error, FAULT)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN
        return _fail(error, FAULT)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: Exception, status: int) -> int:
    print(f"tnadapt: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _show(options: argparse.Namespace) -> int:
    adapter = _bind(options.spec, options)
    spec = adapter.spec  # with the scale that was asked for
    with _progress() as tell:
        found = report(adapter, tokens=options.tokens, limit=options.limit, tell=tell)
    network = found.adapter.networks[0]
    order = plan(network, tokens=options.tokens)
    if options.json:
        return print_json({"text": str(spec), "report": found.to_dict(), "plan": str(order)})
    console = output()
    print_lines(console, str(spec), "")
    print_lines(console, *(f"{name:<20}{text}" for name, text in found.facts()), "")
    console.print(table_of(found.factors(), left=4), "")
    console.print(table_of(found.rows()), "")
    print_lines(console, str(order), "", str(draw(network)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    sites = _sites_of(options)
    _check_names(options)
    adapters: list[Adapter] = []
    over: list[tuple[str, int]] = []
    for spec in options.specs:
        sizes, rank = _sizes(spec, sites, options), _rank(spec, options)
        if options.budget is not None:
            least = count(spec.bind(sites, rank=1 if spec.free_bonds else None, sizes=sizes)).trainable
            if least > options.budget:
                over.append((spec.name, least))
                rank = 1 if spec.free_bonds else None
            elif spec.free_bonds:
                rank = fit_rank(spec, sites, trainable=options.budget, sizes=sizes)
        adapters.append(_bound(spec, sites, rank, sizes, options))
    with _progress() as tell:
        found = compare(adapters, tokens=options.tokens, limit=options.limit, tell=tell)
    if options.json:
        return print_json(
            {"reports": found.to_dict(), "over_budget": [{"spec": name, "trainable": least} for name, least in over]}
        )
    console = output()
    console.print(table_of(found.rows()))
    if over:
        told = ", ".join(f"{name} ({least:,})" for name, least in over)
        print_lines(console, f"over the budget of {options.budget:,} even at rank 1: {told}")
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        from tnadapt.testing import LAWS, check  # noqa: PLC0415  (hypothesis is an extra)
    except ModuleNotFoundError as error:
        text = f"expected {error.name} to be installed, got no such module.\nRun pip install 'tnadapt[testing]'."
        raise SpecError("check", [text], "") from None
    held: list[dict[str, Any]] = []
    console = output()
    with _progress() as tell:

        def told(one: Any) -> None:
            held.append({"law": one.law, "statement": one.statement, "examples": one.examples})
            if not options.json:
                print_lines(console, f"holds  {one.law}: {one.statement}")
            tell(f"{len(held)} of {len(LAWS)} laws hold")

        try:
            check(options.spec, examples=options.examples, rank=options.rank, sizes=options.sizes, tell=told)
        except LawError as error:
            line, _, rest = str(error).partition("\nThe smallest case")
            if options.json:
                print_json({"spec": options.spec.name, "held": held, "broken": line})
            else:
                print_lines(console, f"The smallest case{rest}")
            return _fail(LawError(line), BROKEN)
    if options.json:
        return print_json({"spec": options.spec.name, "held": held, "broken": None})
    print_lines(console, f"{options.spec.name} satisfies all {len(held)} laws")
    return 0


def _draw(options: argparse.Namespace) -> int:
    what: AdapterSpec | Network = options.spec
    if options.sites is None:
        _check_sized(options)
    else:
        what = _bind(options.spec, options).networks[0]
    diagram = draw(what)
    if options.output is None:
        print_lines(output(), str(diagram))
    else:
        try:
            write_atomically(options.output, diagram.svg().encode())
        except OSError as error:
            raise FormatError(f"{options.output}: expected a writable path, got error {error.strerror!r}.") from None
        print(options.output)
    return 0


def _list(options: argparse.Namespace) -> int:
    about = {name: (getattr(families, name).__doc__ or "").partition("\n")[0] for name in families.__all__}
    if options.json:
        return print_json({"families": about, "models": list(CONFIGS)})
    console = output()
    console.print(table_of([["family", ""], *([name, text] for name, text in about.items())], left=2))
    print_lines(console, f"models: {', '.join(CONFIGS)}, or the path of a Hugging Face config.json")
    return 0


def _bind(spec: AdapterSpec, options: argparse.Namespace) -> Adapter:
    sites = _sites_of(options)
    sizes = _sizes(spec, sites, options)
    return _bound(spec, sites, _rank(spec, options), sizes, options)


def _bound(
    spec: AdapterSpec, sites: Iterable[Site], rank: Rank | None, sizes: Mapping[str, int], options: argparse.Namespace
) -> Adapter:
    return spec.bind(sites, rank=rank, sizes=sizes, alpha=options.alpha, scale=options.scale, seed=options.seed)


def _host(options: argparse.Namespace) -> Host:
    if options.sites is None:
        raise SiteError("--sites: expected a model or a config.json, got none.\nRun `tnadapt list` to see the models.")
    return find_host(options.sites)


def _sites_of(options: argparse.Namespace) -> tuple[Site, ...]:
    return _host(options).sites(options.target_modules)


def _rank(spec: AdapterSpec, options: argparse.Namespace) -> Rank | None:
    """Return the given rank, or the default for a spec that takes one. Of several specs, each takes what it can."""
    asked: Rank | None = options.rank
    if asked is None or (options.several and isinstance(asked, int)):
        return (asked or RANK) if spec.free_bonds else None
    return _own(spec, asked, options) if isinstance(asked, dict) else asked


def _sizes(spec: AdapterSpec, sites: Iterable[Site], options: argparse.Namespace) -> dict[str, int]:
    """Return the given sizes. Split an axis (head dim) into heads of the host's size if its length permits that."""
    sizes = _own(spec, options.sizes, options)
    for number, axis in enumerate(spec.axes):
        if HEAD in axis and len(axis) == PAIR and not set(axis) & sizes.keys():
            length = _host(options).head_size
            (other,) = (mode for mode in axis if mode != HEAD)
            if all(site.shape[number] % length == 0 for site in sites):
                sizes[other] = length
    return sizes


def _own(spec: AdapterSpec, asked: Mapping[str, int], options: argparse.Namespace) -> dict[str, int]:
    """Return those sizes whose mode one of several specs has. A single spec gets all, and rejects unknown ones."""
    if not options.several:
        return dict(asked)
    return {mode: size for mode, size in asked.items() if mode in _modes(spec)}


def _modes(spec: AdapterSpec) -> set[str]:
    return {*spec.bonds, *(mode for axis in spec.axes for mode in axis)}


def _check_names(options: argparse.Namespace) -> None:
    """Raise SiteError if a rank or a size has no effect: none of the specs has its mode, or takes a rank."""
    known = set().union(*map(_modes, options.specs))
    asked = {*options.sizes, *(options.rank if isinstance(options.rank, dict) else ())}
    if unknown := sorted(asked - known):
        raise SiteError(
            f"compare: expected a mode of these specs, got {unknown[0]!r}.\nTheir modes are {', '.join(sorted(known))}."
        )
    if isinstance(options.rank, int) and not any(spec.free_bonds for spec in options.specs):
        raise SiteError(
            f"compare: expected no rank, since no bond of these specs takes one, got {options.rank}.\nLeave it out."
        )


def _check_sized(options: argparse.Namespace) -> None:
    """Raise SiteError for an option that has no effect on the diagram of a spec without sites."""
    given = {"rank": options.rank, "sizes": options.sizes, "alpha": options.alpha, "scale": options.scale}
    for name, value in (given | {"target-modules": options.target_modules}).items():
        if value not in (None, {}):
            raise SiteError(
                f"--{name}: expected --sites as well, since a spec alone has no sizes, got none.\n"
                "Add the name of a model, such as --sites gpt2."
            )


class _progress:
    """A status line on standard error, shown only if that is a terminal."""

    def __enter__(self) -> Callable[[str], None]:
        self._status = Console(stderr=True).status("binding")
        self._status.start()
        return self._status.update

    def __exit__(self, *error: object) -> None:
        self._status.stop()


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as are all errors of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAULT, f"tnadapt: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tnadapt", description="Show, compare, check and draw tensor-network adapters.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.set_defaults(run=run, several=False)
        return made

    spec = {"type": spec_named, "metavar": "FAMILY|FILE.py:NAME"}
    show = command("show", _show, "print a spec, its report, its plan and its diagram")
    show.add_argument("spec", **spec)  # type: ignore[arg-type]
    several = command("compare", _compare, "compare several specs on one model, in one table")
    several.add_argument("specs", nargs="+", **spec)  # type: ignore[arg-type]
    picture = command("draw", _draw, "draw a spec, or with --sites a network with its sizes and its minimum cut")
    picture.add_argument("spec", **spec)  # type: ignore[arg-type]
    picture.add_argument("-o", "--output", type=Path, metavar="FILE.svg", help="write an SVG; else print text")
    laws = command("check", _check, "test every law on a spec, bound to random sites")
    laws.add_argument("spec", **spec)  # type: ignore[arg-type]
    laws.add_argument("--examples", type=whole_number, default=25, metavar="N", help="adapters per law (default 25)")
    laws.add_argument("--rank", type=rank_of, metavar="R", help="rank of every bond, or p=8,q=4 (default random)")
    smaller = command("compress", compress_checkpoint, "find the closest adapter of another spec to a trained one")
    add_words(smaller)
    several.set_defaults(several=True)
    add_name(command("new", make_adapter, "write a new spec, its test, its picture and its row into a new folder"))
    names = command("list", _list, "list the families and the models")
    for one in (show, several, picture):
        one.add_argument("--sites", metavar="MODEL", help="the name of a model, or a Hugging Face config.json")
        one.add_argument(
            "--target-modules", nargs="+", metavar="NAME", help="names, suffixes or all-linear (default query, value)"
        )
        ranks = one.add_mutually_exclusive_group()
        ranks.add_argument("--rank", type=rank_of, metavar="R", help=f"rank of every bond, or p=8,q=4 (default {RANK})")
        if one is several:
            ranks.add_argument(
                "--budget", type=whole_number, metavar="N", help="use the largest rank with at most N trainable entries"
            )
        one.add_argument("--seed", type=int, default=0)
    for one in (show, several):
        one.add_argument(
            "--tokens", type=whole_number, default=TOKENS, help=f"tokens per call, for costs (default {TOKENS})"
        )
        one.add_argument(
            "--limit",
            type=whole_number,
            default=LIMIT,
            help=f"largest Jacobian, for degrees of freedom (default {LIMIT})",
        )
    for one in (show, several, smaller, picture):
        one.add_argument("--alpha", type=float, help="alpha to use instead of the scale's")
        one.add_argument("--scale", type=scale_of, metavar="unit|unit:1.6|2", help="scale to use instead of the spec's")
    for one in (show, several, smaller, picture, laws):
        one.add_argument("--sizes", type=sizes_by_name, default={}, metavar="head=12", help="sizes of individual modes")
    for one in (show, several, smaller, laws, names):
        one.add_argument("--json", action="store_true", help="print JSON")
    return parser
