"""Reading a PEFT folder: its header before its tensors, and which modules the patterns of an option match."""

import json
import resource
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.core.files.forged import write_header
from tnadapt import FormatError, delta, families, grid, init, read_peft, save_as_lora

PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("up", {"h.0.up", "h.1.up"}),
        ("0.up", {"h.0.up"}),
        ("h.1.up_proj", {"h.1.up_proj"}),
        (r"up.*", {"h.0.up", "h.1.up", "h.0.up_proj", "h.1.up_proj"}),
        ("p", set()),
        ("0", set()),
    ],
)
def test_a_pattern_matches_a_whole_path_or_whole_words_at_its_end(pattern, chosen, tmp_path):
    paths = [f"h.{layer}.{kind}" for layer in range(2) for kind in ("up", "up_proj")]
    tensors = {}
    for path in paths:
        tensors[f"base_model.model.{path}.lora_A.weight"] = np.ones((1, 3), np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = np.ones((2, 1), np.float32)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "alpha_pattern": {pattern: 40}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    read = read_peft(tmp_path)
    found = {path: round(float(delta(read.adapter, read.params, path)[0, 0]), 5) for path in paths}
    assert found == {path: 40.0 if path in chosen else 1.0 for path in paths}


def test_modules_stand_by_their_words_and_numbers_by_their_size(tmp_path):
    paths = ["h.a.q", "h.0.q", "h.2.q", "h.10.q"]
    tensors = {}
    for path in sorted(paths):
        tensors[f"base_model.model.{path}.lora_A.weight"] = np.ones((1, 3), np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = np.ones((2, 1), np.float32)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert [site.path for site in read_peft(tmp_path).adapter.sites] == paths


def large(folder, entries, config=None, body=b""):
    """Write a folder whose tensors take no space on a disk: name -> shape, in float32."""
    header, end = {}, 0
    for name, shape in entries.items():
        start, end = end, end + 4 * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    path = write_header(folder / "adapter_model.safetensors", json.dumps(header).encode(), body)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - len(body) + end)
    plain = {"peft_type": "LORA", "r": 2, "target_modules": ["q"], "bias": "none"} | (config or {})
    plain = {"lora_alpha": 2} | plain if plain["peft_type"] == "LORA" else plain
    (folder / "adapter_config.json").write_text(json.dumps(plain))
    return folder


def lora(ranks, size=4):
    return {
        f"{PREFIX}h.{n}.q.lora_{side}.weight": (rank, size) if side == "A" else (size, rank)
        for n, rank in enumerate(ranks)
        for side in "AB"
    }


WIDE = 2**29
FOREIGN = {
    "a whole model": ({"model.embed.weight": (2**20, 2**10)}, {}, "with factors of LORA alone, got model.embed.weight"),
    "another rank": (
        {f"{PREFIX}q.lora_A.weight": (4, WIDE), f"{PREFIX}q.lora_B.weight": (2, 4)},
        {},
        r"q: expected B and A joined by its rank, 2, got shapes \(2, 4\) and \(4, 536870912\)",
    ),
    "a missing factor": ({f"{PREFIX}q.lora_A.weight": (2, WIDE)}, {}, "q: expected a factor B, got none"),
    "another method": (lora([2]) | {f"{PREFIX}q.hada_w1_a": (WIDE, 2)}, {}, "hada_w1_a, which is none of its factors"),
    "no pair of matrices": (
        {f"{PREFIX}q.lokr_w1": (2, 2), f"{PREFIX}q.lokr_w2_a": (WIDE, 2)},
        {"peft_type": "LOKR", "alpha": 1},
        "q: expected w2, or w2_a and w2_b, got w2_a",
    ),
    "a weight of another model": (
        {f"{PREFIX}q.lora_A.weight": (2, WIDE), f"{PREFIX}q.lora_B.weight": (4, 2)},
        {},
        r"a model where q has a weight of shape \(4, 536870912\), got \(4, 4\)",
    ),
    "a projection of another model": (
        {"base_model.vera_A": (2, 3), "base_model.vera_B": (WIDE, 2)}
        | {f"{PREFIX}q.vera_lambda_b": (4,), f"{PREFIX}q.vera_lambda_d": (2,)},
        {"peft_type": "VERA"},
        "expected a vera_A of at least 2 x 4 and a vera_B of at least 4 x 2",
    ),
    "projections that are no matrices": (
        {"base_model.vera_A": (2,), "base_model.vera_B": (WIDE,)}
        | {f"{PREFIX}q.vera_lambda_b": (4,), f"{PREFIX}q.vera_lambda_d": (2,)},
        {"peft_type": "VERA"},
        "expected a vera_A of at least 2 x 4 and a vera_B of at least 4 x 2",
    ),
}


@pytest.mark.parametrize(("entries", "config", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_large_checkpoint_that_does_not_fit_is_refused_by_its_header(entries, config, message, tmp_path):
    folder = large(tmp_path, entries, config)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=message):
        read_peft(folder, shapes={"q": (4, 4), "h.0.q": (4, 4)})
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def lokr(size):
    return {f"{PREFIX}q.lokr_w1": (1, 1), f"{PREFIX}q.lokr_w2_a": (size, 1), f"{PREFIX}q.lokr_w2_b": (1, size)} | {
        f"{PREFIX}k.lokr_w1": (1, 1),
        f"{PREFIX}k.lokr_w2": (2, 2),
    }


BOMBS = {
    "one large rank": (lora([1] * 200 + [10**6]), {"rank_pattern": {"h.200.q": 10**6}, "r": 1}, "one rank for all"),
    "a product of vectors": (lokr(10**5), {"peft_type": "LOKR", "alpha": 1, "r": 1}, "one rank for all modules"),
    "a rank of thousands of digits": (lora([2]), {"r": 10**4000}, "expected an integer of at least 1 as its rank"),
    "an alpha of thousands of digits": (lora([2]), {"lora_alpha": 10**4000}, "expected a finite number as its alpha"),
    "a rank of a LoKr that no float holds": (
        {f"{PREFIX}q.lokr_w1": (1, 1), f"{PREFIX}q.lokr_w2": (1, 1)},
        {"peft_type": "LOKR", "alpha": 1, "r": 10**400},
        "expected an integer of at least 1 as its rank",
    ),
    "many modules to save": (
        {f"{PREFIX}{n}.w": (1,) for n in range(10**4)},
        {"modules_to_save": [f"m{n}" for n in range(10**5)]},
        "none of its factors",
    ),
    "modules to save that are no list": (lora([2]) | {f"{PREFIX}w.b": (1,)}, {"modules_to_save": 3}, "none of its"),
    "options in options": (lora([2]), {"lora_bias": [[[[0]]]] * 10**5}, "the option lora_bias=.*[.][.][.]"),
    "a name of a megabyte": ({f"{PREFIX}{'q' * 10**6}.lora_A.weight": (2, 4)}, {}, "paths of at most 500 characters"),
    "another name of a megabyte": ({"q" * 10**6: (2, 4)}, {}, "which is none of its factors"),
}


@pytest.mark.parametrize(("entries", "config", "message"), BOMBS.values(), ids=BOMBS)
def test_a_small_checkpoint_that_asks_for_much_is_refused_in_seconds(entries, config, message, tmp_path):
    folder = large(tmp_path, entries, config)
    start = time.process_time()
    with pytest.raises(FormatError, match=message) as caught:
        read_peft(folder)
    assert len(str(caught.value)) < 10_000
    assert time.process_time() - start < 8


def test_different_ranks_are_padded_as_far_as_the_limit(tmp_path, monkeypatch):
    folder = large(tmp_path, lora([1, 8]), {"rank_pattern": {"h.1.q": 8}, "r": 1})
    padded, stored = 2 * 8 * 8, 9 * 8
    monkeypatch.setattr("tnadapt._files.peft_read.MOST_MADE", padded)
    assert read_peft(folder).params["0.q.A"].shape == (8, 4)
    monkeypatch.setattr("tnadapt._files.peft_read.MOST_MADE", padded - 1)
    assert read_peft(folder).params["0.q.A"].shape == (8, 4)  # 2 for each number that is stored
    monkeypatch.setattr("tnadapt._files.peft_read.PADDED", 1)
    with pytest.raises(FormatError, match=f"expected at most {padded - 1} numbers with one rank .*, got {padded}"):
        read_peft(folder)
    assert stored < padded


def test_the_number_of_modules_is_limited(tmp_path, monkeypatch):
    folder = large(tmp_path, lora([2, 2, 2]))
    monkeypatch.setattr("tnadapt._files.peft_folder.SITES", 3)
    assert len(read_peft(folder).adapter.sites) == 3
    monkeypatch.setattr("tnadapt._files.peft_folder.SITES", 2)
    with pytest.raises(FormatError, match="expected at most 2 modules, got 3"):
        read_peft(folder)


def test_a_large_checkpoint_with_a_pattern_for_each_module_is_read_in_seconds(tmp_path):
    adapter = families.lora().bind(grid(layers=1000, kinds={"q": (12, 8), "v": (3, 20)}), rank=4, overparametrized=True)
    save_as_lora(adapter, init(adapter), tmp_path / "a", rank=4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert len(config["rank_pattern"]) == 1000
    start = time.process_time()
    assert len(read_peft(tmp_path / "a").adapter.sites) == 2000
    assert time.process_time() - start < 4
