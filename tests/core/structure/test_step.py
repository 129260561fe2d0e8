"""The size of the first step: against steps that are taken, with random signs and with those of a gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest

import tnadapt
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH, left_to_laws
from tnadapt import (
    AdapterSpec,
    SiteError,
    families,
    frozen,
    grid,
    init,
    magnitude,
    normal,
    step_size,
    trainable,
    unit,
    zeros,
)
from tnadapt.binding import Balanced, balanced_rates
from tnadapt.initializers import constant, identity
from tnadapt.testing import gradients, start_params

SHAPES = {"q": (48, 64), "v": (32, 64)}
SMALL = 1e-6  # a step that is far from any second order


def measured(adapter, signs):
    """Return group -> mean square of the change of dW over its sites, per unit of the learning rate.

    `signs` makes the signs of a step of the arrays of params.
    """
    params = start_params(adapter)
    turned = signs(adapter, params)
    moved = params | {name: params[name] + SMALL * one for name, one in turned.items()}
    return {
        group.name: np.mean(
            [
                np.square(tnadapt.delta(adapter, moved, site) - tnadapt.delta(adapter, params, site)).mean() / SMALL**2
                for site in group.sites
            ]
        )
        for group in adapter.groups
    }


def of_random(random):
    def signs(adapter, params):
        names = tnadapt.first_gradients(adapter)
        return {
            adapter.slot_name(group, name): random.choice([-1.0, 1.0], params[adapter.slot_name(group, name)].shape)
            for group in adapter.groups
            for name in names
        }

    return signs


def of_gradient(random):
    def signs(adapter, params):
        pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
        return {name: np.sign(one) for name, one in gradients(adapter, params, pulls).items()}

    return signs


def roots(adapter, make, draws):
    """Return group -> RMS over some seeds, by the RMS that step_size says."""
    ratios = {group.name: [] for group in adapter.groups}
    for seed in range(draws):
        other = replace(adapter, seed=seed)
        found = measured(other, make(np.random.default_rng(100 + seed)))  # not the seed of the host's weights
        said = step_size(other, start_params(other))
        for name, square in found.items():
            ratios[name].append(square / said[name].update ** 2)
    return {name: math.sqrt(np.mean(ratio)) for name, ratio in ratios.items()}


# A product, a frozen factor, a train, a hyperedge, starts that are read, the host's weight, a map.
FEW = ("lora", "vera", "tt_lora", "cp", "pissa", "hira", "oft")
OWN = (*FEW, "craft", "lotr", "loha", "metatt", "fact_tt", "tlora", "randlora")


@pytest.mark.parametrize("name", OWN if IS_THOROUGH else FEW)
def test_the_step_of_a_gradient_is_predicted_with_its_coherence(name):
    """Ranks are above what some factors are joined to, and a shared frozen factor is larger than a weight needs."""
    rank = None if name == "oft" else 6
    adapter = getattr(families, name)().bind(grid(layers=3, kinds=SHAPES), rank=rank, overparametrized=True)
    for group, ratio in roots(adapter, of_gradient, 6).items():
        assert 0.75 < ratio < 1.35, (group, ratio)


def test_coherence_is_what_signs_of_a_gradient_add_to_those_at_random():
    """TensLoRA joins its kinds by 8 numbers to 1 kind, so that the signs of a gradient agree with each other."""
    adapter = families.tenslora().bind(
        grid(layers=4, kinds={"q": (32, 32)}), rank={"r_in": 4, "r_out": 4, "r_kind": 8, "r_layer": 8},
        overparametrized=True,
    )  # fmt: skip
    (size,) = step_size(adapter).values()
    assert size.coherence > 2
    (true,) = roots(adapter, of_gradient, 12).values()
    (other,) = roots(adapter, of_random, 12).values()
    assert 0.7 < true < 1.4
    assert 0.7 < other * size.coherence < 1.4


@left_to_laws("it says what a formula leaves out")
def test_reflections_have_too_few_numbers_to_follow_their_node():
    adapter = families.hra(reflections=3).bind(grid(layers=1, kinds={"q": (24, 32)}))
    for ratio in roots(adapter, of_gradient, 6).values():
        assert 0.8 < ratio < 1.25


def test_parts_add_up_in_quadrature_and_the_decrease_is_that_of_sgd():
    adapter = families.quanta(order=3).bind(grid(layers=1, kinds={"q": (64, 64)}), rank=4, overparametrized=True)
    (size,) = step_size(adapter).values()
    assert math.sqrt(sum(part**2 for part in size.parts.values())) == pytest.approx(size.update)
    assert size.decrease == pytest.approx((size.update / size.coherence) ** 2)
    assert size.output == pytest.approx(8 * size.update)


def test_a_step_of_sgd_lowers_the_loss_by_the_decrease():
    """The loss <G, dW> falls by the squared gradient of the factors, on average scale^2 k |G|^2."""
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (40, 60)}), rank=8)
    found = []
    for seed in range(20):
        random, other = np.random.default_rng(seed), replace(adapter, seed=seed)
        pull = random.standard_normal((40, 60))
        pulled = gradients(other, start_params(other), {adapter.sites[0].path: pull})
        found.append(sum(np.square(one).sum() for one in pulled.values()) / np.square(pull).sum())
    assert np.mean(found) == pytest.approx(step_size(adapter)["0.q"].decrease, rel=0.05)


def test_starts_that_are_read_need_their_values():
    sites = grid(layers=1, kinds={"q": (12, 16)})
    adapter = families.pissa().bind(sites, rank=2)
    with pytest.raises(SiteError, match=r"expected starting values, since A, B of pissa are read from the host's"):
        step_size(adapter)
    weights = {sites[0].path: np.random.default_rng(0).standard_normal((12, 16))}
    params = tnadapt.init(adapter, weights)
    (size,) = step_size(adapter, params).values()
    a, b = (np.square(params[name]).mean() for name in ("A", "B"))
    wanted = adapter.networks[0].scale * math.sqrt(2 * (a + b))
    assert size.update / size.coherence == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(SiteError, match="params: expected an array 'A', got none"):
        step_size(adapter, {"B": params["B"]})


def test_two_names_of_one_factor_object_are_read_apart():
    """The same object under two names is two factors; both are the host's weight here."""
    weight = frozen("out in", init=tnadapt.initializers.host())
    factors = {"W": weight, "V": weight, "B": trainable("out in", init=zeros())}
    sites = grid(layers=1, kinds={"q": (12, 16)})
    adapter = AdapterSpec(name="own", weight="out in", factors=factors).bind(sites)
    params = tnadapt.init(adapter, {sites[0].path: np.full((12, 16), 3.0)})
    assert step_size(adapter, params)["0.q"].update == pytest.approx(9.0)


