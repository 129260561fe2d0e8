"""The limits of a file: what is above one is refused in seconds, by reading and by writing alike."""

import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from tests.core.files import forged
from tests.core.files.forged import SECONDS, factor, in_a_child, site, spec, write, write_header, write_text
from tests.core.hosts.test_parts import herringbone, spiral
from tests.thorough import IS_THOROUGH, left_to_laws
from tnadapt import (
    AdapterSpec,
    FormatError,
    Site,
    families,
    from_json,
    grid,
    init,
    load,
    normal,
    raw,
    same,
    save,
    to_json,
    trainable,
)
from tnadapt._files import limits
from tnadapt._hosts.parts import MOST_COMPARED
from tnadapt._hosts.site import LARGEST
from tnadapt.binding import Block, read_checkpoint
from tnadapt.initializers import zeros

SMALL = {"A": np.zeros((6, 2), "f4")}
LORA = {"A": factor("out r"), "B": factor("r in", amount=1)}
BONDS = " ".join(f"b{n}" for n in range(24))
FROZEN = {"B": "0" * 64, "C": "0" * 64}


def frozen_factors(modes, kind):
    return {
        "A": factor("out r"),
        "B": factor(modes, trainable=False, kind=kind, amount=1),
        "C": factor(BONDS, trainable=False, kind=kind, amount=1),
    }


def split(count):
    modes = [f"m{n}" for n in range(count)]
    factors = {f"F{n}": factor(" ".join(modes[n : n + 50])) for n in range(0, count, 50)}
    return spec(weight=f"({' '.join(modes)}) in", factors=factors | {"B": factor("in", amount=1)})


def chain(count):
    """A spec of this many factors, each of which has a bond with the next."""
    inner = {f"F{n}": factor(f"b{n} b{n + 1}", amount=1) for n in range(count - 2)}
    return spec(factors=inner | {"A": factor("out b0"), "B": factor(f"b{count - 2} in", amount=1)})


def shapes(count, base=1):
    return {
        "patterns": [site((base + n, 4), f"q{n}") for n in range(count)],
        "sites": [[n, 0] for n in range(count)],
    }


