"""Counts: published figures, the formula, and the sizes of the actual arrays."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import required_of
from tnadapt import Adapter, AdapterSpec, count, families, frozen, grid, raw, trainable, zeros

ROBERTA_BASE = {"query": (768, 768), "value": (768, 768)}
ROBERTA_LARGE = {"query": (1024, 1024), "value": (1024, 1024)}
BASE_QKVO = dict.fromkeys(("query", "key", "value", "output.dense"), (768, 768))
LLAMA_QKVO = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096))
LLAMA = LLAMA_QKVO | {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
LORA, LOTR, LORTA, TLORA, VERA = (getattr(families, name)() for name in ("lora", "lotr", "lorta", "tlora", "vera"))

PUBLISHED = [  # family, layers, kinds, rank, trainable: read in the source named, or derived from its formula
    # TLoRA, RoBERTa-large q, v: Table 1 of arXiv:2504.18735
    (TLORA, 24, ROBERTA_LARGE, 8, 3_120),
    (TLORA, 24, ROBERTA_LARGE, 16, 12_336),
    (TLORA, 24, ROBERTA_LARGE, 32, 49_200),
    # LoRA, RoBERTa-large q, v: training log of github.com/itanvir/tlora @ f123a7d, MRPC
    (LORA, 24, ROBERTA_LARGE, 32, 3_145_728),
    # LoTR, RoBERTa-base q, v in one container: docstring of lotr/lotr.py of github.com/daskol/lotr @ b8776bd
    (LOTR, 12, ROBERTA_BASE, 2, 3_168),
    # the same: its tables of results, less the 1,536 weights of the head that they hold
    (LOTR, 12, ROBERTA_BASE, 1, 3_096 - 1_536),
    (LOTR, 12, ROBERTA_BASE, 4, 8_064 - 1_536),
    (LOTR, 12, ROBERTA_BASE, 8, 15_360 - 1_536),
    (LOTR, 12, ROBERTA_BASE, 16, 32_256 - 1_536),
    (LOTR, 12, ROBERTA_BASE, 32, 75_264 - 1_536),
    # LoRA, RoBERTa-base q, v: the same tables
    (LORA, 12, ROBERTA_BASE, 1, 38_400 - 1_536),
    (LORA, 12, ROBERTA_BASE, 2, 73_728),
    (LORA, 12, ROBERTA_BASE, 4, 147_456),
    (LORA, 12, ROBERTA_BASE, 8, 294_912),
    (LORA, 12, ROBERTA_BASE, 16, 589_824),
    (LORA, 12, ROBERTA_BASE, 32, 1_179_648),
    # LoRTA, RoBERTa-base q, k, v, o with 12 heads: 860 r, from the shapes in model.py of ihounie/lorta @ fa13dcb
    (LORTA, 12, BASE_QKVO, 1, 860),
    (LORTA, 12, BASE_QKVO, 4, 3_440),
    (LORTA, 12, BASE_QKVO, 8, 6_880),
    # LoRTA, LLaMA-2-7B q, k, v, o with 32 heads: 4,292 r, from the same code
    (LORTA, 32, LLAMA_QKVO, 1, 4_292),
    (LORTA, 32, LLAMA_QKVO, 4, 17_168),
    (LORTA, 32, LLAMA_QKVO, 16, 68_672),
    (LORTA, 32, LLAMA_QKVO, 96, 412_032),
    # VeRA: sites x (out + r), from tuners/vera of PEFT; the paper (arXiv:2310.11454) rounds to 0.043M, 0.061M, 1.6M
    (VERA, 12, ROBERTA_BASE, 1024, 43_008),
    (VERA, 24, ROBERTA_LARGE, 256, 61_440),
    (VERA, 32, LLAMA, 1024, 1_589_248),
    (VERA, 32, LLAMA, 256, 1_417_216),
    # LoRA, LLaMA-2-7B, all linear layers: r sum(in + out); 159.9M in Table 4 of the VeRA paper
    (LORA, 32, LLAMA, 64, 159_907_840),
]
HEADS = {768: 12, 4096: 32}


def bound(spec: AdapterSpec, layers, kinds, rank) -> Adapter:
    width = next(iter(kinds.values()))[1]
    sizes = {"head": HEADS[width]} if spec.name == "lorta" else None
    return spec.bind(grid(layers=layers, kinds=kinds), rank=rank, sizes=sizes)


@pytest.mark.parametrize(("spec", "layers", "kinds", "rank", "trainable_entries"), PUBLISHED)
def test_a_published_count(spec, layers, kinds, rank, trainable_entries):
    assert count(bound(spec, layers, kinds, rank)).trainable == trainable_entries


def test_lorta_has_the_same_count_with_heads_in_or_out():
    sites = grid(layers=12, kinds=BASE_QKVO)
    assert count(families.lorta(heads="in").bind(sites, rank=4, sizes={"head": 12})).trainable == 3_440


@pytest.mark.parametrize(
    ("spec", "layers", "kinds", "rank", "frozen_entries"),
    [
        (TLORA, 24, ROBERTA_LARGE, 32, 3_145_728),  # A and C of 48 modules: log of itanvir/tlora @ f123a7d
        (VERA, 12, ROBERTA_BASE, 1024, 1024 * (768 + 768)),  # one pair, whatever the number of sites
        (VERA, 32, LLAMA, 256, 256 * (11008 + 11008)),  # the largest in and the largest out
        (LORA, 12, ROBERTA_BASE, 8, 0),
        (LOTR, 12, ROBERTA_BASE, 8, 0),
        (LORTA, 12, BASE_QKVO, 8, 0),
    ],
)
def test_frozen_counts(spec, layers, kinds, rank, frozen_entries):
    assert count(bound(spec, layers, kinds, rank)).frozen == frozen_entries


def test_tera_counts_by_its_own_formula():
    counted = count(families.tera().bind(grid(layers=12, kinds=ROBERTA_BASE), rank=8))  # 768 = 8 x 8 x 12, ranks 8
    assert counted.trainable == 24 * 6 * 8
    assert counted.frozen == 8**6 + 2 * (8 * 8 + 8 * 8 + 12 * 8)


def entries(formula, sizes):
    """Evaluate a formula, a sum of products of modes, for these sizes."""
    return sum(math.prod(sizes[mode] for mode in term.split("*")) for term in formula.split(" + "))


@pytest.mark.parametrize("name", ["vera", "tera"])  # frozen factors; several networks, and one
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    layers=st.integers(1, 4),
    kinds=st.integers(1, 3),
    rank=st.integers(1, 5),
)
def test_the_formulas_give_the_count_of_several_networks(name, shape, layers, kinds, rank):
    sites = grid(layers=layers, kinds={f"k{kind}": shape for kind in range(kinds)})
    spec = getattr(families, name)()
    adapter = spec.bind(sites, rank=rank, sizes=dict.fromkeys(required_of(spec), 1), overparametrized=True)
    formula, network = count(adapter).formula, adapter.networks[0]
    sizes = dict(network.sizes) | {"1": 1, "0": 0}
    assert count(adapter).trainable == len(adapter.networks) * entries(formula, sizes)
    frozen_formula = adapter.spec.formula(trainable=False)
    assert count(adapter).frozen == entries(frozen_formula, sizes)  # these families share it, or have one group


def test_formulas_are_written_as_in_the_papers():
    assert LOTR.formula() == "out*p + site*p*q + in*q"
    assert LOTR.formula(trainable=False) == "0"
    assert TLORA.formula() == "site*p*q + site"
    assert TLORA.formula(trainable=False) == "site*in*p + site*q*out"
    scalar = AdapterSpec(
        name="own",
        weight="out in",
        factors={"W": frozen("out in"), "s": trainable("", init=zeros())},
        scale=raw(),
    )
    assert (scalar.formula(), scalar.formula(trainable=False)) == ("1", "out*in")
    adapter = scalar.bind(grid(layers=3, kinds={"q": (4, 6)}))
    assert (count(adapter).trainable, count(adapter).frozen) == (3, 24)


def test_a_shared_factor_counts_once_at_the_largest_size():
    sites = grid(layers=2, kinds={"wide": (4, 9), "high": (7, 3)})
    counted = count(families.vera().bind(sites, rank=5))
    assert counted.frozen == 5 * (9 + 7)
    assert counted.trainable == 2 * (4 + 5) + 2 * (7 + 5)
    assert [row.shape for row in counted.rows if not row.trainable] == [(5, 9), (7, 5)]


def test_a_count_by_group():
    counted = count(families.lotr(over="layer").bind(grid(layers=3, kinds={"q": (4, 6), "up": (8, 6)}), rank=2))
    assert counted.by_group() == {"q": 8 + 12 + 12, "up": 16 + 12 + 12}
    assert sum(counted.by_group().values()) == counted.trainable
    one = count(families.lotr().bind(grid(layers=3, kinds={"q": (4, 6)}), rank=2))
    assert one.by_group() == {"": one.trainable}


def test_a_long_count_prints_its_first_rows():
    text = str(count(LORA.bind(grid(layers=12, kinds={"q": (4, 6)}), rank=2)))
    assert text.splitlines()[0] == "trainable 240  frozen 0  (trainable per network: r*in + out*r)"
    assert text.splitlines()[1] == "  0.q.A  trainable  2 x 6  12"
    assert text.splitlines()[-1] == "  and 4 more"
    assert len(text.splitlines()) == 22


def test_up_to_twenty_rows_are_printed():
    ten, eleven = (str(count(LORA.bind(grid(layers=layers, kinds={"q": (4, 6)}), rank=2))) for layers in (10, 11))
    assert len(ten.splitlines()) == 21
    assert "more" not in ten
    assert eleven.splitlines()[-1] == "  and 2 more"


def test_a_factor_without_modes_is_printed_as_a_scalar():
    factors = {"W": frozen("out in"), "s": trainable("", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw())
    assert "  s  trainable  scalar  1" in str(count(spec.bind(grid(layers=1, kinds={"q": (4, 6)})))).splitlines()


def test_frozen_entries_belong_to_no_group():
    assert count(VERA.bind(grid(layers=2, kinds={"q": (4, 6)}), rank=3)).by_group() == {"0.q": 7, "1.q": 7}


@pytest.mark.parametrize("name", ["lora", "lotr", "lorta", "tlora", "vera", "tera"])
def test_a_70b_model_counts_without_arrays(name, monkeypatch):
    wide, narrow = (8192, 8192), (1024, 8192)
    kinds = {"q_proj": wide, "k_proj": narrow, "v_proj": narrow, "o_proj": wide}
    kinds |= {"gate_proj": (28672, 8192), "up_proj": (28672, 8192), "down_proj": (8192, 28672)}
    sites = grid(layers=80, kinds=kinds)
    for function in ("zeros", "empty", "full", "ones", "asarray", "array"):
        monkeypatch.delattr(np, function)
    start = time.process_time()
    counted = count(getattr(families, name)().bind(sites, rank=64, sizes={"head": 64} if name == "lorta" else None))
    elapsed = time.process_time() - start
    monkeypatch.undo()
    assert elapsed < 5
    assert type(counted.trainable) is type(counted.frozen) is int
    if name == "lora":
        assert counted.trainable == 80 * 64 * (2 * (8192 * 2) + 2 * (1024 + 8192) + 3 * (28672 + 8192))


def test_counts_are_exact_beyond_machine_integers():
    largest = 2**31 - 1
    factors = {
        "A": trainable("r in kh kw"),
        "B": trainable("layer out r", init=zeros()),
        "C": frozen("kh kw in r"),
    }
    spec = AdapterSpec(name="own", weight="out in kh kw", over="layer", factors=factors, scale=raw())
    adapter = spec.bind(grid(layers=3, kinds={"q": (largest,) * 4}), rank=largest)
    counted = count(adapter)
    assert counted.trainable == largest**4 + 3 * largest**2 > 2**123
    assert counted.frozen == largest**4
    assert counted.by_group() == {"": counted.trainable}
    assert [type(row.entries) for row in counted.rows] == [int, int, int]
    assert f"trainable {counted.trainable:,}  frozen {counted.frozen:,}" in str(counted)
