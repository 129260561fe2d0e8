"""The command `tnadapt`: a spec shown, compared, checked and drawn from a shell. Errors are one line, exit status 2."""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from tnadapt import families
from tnadapt._configs import CONFIGS
from tnadapt._count import count, fit_rank
from tnadapt._diagram import draw
from tnadapt._errors import FormatError, LawError, SiteError, SpecError, TnadaptError
from tnadapt._format import write_atomically
from tnadapt._hosts import ALL_LINEAR, Host, find_host
from tnadapt._network import Network, Site
from tnadapt._plan import plan
from tnadapt._report import LIMIT, TOKENS, compare, report
from tnadapt._spec import Adapter, AdapterSpec

__all__: list[str] = []

RANK = 8
BROKEN, FAULT, INTERRUPTED = 1, 2, 130  # exit statuses: a law does not hold; an error; Ctrl-C
WIDE = 160  # columns where the output is no terminal
HEAD = "head"  # the mode that a host knows the size of

Rank = int | dict[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. `arguments` are those of the process unless given."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except TnadaptError as error:
        return _fail(error, FAULT)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read us has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN
        return _fail(error, FAULT)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: Exception, status: int) -> int:
    line = " ".join(part.strip(" -") if part.startswith("  - ") else part for part in str(error).split("\n"))
    print(f"tnadapt: {line}", file=sys.stderr)
    return status


