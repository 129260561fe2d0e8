"""Sweeps: what is lost is the sum of the discarded squares; nothing rises; what is no tree is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, chain, distance, norm, served, size, updates
from tests.thorough import each_kind, left_to_laws
from tnadapt import AdapterSpec, SiteError, families, frozen, grid, init, load, save, trainable, zeros
from tnadapt.policies import bonds, grow, sweep
from tnadapt.policies._bonds import every_bond
from tnadapt.testing import adapters, random_params

CLOSE = 1e-10


def lost(adapter, params, change):
    """The squared norm of what all updates together lose, and the sum of the discarded squares."""
    before, after = updates(adapter, params), updates(change.adapter, change.params)
    difference = norm({path: before[path] - after[path] for path in before})
    return difference**2, sum(float((values**2).sum()) for values in change.errors.values()), norm(before) ** 2


def is_full(adapter):
    return all(group.places is None for group in adapter.groups)


def expect_the_error_to_be_the_discarded_squares(adapter, params, **limits):
    change = sweep(adapter, params, **limits)
    found, told, whole = lost(adapter, params, change)
    if is_full(adapter):
        assert abs(found - told) <= CLOSE * max(whole, 1e-300)
    else:
        assert found <= told + CLOSE * whole  # what a combination of indices without a site loses is counted too
    for name, bond in every_bond(adapter).items():
        assert max(every_bond(change.adapter)[name].sizes) <= max(bond.sizes)
    return change


@each_kind
def test_what_a_family_loses(adapter, moved):
    if "ok" not in bonds(adapter, "sweep").values():
        with pytest.raises(SiteError, match=r"sweep: expected an adapter with a bond between two trained factors of a"):
            sweep(adapter, moved(adapter), rank=1)
        return
    params = moved(adapter)
    for limits in ({"rank": 1}, {"rank": 2}, {"tol": 0.3}):
        expect_the_error_to_be_the_discarded_squares(adapter, params, **limits)


@given(adapter=adapters(plain=True) | adapters(), seed=st.integers(0, 2**16), rank=st.integers(1, 2))
def test_what_a_random_spec_loses(adapter, seed, rank):
    if "ok" in bonds(adapter, "sweep").values():
        params = random_params(adapter, np.random.default_rng(seed))
        expect_the_error_to_be_the_discarded_squares(adapter, params, rank=rank)


@left_to_laws("it draws hundreds of adapters before it finds one, which the test above draws from as well")
def test_random_specs_reach_sweeps():
    from hypothesis import Phase, find, settings

    one = settings(max_examples=2000, phases=[Phase.generate])  # to shrink it takes longer than to find it
    assert find(adapters(plain=True), lambda adapter: "ok" in bonds(adapter, "sweep").values(), settings=one)


@each_kind
def test_without_truncation_nothing_changes(adapter, moved):
    params = moved(adapter)
    if "ok" in bonds(adapter, "sweep").values():
        change = sweep(adapter, params)
        assert distance(updates(adapter, params), updates(change.adapter, change.params)) <= 1e-11 * size(
            adapter, params
        )
        again = sweep(change.adapter, change.params)
        assert again.adapter == change.adapter
        assert sum(values.size for values in again.errors.values()) == 0


@pytest.mark.parametrize("over", ["layer kind", "layer", "kind", ""])
def test_a_chain_is_rounded_over_its_sites(over):
    adapter = chain(over).bind(SITES, rank=4, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(1))
    change = expect_the_error_to_be_the_discarded_squares(adapter, params, rank=2)
    assert {size for group in change.adapter.groups for size in (group.network.sizes[b] for b in "pqr")} == {2}
    found, _, whole = lost(adapter, params, change)
    assert found > 1e-3 * whole
    planted = {name: values * 1.001 for name, values in change.errors.items()}
    assert abs(found - sum((v**2).sum() for v in planted.values())) > CLOSE * whole


def test_a_network_of_lower_rank_comes_back_with_that_rank():
    adapter = chain().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(1))
    grown = grow(adapter, params, "q", 2)
    change = sweep(grown.adapter, grown.params)
    assert every_bond(change.adapter)["q"].sizes == (2,)
    assert distance(updates(adapter, params), updates(change.adapter, change.params)) < 1e-11 * size(adapter, params)
    assert change.errors["q"].max() < 1e-10


def test_the_two_carriers_are_balanced():
    adapter = families.lora().bind(SITES[:1], rank=3)
    params = random_params(adapter, np.random.default_rng(1))
    change = sweep(adapter, params)
    left, right = change.params["B"], change.params["A"]
    np.testing.assert_allclose(left.T @ left, right @ right.T, atol=1e-12)
    assert np.abs(left.T @ left - np.diag(np.diag(left.T @ left))).max() < 1e-12


def test_singular_values_are_those_of_the_stack():
    adapter = chain().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(1))
    change = sweep(adapter, params, rank=1, bond="p")
    found = updates(adapter, params)
    stack = np.concatenate([found[site.path] for site in adapter.sites], axis=1)  # out by everything else
    np.testing.assert_allclose(change.errors["p"], np.linalg.svd(stack, compute_uv=False)[1:3], rtol=1e-10)


def test_groups_get_ranks_of_their_own():
    adapter = families.lora().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(1))
    params["0.q.B"] = params["0.q.B"][:, :1] * np.ones(3)
    change = sweep(adapter, params)
    assert change.adapter.sizes == {"0.q.r": 1}
    one = sweep(adapter, params, rank=2, bond="1.k.r")
    assert one.adapter.sizes == {"1.k.r": 2}
    assert {*one.moves} == {"1.k.A", "1.k.B"}


def batched():
    """One matrix product for each site, since every factor carries the site."""
    return AdapterSpec(
        name="batched",
        weight="out in",
        over="site",
        factors={"A": trainable("site r in"), "B": trainable("r out site", init=zeros())},
    )


def test_a_site_mode_that_every_factor_carries_gives_independent_networks():
    adapter = batched().bind(SITES, rank=4)
    params = random_params(adapter, np.random.default_rng(1))
    change = expect_the_error_to_be_the_discarded_squares(adapter, params, rank=2)
    assert change.errors["r"].size == 6 * 2
    alone = np.linalg.svd(updates(adapter, params)[adapter.sites[0].path], compute_uv=False)
    assert alone[2] == pytest.approx(change.errors["r"][np.argmin(np.abs(change.errors["r"] - alone[2]))])


def test_slices_of_one_site_without_values_can_still_train():
    adapter = batched().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(1))
    params["B"][:, :, 0] = 0.0
    params["B"][1, :, 1] = 0.0
    change = sweep(adapter, params)
    assert distance(updates(adapter, params), updates(change.adapter, change.params)) < 1e-12
    for slice_ in range(2):
        assert change.params["A"][0, slice_].any() or change.params["B"][slice_, :, 0].any()
        assert change.params["A"][1, slice_].any() or change.params["B"][slice_, :, 1].any()


def test_an_update_of_zero_keeps_its_slices_up_to_the_rank():
    adapter = families.lora().bind(SITES, rank=3)
    params = init(adapter)
    assert every_bond(sweep(adapter, params).adapter)["0.q.r"].sizes == (3,)
    change = sweep(adapter, params, rank=2)
    np.testing.assert_array_equal(change.params["0.q.A"], params["0.q.A"][:2])


def test_factors_that_nothing_links_multiply_the_errors():
    spec = AdapterSpec(
        name="kron",
        weight="(o1 o2) (i1 i2)",
        factors={"K": trainable("o1 i1"), "B": trainable("o2 r", init=zeros()), "A": trainable("r i2")},
    )
    adapter = spec.bind(grid(layers=2, kinds={"q": (6, 6)}), rank=2, sizes={"o1": 2, "i1": 3}, overparametrized=True)
    expect_the_error_to_be_the_discarded_squares(adapter, random_params(adapter, np.random.default_rng(0)), rank=1)


def test_a_grid_with_holes_counts_what_has_no_site():
    adapter = chain().bind(SITES[:-1], rank=3)
    expect_the_error_to_be_the_discarded_squares(adapter, random_params(adapter, np.random.default_rng(0)), rank=1)


def test_the_file_keeps_ranks_of_groups(tmp_path):
    adapter = families.lora().bind(SITES, rank=3)
    change = sweep(adapter, random_params(adapter, np.random.default_rng(1)), rank=1, bond="0.q.r")
    save(change.adapter, change.params, tmp_path / "a.safetensors")
    read, params = load(tmp_path / "a.safetensors")
    assert read == change.adapter
    np.testing.assert_array_equal(params["0.q.A"], change.params["0.q.A"])


def test_large_factors_are_never_multiplied_out():
    """The dense stack would have 10^11 entries."""
    sites = grid(layers=32, kinds={f"k{n}": (4096, 4096) for n in range(6)})
    adapter = chain().bind(sites, rank=8)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params, rank=4)
    assert change.params["A"].shape == (4096, 4)


def spec_of(factors, **more):
    return AdapterSpec(name="own", weight="out in", factors=factors, start="free", **more)


PAIR = {"A": trainable("out p"), "B": trainable("p in")}
REFUSED = {
    "a hyperedge": (families.lorta(), "r", r"'.*r': 5 factors carry it: it is a hyperedge"),
    "an outer hyperedge": (
        spec_of(PAIR | {"C": trainable("out")}),
        "p",
        r"'out' joins 2 factors of its network: it is a hyperedge",
    ),
    "a loop": (spec_of({"A": trainable("out p q"), "B": trainable("p q in")}), "p", r"its network has a loop"),
    "a frozen carrier": (families.lora(frozen_a=True), "r", r"'A', which carries it, is frozen"),
    "frozen carriers": (
        spec_of({"A": frozen("out p"), "C": frozen("p q"), "B": trainable("q in")}),
        "p",
        r"'A', which carries it, is frozen",
    ),
    "a sum": (spec_of(PAIR | {"C": trainable("out in")}, terms=["A B", "C"]), "p", r"a sum of several terms"),
    "a copy": (families.mtlora(variant="icfm"), "p", r"a sum of|other bonds have its size|used twice"),
    "a map": (
        spec_of({"A": trainable("out p"), "Q": trainable("p q", map="cayley"), "B": trainable("q in")}),
        "q",
        r"'Q', which carries it, is made by a map",
    ),
    "a shared factor": (
        spec_of({"A": trainable("out p", shared=True), "B": trainable("p in")}),
        "p",
        r"'A', which carries it, is shared by all groups",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bond_that_is_no_edge_is_refused_with_the_reason(case):
    spec, bond, reason = REFUSED[case]
    sizes = {"head": 1} if spec.name == "lorta" else {}
    adapter = spec.bind(SITES, rank=2, sizes=sizes, overparametrized=True)
    with pytest.raises(SiteError, match=rf"sweep: expected a bond that can change, got .*{reason}"):
        sweep(adapter, init(adapter), rank=1, bond=bond)


@pytest.mark.parametrize(("given", "match"), [
    ({"rank": 0}, r"sweep: rank: expected an integer of at least 1, got 0"),
    ({"tol": -1}, r"sweep: expected a number from 0 to 1 as tol, got -1"),
    ({"tol": True}, r"sweep: expected a number from 0 to 1 as tol, got True"),
    ({"tol": "small"}, r"sweep: expected a number from 0 to 1 as tol, got 'small'"),
    ({"bond": "x"}, r"sweep: expected a bond of lora, got 'x'"),
])  # fmt: skip
def test_wrong_arguments(given, match):
    adapter = families.lora().bind(SITES, rank=2)
    with pytest.raises(SiteError, match=match):
        sweep(adapter, init(adapter), **given)


def test_every_served_bond_is_rounded_alone():
    adapter = families.metatt().bind(SITES, rank={"r1": 2, "r2": 3, "r3": 2})
    params = random_params(adapter, np.random.default_rng(0))
    for name in served(adapter, "sweep"):
        expect_the_error_to_be_the_discarded_squares(adapter, params, rank=1, bond=name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (6, 5)}), rank=2)
    params = {name: np.full(array.shape, value) for name, array in init(adapter).items()}
    with pytest.raises(SiteError, match="sweep: expected finite params of 'r', got NaN or infinity"):
        sweep(adapter, params, tol=1e-3)
