"""The scale `unit` of every family to the last bit: files and published runs depend on it."""

from pathlib import Path

from tests.table import FAMILIES
from tnadapt import SpecError, unit

STORED = Path(__file__).with_name("unit.txt")
KINDS = {"q": (24, 24), "v": (12, 24), "up": (48, 24)}


def found():
    """Return a line for each family and network: its name in the table, the weight, and the scale in hexadecimal."""
    lines = []
    for name, case in FAMILIES.items():
        bound = case.bind(layers=3, kinds=KINDS)
        words = {"rank": bound.rank, "sizes": bound.sizes, "overparametrized": True}
        try:
            adapter = case.spec.bind(bound.sites, scale=unit(), **words)
        except SpecError:
            continue  # a start is read from the host
        for network in dict.fromkeys(adapter.networks):
            lines.append(f"{name}: {' x '.join(map(str, network.weight_shape))} {network.scale.hex()}")
    return list(dict.fromkeys(lines))


def test_every_scale_is_the_stored_one():
    """A formula that gives another last bit would make files of two machines differ."""
    assert found() == STORED.read_text(encoding="utf-8").splitlines()
