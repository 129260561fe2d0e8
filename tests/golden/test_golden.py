"""Complete results compared with stored texts. Each text says where it came from; no test writes one."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tnadapt import (
    AdapterSpec,
    Site,
    count,
    families,
    from_json,
    frozen,
    grid,
    init,
    kaiming_uniform,
    normal,
    over_rank,
    plan,
    raw,
    same,
    to_json,
    trainable,
    zeros,
)
from tnadapt.initializers import constant, uniform
from tnadapt.sizes import at_most, like, required

HERE = Path(__file__).parent
MIXED = grid(layers=2, kinds={"q": (12, 8), "k": (12, 8), "up": (20, 8)})
NETWORK = {
    name: getattr(families, name)().bind(grid(layers=24, kinds={"q": (1024, 512)}), rank=8).networks[0]
    for name in ("lotr", "vera")
}
TERA_RANKS = {f"r_{side}{n}": rank for side in "oi" for n, rank in enumerate((8, 4, 4), 1)}
RANKS = {"lora": 8, "lotr": 8, "lorta": 8, "tlora": 32, "vera": 256, "tera": TERA_RANKS}
SQUARE = {
    name: getattr(families, name)()
    .bind(grid(layers=2, kinds={"q": (1024, 1024)}), rank=rank, sizes={"head": 16} if name == "lorta" else None)
    .networks[0]
    for name, rank in RANKS.items()
}
SUM = AdapterSpec(  # every word that format 1 does not have
    name="sum",
    weight="(head dim) in",
    over="layer",
    factors={
        "A": trainable("r in", init=normal(fan="in"), shared=True),
        "As": same("A", "s in"),
        "B": trainable("head dim layer r q"),
        "B0": same("B", at_start=True),
        "C": trainable("r q t"),
        "Ct": same("C", "s q t"),
        "D": frozen("r q u", init=constant(0.5)),
        "E": frozen("u", init=constant(2.0)),
    },
    terms=["B C Ct As", "- B0 D E A"],
    scale=over_rank("r", alpha=4),
    sizes={"r": at_most("in"), "q": like("layer"), "t": 2, "head": required()},
    start="free",
).bind(grid(layers=2, kinds={"q": (12, 8), "v": (4, 8)}), rank=3, sizes={"head": 2}, seed=5)
TEXTS = {
    "spec sum": SUM.spec,
    "adapter sum": SUM,
    "count sum": count(SUM),
    "plan sum": plan(SUM.networks[0], tokens=64),
    "spec lora": families.lora(alpha=16),
    "spec tlora": families.tlora(),
    "spec vera": families.vera(),
    "adapter lora": families.lora().bind(MIXED, rank=4, seed=3),
    "adapter lotr": families.lotr(alpha=2).bind(MIXED, rank={"p": 4, "q": 3}),
    "count vera": count(families.vera().bind(MIXED[:3], rank=4)),
    "plan vera delta": plan(NETWORK["vera"], "delta"),
} | {f"plan {name}": plan(network, tokens=2048) for name, network in SQUARE.items()}
ADAPTER = families.lotr(alpha=2).bind(
    [
        *grid(layers=2, kinds={"attn.q": (12, 8), "up": (20, 8)}),
        Site("layers.0.experts.5.up", (20, 8), {"layer": 0, "kind": "up", "expert": 5}),
        Site("score", (12, 8), {"task": "sst-2"}),
    ],
    rank={"p": 4, "q": 3},
    sizes={"in": 8},
    seed=3,
)
LAWS = {
    "normal": normal(),
    "normal/sqrt(in)": normal(fan="in"),
    "uniform": uniform(),
    "kaiming_uniform(in)": kaiming_uniform("in"),
    "constant(0.1)": constant(0.1),
}


def sections(name: str) -> dict[str, str]:
    """Return the sections of a text, which begin with "== title", without the lines before the first."""
    parts = (HERE / name).read_text(encoding="utf-8").split("\n== ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2].rstrip("\n") for part in parts}


def draws() -> list[list[str]]:
    lines = (HERE / "draws.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("title", TEXTS)
def test_a_printed_text_is_the_stored_one(title):
    assert str(TEXTS[title]) == sections("texts.txt")[title]


def test_every_stored_text_is_compared():
    assert sections("texts.txt").keys() == TEXTS.keys()


@pytest.mark.parametrize(("name", "made"), [("adapter", ADAPTER), ("sum", SUM)])
def test_the_text_of_an_adapter_is_the_stored_one(name, made):
    """Each was written by `to_json`, reformatted and checked line by line. Such texts must stay readable."""
    text = (HERE / f"{name}.json").read_text(encoding="utf-8")
    assert from_json(text) == made
    assert json.dumps(json.loads(to_json(made))) == json.dumps(json.loads(text))  # also in the order of the keys


def test_the_text_of_an_adapter_in_format_1_is_still_read():
    """Written by tnadapt 0.1.0 before terms, copies and rules for sizes."""
    assert from_json((HERE / "format1" / "adapter.json").read_text(encoding="utf-8")) == ADAPTER


@pytest.mark.parametrize(("seed", "name", "law", "digest"), [row for row in draws() if "." not in row[1]])
def test_a_draw_has_the_stored_digest(seed, name, law, digest):
    factors = {name: frozen("out in", init=LAWS[law]), "zero": trainable("", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw())
    adapter = spec.bind([Site("x", (5, 7))], seed=int(seed))
    values = init(adapter)[name]
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == digest


def test_the_documented_recipe_gives_the_same_draws():
    """Run the five lines at the head of draws.txt without the library."""
    words = np.frombuffer(hashlib.sha256(b"A").digest(), dtype="<u4")
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([0, *(int(word) for word in words)])))
    digest = hashlib.sha256(random.standard_normal((5, 7)).astype("<f4").tobytes()).hexdigest()
    assert ["0", "A", "normal", digest] in draws()


def test_each_group_draws_by_its_name_in_params():
    """If there are several groups, a factor draws from the stream of its full name in params."""
    digests = {(seed, name): digest for seed, name, law, digest in draws() if law == "normal"}
    factors = {"A": trainable("out r"), "B": trainable("in r", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw())
    sites = [Site("x", (5, 3), {"kind": "q"}), Site("y", (5, 3), {"kind": "k"})]
    values = init(spec.bind(sites, rank=7, overparametrized=True))["q.A"]
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == digests["0", "q.A"]
