"""The table of families: those that stand for all in every run have every kind of spec that any of them has."""

import re
from collections import Counter

import pytest

from tests.table import FAMILIES, OF_EACH_KIND, REPRESENTATIVES
from tnadapt._language import Same
from tnadapt.policies import bonds

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}  # those of tests/core
OPERATIONS = ("importance", "grow", "cut", "sweep", "hide")


def traits(name):
    """Yield what a test could depend on: how the spec is made, how its factors start, and what policies say of it."""
    spec, adapter = FAMILIES[name].spec, FAMILIES[name].bind(layers=2, kinds=KINDS, seed=5)
    uses = Counter(mode for node in spec.nodes.values() for mode in node.modes)
    yield "start", spec.start
    yield "over", spec.over
    yield "axes", len(spec.axes)
    yield "modes of an axis", tuple(min(len(axis), 3) for axis in spec.axes[:2])
    yield "terms", min(len(spec.sum), 3)
    yield "a hyperedge", any(uses[bond] > 2 for bond in spec.bonds)
    yield "a mode of the weight in two factors", any(uses[mode] > 1 for axis in spec.axes for mode in axis)
    yield "starts, hosts and groups", (bool(adapter.starts), bool(adapter.hosts), len(adapter.groups) > 1)
    for term in spec.sum:
        yield "sign", term.sign
    for key, factor in spec.arrays.items():
        yield "factor", (factor.trainable, factor.init.kind, factor.map)
        yield "of one site, of all groups", (spec.is_private(key), factor.shared, spec.is_global(key))
        yield "a scalar", not factor.modes
    for factor in spec.factors.values():
        if isinstance(factor, Same):
            yield "a factor again", (factor.at_start, factor.modes is not None)
    for operation in OPERATIONS:
        for reason in bonds(adapter, operation).values() or ["no bond"]:
            yield operation, re.sub(r"'[^']*'|\d+", "...", reason)


def test_every_kind_of_family_is_among_those_of_every_run():
    found = {name: set(traits(name)) for name in FAMILIES}
    missing = set.union(*found.values()) - set.union(*(found[name] for name in OF_EACH_KIND))
    assert {trait: next(name for name in FAMILIES if trait in found[name]) for trait in missing} == {}


def test_they_are_cases_of_the_table_each_once():
    assert len(set(OF_EACH_KIND)) == len(OF_EACH_KIND)
    assert {*REPRESENTATIVES} <= {*OF_EACH_KIND} <= FAMILIES.keys()
    assert sum("ok" in bonds(FAMILIES[name].bind(layers=2, kinds=KINDS), "sweep").values() for name in OF_EACH_KIND) > 3


@pytest.mark.parametrize("left_out", ["quantum_peft", "hra", "sharelora", "flora kernel"])
def test_a_kind_that_is_missing_is_found(left_out):
    others = set.union(*(set(traits(name)) for name in OF_EACH_KIND if name != left_out))
    assert set(traits(left_out)) - others
