"""Ten minutes with the README alone: its blocks in order, then an own adapter: trained, saved, loaded, exported."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
NEEDED = {
    "tnadapt_torch.peft": "peft",
    "tnadapt_jax": "jax",
    "optax": "optax",
    "peft": "peft",
    "transformers": "transformers",
}
OWN = "mine"  # the adapter that the README invents

# transformers deprecates an attribute that PEFT reads
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def can_run(block: str) -> bool:
    """Return whether all optional packages that a block imports are installed."""
    imported = re.findall(r"^\s*(?:from|import) (.+?)(?: import .*)?$", block, flags=re.MULTILINE)
    names = {name.strip().split(" ")[0] for line in imported for name in line.split(",")}
    roots = {NEEDED.get(name, name).partition(".")[0] for name in names}
    return all(find_spec(root) for root in roots)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """What a Python session holds after all blocks of the README were pasted into it, one after another."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # tests run in parallel
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "session"}
    for block in BLOCKS:
        if can_run(block):
            exec(block, names)
    return names


def new_model(torch):
    """Return the model that a stranger has: the same weights each time."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32))


def test_the_readme_has_a_quickstart_and_an_adapter_of_ones_own():
    assert len(BLOCKS) >= 2
    assert all(can_run(block) for block in BLOCKS if "jax" not in block and "peft" not in block)
    assert sum(f"{OWN} = AdapterSpec(" in block for block in BLOCKS) == 1


def test_a_block_with_a_missing_package_is_left_out():
    assert not can_run("import no_such_package\n")
    assert not can_run("import re, no_such_package.part as part\n")
    assert not can_run("from no_such_package.part import one, two\n")
    assert can_run("import re, sys\nfrom pathlib import Path\n")


def test_a_stranger_trains_an_own_adapter_and_saves_loads_and_exports_it(session, tmp_path):
    torch, tnadapt_torch = sys.modules["torch"], sys.modules["tnadapt_torch"]
    model, x = new_model(torch), torch.randn(256, 32)
    before = model(x).detach()
    y = before + x[:, :2] @ torch.randn(2, 32)
    state = tnadapt_torch.attach(model, session[OWN], target_modules=["0", "2"], rank=8, seed=0)
    optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-2, balance=True))
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    trained = model(x).detach()
    assert (trained - before).abs().max() > 0.1

    state.save(tmp_path / "mine.safetensors")
    again = new_model(torch)
    loaded = tnadapt_torch.load(again, tmp_path / "mine.safetensors")
    assert torch.equal(again(x), trained)
    assert loaded.spec.factors == session[OWN].factors

    written = loaded.save_as_lora(tmp_path / "mine_lora")
    assert all(error == 0 for _, error in written.values())
    exported = new_model(torch)
    tnadapt_torch.load_peft(exported, tmp_path / "mine_lora")
    torch.testing.assert_close(exported(x), trained, rtol=1e-5, atol=1e-5)
    if find_spec("peft"):
        from peft import PeftModel

        in_peft = PeftModel.from_pretrained(new_model(torch), tmp_path / "mine_lora")
        torch.testing.assert_close(in_peft(x), trained, rtol=1e-5, atol=1e-5)