SITES = [[0, n] for n in range(100_000)]
OVER = " ".join(f"c{n}" for n in range(2000))
SMOOTH = [2**a * 3**b * 5**c * 7 for a in range(8, 16) for b in range(5) for c in range(4)]
BOMBS = {  # arguments of `write`: a small file that says what would cost memory, time or the stack if it were believed
    "frozen identity of 26 modes": {
        "arrays": SMALL,
        "drawn": FROZEN,
        "spec": spec(factors=frozen_factors(f"in {BONDS} r", "identity")),
    },
    "frozen cyclic of 26 modes": {
        "arrays": SMALL,
        "drawn": FROZEN,
        "spec": spec(factors=frozen_factors(f"{BONDS} in r", "cyclic")),
    },
    "frozen controlled_z of 26 modes": {
        "arrays": SMALL,
        "drawn": FROZEN,
        "spec": spec(factors=frozen_factors(f"in {BONDS} r", "controlled_z")),
    },
    "a factor of 500 modes": {"spec": spec(weight=f"({OVER[:1890]}) in", factors={"A": factor(OVER[:1890])})},
    "an axis of 2,000 modes": {"spec": split(2000)},
    "an axis of 20,000 modes": {"spec": split(20_000)},
    "100,000 sites with factors of their own": {"sites": SITES},
    "3,000 blocks cut off one at a time": forged.blocks(*spiral(3000)),
    "5,000 blocks that no cut separates": forged.blocks(*herringbone(100)),
    "a path of a megabyte at 100,000 sites": {"sites": SITES, "patterns": [site(path="x" * 10**6)]},
    "100,000 coordinates": {"patterns": [site(coordinates={f"c{n}": n for n in range(10**5)})], "sites": SITES},
    "a long coordinate": {"patterns": [site(coordinates={"kind": "x" * 10**6})], "sites": SITES},
    "a long name of a coordinate": {"patterns": [site(coordinates={"x" * 10**6: 0})], "sites": SITES},
    "a coordinate of thousands of digits": {"patterns": [site(coordinates={"c": 10**4000})], "sites": SITES},
    "a layer of thousands of digits": {"sites": [[0, 10**4000]]},
    "a shape of 100,000 axes": {"patterns": [site((1,) * 10**5)], "sites": SITES},
    "a block of 100,000 axes": {
        "patterns": [site(block={"weight": ["w"], "shape": [1] * 10**5, "start": [0] * 10**5})],
        "sites": SITES,
    },
    "a long path of a block": {
        "patterns": [site(block={"weight": ["w" * 10**6, ""], "shape": [6, 4], "start": [0, 0]})],
        "sites": SITES,
    },
    "200,000 sites": {"sites": [[0, n] for n in range(200_000)]},
    "200,000 patterns": {"patterns": [site()] * 200_000},
    "5,000 factors": {"spec": chain(5000), "rank": 1},
    "500 factors at 100,000 sites": {"spec": chain(500), "rank": 1, "sites": SITES},
    "10,000 shapes": shapes(10_000),
    "1,000 shapes that take long to split": {
        "spec": spec(weight="(o1 o2 o3 o4) in", factors={"A": factor("o1 o2 o3 o4 r"), "B": factor("r in", amount=1)}),
        "patterns": [site((n, 4), f"q{n}") for n in SMOOTH * 6][:960],
        "sites": [[n, k] for k in range(6) for n in range(len(SMOOTH))],
    },
    "2,000 site modes": {"spec": spec(over=OVER, factors={"A": factor("out r")}), "sites": SITES},
    "a name of a megabyte": {"spec": spec(factors={"A" * 10**6: factor("out r"), "B": factor("r in", amount=1)})},
    "a mode of a megabyte": {"spec": spec(weight=f"{'o' * 10**6} in")},
    "modes of a megabyte": {"spec": spec(over="layer " * 10**6)},
    "a fan of a million modes": {"spec": spec(factors={"A": factor("out r", fan="in " * 10**6)})},
    "a fan that no float holds": {
        "arrays": SMALL,
        "drawn": {"C": "0" * 64},
        "rank": 2**31 - 1,
        "sizes": {"r": 2},
        "spec": spec(
            factors={
                "A": factor("out r"),
                "B": factor("r in", amount=1),
                "C": factor("r", trainable=False, kind="normal", amount=1, fan="s " * 40),
                "D": factor("s"),
                "E": factor("s"),
            }
        ),
    },
    "a cyclic factor without modes": {
        "arrays": SMALL,
        "spec": spec(factors={"A": factor("out in"), "C": factor("", trainable=False, kind="cyclic")}),
    },
    "half a surrogate pair": {"patterns": [site(path="\ud800")]},
    "100,000 ranks": {"rank": {f"b{n}": 1 for n in range(10**5)}},
    "100,000 sizes": {"sizes": {f"b{n}": 1 for n in range(10**5)}},
    "100,000 rules for sizes": {"spec": spec(sizes={f"b{n}": {"at_most": "in"} for n in range(10**5)})},
    "a rank of 2^40": {"rank": 2**40},
    "a rank of thousands of digits": {"rank": 10**4000},
    "a negative rank": {"rank": -1},
    "a seed of thousands of digits": {"seed": 10**4000},
    "a size that is no number": {"sizes": {"r": float("nan")}},
    "an infinite alpha": {"spec": spec(scale={"rule": "raw", "alpha": float("inf"), "bond": ""})},
    "2^27 normal numbers": {
        "arrays": SMALL,
        "patterns": [site((6, 2**26))],
        "drawn": {"B": "0" * 64},
        "spec": spec(factors={"A": factor("out r"), "B": factor("r in", trainable=False, kind="normal", amount=1)}),
    },
    "trained numbers that are not in it": {"arrays": {}, "patterns": [site((2**31 - 1, 2**31 - 1))], "rank": 2**31 - 1},
}
NEWER = {  # the same, with words that format 1 does not have
    "10,000 terms": {"spec": spec(terms=["A B"] * 10_000)},
    "a term of a million names": {"spec": spec(terms=["A B " * 10**6])},
    "a term of names of a megabyte": {"spec": spec(terms=["A" * 10**6])},
    "64 terms of 16 factors": {"spec": chain(16) | {"terms": [" ".join(chain(16)["factors"])] * 64}, "rank": 1},
    "10,000 copies": {"spec": spec(factors=LORA | {f"C{n}": {"same": "A"} for n in range(10_000)})},
    "a copy of 2,000 modes": {"spec": spec(factors=LORA | {"C": {"same": "A", "modes": OVER}})},
    "a copy of a name of a megabyte": {"spec": spec(factors=LORA | {"C": {"same": "A" * 10**6}})},
    "a rule with a name of a megabyte": {"spec": spec(sizes={"r": {"like": "o" * 10**6}})},
    "a size of 2^40": {"spec": spec(sizes={"r": 2**40}), "rank": None},
    "a size of thousands of digits": {"spec": spec(sizes={"r": 10**4000}), "rank": None},
    "shared numbers that are not in it": {
        "arrays": {"A": np.zeros((6, 2), "f4")},
        "patterns": [site((2**31 - 1, 2**31 - 1))],
        "spec": spec(factors=LORA | {"B": factor("r in", amount=1) | {"shared": True}}),
        "rank": 2**31 - 1,
    },
}