def test_drawn_starts_are_not_looked_at():
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (12, 16)}), rank=2)
    assert step_size(adapter, {}) == step_size(adapter)


def test_a_magnitude_moves_rows_by_the_rate_beside_the_scale():
    """Each row is m times a direction: lr in the length of a row is lr / sqrt(in) in an entry."""
    sites = grid(layers=1, kinds={"q": (12, 16)})
    plain, scaled = (spec.bind(sites, rank=2) for spec in (families.lora(), magnitude(families.lora())))
    (one,), (other,) = step_size(plain).values(), step_size(scaled).values()
    assert other.update == pytest.approx(math.sqrt(one.update**2 + 1 / 16))
    assert other.parts[scaled.spec.magnitude] == pytest.approx(1 / 4)
    assert other.formula == "sqrt(scale^2 (r / (3 in)) + 1 / in)"


def test_the_formula_is_a_text():
    adapter = families.lora(alpha=2).bind(grid(layers=1, kinds={"q": (12, 16)}), rank=1)
    assert step_size(adapter)["0.q"].formula == "|scale| sqrt(1 / (3 in))"
    assert str(step_size(adapter)["0.q"]).startswith("update 0.2887 (|scale| sqrt(1 / (3 in))), output 1.155, 0.707 of")


def test_rates_are_1_for_what_moves_and_kappa_times_the_size_for_the_others():
    """LoTR's A and B have the deviation 1, and are two; LoRA's A is uniform in +-1 / sqrt(in)."""
    sites = grid(layers=2, kinds={"q": (12, 27)})
    (lora,) = {size.rates for size in step_size(families.lora().bind(sites, rank=2)).values()}
    assert dict(lora) == {"A": pytest.approx(6 / math.sqrt(3 * 27)), "B": 1.0}
    (lotr,) = step_size(families.lotr().bind(sites, rank=2)).values()
    assert dict(lotr.rates) == {"A": pytest.approx(6 / math.sqrt(2)), "B": pytest.approx(6 / math.sqrt(2)), "G": 1.0}


