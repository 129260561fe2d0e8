"""The names of bonds, what params an operation takes, and the reasons that are listed."""

import numpy as np
import pytest

from tests.core.conftest import KINDS
from tests.core.policies.changes import SITES, chain, served
from tests.table import FAMILIES, OF_EACH_KIND, REPRESENTATIVES
from tests.thorough import IS_THOROUGH, each_kind
from tnadapt import SiteError, delta, families, init
from tnadapt.policies import bonds, cut, grow, importance, sweep
from tnadapt.policies._bonds import every_bond, resized
from tnadapt.testing import LAWS, gradients, start_params


def test_a_bond_of_each_group_has_the_name_of_the_group():
    adapter = families.lora().bind(SITES, rank=2)
    assert [*every_bond(adapter)] == [f"{group.name}.r" for group in adapter.groups]
    assert [*every_bond(families.lora().bind(SITES[:1], rank=2))] == ["r"]
    assert [*every_bond(families.vera().bind(SITES, rank=2))] == ["r"]


def test_bonds_whose_sizes_follow_are_left_out():
    adapter = families.mtlora(variant="icfm").bind(SITES[:1], rank={"p": 2, "s": 3})
    assert [*every_bond(adapter)] == ["p", "s"]
    assert every_bond(adapter)["p"].modes == {"p", "q"}


@each_kind
def test_every_operation_has_reasons(adapter):
    for operation in ("importance", "grow", "cut", "sweep"):
        found = bonds(adapter, operation)
        assert [*found] == [*every_bond(adapter)]
        assert all(found.values())


def test_tests_of_families_have_bonds_to_work_on():
    """They go over the bonds that an operation serves, and assert nothing where there is none."""
    adapters = [FAMILIES[name].bind(layers=2, kinds=KINDS, seed=5) for name in OF_EACH_KIND]
    wanted = {"importance": 20, "grow": 25, "cut": 25, "sweep": 7, "hide": 20}
    assert {op: sum(any(served(one, op)) for one in adapters) for op in wanted} == wanted


def test_an_unknown_operation():
    with pytest.raises(
        SiteError, match=r"bonds: expected one of 'importance', 'grow', 'cut', 'sweep', 'hide', got 'shrink'"
    ):
        bonds(families.lora().bind(SITES, rank=2), "shrink")


OPERATIONS = {
    "grow": lambda adapter, params: grow(adapter, params, "q", 1),
    "cut": lambda adapter, params: cut(adapter, params, "q", 1),
    "sweep": sweep,
    "importance": lambda adapter, params: importance(adapter, params, {}),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("change", "match"), [
    (lambda found: found.pop("B"), r"expected an array 'B' among the params, got none"),
    (lambda found: found.update(B=np.ones(3)), r"expected params\['B'\] of shape \(2, 3, 2\), got \(3,\)"),
    (lambda found: found.update(X=np.ones(3)), r"expected only params of this adapter, got 'X'"),
])  # fmt: skip
def test_params_that_do_not_fit(operation, change, match):
    adapter = chain().bind(SITES, rank=2)
    params = init(adapter)
    change(params)
    with pytest.raises(SiteError, match=rf"{operation}: {match}"):
        OPERATIONS[operation](adapter, params)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_something_else_than_an_adapter(operation):
    with pytest.raises(SiteError, match=rf"{operation}: expected an Adapter, got the AdapterSpec 'chain'"):
        OPERATIONS[operation](chain(), {})


def test_the_hosts_weights_stay_among_the_params():
    random = np.random.default_rng(0)
    adapter = families.hira().bind(SITES, rank=2)
    params = init(adapter, {site.path: random.standard_normal(site.shape) for site in SITES})
    change = grow(adapter, params, "0.q.r", 1)
    assert {*change.params} == {*params}
    for site in adapter.sites:
        np.testing.assert_allclose(delta(change.adapter, change.params, site), delta(adapter, params, site), atol=1e-12)
    assert gradients(change.adapter, change.params, {site.path: np.ones(site.shape) for site in SITES})


def test_sizes_of_one_group_of_several():
    adapter = chain("layer").bind(SITES, rank=2)
    made = resized(adapter, {"q.p": (3,), "k.q": (4,)})
    assert made.sizes == {"q.p": 3, "k.q": 4}
    assert [(g.network.sizes["p"], g.network.sizes["q"]) for g in made.groups] == [(3, 2), (2, 4)]
    assert resized(made, {"q.p": (2,)}).sizes == {"p": 2, "k.q": 4}


@pytest.mark.parametrize(
    "adapter", FAMILIES if IS_THOROUGH else (*REPRESENTATIVES, "lotr", "tt_lora", "dota"), indirect=True
)
def test_an_adapter_whose_groups_have_ranks_of_their_own_satisfies_every_law(adapter):
    name = next(served(adapter, "grow"), None)
    if name is not None:
        made = grow(adapter, start_params(adapter), name, 1).adapter
        for law in LAWS:
            law(made, np.random.default_rng(0))
