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
    plan,
    raw,
    to_json,
    trainable,
    zeros,
)
from tnadapt.initializers import constant, uniform

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
TEXTS = {
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


def test_the_text_of_an_adapter_is_the_stored_one():
    """tnadapt 0.1.0 wrote adapter.json, reformatted here and checked line by line. Such texts must stay readable."""
    text = (HERE / "adapter.json").read_text(encoding="utf-8")
    assert from_json(text) == ADAPTER
    assert json.dumps(json.loads(to_json(ADAPTER))) == json.dumps(json.loads(text))  # also in the order of the keys


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
