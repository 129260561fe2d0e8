"""The face of a package is the list of what its rooms offer: nothing more, nothing less, nothing twice."""

import importlib
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_FACE = {"tnadapt.testing", "tnadapt.families", "tnadapt_jax.nnx", "tnadapt_torch.peft", "tnadapt_torch.trainer"}
FACES = ["tnadapt", "tnadapt.families", "tnadapt.testing", "tnadapt_torch", "tnadapt_torch.peft", "tnadapt_jax"]


@pytest.mark.parametrize("name", FACES)
def test_the_face_offers_what_the_rooms_offer(name):
    if not (ROOT / name.replace(".", "/") / "__init__.py").exists():
        pytest.skip(f"{name} is not written yet")
    if name == "tnadapt_jax":
        pytest.importorskip("jax")
    if name == "tnadapt_torch.peft":
        pytest.importorskip("peft")
    face = importlib.import_module(name)
    rooms = [f"{name}.{room.name}" for room in pkgutil.iter_modules(face.__path__)]
    offered = [word for room in rooms if room not in OWN_FACE for word in importlib.import_module(room).__all__]
    assert len(offered) == len(set(offered)), "two rooms offer the same name"
    assert sorted(offered) == sorted(face.__all__)
    assert [word for word in face.__all__ if not hasattr(face, word)] == []