def refused(tmp_path, bombs, **words):
    paths = [write(tmp_path / str(number), **changes, **words) for number, changes in enumerate(bombs.values())]
    found = dict(zip(bombs, in_a_child(paths), strict=False))
    assert list(found) == list(bombs), f"ended the process: {list(bombs)[len(found)]}"
    assert {name: what for name, what in found.items() if what[0] != "refused" or what[1] > SECONDS} == {}


@pytest.mark.parametrize(
    "is_old", [False, True] if IS_THOROUGH else [True], ids={False: "format 2", True: "format 1"}.get
)
def test_a_forged_file_is_refused_in_seconds_and_little_memory(is_old, tmp_path):
    """Files of format 1 are read by the same code once they are upgraded: every run reads some of them."""
    names = list(BOMBS)[:: 5 if is_old and not IS_THOROUGH else 1]
    refused(tmp_path, {name: BOMBS[name] for name in names}, is_old=is_old)


def test_a_forged_file_with_the_words_of_format_2_is_refused_in_seconds_and_little_memory(tmp_path):
    refused(tmp_path, NEWER)


@pytest.mark.parametrize("is_old", [False, True], ids=["format 2", "format 1"])
def test_the_plain_forged_file_is_read(is_old, tmp_path):
    """Without a change, so that each bomb is refused for its change alone."""
    adapter, params = load(write(tmp_path / "a", is_old=is_old))
    assert (len(adapter.sites), {name: value.shape for name, value in params.items()}) == (
        1,
        {"A": (6, 2), "B": (2, 4)},
    )


TEXTS = {
    "lists in lists": "[" * 10**6,
    "objects in objects": '{"a":' * 10**6,
    "five million lists": "[" + "[]," * 5 * 10**6 + "[]]",
    "a number of a million digits": '{"format":' + "1" * 10**6 + "}",
    "a key twice": '{"format":2,"format":2}',
    "half a surrogate pair": '{"format":2,"spec":"\\ud800"}',
    "half a surrogate pair in format 1": '{"format":1,"spec":"\\ud800"}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_forged_text_is_refused_in_seconds(text, tmp_path):
    start = time.process_time()
    for read in (from_json, lambda text: load(write_text(tmp_path / "a", text, {}))):
        with pytest.raises(FormatError, match=r"(^the text|a): expected ") as caught:
            read(text)
        assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 5


def test_a_key_that_occurs_twice_is_named():
    with pytest.raises(FormatError, match="the text: expected each key of an object once, got 'seed' twice"):
        from_json(
            to_json(families.lora().bind(grid(layers=1, kinds={"q": (6, 4)}), rank=2)).replace('"s', '"seed":1,"s')
        )


def headers():
    empty = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(10**5)}
    many = {"__metadata__": {f"k{n}": "" for n in range(10**6)}}
    return {
        "100,000 tensors": json.dumps(empty),
        "a million metadata": json.dumps(many),
        "lists in lists": "{" + "[" * 10**6,
    }


