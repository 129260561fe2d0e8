"""Every Python block in the docs runs as written."""

import importlib
import re
import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OPTIONAL = ("torch", "jax", "optax", "flax", "equinox", "orbax.checkpoint", "transformers", "peft", "accelerate")
BLOCKS = [
    pytest.param(textwrap.dedent(code), id=f"{page.stem}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    if not page.with_suffix(".py").exists()  # made from a tutorial, which tests/tutorials runs whole
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


# transformers deprecates an attribute that PEFT reads; torch warns about pinned memory if there is no accelerator
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs_as_written_and_learns(code, tmp_path, monkeypatch, capsys):
    for package in OPTIONAL:
        if package in code:
            pytest.importorskip(package)
    if "torch" in code:
        importlib.import_module("torch").set_num_threads(1)  # tests run in parallel
    monkeypatch.chdir(tmp_path)
    room = {}
    exec(code, room)
    assert room.keys() - {"__builtins__"}, "a block must define at least one name"
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)]
    assert not losses or losses[-1] < 0.5 * losses[0], "a block that prints its losses must learn"
