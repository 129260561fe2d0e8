"""What grows at once: every unit of a family can grow by its bonds, and the update stays."""

import numpy as np
import pytest

from tests.core.policies.changes import SITES, distance, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError, families
from tnadapt.policies import bonds, grow, units

EXACT = 1e-12


@each_kind
def test_a_unit_of_a_family_grows_and_the_update_stays(adapter, moved):
    reasons = bonds(adapter, "grow")
    able = [name for name, reason in reasons.items() if reason == "ok"]
    if not able:
        return
    found = units(adapter)
    params = moved(adapter)
    first = next(iter(found.values()))
    if first.limit is not None and first.limit == first.rank:
        return
    assert {*able} <= {name for unit in found.values() for name in unit.bonds}
    change = grow(adapter, params, dict.fromkeys(first.bonds, 1))
    assert distance(updates(adapter, params), updates(change.adapter, change.params)) <= EXACT * size(adapter, params)
    after = units(change.adapter)[next(iter(found))]
    assert (after.rank, after.limit) == (first.rank + 1, first.limit)
    for entry in first.entries if len(first.bonds) == 1 else ():  # the new slices are 0
        norm = np.linalg.norm(change.params[entry]) / change.factors.get(entry, 1.0)
        assert norm == pytest.approx(np.linalg.norm(params[entry]))


def test_groups_are_units_and_joint_bonds_are_one():
    assert list(units(families.lora().bind(SITES, rank=2))) == ["0.q", "0.k", "1.q", "1.k", "2.q", "2.k"]
    assert list(units(families.lotr().bind(SITES, rank=2))) == [""]
    found = units(families.triadaptlora().bind(SITES, rank=2))["0.q"]
    assert found.bonds == ("0.q.q", "0.q.p")
    assert found.entries == ("0.q.C",)
    assert (found.rank, found.limit) == (2, None)


def test_named_bonds_alone_grow():
    adapter = families.triadaptlora().bind(SITES, rank=2)
    assert units(adapter, ["p"])["0.q"].bonds == ("0.q.p",)
    assert list(units(adapter, ["0.q.q"])) == ["0.q"]


def test_what_cannot_grow_is_refused():
    with pytest.raises(SiteError, match=r"units: expected a bond of lora, got 's'"):
        units(families.lora().bind(SITES, rank=2), ["s"])
    with pytest.raises(SiteError, match=r"units: expected an adapter with a bond that can grow, got ssl"):
        units(families.ssl().bind(SITES))
    adapter = families.mora(variant=6).bind(SITES, sizes={"o2": 1, "i2": 2})
    for name, reason in bonds(adapter, "grow").items():
        if reason != "ok":
            with pytest.raises(SiteError, match=r"units: expected a bond that can change"):
                units(adapter, [name])