def test_entries_of_one_rate_are_together():
    """The A of LoRA is smaller at a longer axis, so that it has two rates; the B of all weights moves at once."""
    adapter = families.lora().bind(grid(layers=2, kinds={"q": (12, 27), "v": (12, 48)}), rank=2)
    long, short = 6 / math.sqrt(3 * 48), 6 / math.sqrt(3 * 27)
    assert balanced_rates(adapter) == {
        "0.q.A": Balanced("A", pytest.approx(short), ("0.q.A", "1.q.A")),
        "0.v.A": Balanced("A", pytest.approx(long), ("0.v.A", "1.v.A")),
        "B": Balanced("B", 1.0, ("0.q.B", "0.v.B", "1.q.B", "1.v.B")),
    }


def test_an_entry_that_groups_share_gets_their_smallest_rate():
    """The rate of the shared C would be larger where nothing else waits for it: in a group without D it is alone."""
    factors = {
        "A": trainable("r in", init=identity(), shared=True),
        "B": trainable("out r", init=zeros()),
    }
    spec = AdapterSpec(name="own", weight="out in", factors=factors)
    adapter = spec.bind(grid(layers=1, kinds={"q": (12, 16), "v": (12, 9)}), rank=4)
    rates = [size.rates["A"] for size in step_size(adapter).values()]
    assert rates[0] != rates[1], "the identity is sparser in a larger matrix"
    assert balanced_rates(adapter)["A"] == Balanced("A", min(rates), ("A",))


@pytest.mark.parametrize("name", ["pissa", "lora_pt", "tcurlora", "dota"])
def test_trained_values_do_not_change_a_step_if_their_start_is_kept(name):
    adapter = FAMILIES[name].bind(layers=2, kinds={"q": (16, 16), "v": (16, 24)})
    params = start_params(adapter)
    trained = {key: value if key.endswith(":start") else 3 * value + 1 for key, value in params.items()}
    trained |= {key: params[key] for key, slot in adapter.slots.items() if not slot.factor.trainable}
    assert step_size(adapter, trained) == step_size(adapter, params)
    assert balanced_rates(adapter, trained) == balanced_rates(adapter, params)


def test_a_factor_that_starts_at_0_without_a_gradient_has_the_rate_of_the_others():
    """A rate of kappa times 0 would never train it."""
    factors = {
        "A": trainable("r in", init=normal()),
        "B": trainable("out r", init=zeros()),
        "C": trainable("out p", init=zeros()),
        "D": trainable("p r", init=identity()),
        "E": trainable("r in", init=zeros()),
    }
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["B A", "C D E"])
    (size,) = step_size(spec.bind(grid(layers=1, kinds={"q": (12, 16)}), rank=4)).values()
    assert size.rates["C"] == size.rates["E"] == size.rates["B"] == 1.0


def test_every_family_has_rates_above_0_for_every_trained_factor():
    for name, case in FAMILIES.items():
        adapter = case.bind(layers=2, kinds={"q": (16, 16), "v": (16, 24)})
        for size in step_size(adapter, start_params(adapter)).values():
            trained = {name for name, factor in adapter.spec.arrays.items() if factor.trainable}
            assert size.rates.keys() == trained, name
            assert all(0 < rate < math.inf for rate in size.rates.values()), name
            assert math.isfinite(size.update), name
            assert size.update > 0, name


