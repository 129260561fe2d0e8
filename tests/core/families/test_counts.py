"""Counts of the families: figures from a source, and the formula of each docstring for random shapes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.table import places, required_of
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, count, families, find_host, grid

QV = {"q_proj": (4096, 4096), "v_proj": (4096, 4096)}
LARGE = dict.fromkeys(("query", "value", "attention.output.dense"), (1024, 1024)) | {"output.dense": (1024, 4096)}
BLOCKS = {f"block{n}": (768, 768) for n in range(12)}  # four of the attention, four of either feed-forward weight
QKV = dict.fromkeys(("query", "key", "value"), (768, 768))
SQUARE = {"q": (768, 768)}
LLAMA3 = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
LLAMA3 |= {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
BOTH = {"q": (768, 768), "v": (768, 768)}
WIDE = {"q": (4096, 4096)}
AXES = {f"{side}{axis}": size for side in "io" for axis, size in enumerate((16, 8, 8, 4), start=1)}

SOURCED = [  # spec, layers, kinds, rank, sizes, trainable
    # LoRA-XS, RoBERTa-large, 96 modules: r^2 each, the targets of scripts/run_glue.py of its repository @ e50b1a8
    *[(families.lora_xs(), 24, LARGE, r, {}, n) for r, n in [(4, 1_536), (8, 6_144), (12, 13_824), (16, 24_576)]],
    *[(families.lora_xs(), 24, LARGE, r, {}, n) for r, n in [(20, 38_400), (25, 60_000)]],
    # QuanTA, LLaMA-2-7B q, v as 16-8-8-4: the shapes of quanta/tuners/quanta.py of its repository @ 14f02f4
    (families.quanta(), 1, WIDE, 16, AXES, 43_008),
    (families.quanta(), 32, QV, 16, AXES, 2_752_512),
    # FacT, ViT-B, 12 blocks of 768 x 768 a layer: 1536 r + 144 r^2, 1536 r + 144 r + r^3; fact_t?.py @ 026e4f1
    (families.fact_tt(), 12, BLOCKS, 8, {}, 21_504),
    (families.fact_tt(), 12, BLOCKS, 16, {}, 61_440),
    (families.fact_tk(), 12, BLOCKS, 16, {}, 30_976),
    (families.fact_tk(), 12, BLOCKS, 32, {}, 86_528),
    # CaRA, ViT-B/16: its attention part of 2526 r + 4608, from the shapes of src/cara/cara.py @ f0ac9a9
    *[(families.cara(), 12, QKV, r, {"head": 12}, 881 * r) for r in (8, 16, 32)],
    # TensLoRA, qkv_depth with ranks (8, 8, 8, 8): utils/parameter_count.py @ 5d77319
    (families.tenslora(), 12, QKV, 8, {}, 16_504),
    # MoRA: the square of LoRA's budget, rounded as in kongds/MoRA @ de5df31
    (families.mora(), 1, WIDE, None, {"o2": 256, "i2": 256}, 65_536),
    # RandLoRA: r n + n min(in, out), with n = min(in, out) / r rounded up, from tuners/randlora of PEFT
    (families.randlora(), 1, WIDE, {"r": 32, "n": 128}, {}, 528_384),
    (families.randlora(), 1, {"q": (768, 768)}, {"r": 10, "n": 77}, {}, 59_906),
    # LoRETTA: [8, 8, 12, 8] for 768 x 8 with rank 5, of utils/tensor_util.py @ c66bbb3, once for each of the pair
    (
        families.loretta(),
        1,
        {"q": (768, 768)},
        5,
        {"r": 8, "o1": 8, "o2": 12, "o3": 8},
        2 * (8 * 5 + 5 * 8 * 5 + 5 * 12 * 5 + 5 * 8),
    ),
    # MoRe: blk_r (in + out), 4 blocks of rank 4, src/layers/monarch_linear.py @ 18862c0
    (families.monarch(), 1, {"q": (768, 1024)}, 1, {"i1": 4, "o2": 4}, 4 * (768 + 1024)),
    # GraLoRA: r (in + out) for any blocks, tuners/gralora of PEFT 0.21.2; its r = 8 is 4 for each of 2 x 2 blocks
    (families.gralora(), 1, {"q": (768, 1024)}, 4, {"o1": 2, "i1": 2}, 8 * (768 + 1024)),
    # SODA: a spectrum and three squares; the splits of script/ of phymhan/SODA-Diffusion @ f15ded2
    (families.soda(), 1, {"q": (640, 640)}, None, {"i1": 8, "i2": 8, "i3": 10}, 640 + 228),
    (families.soda(), 1, SQUARE, None, {"i1": 6, "i2": 8, "i3": 16}, 768 + 356),
    (families.soda(), 1, {"q": (1280, 1280)}, None, {"i1": 4, "i2": 16, "i3": 20}, 1280 + 672),
    (families.soda(), 1, {"q": (640, 2048)}, None, {"i1": 4, "i2": 8, "i3": 64}, 640 + 4_176),
    # CP: one component of a 32 x 64 x 32 x 64 tensor has 193 numbers, abstract of arXiv:2606.00428
    *[(families.cp(), 1, {"q": (2048, 2048)}, r, {}, 193 * r) for r in (1, 21)],
    # KRAdapter, 768 x 768: r = 27 = int(sqrt(768)) and 29, the least with 27 x 29 >= 768; README of its repository
    (families.kradapter(), 1, SQUARE, None, {}, 768 * (27 + 29)),
    # tuners of PEFT 0.21.2: C3A with blocks of 256, MiSS with r = 64, HRA with r = 8, TinyLoRA with u = 64
    (families.c3a(), 1, WIDE, None, {"o2": 256, "i2": 256}, 16 * 16 * 256),
    (families.miss(), 1, {"q": (768, 4096)}, None, {"i2": 64}, 64 * 768),
    (families.miss(variant="mini"), 1, {"q": (768, 4096)}, None, {"i2": 64, "o2": 8}, 64 * 8),
    (families.miss(variant="bat"), 1, {"q": (768, 4096)}, None, {"i2": 64, "o2": 64}, 12 * 64 * 64),
    (families.hra(), 1, {"q": (4096, 768)}, None, {}, 8 * 768),
    (families.tinylora(), 12, BOTH, {"p": 2, "q": 2, "k": 64}, {}, 24 * 64),
    (families.tinylora(tied=True), 12, BOTH | {"up": (3072, 768)}, {"p": 2, "q": 2, "k": 13}, {}, 13),
    # OFT: 24 blocks of 32 x 32, where PEFT counts the 496 numbers above each diagonal
    (families.oft(), 1, SQUARE, None, {"i": 32}, 24 * 32 * 32),
    (families.oft(shared_blocks=True), 1, SQUARE, None, {"i": 32}, 32 * 32),
    (families.svdiff(), 1, {"q": (3072, 768)}, None, {}, 768),
    # BoRA: b^2 r more than LoRA, abstract of arXiv:2508.06953
    (families.bora(), 1, SQUARE, 8, {"g": 4, "h": 4}, 8 * (768 + 768) + 4**2 * 8),
    # ShareLoRA: one A, or one B, for all sites
    (families.sharelora(), 12, BOTH, 8, {}, 8 * 768 + 24 * 8 * 768),
    (families.sharelora(share="B"), 12, BOTH, 8, {}, 8 * 768 + 24 * 8 * 768),
    (families.sharelora(share="A B"), 12, BOTH | {"up": (3072, 768)}, 8, {}, 8 * (768 + 3072)),
    # MTLoRA: r (in + out) and one or two squares, YaoLiang-Code/MTLoRA-main @ 08e89b0
    (families.mtlora(), 24, {"q": (1024, 1024), "v": (1024, 1024)}, 4, {}, 48 * (4 * 2048 + 16)),
    (families.mtlora(variant="icfm"), 24, {"q": (1024, 1024), "v": (1024, 1024)}, 4, {}, 48 * (4 * 2048 + 16)),
    (families.mtlora(variant="ctcm"), 24, {"q": (1024, 1024), "v": (1024, 1024)}, 4, {}, 48 * (4 * 2048 + 2 * 16)),
    (families.mtlora(variant="dtsm"), 24, {"q": (1024, 1024), "v": (1024, 1024)}, 4, {}, 48 * (4 * 2048 + 2 * 16)),
    # HiRA: r (in + out) as LoRA, tuners/hira of PEFT 0.21.2; LoSA has LoRA's count, peft/tuners/lora/layer.py @ 51b4e57
    (families.hira(), 32, QV, 32, {}, 64 * 32 * 8192),
    (families.losa(), 32, QV, 8, {}, 64 * 8 * 8192),
    # SSL and SSB: in, and in + out, of every weight
    (families.ssl(), 32, QV, None, {}, 64 * 4096),
    (families.ssb(), 32, QV, None, {}, 64 * 8192),
    # NOLA, LLaMA-2-7B's width on both sides: 2 k per module, whatever the rank, gpt/src/model_nola.py @ 03c7027
    (families.nola(), 2, {"q": (64, 64), "v": (64, 64)}, {"r": 8, "n": 1024, "k": 1024}, {}, 4 * 2 * 1024),
    # RaSA, LLaMA-3.1-8B, r = 8, k = 1: LoRA's 20,971,520 and 39 weights for each of 224 modules, zwhe99/peft @ d0ab69b
    (families.rasa(), 32, LLAMA3, {"p": 7, "q": 32}, {}, 20_971_520 + 224 * 39),
    # KAdaptation, ViT-B q, v, less the bias: 4 d a layer and 4 n^2, vision_benchmark/evaluation/model.py @ be6fb43
    (
        families.kadaptation(factorized=True),
        12,
        BOTH,
        32,
        {"o1": 32, "i1": 32},
        40_960,
    ),
]


@pytest.mark.parametrize("row", SOURCED)
def test_the_count_is_that_of_the_source(row):
    spec, layers, kinds, rank, sizes, trainable = row
    assert count(spec.bind(grid(layers=layers, kinds=kinds), rank=rank, sizes=sizes)).trainable == trainable


def test_the_parts_of_cara_add_up_to_its_published_count():
    """The biases, 768, 3072 and 768, are added by hand."""
    for rank, whole in [(8, 24_816), (16, 45_024), (32, 85_440)]:
        attention = count(families.cara().bind(grid(layers=12, kinds=QKV), rank=rank, sizes={"head": 12})).trainable
        kinds = {f"block{n}": (768, 768) for n in range(9)}  # the output projection, four of up and four of down
        others = count(families.cara(part="blocks").bind(grid(layers=12, kinds=kinds), rank=rank)).trainable
        assert attention + others + 768 + 3072 + 768 == whole


@pytest.mark.parametrize(
    ("mode", "ranks", "published"),
    [
        ("slice", (2, 1, 2), 4_513_792),
        ("slice", (2, 4, 16), 7_667_712),
        ("slice", (4, 8, 32), 15_335_424),
        ("gate", (2, 4, 16), 8_028_160),
        ("gate", (4, 16, 32), 12_386_304),
    ],
)
def test_the_parts_of_bslora_add_up_to_its_published_count(mode, ranks, published):
    """The README @ 2477ddc has counts for q, k, v, up and down of Llama 3 8B.

    The pairs of the layers are computed by hand: one for each layer in the code, one for each layer and shape here.
    """
    kinds = {kind: LLAMA3[kind] for kind in ("q", "k", "v", "up", "down")}
    rank = dict(zip("pqr", ranks, strict=True)) | ({"a": 1024, "b": 1024} if mode == "gate" else {})
    counted = count(families.bslora(mode=mode).bind(grid(layers=32, kinds=kinds), rank=rank))
    layers = sum(row.entries for row in counted.rows if row.name.rpartition(".")[2] in ("A_layer", "B_layer"))
    pair = 2 * 14336 if mode == "slice" else 2 * 1024
    assert counted.trainable - layers + 32 * ranks[1] * pair == published


def test_the_frozen_numbers_of_nola_and_of_a_host():
    nola = families.nola().bind(grid(layers=1, kinds={"q": (32, 48)}), rank={"r": 4, "n": 10, "k": 20})
    assert count(nola).frozen == 4 * (10 * 48 + 20 * 32 + 48)
    for family in (families.hira(), families.losa(), families.ssl(), families.ssb()):
        assert count(family.bind(grid(layers=1, kinds=SQUARE), rank=4 if family.free_bonds else None)).frozen == 0


def test_mora_rejects_a_square_that_does_not_tile_the_weight():
    """The budget of r = 256 gives 1448, with 2,096,704 entries; the official code wraps around."""
    assert int(math.sqrt((4096 + 4096) * 256) + 0.5) == 1448
    with pytest.raises(SiteError, match=r"o2=1448, which does not divide 4096.\nDivisors of 4096: 1, 2, 4, 8, 16"):
        families.mora().bind(grid(layers=1, kinds=WIDE), sizes={"o2": 1448, "i2": 1448})


def pairs(sizes):
    return sum((sizes[f"i{a}"] * sizes[f"i{b}"]) ** 2 for a in range(1, 5) for b in range(a + 1, 5))


def train(sizes, bonds, modes):
    ends = [1, *(sizes[bond] for bond in bonds), 1]
    return sum(left * sizes[mode] * right for left, mode, right in zip(ends[:-1], modes, ends[1:], strict=True))


STATED = {  # the formula of the docstring, for S sites of one shape and the sizes n
    "lora": lambda n: n["S"] * n["r"] * (n["in"] + n["out"]),
    "lora_xs": lambda n: n["S"] * n["p"] * n["q"],
    "mtlora_tasks": lambda n: n["S"] * 2 * n["r"] * (n["in"] + n["out"]),  # two tasks
    "mtlora": lambda n: n["S"] * (n["p"] * n["out"] + n["q"] * n["in"] + n["p"] * n["q"]),
    "triadaptlora": lambda n: n["S"] * (n["p"] * n["out"] + n["p"] * n["q"] + n["q"] * n["in"]),
    "hira": lambda n: n["S"] * n["r"] * (n["in"] + n["out"]),
    "losa": lambda n: n["S"] * n["r"] * (n["in"] + n["out"]),
    "ssl": lambda n: n["S"] * n["in"],
    "ssb": lambda n: n["S"] * (n["in"] + n["out"]),
    "nola": lambda n: n["S"] * (n["n"] + n["k"]),
    "rasa": lambda n: n["S"] * (n["p"] * (n["in"] + n["out"] + 1) + n["q"]) + n["M"] * n["q"] * (n["in"] + n["out"]),
    "bslora": lambda n: (n["S"] * n["p"] + n["L"] * n["q"] + n["r"]) * (n["in"] + n["out"]),
    "randlora": lambda n: n["S"] * (n["r"] * n["n"] + n["n"] * n["in"]),
    "tlora": lambda n: n["S"] * (n["p"] * n["q"] + 1),
    "vera": lambda n: n["S"] * (n["out"] + n["r"]),
    "loha": lambda n: n["S"] * (n["p"] + n["q"]) * (n["in"] + n["out"]),
    "lokr": lambda n: n["S"] * (n["o1"] * n["i1"] + n["r"] * (n["o2"] + n["i2"])),
    "krona": lambda n: n["S"] * (n["o1"] * n["i1"] + n["o2"] * n["i2"]),
    "kadaptation": lambda n: n["M"] * n["n"] * n["o1"] * n["i1"] + n["S"] * n["n"] * (n["o2"] + n["i2"]),
    "superlora": lambda n: (
        n["S"] * n["t"]
        + sum(n[f"o{k}"] * n[f"p{k}"] + n[f"i{k}"] * n[f"q{k}"] for k in (1, 2))
        + n["p1"] * n["q1"] * n["t"]
        + n["p2"] * n["q2"]
    ),
    "gralora": lambda n: n["S"] * n["o1"] * n["i1"] * n["r"] * (n["o2"] + n["i2"]),
    "monarch": lambda n: n["S"] * n["t"] * (n["o2"] * n["in"] + n["i1"] * n["out"]),
    "btt": lambda n: n["S"] * n["r"] * (n["o1"] * n["in"] + n["i1"] * n["out"]),
    "mora": lambda n: n["S"] * n["o2"] * n["i2"],
    "lotr": lambda n: n["p"] * n["out"] + n["S"] * n["p"] * n["q"] + n["q"] * n["in"],
    "lotr_tt": lambda n: train(n | {"site": n["S"]}, ["r1", "r2", "r3", "r4"], ["o1", "o2", "site", "i1", "i2"]),
    "lorta": lambda n: n["r"] * (n["in"] + n["dim"] + n["head"] + n["L"] + n["M"]),
    "tera": lambda n: n["S"] * sum(n[f"r_{side}{axis}"] for side in "oi" for axis in (1, 2, 3)),
    "flora": lambda n: n["S"] * (n["r_out"] * n["r_in"] + n["out"] * n["r_out"] + n["in"] * n["r_in"]),
    "fact_tk": lambda n: n["p"] * n["out"] + n["q"] * n["in"] + n["S"] * n["t"] + n["p"] * n["q"] * n["t"],
    "fact_tt": lambda n: n["p"] * n["out"] + n["S"] * n["p"] * n["q"] + n["q"] * n["in"],
    "cara": lambda n: n["r"] * (n["S"] + n["in"] + n["head"] + n["dim"] + 1),
    "tenslora": lambda n: (
        math.prod(n[f"r_{mode}"] for mode in ("in", "out", "layer", "kind"))
        + sum(n[mode] * n[f"r_{mode}"] for mode in ("in", "out", "layer", "kind"))
    ),
    "metatt": lambda n: (
        n["r1"] * n["in"] + n["r1"] * n["L"] * n["r2"] + n["r2"] * n["M"] * n["r3"] + n["r3"] * n["out"]
    ),
    "tt_lora": lambda n: n["S"] * train(n, [f"r{k}" for k in range(1, 6)], ["o1", "o2", "o3", "i1", "i2", "i3"]),
    "loretta": lambda n: (
        n["S"]
        * (
            train(n, ["a1", "a2", "a3"], ["i1", "i2", "i3", "r"])
            + train(n, ["b1", "b2", "b3"], ["r", "o1", "o2", "o3"])
        )
    ),
    "quanta": lambda n: n["S"] * pairs(n),
    "householder": lambda n: n["S"] * (n["out"] + n["in"] + n["t"]),
    "quantum_peft": lambda n: n["S"] * (2 * (3 * 4 - 2) + 2**4),  # four qubits, one layer
    "adaring": lambda n: n["M"] * (n["a"] * n["b"] * n["out"] + n["b"] * n["c"] * n["in"] + n["c"] * n["a"] * n["L"]),
    "bora": lambda n: n["S"] * n["r"] * (n["in"] + n["out"] + n["g"] * n["h"]),
    "c3a": lambda n: n["S"] * n["o1"] * n["i1"] * n["i2"],
    "cp": lambda n: n["S"] * n["r"] * (n["o1"] + n["o2"] + n["i1"] + n["i2"] + 1),
    "craft": lambda n: n["M"] * (n["p"] * n["a"] + n["q"] * n["b"] + n["L"] ** 2),
    "hra": lambda n: n["S"] * 8 * n["in"],
    "kradapter": lambda n: n["S"] * (n["o1"] + n["o2"]) * n["in"],
    "miss": lambda n: n["S"] * n["i2"] * n["out"],
    "oft": lambda n: n["S"] * n["g"] * n["i"] ** 2,
    "sharelora": lambda n: n["r"] * n["in"] + n["S"] * n["r"] * n["out"],
    "soda": lambda n: n["S"] * (min(n["out"], n["in"]) + n["i1"] ** 2 + n["i2"] ** 2 + n["i3"] ** 2),
    "svdiff": lambda n: n["S"] * min(n["out"], n["in"]),
    "tinylora": lambda n: n["S"] * n["k"],
    "pissa": lambda n: n["S"] * n["r"] * (n["in"] + n["out"]),
    "abba": lambda n: n["S"] * (n["p"] + n["q"]) * (n["in"] + n["out"]),
    "dota": lambda n: (
        n["S"] * (n["o1"] * n["i1"] * n["r1"] + n["r1"] * n["o2"] * n["i2"] * n["r2"] + n["r2"] * n["o3"] * n["i3"])
    ),
    "lora_pt": lambda n: n["S"] * (n["r"] * n["out"] + n["r"] * n["q"] + n["q"] * n["in"]),
    "tcurlora": lambda n: n["S"] * n["p"] * n["q"],
}


@pytest.mark.parametrize("name", families.__all__)
@settings(max_examples=settings().max_examples if IS_THOROUGH else min(settings().max_examples, 8))
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    layers=st.integers(1, 4),
    kinds=st.integers(1, 3),
    rank=st.integers(1, 5),
)
def test_the_formula_of_the_docstring_gives_the_count(name, shape, layers, kinds, rank):
    spec = getattr(families, name)()
    shape, rank = ((shape[1], shape[1]), 40) if name == "quanta" else (shape, rank)  # out and in must be equal
    sites = places(spec, layers=layers, kinds={f"k{kind}": shape for kind in range(kinds)})
    rank = rank if spec.free_bonds else None
    adapter = spec.bind(sites, rank=rank, sizes=dict.fromkeys(required_of(spec), 1), overparametrized=True)
    sizes = {"out": shape[0], "in": shape[1], "L": layers, "M": kinds, "S": layers * kinds}
    assert count(adapter).trainable == STATED[name](sizes | dict(adapter.networks[0].sizes))


def test_a_known_host_gives_the_same_count_as_shapes_by_hand():
    vit = find_host("vit-base-patch16").sites(["q_proj", "k_proj", "v_proj"])
    assert count(families.cara().bind(vit, rank=8, sizes={"head": 12})).trainable == 881 * 8