@pytest.mark.parametrize(
    "name", ["100,000 tensors", "a million metadata", "lists in lists"] if IS_THOROUGH else ["lists in lists"]
)
def test_a_forged_header_is_refused_in_seconds(name, tmp_path):
    path = write_header(tmp_path / "a", headers()[name].encode())
    start = time.process_time()
    with pytest.raises(FormatError, match=r"a: expected a (tnadapt|whole safetensors) file"):
        load(path)
    assert time.process_time() - start < 5


def sparse(path, header, size):
    """Write a file of this size that takes no space on a disk."""
    write_header(path, json.dumps(header).encode())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    return path


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"tnadapt": "0 {}"}])
def test_a_large_foreign_file_is_refused_by_its_header(metadata, tmp_path):
    header = {"w": {"dtype": "F32", "shape": [2**10, 2**20], "data_offsets": [0, 2**32]}}
    path = sparse(tmp_path / "a", header | ({"__metadata__": metadata} if metadata else {}), 2**32)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="a: expected a tnadapt file, got another file"):
        load(path)
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_a_large_file_of_another_adapter_is_refused_by_its_header(tmp_path):
    text = json.dumps(forged.adapter() | {"library": "0", "drawn": {}, "stored": "0" * 64})
    header = {"A": {"dtype": "F32", "shape": [2**10, 2**20], "data_offsets": [0, 2**32]}}
    header["B"] = {"dtype": "F32", "shape": [2, 4], "data_offsets": [2**32, 2**32 + 32]}
    header["__metadata__"] = {"tnadapt": f"{forged.digest(text)} {text}"}
    with pytest.raises(FormatError, match=r"a: expected A of shape \(6, 2\), got \(1024, 1048576\)"):
        load(sparse(tmp_path / "a", header, 2**32 + 32))


def test_more_stored_numbers_than_the_limit_are_refused_before_they_are_read(tmp_path):
    size = limits.STORED + 1
    text = json.dumps(forged.adapter() | {"library": "0", "drawn": {}, "stored": "0" * 64})
    header = {"head:extra": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}
    for name, shape in (("A", [6, 2]), ("B", [2, 4])):
        start, end = 4 * size, 4 * size + 4 * int(np.prod(shape))
        size = end // 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header["__metadata__"] = {"tnadapt": f"{forged.digest(text)} {text}"}
    with pytest.raises(FormatError, match=r"a: expected at most 8,589,934,592 stored numbers, got 8,589,934,613"):
        load(sparse(tmp_path / "a", header, 4 * size))


def test_the_header_may_be_as_long_as_the_limit(tmp_path):
    for length, message in (
        (limits.HEADER, "whole safetensors"),
        (limits.HEADER + 1, "at most 67,108,864 bytes of header"),
    ):
        with (tmp_path / "a").open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(8 + length)
        with pytest.raises(FormatError, match=message):
            load(tmp_path / "a")


def test_more_numbers_are_drawn_for_a_file_that_stores_many(tmp_path, monkeypatch):
    """VeRA of a large model draws millions, and stores some millions; a small file may not ask for as many."""
    adapter = families.vera().bind(grid(layers=20, kinds={"q": (60, 40)}), rank=50)
    save(adapter, init(adapter), tmp_path / "a")
    stored, drawn = 20 * (60 + 50), 50 * (60 + 40)
    monkeypatch.setattr("tnadapt._files.file.MADE", 100)
    for per, most in ((2, 2 * stored), (3, 3 * stored), (100, 4000)):
        monkeypatch.setattr("tnadapt._files.file.MADE_PER_STORED", per)
        monkeypatch.setattr("tnadapt._files.file.MOST_MADE", 10**6 if per < 100 else 4000)
        if most >= drawn:
            assert load(tmp_path / "a")[0] == adapter
        else:
            todo = r"\nIf you trust it, pass draw_limit=5000\.$"
            with pytest.raises(FormatError, match=rf"at most {most:,} frozen numbers to draw, got 5,000\.{todo}"):
                load(tmp_path / "a")
    assert load(tmp_path / "a", draw_limit=drawn)[0] == adapter
    with pytest.raises(FormatError, match=r"at most 4,999 frozen numbers to draw, got 5,000"):
        read_checkpoint(tmp_path / "a", draw_limit=drawn - 1)


