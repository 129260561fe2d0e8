"""Every law of `tnadapt.testing`, on random specs and on every family."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from tests.table import FAMILIES, OF_EACH_KIND
from tests.thorough import IS_THOROUGH, left_to_laws
from tnadapt import (
    Adapter,
    AdapterSpec,
    degrees_of_freedom,
    families,
    frozen,
    grid,
    normal,
    same,
    trainable,
)
from tnadapt._language import Same
from tnadapt._language.terms import terms_of
from tnadapt.binding import Network
from tnadapt.initializers import ones
from tnadapt.testing import LAWS, LawError, adapters, check, networks, sites, specs
from tnadapt.testing._laws import freedom_is_the_rank_of_the_jacobian, living_gradient
from tnadapt.testing._oracle import gradients, random_params
from tnadapt.testing._steps import first_steps_are_predicted

every_law = pytest.mark.parametrize("law", LAWS, ids=[law.__name__ for law in LAWS])
EXAMPLES = settings().max_examples if IS_THOROUGH else min(settings().max_examples, 12)  # for each of the laws
slow_data = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


one_by_one = left_to_laws("every run tests all laws on the same adapters at once, since to draw them takes as long")


@one_by_one
@every_law
@slow_data
@given(adapter=adapters(), seed=st.integers(0, 2**16))
def test_a_random_spec(law, adapter, seed):
    law(adapter, np.random.default_rng(seed))


@one_by_one
@every_law
@slow_data
@given(adapter=adapters(start="centered"), seed=st.integers(0, 2**16))
def test_a_random_centered_spec(law, adapter, seed):
    law(adapter, np.random.default_rng(seed))


@one_by_one
@every_law
@slow_data
@given(adapter=adapters(start="free"), seed=st.integers(0, 2**16))
def test_a_random_spec_that_starts_anywhere(law, adapter, seed):
    law(adapter, np.random.default_rng(seed))


def all_laws(adapter, random):
    """An adapter satisfies every law. Drawing it takes about as long as testing most laws, so it is drawn once."""
    for law in LAWS:
        try:
            law(adapter, random)
        except LawError as error:
            raise LawError(f"{law.__name__}: {error}") from error


def test_the_guide_lists_every_law():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "testing.md").read_text(encoding="utf-8")
    assert not [law.__name__ for law in LAWS if f"`{law.__name__}`" not in page]


@pytest.mark.parametrize("start", ["zero", "centered", "free"])
@settings(slow_data, max_examples=min(EXAMPLES, 12))
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_a_random_spec_satisfies_every_law(start, data, seed):
    all_laws(data.draw(adapters(start=start)), np.random.default_rng(seed))


ASKED = [name for name in FAMILIES if IS_THOROUGH or name in OF_EACH_KIND]


@pytest.mark.parametrize("name", ASKED)
def test_a_family_satisfies_every_law(name):
    share = 12 if name in families.__all__ else 30
    tried = max(2, settings().max_examples // share)  # the first has no size above 1
    (held,) = check(FAMILIES[name].spec, sizes=FAMILIES[name].sizes, examples=tried, laws=[all_laws])
    assert held.examples >= 1


def test_check_returns_every_law_with_its_statement():
    held = check(families.lora(), examples=2)
    assert [one.law for one in held] == [law.__name__ for law in LAWS]
    assert all(one.examples >= 1 and one.statement.endswith(".") for one in held)


@pytest.mark.parametrize(("init", "rank"), [(ones(), 6), (normal(), 8)])
def test_starting_values_that_are_constant_have_fewer_degrees_than_generic_ones(init, rank):
    """dW_l = A_l X + A0_l Y: Y alone reaches all 8 numbers, but for an A0 that is equal in both layers."""
    factors = {
        "A": trainable("layer p", init=init),
        "X": frozen("p out in", init=normal()),
        "Y": trainable("p out in", init=normal()),
        "A0": same("A", at_start=True),
    }
    spec = AdapterSpec(
        name="own", weight="out in", over="layer", factors=factors, terms=("A X", "A0 Y"), start="centered"
    )
    adapter = spec.bind(grid(layers=2, kinds={"q": (2, 2)}), rank=2, seed=0, overparametrized=True)
    assert degrees_of_freedom(adapter).degrees == 8
    random = np.random.default_rng(0)
    freedom_is_the_rank_of_the_jacobian(adapter, random)
    params = random_params(adapter, random, frozen=True)
    found = []
    for _ in range(13):
        pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
        found.append(np.concatenate([each.ravel() for each in gradients(adapter, params, pulls).values()]))
    assert np.linalg.matrix_rank(np.array(found)) == rank


FOUR = grid(layers=2, kinds={"q": (1, 3), "k": (1, 3)})
FALSE_ALARMS = {
    "16 draws that are all alike": (families.lora().bind(FOUR, rank=1, seed=0), 406),
    "16 draws of two factors": (families.btt().bind(FOUR, rank=1, sizes={"o2": 1, "i2": 3}, seed=0), 406),
    "a rank above that of the weight": (
        families.lotr(start="neutral").bind(
            grid(layers=1, kinds={"q": (1, 1)}), rank={"p": 1, "q": 2}, seed=0, overparametrized=True
        ),
        0,
    ),
    "a rank above that of two identities": (
        FAMILIES["householder"].spec.bind(
            grid(layers=1, kinds={"q": (1, 1)}), rank={"t": 2}, seed=0, overparametrized=True
        ),
        0,
    ),
    "numbers of the law that are the weight": (
        families.oft().bind(grid(layers=2, kinds={"q": (4, 2)}), sizes={"i": 2}, seed=0),
        0,
    ),
}


@pytest.mark.parametrize("case", FALSE_ALARMS)
def test_no_law_has_a_false_alarm(case):
    """Each of these adapters is right, and was once reported."""
    adapter, seed = FALSE_ALARMS[case]
    all_laws(adapter, np.random.default_rng(seed))
    for law in (first_steps_are_predicted, living_gradient):
        law(adapter, np.random.default_rng(seed))


def test_tera_with_all_factors_satisfies_every_law():
    """Two adapters only: the search over its 13 factors takes a fifth of a second per network."""
    (held,) = check(families.tera(), examples=2, laws=[all_laws])
    assert held.examples == 2


def test_every_family_is_tested():
    assert {case.spec.name for case in FAMILIES.values()} == set(families.__all__)


REACHED = {
    "a bond in three factors": lambda spec, modes: any(modes.count(bond) > 2 for bond in spec.bonds),
    "a weight mode in two factors": lambda spec, modes: any(modes.count(mode) > 1 for mode in ("o0", "i0")),
    "an axis of two modes": lambda spec, modes: any(len(axis) > 1 for axis in spec.axes),
    "a kernel": lambda spec, modes: len(spec.axes) == 3,
    "a scalar": lambda spec, modes: any(not factor.modes for factor in spec.arrays.values()),
    "a frozen factor": lambda spec, modes: any(not factor.trainable for factor in spec.arrays.values()),
    "a factor of one site": lambda spec, modes: any(spec.is_private(name) for name in spec.arrays),
    "a custom coordinate": lambda spec, modes: "expert" in spec.site_modes,
    "no bond": lambda spec, modes: not spec.bonds,
    "centered": lambda spec, modes: spec.start == "centered",
    "one term of all factors": lambda spec, modes: spec.terms == () and spec.factors == spec.arrays,
    "two terms": lambda spec, modes: len(spec.terms) == 2,
    "a term that is subtracted": lambda spec, modes: any(term.sign < 0 for term in terms_of(spec.terms, spec.factors)),
    "terms with a factor in common": lambda spec, modes: len(spec.terms) == 2 and common(spec),
    "terms with two factors in common": lambda spec, modes: len(spec.terms) == 2 and len(common(spec)) > 1,
    "a start in a term": lambda spec, modes: any(term.at_start for term in copies(spec)),
    "a factor twice in a term": lambda spec, modes: any(not one.at_start and one.modes is None for one in copies(spec)),
    "a factor under other modes": lambda spec, modes: any(one.modes for one in copies(spec)),
    "a trained factor that is shared": lambda spec, modes: any(one.shared for one in spec.arrays.values()),
    "the weight of the host": lambda spec, modes: bool(spec.hosts),
    "the weight of the host in one of two terms": lambda spec, modes: sum("W" in term for term in spec.terms) == 1,
}


def copies(spec):
    return [one for one in spec.factors.values() if isinstance(one, Same)]


def common(spec):
    """The factors that every term has."""
    return set.intersection(*({*term.nodes} for term in terms_of(spec.terms, spec.factors)))


BOUND = {
    "several groups": lambda adapter: len(adapter.groups) > 1,
    "two shapes": lambda adapter: len({site.shape for site in adapter.sites}) > 1,
    "one site": lambda adapter: len(adapter.sites) == 1,
    "a gap between layers": lambda adapter: max(site.coordinates["layer"] for site in adapter.sites) > 3,
    "a size of 1": lambda adapter: 1 in adapter.networks[0].sizes.values(),
    "a site mode that no factor carries": lambda adapter: any(
        all(mode not in factor.modes for factor in adapter.spec.arrays.values()) for mode in adapter.spec.site_modes
    ),
    "a frozen factor of two shapes": lambda adapter: any(
        slot.shape != tuple(group.network.sizes[mode] for mode in slot.factor.modes)
        for group in adapter.groups
        for slot in adapter.slots.values()
        if slot.name in adapter.spec.arrays and adapter.spec.is_global(slot.name) and not slot.factor.trainable
    ),
    "a trained factor of two shapes": lambda adapter: any(
        slot.shape != tuple(group.network.sizes[mode] for mode in slot.factor.modes)
        for group in adapter.groups
        for slot in adapter.slots.values()
        if slot.factor.shared
    ),
}


PLAIN = settings(
    max_examples=2000, database=None, derandomize=True, deadline=None, phases=[Phase.generate, Phase.shrink]
)


def seen(strategy, table, look):
    """Return the descriptions in the table that some drawn value matches."""
    found = set()

    @settings(PLAIN, max_examples=400, phases=[Phase.generate])
    @given(value=strategy)
    def collect(value):
        found.update(what for what, holds in table.items() if look(holds, value))

    collect()
    return found


@left_to_laws("it draws hundreds of specs")
def test_the_strategy_for_specs_covers_what_it_promises():
    def look(holds, spec):
        return holds(spec, [mode for factor in spec.arrays.values() for mode in factor.modes])

    assert seen(specs() | specs(start="centered"), REACHED, look) == REACHED.keys()


def test_plain_specs_are_one_term_of_factors_with_arrays():
    @settings(PLAIN, max_examples=200, phases=[Phase.generate])
    @given(spec=specs(plain=True) | specs(plain=True, start="centered"))
    def collect(spec):
        assert spec.terms == ()
        assert spec.factors == spec.arrays
        assert not any(factor.shared for factor in spec.arrays.values())

    collect()


@left_to_laws("it draws hundreds of adapters")
def test_the_strategy_for_adapters_covers_what_it_promises():
    assert seen(adapters(), BOUND, lambda holds, adapter: holds(adapter)) == BOUND.keys()


def test_specs_and_adapters_shrink_to_small_ones():
    spec = find(specs(), lambda spec: bool(spec.bonds), settings=PLAIN)
    assert (len(spec.factors), len(spec.bonds), spec.weight, spec.over) == (2, 1, "o0 i0", "")
    adapter = find(adapters(), lambda adapter: len(adapter.groups) > 1, settings=PLAIN)
    assert (len(adapter.sites), len(adapter.spec.factors), adapter.seed) == (2, 2, 0)
    assert {size for site in adapter.sites for size in site.shape} == {1}


@given(network=networks())
def test_the_strategy_for_networks_draws_networks(network):
    assert isinstance(network, Network)


@given(data=st.data())
def test_drawn_sites_fit_their_spec_and_sizes(data):
    spec, sizes = families.lorta(), {"head": 5}
    places = data.draw(sites(spec, sizes=sizes))
    adapter = spec.bind(places, rank=2, sizes=sizes, overparametrized=True)
    assert isinstance(adapter, Adapter)
    assert all(network.sizes["head"] == 5 for network in adapter.networks)
    assert adapter == data.draw(st.just(adapter))