def _show(options: argparse.Namespace) -> int:
    spec = options.spec
    adapter = _bind(spec, options)
    with _progress() as tell:
        found = report(adapter, tokens=options.tokens, limit=options.limit, tell=tell)
    network = found.adapter.networks[0]
    order = plan(network, tokens=options.tokens)
    if options.json:
        return _print_json({"text": str(spec), "report": found.to_dict(), "plan": str(order)})
    console = _console()
    _print(console, str(spec), "")
    _print(console, *(f"{name:<20}{text}" for name, text in found.facts()), "")
    console.print(_table(found.factors(), left=4), "")
    console.print(_table(found.rows()), "")
    _print(console, str(order), "", str(draw(network)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    sites = _sites_of(options)
    adapters: list[Adapter] = []
    over: dict[str, int] = {}
    for spec in options.specs:
        sizes, rank = _sizes(spec, options), _rank(spec, options)
        if options.budget is not None:
            least = count(spec.bind(sites, rank=1, sizes=sizes)).trainable
            if least > options.budget:
                over[spec.name] = least
            rank = 1 if spec.name in over else fit_rank(spec, sites, trainable=options.budget, sizes=sizes)
        adapters.append(spec.bind(sites, rank=rank, sizes=sizes, alpha=options.alpha, seed=options.seed))
    with _progress() as tell:
        found = compare(adapters, tokens=options.tokens, limit=options.limit, tell=tell)
    if options.json:
        return _print_json({"reports": found.to_dict(), "over_budget": over})
    console = _console()
    console.print(_table(found.rows()))
    if over:
        told = ", ".join(f"{name} ({least:,})" for name, least in over.items())
        _print(console, f"over the budget of {options.budget:,} at rank 1 already: {told}")
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        from tnadapt.testing import LAWS, check  # noqa: PLC0415  (hypothesis is an extra)
    except ModuleNotFoundError as error:
        raise SpecError("check", [f"needs {error.name}: pip install 'tnadapt[testing]'"]) from None
    held: list[dict[str, Any]] = []
    console = _console()
    with _progress() as tell:

        def told(one: Any) -> None:
            held.append({"law": one.law, "statement": one.statement, "examples": one.examples})
            if not options.json:
                _print(console, f"holds  {one.law}: {one.statement}")
            tell(f"{len(held)} of {len(LAWS)} laws hold")

        try:
            check(options.spec, examples=options.examples, rank=options.rank, sizes=options.sizes, tell=told)
        except LawError as error:
            line, _, rest = str(error).partition("\nThe smallest case")
            if options.json:
                _print_json({"spec": options.spec.name, "held": held, "broken": line})
            else:
                _print(console, f"The smallest case{rest}")
            return _fail(LawError(line), BROKEN)
    if options.json:
        return _print_json({"spec": options.spec.name, "held": held, "broken": None})
    _print(console, f"{options.spec.name} keeps all {len(held)} laws")
    return 0


def _draw(options: argparse.Namespace) -> int:
    what: AdapterSpec | Network = options.spec
    if options.sites is not None:
        what = _bind(options.spec, options).networks[0]
    diagram = draw(what)
    if options.output is None:
        _print(_console(), str(diagram))
    else:
        try:
            write_atomically(options.output, diagram.svg().encode())
        except OSError as error:
            raise FormatError(f"{options.output}: cannot be written: {error.strerror}") from None
        print(options.output)
    return 0


def _list(options: argparse.Namespace) -> int:
    about = {name: (getattr(families, name).__doc__ or "").partition("\n")[0] for name in families.__all__}
    if options.json:
        return _print_json({"families": about, "models": list(CONFIGS)})
    console = _console()
    console.print(_table([["family", ""], *([name, text] for name, text in about.items())], left=2))
    _print(console, f"models: {', '.join(CONFIGS)}, or the path of a Hugging Face config.json")
    return 0


def _bind(spec: AdapterSpec, options: argparse.Namespace) -> Adapter:
    return spec.bind(
        _sites_of(options),
        rank=_rank(spec, options),
        sizes=_sizes(spec, options),
        alpha=options.alpha,
        seed=options.seed,
    )


def _host(options: argparse.Namespace) -> Host:
    if options.sites is None:
        raise SiteError("--sites: name a model or a config.json; `tnadapt list` shows the names.")
    return find_host(options.sites)


def _sites_of(options: argparse.Namespace) -> tuple[Site, ...]:
    targets = options.target_modules
    return _host(options).sites(ALL_LINEAR if targets == [ALL_LINEAR] else targets)


def _rank(spec: AdapterSpec, options: argparse.Namespace) -> Rank | None:
    """The rank asked for; one for every bond where the spec has bonds, none where it has none."""
    if options.rank is None or not spec.bonds:
        return options.rank if spec.bonds else None
    asked: Rank = options.rank
    return asked


def _sizes(spec: AdapterSpec, options: argparse.Namespace) -> dict[str, int]:
    """The sizes asked for; a mode named head has that of the host unless it was given, or follows from another."""
    sizes: dict[str, int] = dict(options.sizes)
    for axis in spec.axes:
        if HEAD in axis and not set(axis) & sizes.keys():
            sizes[HEAD] = _host(options).heads
    return sizes


def _spec_named(text: str) -> AdapterSpec:
    """A family by its name, or what a file of python calls by a name: file.py:name."""
    if text in families.__all__:
        family: Callable[[], AdapterSpec] = getattr(families, text)
        return family()
    file, colon, name = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"no family {text!r}; there are {', '.join(families.__all__)}, or file.py:name for a spec of your own"
        )
    try:
        room = runpy.run_path(file)
        found = room[name]
        found = found() if callable(found) else found
    except KeyError:
        specs = [key for key, value in room.items() if isinstance(value, AdapterSpec)]
        raise argparse.ArgumentTypeError(f"{file} has no {name!r}; it has {', '.join(specs) or 'no spec'}") from None
    except TnadaptError as error:
        raise argparse.ArgumentTypeError(f"{file}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from None
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{file}: {type(error).__name__}: {error}") from None
    if not isinstance(found, AdapterSpec):
        raise argparse.ArgumentTypeError(f"{text}: is no AdapterSpec, nor a function that returns one")
    return found


def _whole(text: str) -> int:
    try:
        number = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted 1 or more, got {number}")
    return number


def _pairs(text: str) -> dict[str, int]:
    """Sizes by name, as in p=8,q=4."""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [name for name, sign, _ in pairs if not sign or not name]:
        raise argparse.ArgumentTypeError(f"wanted name=size, as in p=8,q=4; got {wrong[0] or text!r}")
    return {name.strip(): _whole(size) for name, _, size in pairs}


def _rank_of(text: str) -> Rank:
    return _pairs(text) if "=" in text else _whole(text)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, soft_wrap=not sys.stdout.isatty())


def _print(console: Console, *lines: str) -> None:
    """Lines as they are: no word in them is markup."""
    console.print(*lines, sep="\n", markup=False, highlight=False)


class _progress:
    """A line on the error output that says what is being done, where that is a terminal."""

    def __enter__(self) -> Callable[[str], None]:
        self._status = Console(stderr=True).status("binding")
        self._status.start()
        return self._status.update

    def __exit__(self, *error: object) -> None:
        self._status.stop()


def _table(rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose columns but the first `left` stand to the right."""
    head, *body = rows
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table


def _print_json(data: Any) -> int:
    print(json.dumps(data, indent=1))
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAULT, f"tnadapt: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tnadapt", description="Tensor-network adapters: what a spec is and does.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.set_defaults(run=run)
        return made

    spec = {"type": _spec_named, "metavar": "FAMILY|FILE.py:NAME"}
    show = command("show", _show, "print a spec, its report, its plan and its diagram")
    show.add_argument("spec", **spec)  # type: ignore[arg-type]
    several = command("compare", _compare, "several specs at one model, in one table")
    several.add_argument("specs", nargs="+", **spec)  # type: ignore[arg-type]
    several.add_argument("--budget", type=_whole, metavar="N", help="the largest rank that trains at most N numbers")
    picture = command("draw", _draw, "draw a spec, or with --sites a sized network with its minimum cut")
    picture.add_argument("spec", **spec)  # type: ignore[arg-type]
    picture.add_argument("-o", "--output", type=Path, metavar="FILE.svg", help="an SVG; without, a text")
    laws = command("check", _check, "try every law on a spec, bound to random sites")
    laws.add_argument("spec", **spec)  # type: ignore[arg-type]
    laws.add_argument("--examples", type=_whole, default=25, metavar="N", help="adapters a law (25)")
    laws.add_argument("--rank", type=_rank_of, metavar="R", help="of every bond, or p=8,q=4 (1 to 3 at random)")
    names = command("list", _list, "the names of families and models")
    for one in (show, several, picture):
        one.add_argument("--sites", metavar="MODEL", help="a model's name, or a Hugging Face config.json")
        one.add_argument(
            "--target-modules", nargs="+", metavar="NAME", help="names or suffixes, or all-linear (query and value)"
        )
        one.add_argument("--rank", type=_rank_of, default=RANK, metavar="R", help=f"of every bond ({RANK}), or p=8,q=4")
        one.add_argument("--alpha", type=float, help="in place of the spec's")
        one.add_argument("--seed", type=int, default=0)
    for one in (show, several):
        one.add_argument("--tokens", type=_whole, default=TOKENS, help=f"tokens of a call, for costs ({TOKENS})")
        one.add_argument(
            "--limit", type=_whole, default=LIMIT, help=f"of one Jacobian's numbers, for freedom ({LIMIT})"
        )
    for one in (show, several, picture, laws):
        one.add_argument("--sizes", type=_pairs, default={}, metavar="head=12", help="sizes of single modes")
    for one in (show, several, laws, names):
        one.add_argument("--json", action="store_true", help="for machines")
    return parser