def named(**words):
    """A spec whose names are long."""
    name, mode = words.get("name", "A"), words.get("mode", "r")
    factors = {name: trainable(f"out {mode}", init=zeros()), "B": trainable(f"{mode} in")}
    return AdapterSpec(name="own", weight="out in", factors=factors, scale=raw())


def modes_of(count):
    """A spec with this many modes, some with the same ones in two factors."""
    bonds = [f"b{n}" for n in range(count - 2)]
    factors = {f"F{n}{side}": trainable(" ".join(bonds[n : n + 50])) for n in range(0, len(bonds), 50) for side in "ab"}
    ends = {"A": trainable("out in", init=zeros())}
    return AdapterSpec(name="own", weight="out in", factors=factors | ends, scale=raw())


def hyperedges(count):
    """A spec with this many modes of all factors together."""
    bonds = " ".join(f"b{n}" for n in range(50))
    factors = {f"F{n}": trainable(bonds) for n in range((count - 2) // 50)}
    rest = " ".join(f"b{n}" for n in range((count - 2) % 50))
    ends = {"A": trainable("out in", init=zeros())} | ({"R": trainable(rest)} if rest else {})
    return AdapterSpec(name="own", weight="out in", factors=factors | ends, scale=raw())


def chained(count):
    bonds = [f"b{n}" for n in range(count - 1)]
    inner = {f"F{n}": trainable(" ".join(bonds[n : n + 2])) for n in range(count - 2)}
    ends = {"A": trainable("out b0", init=zeros()), "B": trainable(f"{bonds[-1]} in")}
    return AdapterSpec(name="own", weight="out in", factors=inner | ends, scale=raw())


def of_terms(*counts):
    """A spec whose terms have this many factors each, of which one starts at 0."""
    factors = {f"F{n}": trainable("out in", init=normal() if n else zeros()) for n in range(max(counts))}
    names = list(factors)
    return AdapterSpec(
        name="own", weight="out in", factors=factors, terms=[" ".join(names[:count]) for count in counts], scale=raw()
    )


def copied(count):
    """A spec with a factor and this many copies of it, all with modes."""
    copies = {f"C{n}": same("A", " ".join(f"b{m}" for m in range(50))) for n in range(count)}
    modes = " ".join(f"b{m}" for m in range(50))
    ends = {"A": trainable(modes), "B": trainable("out in", init=zeros())}
    return AdapterSpec(name="own", weight="out in", factors=ends | copies, scale=raw())


def bound(sites):
    return families.lora().bind(sites, rank=1)


def coordinates(count, **more):
    return bound([Site("h.0.q", (6, 4), {f"c{n}": 0 for n in range(count)} | more)])


def private(count):
    """An adapter with this many groups, each of which has a rank of its own."""
    sites = [Site(f"h.{n}.q", (6, 4), {"layer": n, "kind": "q"}) for n in range(4200)]
    return families.lora().bind(sites, rank=1, sizes={f"{n}.q.r": 2 + n % 3 for n in range(count)})


ONE = Site("q", (6, 4))
WRITTEN = {  # what is at its limit, what is above it, and what the error says
    "factors": (lambda: chained(512), lambda: chained(513), "spec: expected at most 512 factors, got 513"),
    "modes": (lambda: modes_of(1024), lambda: modes_of(1025), "spec: expected at most 1,024 modes, got 1,025"),
    "modes of all factors": (
        lambda: hyperedges(4096),
        lambda: hyperedges(4097),
        "spec: expected at most 4,096 modes of all factors together, got 4,097",
    ),
    "a name": (
        lambda: named(name="A" * 500),
        lambda: named(name="A" * 501),
        "spec: expected at most 500 characters in a name, got 501",
    ),
    "the name of a mode": (
        lambda: named(mode="r" * 500),
        lambda: named(mode="r" * 501),
        "spec: expected at most 500 characters in a name, got 501",
    ),
    "modes of all factors and copies": (
        lambda: copied(80),
        lambda: copied(81),
        "spec: expected at most 4,096 modes of all factors together, got 4,102",
    ),
    "terms": (lambda: of_terms(*[2] * 64), lambda: of_terms(*[2] * 65), "spec: expected at most 64 terms, got 65"),
    "factors of all terms": (
        lambda: of_terms(511, 1),
        lambda: of_terms(511, 2),
        "spec: expected at most 512 factors in all terms together, got 513",
    ),
    "a path": (
        lambda: bound([Site("h.3." + "q" * 497, (6, 4), {"layer": 3, "kind": "q"})]),
        lambda: bound([Site("h.3." + "q" * 498, (6, 4), {"layer": 3, "kind": "q"})]),
        "pattern: expected at most 500 characters in a path, got 501",
    ),
    "a path of a block": (
        lambda: bound([Site("q", (6, 4), {}, Block("w" * 500, (6, 4), (0, 0)))]),
        lambda: bound([Site("q", (6, 4), {}, Block("w" * 501, (6, 4), (0, 0)))]),
        "pattern: expected at most 500 characters in a path, got 501",
    ),
    "coordinates": (
        lambda: coordinates(15),
        lambda: coordinates(16),
        "pattern: expected at most 16 coordinates, got 17",
    ),
    "a coordinate": (
        lambda: coordinates(0, task="x" * 500),
        lambda: coordinates(0, task="x" * 501),
        "pattern: expected at most 500 characters in a coordinate, got 501",
    ),
    "a layer": (
        lambda: bound([Site("q", (6, 4), {"layer": -(2**63) + 1})]),
        lambda: bound([Site("q", (6, 4), {"layer": 2**63})]),
        "the layer of q: expected at most 63 bits in a coordinate, got 64",
    ),
    "a seed": (
        lambda: families.lora().bind(ONE, rank=1, seed=2**4096 - 1),
        lambda: families.lora().bind(ONE, rank=1, seed=2**4096),
        "seed: expected at most 4,096 bits, got 4,097",
    ),
    "ranks of groups": (
        lambda: private(4096),
        lambda: private(4097),
        "sizes: expected at most 4,096 bonds of single groups, got 4,097",
    ),
    "shapes": (
        lambda: bound([Site(f"h.{n}.q", (n + 1, 4), {"layer": n}) for n in range(1024)]),
        lambda: bound([Site(f"h.{n}.q", (n + 1, 4), {"layer": n}) for n in range(1025)]),
        "sites: expected at most 1,024 different shapes, got 1,025",
    ),
}


@pytest.mark.parametrize(("most", "more", "message"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_at_its_limit_is_written_and_read_and_what_is_above_is_neither(most, more, message, monkeypatch):
    value = most()
    text = to_json(value)
    assert from_json(text) == value
    above = more()
    with pytest.raises(FormatError, match=rf"^{message}\.\ndocs/reference/files\.md lists the limits\."):
        to_json(above)
    with monkeypatch.context() as unchecked:
        for name in ("check_spec", "check_pattern", "check_asked", "check_binding", "check_coordinate"):
            unchecked.setattr(f"tnadapt._files.text.{name}", lambda *_: None)
        text = to_json(above)
    with pytest.raises(FormatError, match=message.rpartition(": ")[2]):
        from_json(text)


def test_a_seed_of_more_digits_than_python_writes_is_refused():
    with pytest.raises(FormatError, match="seed: expected at most 4,096 bits, got 16,610"):
        to_json(families.lora().bind(ONE, rank=1, seed=10**5000))


def test_sites_and_their_work_are_limited(monkeypatch):
    sites = grid(layers=10, kinds={"q": (6, 4), "v": (6, 4)})
    adapter = bound(sites)
    text = to_json(adapter)
    for name, limit, message in [
        ("SITES", 19, "expected at most 19 sites, got 20"),
        ("BINDING", 99, "expected at most 99 sites times factors and modes of the spec, got 100"),
    ]:
        monkeypatch.setattr(limits, name, limit)
        monkeypatch.setattr("tnadapt._files.text.SITES", limits.SITES)
        with pytest.raises(FormatError, match=message):
            to_json(adapter)
        with pytest.raises(FormatError, match=message):
            from_json(text)
        monkeypatch.undo()
    monkeypatch.setattr(limits, "SPLITS", 7)  # 6 has 4 divisors, 4 has 3
    tera = families.tera().bind(sites, rank=1)
    assert from_json(to_json(tera)) == tera
    monkeypatch.setattr(limits, "SPLITS", 6)
    with pytest.raises(FormatError, match="expected at most 6 divisors of lengths that split, got 7"):
        to_json(tera)


def test_nothing_above_a_limit_is_saved(tmp_path, monkeypatch):
    adapter = bound(grid(layers=2, kinds={"q": (6, 4)}))
    for name, limit, message in [
        ("STORED", 19, "save: expected at most 19 stored numbers, got 20"),
        ("HEADER", 100, r"save: expected at most 100 bytes of header, got \d+"),
    ]:
        monkeypatch.setattr(f"tnadapt._files.file.{name}", limit)
        with pytest.raises(FormatError, match=message):
            save(adapter, init(adapter), tmp_path / "a")
        monkeypatch.undo()
    large = chained(513).bind(ONE, rank=1, overparametrized=True)
    with pytest.raises(FormatError, match="spec: expected at most 512 factors, got 513"):
        save(large, init(large), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\ud800", "a\udfff", 3, None])
def test_an_extra_tensor_needs_a_name_that_a_file_takes(name, tmp_path):
    adapter = bound(ONE)
    with pytest.raises(
        FormatError, match=r"extra: expected names that UTF-8 can encode, got .*\nRename it. Nothing was"
    ):
        save(adapter, init(adapter), tmp_path / "a", extra={name: np.ones(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda part: grid(layers=2500 // part, kinds=dict.fromkeys("qkvo", (6, 4))), id="10,000 weights"),
        pytest.param(
            lambda part: grid(
                layers=250 // part, kinds=dict.fromkeys("qkvo", (8, 8)), tasks=[f"t{n}" for n in range(10)]
            ),
            id="1,000 weights of 10 tasks",
            marks=left_to_laws("each site is read as above"),
        ),
    ],
)
def test_the_time_to_read_an_adapter_is_in_proportion_to_its_sites(make, tmp_path):
    """10,000 sites take a second on a processor that does nothing else, and 5 times as long as a fifth of them."""
    seconds = {}
    for part in (5, 1):
        adapter = bound(make(part))
        params = {name: np.ones(slot.shape, "f4") for name, slot in adapter.slots.items()}
        save(adapter, params, tmp_path / "a")
        start = time.process_time()
        again, found = load(tmp_path / "a")
        seconds[part] = time.process_time() - start
        assert again == adapter
    assert len(found) == 20_000
    assert seconds[1] < 15 * seconds[5]  # 25 times, if each site looked at all others


TABLE = {  # the first column of the table in the docs
    "bytes of the header": limits.HEADER,
    "lists and objects in it": limits.NESTED,
    "characters of a name, a coordinate or a path": limits.WORD,
    "characters of a string of modes": limits.LINE,
    "axes of a weight, modes of a factor": limits.MOST_AXES,
    "factors of a spec": limits.FACTORS,
    "modes of a spec": limits.MODES,
    "sizes of bonds of single groups": limits.OWN,
    "modes of all its factors together": limits.ENDS,
    "site modes of a spec, coordinates of a site": limits.OVER,
    "terms of a spec": limits.TERMS,
    "factors of all its terms together": limits.FACTORS,
    "size of a mode": LARGEST,
    "sites, and patterns of their paths": limits.SITES,
    "different shapes of sites": limits.SHAPES,
    "blocks of one weight that no straight cut separates": MOST_COMPARED,
    "sites times factors and modes of the spec": limits.BINDING,
    "links of a chain": limits.MOST_LINKS,
    "sites times factors and modes of all its links": limits.CHAINED,
    "divisors of all lengths that split": limits.SPLITS,
    "bits of a coordinate": limits.NUMBER,
    "bits of the seed": limits.SEED,
    "stored numbers": limits.STORED,
    "frozen numbers to draw": limits.MADE,
}


def test_the_table_of_limits_in_the_docs_has_the_numbers_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    lines = page.split("## Limits")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert {what: number for what, number, _ in rows} == {what: f"{number:,}" for what, number in TABLE.items()}
    for number in (limits.MADE_PER_STORED, limits.PADDED):
        assert f" {number} " in page
    assert (limits.MADE, limits.MOST_MADE) == (2**26, 2**28)
