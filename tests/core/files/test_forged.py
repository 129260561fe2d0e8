"""Valid files with one number, name, list or object changed at random: each is refused, or read with its own values."""

import random

import numpy as np
import pytest

from tests.core.files.forged import SECONDS, as_format_1, forge, in_a_child
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, frozen, grid, same, save, split_sites, trainable
from tnadapt.families import lora
from tnadapt.sizes import at_most
from tnadapt.testing import start_params

KINDS = {"q": (12, 8), "up": (8, 12)}
BASES = ["vera", "tera", "tlora", "lokr", "quantum_peft", "lora_pt"]
SUM = AdapterSpec(
    name="own",
    weight="out in",
    over="layer",
    factors={
        "A": trainable("r in", shared=True),
        "As": same("A", "s in"),
        "B": trainable("out layer r"),
        "B0": same("B", at_start=True),
        "C": trainable("r q"),
        "Ct": same("C", "s q"),
        "D": frozen("r"),
    },
    terms=["B C Ct As", "- B0 D A"],
    sizes={"r": at_most("in"), "q": 2},
    start="free",
)
FILES = 2000 if IS_THOROUGH else 25  # for each base


def blocks():
    whole = grid(layers=2, kinds={"qkv": (24, 8), "up": (8, 16, 8)})
    return lora().bind(split_sites(whole, fused={"qkv": ["q", "k", "v"]}, experts=["up"], tasks=["a", "b"]), rank=2)


def sums():
    return SUM.bind(grid(layers=2, kinds=KINDS), rank=3, seed=3)


OWN = {"blocks": blocks, "sum": sums}
IN_FORMAT_1 = ["vera", "lora_pt", "blocks"]
EVERY = [*BASES, *OWN, *(f"{name} in format 1" for name in IN_FORMAT_1)]
SOME = ["quantum_peft", "blocks", "lora_pt in format 1"]  # a process reads those of each


@pytest.mark.parametrize("base", EVERY if IS_THOROUGH else SOME)
def test_a_file_changed_at_random_is_refused_or_read_with_its_numbers(base, tmp_path):
    name, is_old = base.removesuffix(" in format 1"), base.endswith(" in format 1")
    adapter = OWN[name]() if name in OWN else FAMILIES[name].bind(layers=2, kinds=KINDS, seed=3)
    params = {name: value.astype(np.float32) for name, value in start_params(adapter).items()}
    save(adapter, params, tmp_path / "valid", extra={"head.w": np.ones((2, 3), np.float32)})
    content, paths = (tmp_path / "valid").read_bytes(), [tmp_path / "valid"]
    if is_old:
        content = as_format_1(content)
        paths[0].write_bytes(content)
    for number in range(FILES):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(forge(content, random.Random(f"{base} {number}")))
    found = in_a_child(paths)
    assert len(found) == len(paths), f"number {len(found) - 1} ended the process"
    odd = {path.name: what for path, what in zip(paths, found, strict=True) if what[0] not in ("read", "refused")}
    slow = {path.name: what for path, what in zip(paths, found, strict=True) if what[1] > SECONDS}
    assert (odd, slow) == ({}, {})
    assert found[0][0] == "read"
    assert [what for what, _ in found].count("refused") > FILES / 2
