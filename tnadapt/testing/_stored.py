"""Laws of files and texts: they give back what was written."""

import tempfile
from pathlib import Path

import numpy as np

from tnadapt._files import from_json, load, save, to_json
from tnadapt._language import Adapter
from tnadapt.testing._expect import expect
from tnadapt.testing._oracle import random_params

__all__: list[str] = []


def files_give_back(adapter: Adapter, random: np.random.Generator) -> None:
    """`load` returns the adapter and the values that `save` wrote; saving them again writes the same bytes."""
    params = random_params(adapter, random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save(adapter, params, path)
        before = path.read_bytes()
        again, loaded = load(path)
        expect(again == adapter, "loaded file: expected the saved adapter, got another")
        expect(loaded.keys() == adapter.slots.keys(), "loaded file: expected the names of the saved params, got others")
        for name, value in loaded.items():
            expect(np.array_equal(params[name], value), f"loaded file: expected the saved values of {name}, got others")
        save(again, params | {name: loaded[name] for name in reversed(loaded)}, path)
        expect(path.read_bytes() == before, "file saved again: expected the same bytes, got others")


def texts_give_back(adapter: Adapter, random: np.random.Generator) -> None:
    """`from_json` restores an adapter or a spec from `to_json` exactly, with the same printed form."""
    again = from_json(to_json(adapter))
    expect(again == adapter and hash(again) == hash(adapter), "text of an adapter: expected an equal one, got another")
    expect(from_json(to_json(adapter.spec)) == adapter.spec, "text of a spec: expected an equal one, got another")
    is_equal = (str(again), to_json(again)) == (str(adapter), to_json(adapter))
    expect(is_equal, "text written again: expected the same text, got another")