@pytest.mark.parametrize(("value", "told"), [(math.nan, "nan"), (math.inf, "inf"), (1e200, "inf")])
def test_starting_values_of_no_size_are_refused(value, told):
    sites = grid(layers=1, kinds={"q": (12, 16)})
    adapter = families.pissa().bind(sites, rank=2)
    params = init(adapter, weights={sites[0].path: np.random.default_rng(0).standard_normal((12, 16))})
    params = {name: np.full(np.shape(one), value) for name, one in params.items()}
    for ask in (step_size, balanced_rates):
        with pytest.raises(SiteError, match=f"params: expected starting values .* finite, got .* in 'A.*{told}"):
            ask(adapter, params)


class Counted(float):
    """A number that counts how often it is compared for equality."""

    times = 0
    __hash__ = float.__hash__

    def __eq__(self, other):
        Counted.times += 1
        return float(self) == other


def test_balanced_rates_of_many_groups_are_not_compared_pair_by_pair(monkeypatch):
    """Each group has a rate of its own, as where every weight has another width."""
    adapter = families.lora().bind(grid(layers=1, kinds={f"k{n}": (8, 8 + n) for n in range(200)}), rank=2)
    sizes = {
        name: replace(size, rates={factor: Counted(rate) for factor, rate in size.rates.items()})
        for name, size in step_size(adapter).items()
    }
    wanted = balanced_rates(adapter)
    monkeypatch.setattr("tnadapt._structure.step.step_size", lambda *_: sizes)
    monkeypatch.setattr(Counted, "times", 0)
    assert balanced_rates(adapter) == wanted
    assert len(wanted) == 201
    assert Counted.times < 10 * 200


def test_equal_steps_at_every_width_and_rank_under_unit():
    """Without data: within 2 of LoRA's step of rank 8, from width 256 to 8,192, rank 4 to 64, 12 to 224 sites."""
    lora = math.sqrt(8 / 3)
    for width, rank, layers in ((256, 4, 6), (1024, 16, 12), (8192, 64, 112)):
        sites = grid(layers=layers, kinds={"q": (width, width), "v": (width, width)})
        for name in ("lora", "lotr", "metatt", "fact_tt", "tt_lora", "vera", "loha", "lorta", "tlora", "randlora"):
            sizes = {"head": 16} if name == "lorta" else None
            adapter = getattr(families, name)().bind(
                sites, rank=rank, sizes=sizes, scale=unit(lora), overparametrized=True
            )
            for size in step_size(adapter).values():
                assert 0.5 < size.of_lora < 2, (name, width)


def test_no_array_is_made_for_a_large_adapter():
    """40 GB of factors would be needed."""
    sites = grid(layers=100, kinds={"q": (100_000, 100_000)})
    adapter = AdapterSpec(
        name="own",
        weight="out in",
        over="site",
        factors={"A": frozen("site r in"), "B": trainable("out r", init=zeros())},
    ).bind(sites, rank=512)
    (size,) = step_size(adapter).values()
    assert size.update == pytest.approx(math.sqrt(512), rel=0.01)


@pytest.mark.parametrize("shape", [(16, 16), (16, 2)])
def test_pulls_that_cancel_by_their_values_move_nothing_whatever_their_coherence(shape):
    """C D is A, but its parts are joined to B by other numbers."""
    factors = {
        "A": frozen("r q in", init=constant(1)),
        "C": frozen("r in", init=constant(1)),
        "D": frozen("q", init=constant(1)),
        "B": trainable("out r q", init=zeros()),
        "E": trainable("out in", init=zeros()),
    }
    for terms in (["A B", "- C D B", "E"], ["C D B", "- A B", "E"]):
        spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=terms, scale=1.0)
        (found,) = step_size(spec.bind(grid(layers=1, kinds={"q": shape}), rank=8, overparametrized=True)).values()
        assert found.parts == {"B": 0.0, "E": 1.0}
        assert found.update == found.coherence == 1.0
