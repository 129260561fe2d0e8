"""The limits of a file: the most of each thing that it may contain or ask for, checked before anything is made.

`save` and `to_json` keep to them too, so that what they write can be read. Each bounds what it costs to believe one
number, name or list of a small file that was forged; with all of them, reading takes seconds and less than 4 GiB.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tnadapt._errors import FormatError
from tnadapt._hosts import Site, divisors
from tnadapt._language import MOST_AXES, AdapterSpec, modes_of

__all__: list[str] = []

HEADER = 2**26  # bytes of names and text; two factors for each of 100,000 sites take 30 MB
NESTED = 2**22  # lists and objects in a text, each of which takes 60 to 250 bytes of memory; a tensor is described by 3
WORD = 500  # characters of a name or a path, which may be repeated for every site
LINE = 2**16  # characters of a string that names modes
FACTORS = 512  # which a contraction order is found for in seconds
TERMS = 64  # of one spec
MODES = 1_024  # of one spec
OWN = 4_096  # sizes of bonds of single groups, each of which may be a network of its own
ENDS = 4_096  # modes of all factors together, each counted for every factor that has it; the work of a plan
OVER = 16  # site modes of a spec, and coordinates of a site
SITES = 100_000  # the largest mixtures of experts have 70,000 weights; patterns of paths may be as many
SHAPES = 1_024  # different shapes of sites, each of which has its own network
BINDING = 2**22  # sites times the factors and modes of the spec: about a second
MOST_LINKS = 1_024  # of a chain
CHAINED = 2**24  # sites times factors and modes of all links of a chain: about four seconds
SPLITS = 2**16  # divisors of all lengths of axes that split into modes of free size
NUMBER = 63  # bits of a coordinate that is a number, which becomes a part of names
SEED = 4_096  # bits of a seed
STORED = 2**33  # numbers in the file: the embedding and the head of the largest models are 8 billion
MADE, MADE_PER_STORED, MOST_MADE = 2**26, 16, 2**28  # numbers that are drawn, and not stored: about 3 seconds
PADDED = 64  # numbers of an adapter for each number of a PEFT checkpoint, if they are more than MOST_MADE
SEARCHED = 2**28  # steps of a search for regular expressions: about 3 seconds
MATCHED = 2**24  # comparisons of a tensor's name with a module to save
UNNAMED = 16  # times the arrays of a file: an adapter that needs more is not compared with it name by name
MOST_TEXT = 4_000  # characters of a message that quotes the file

TODO = "docs/reference/files.md lists the limits."


def keep(where: object, what: str, number: int, limit: int, todo: str = TODO) -> None:
    """Raise FormatError if a number is above its limit; `what` names what is counted, in the plural."""
    if number > limit:
        raise FormatError(f"{where}: expected at most {limit:,} {what}, got {number:,}.\n{todo}")


def shorten(text: object) -> str:
    """Return a text that quotes a file; if it is too long to be printed, its beginning and its end."""
    whole, half = str(text), MOST_TEXT // 2
    return whole if len(whole) <= MOST_TEXT else f"{whole[:half]} ... {whole[-half:]}"


def check_text(text: str) -> None:
    """Raise FormatError for a JSON text that is too long, or that would make too many lists and objects."""
    keep("the text", "characters", len(text), HEADER)
    keep("the text", "lists and objects", text.count("[") + text.count("{"), NESTED)


def check_names(where: str, names: Collection[str]) -> None:
    """Raise FormatError for a name that is too long."""
    keep(where, "characters in a name", max(map(len, names), default=0), WORD)


def check_extra(names: Iterable[object]) -> None:
    """Raise FormatError for a name of an extra tensor that no file takes."""
    for name in names:
        if not isinstance(name, str) or (not name.isascii() and name.encode(errors="ignore").decode() != name):
            raise FormatError(
                f"extra: expected names that UTF-8 can encode, got {name!a:.100}.\nRename it. Nothing was written."
            )


def check_factors(factors: Collection[str]) -> None:
    """Raise FormatError for too many names of factors, or one that is too long."""
    keep("spec", "factors", len(factors), FACTORS)
    check_names("spec", factors)


def check_spec(data: Mapping[str, Any]) -> None:
    """Raise FormatError for a spec, as plain data, with too many or too long names, factors or modes."""
    factors = data["factors"]
    check_factors(factors)
    outer = {word: _modes(word, data[word]) for word in ("weight", "over")}
    keep("over", "modes", len(outer["over"]), OVER)
    inner = {name: _modes(f"factor {name}", factor.get("modes", "")) for name, factor in factors.items()}
    fans = {
        name: _modes(f"fan of {name}", factor["init"]["fan"] if "init" in factor else "")
        for name, factor in factors.items()
    }
    for name in factors:
        keep(f"factor {name}", "modes", len(inner[name]), MOST_AXES)
        keep(f"fan of {name}", "modes", len(fans[name]), MOST_AXES)
    keep("spec", "modes of all factors together", sum(map(len, inner.values())), ENDS)
    known = set().union(*outer.values(), *inner.values(), *fans.values())
    keep("spec", "modes", len(known), MODES)
    sizes = data["sizes"]
    keep("sizes", "modes", len(sizes), MODES)
    rules = [
        word for rule in sizes.values() if isinstance(rule, dict) for word in rule.values() if isinstance(word, str)
    ]
    sources = [factor["same"] for factor in factors.values() if "same" in factor]
    check_names("spec", [data["name"], data["scale"]["bond"], *known, *sizes, *map(str, rules), *sources])
    terms = [_modes(f"term {number}", term) for number, term in enumerate(data.get("terms", []))]
    keep("spec", "factors in all terms together", sum(map(len, terms)), FACTORS)
    keep("spec", "terms", len(terms), TERMS)


def _modes(where: str, line: str) -> tuple[str, ...]:
    keep(where, "characters", len(line), LINE)
    return modes_of(line)


def check_asked(rank: object, sizes: Mapping[str, Any], seed: int) -> None:
    """Raise FormatError for too many ranks or sizes, or too large a seed."""
    for where, asked in (("rank", rank), ("sizes", sizes)):
        if isinstance(asked, Mapping):
            own = sum("." in name for name in asked) if where == "sizes" else 0
            keep(where, "modes", len(asked) - own, MODES)
            keep(where, "bonds of single groups", own, OWN)
            check_names(where, asked)
    keep("seed", "bits", seed.bit_length(), SEED)


def check_pattern(pattern: Mapping[str, Any]) -> None:
    """Raise FormatError for the pattern of a path, as plain data, that is too long or has too many coordinates."""
    block = pattern.get("block") or {"weight": [], "shape": [], "start": []}
    for path in (pattern["path"], block["weight"]):
        keep("pattern", "characters in a path", sum(map(len, path)), WORD)
    for shape in (pattern["shape"], block["shape"], block["start"]):
        keep("pattern", "axes", len(shape), MOST_AXES)
    keep("pattern", "coordinates", len(pattern["coordinates"]), OVER)
    check_names("pattern", pattern["coordinates"])
    for value in pattern["coordinates"].values():
        check_coordinate("pattern", value)


def check_coordinate(where: str, value: object) -> None:
    """Raise FormatError for a coordinate that is too long a text or too large a number."""
    if isinstance(value, str):
        keep(where, "characters in a coordinate", len(value), WORD)
    elif isinstance(value, int):
        keep(where, "bits in a coordinate", value.bit_length(), NUMBER)


def check_binding(spec: AdapterSpec, sites: Collection[Site], sizes: Mapping[str, int]) -> None:
    """Raise FormatError if it would take too long to find the groups and sizes of an adapter."""
    keep("sites", "sites", len(sites), SITES)
    modes = {mode for factor in spec.factors.values() for mode in factor.modes or ()}
    work = len(sites) * (len(spec.factors) + len(modes))
    keep("sites", "sites times factors and modes of the spec", work, BINDING)
    shapes = {site.shape for site in sites}
    keep("sites", "different shapes", len(shapes), SHAPES)
    free = [sum(mode not in sizes for mode in axis) for axis in spec.axes]
    lengths = {(length, parts) for shape in shapes for length, parts in zip(shape, free, strict=False) if parts > 1}
    keep("sites", "divisors of lengths that split", sum(len(divisors(length)) for length, _ in lengths), SPLITS)
