"""The size of a file, told before it is written."""

import pytest

from tests.table import REPRESENTATIVES, places, required_of
from tnadapt import FormatError, families, grid, save
from tnadapt.binding import file_size
from tnadapt.testing import start_params

KINDS = {"q": (24, 16), "v": (24, 16), "up": (32, 24)}
SITES = grid(layers=3, kinds=KINDS)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in families.__all__]
    + [(name, dtype) for name in REPRESENTATIVES for dtype in ("float64", "float16")],
)
def test_the_size_of_the_file_is_exact(name, dtype, tmp_path):
    spec = getattr(families, name)()
    rank, sizes = 2 if spec.free_bonds else None, dict.fromkeys(required_of(spec), 8)
    adapter = spec.bind(places(spec, layers=3, kinds=KINDS), rank=rank, sizes=sizes, seed=3)
    params = start_params(adapter)
    kept = {*adapter.hosts, *(key for key, slot in adapter.slots.items() if slot.is_stored)}
    stored = {key: value.astype(dtype) for key, value in params.items() if key in kept}
    save(adapter, stored, tmp_path / "x.safetensors")
    assert file_size(adapter, dtype=dtype) == (tmp_path / "x.safetensors").stat().st_size


def test_a_dtype_that_is_not_stored_has_no_size():
    with pytest.raises(FormatError, match=r"file_size: expected one of float16, float32, float64 as dtype, got 'int8'"):
        file_size(families.lora().bind(SITES, rank=2), dtype="int8")
