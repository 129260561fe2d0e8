"""Reading a PEFT folder: which modules the patterns of an option match."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tnadapt import delta, read_peft


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
