"""The command `tnadapt`: show, compare, check, draw, begin and compress. An error is one line and status 2."""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from tnadapt import families
from tnadapt._command.arguments import Rank
from tnadapt._command.completion import print_script
from tnadapt._command.compress import compress_checkpoint
from tnadapt._command.new import make_adapter
from tnadapt._command.options import FAULT, MODEL, RANK, make_parser
from tnadapt._command.progress import Line
from tnadapt._command.streams import drop, flush, opened
from tnadapt._command.terminal import UNLIMITED, output, plain, print_diagram, print_json, print_lines, print_table
from tnadapt._diagram import WIDTH, draw
from tnadapt._errors import LawError, SiteError, TnadaptError
from tnadapt._files import write_atomically
from tnadapt._hosts import CONFIGS, Host, Site, find_host
from tnadapt._language import Adapter, AdapterSpec, Network, count
from tnadapt._planning import plan
from tnadapt._report import compare, report
from tnadapt._structure import fit_rank

__all__: list[str] = []

PAIR = 2
BROKEN, INTERRUPTED, CLOSED = 1, 130, 141  # exit statuses: a law is broken; Ctrl-C; nobody reads on (as of SIGPIPE)
HEAD = "head"  # the mode whose size the host gives
LABEL = 7  # columns of "holds" before the statement of a law


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. Without `arguments`, use those of the process."""
    with opened():
        try:
            try:
                return _run(arguments)
            finally:
                flush()  # here, where a closed pipe can be answered
        except BrokenPipeError:
            drop(sys.stdout)
            return CLOSED
        except TnadaptError as error:  # the disk is full
            try:
                return _fail(error, FAULT)
            except BrokenPipeError:
                drop(sys.stderr)
                return CLOSED
        except KeyboardInterrupt:
            return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser(RUNS)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.run(options))
    except BrokenPipeError:
        raise
    except (TnadaptError, OSError) as error:
        return _fail(error, FAULT)


def _fail(error: Exception, status: int) -> int:
    """Print an error as one line, and return the exit status. Where standard error is full, the status is all."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without the number, and with the path first
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        text = f"{where}expected a path that can be used, got error {error.strerror!r}. Check the path."
    told = plain(f"tnadapt: {' '.join(text.split())}", getattr(sys.stderr, "encoding", None))
    try:
        print(told, file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError:
        drop(sys.stderr)
    return status


def _show(options: argparse.Namespace) -> int:
    adapter = _bind(options.spec, options)
    spec = adapter.spec  # with the scale that was asked for
    with Line("binding") as line:
        found = report(adapter, tokens=options.tokens, limit=options.limit, tell=line.tell)
    network = found.adapter.networks[0]
    order = plan(network, tokens=options.tokens)
    if options.json:
        told = {"model": options.sites or MODEL, "text": str(spec), "report": found.to_dict(), "plan": str(order)}
        return print_json(told)
    console = output()
    _print_defaults(console, options)
    print_lines(console, str(spec), "")
    print_table(console, [("", ""), *found.facts()], left=2)
    print_lines(console, "")
    print_table(console, found.factors(), left=4)
    print_lines(console, "")
    print_table(console, found.rows())
    print_lines(console, "", str(order), "")
    print_diagram(console, str(draw(network, columns=_columns(console))))
    return 0


def _print_defaults(console: Console, options: argparse.Namespace) -> None:
    """Say whose sizes these are if no model was named."""
    if options.sites is None:
        print_lines(console, f"Sizes of {MODEL}, the default. Choose others with --sites MODEL.", "")


def _columns(console: Console) -> int:
    """Return the columns for a diagram: those of the terminal, or the usual ones for a file."""
    return WIDTH if console.width == UNLIMITED else console.width


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
    with Line("binding") as line:
        found = compare(adapters, tokens=options.tokens, limit=options.limit, tell=line.tell)
    if options.json:
        beyond = [{"spec": name, "trainable": least} for name, least in over]
        return print_json({"model": options.sites or MODEL, "reports": found.to_dict(), "over_budget": beyond})
    console = output()
    _print_defaults(console, options)
    print_table(console, found.rows())
    if over:
        told = ", ".join(f"{name} ({least:,})" for name, least in over)
        print_lines(console, "", f"over the budget of {options.budget:,} even at rank 1: {told}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from tnadapt.testing import LAWS, check  # noqa: PLC0415  (hypothesis is an extra)

    held: list[dict[str, Any]] = []
    console = output()
    with Line("drawing adapters") as line:

        def told(one: Any) -> None:
            held.append({"law": one.law, "statement": one.statement, "examples": one.examples})
            if not options.json:
                with line.hidden():
                    print_lines(console, f"holds  {one.law}: {one.statement}", hang=LABEL)
            line.tell(f"{len(held)} of {len(LAWS)} laws hold")

        try:
            check(options.spec, examples=options.examples, rank=options.rank, sizes=options.sizes, tell=told)
        except LawError as error:
            first, _, rest = str(error).partition("\nThe smallest case")
            with line.hidden():
                if options.json:
                    print_json({"spec": options.spec.name, "held": held, "broken": first})
                else:
                    print_lines(console, f"The smallest case{rest}")
                return _fail(LawError(first), BROKEN)
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
    console = output()
    diagram = draw(what, columns=_columns(console))
    if options.output is None:
        print_diagram(console, str(diagram))
    else:
        write_atomically(options.output, diagram.svg().encode())
        print_lines(console, str(options.output))
    return 0


def _list(options: argparse.Namespace) -> int:
    about = {name: (getattr(families, name).__doc__ or "").partition("\n")[0] for name in families.__all__}
    if options.json:
        return print_json({"families": about, "models": list(CONFIGS)})
    console = output()
    print_table(console, [["family", "update"], *([name, text] for name, text in about.items())], left=2)
    print_lines(console, "", f"models: {', '.join(CONFIGS)}, or the path of a Hugging Face config.json", hang=LABEL + 1)
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
    return find_host(options.sites or MODEL)


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


def _complete(options: argparse.Namespace) -> int:
    return print_script(lambda suggestions: make_parser(RUNS, suggestions), options.shell)


RUNS = {
    "show": _show,
    "compare": _compare,
    "draw": _draw,
    "check": _check,
    "compress": compress_checkpoint,
    "new": make_adapter,
    "list": _list,
    "completion": _complete,
}
