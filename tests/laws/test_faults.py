"""Every law can fail: each test plants a fault in the code under test, and the law meant for it reports it."""

import copy
import dataclasses

import numpy as np
import pytest

import tnadapt
from tnadapt import Adapter, SpecError, families
from tnadapt._language import movement
from tnadapt._language.movement import Monomial
from tnadapt._structure import step
from tnadapt.testing import LAWS, Held, LawError, _laws, _magnitude, _stored, _sums, check

LOTR, LORA, VERA = families.lotr(), families.lora(), families.vera()
SMALL = tnadapt.AdapterSpec(  # its updates are below 1e-16, to test that tolerances are relative
    name="small",
    weight="out in",
    factors={
        "A": tnadapt.frozen("r in", init=tnadapt.normal(1e-8)),
        "B": tnadapt.trainable("out r", init=tnadapt.zeros()),
    },
    scale=tnadapt.raw(1e-8),
)


def planted(module, name, fault):
    """Describe a fault in one name of a module: `fault` takes the true value and returns the faulty one."""
    return module, name, fault


def of_plans(**changes):
    """Return a fault that changes fields of every plan."""
    return lambda true: lambda *args, **words: dataclasses.replace(true(*args, **words), **changes)


def turned_if_square(matrix):
    return matrix.T if matrix.shape[0] == matrix.shape[1] else matrix


def one_off(true):
    return lambda *args, **words: dataclasses.replace(
        true(*args, **words), cost=dataclasses.replace(true(*args, **words).cost, forward=7)
    )


def shares_too_little(true):
    """Make every site read the first row of a stacked factor."""
    return lambda adapter, params, site: true(adapter, params, adapter.groups[0].sites[0])


def shares_too_much(true):
    """Let the values of the first site leak into all other sites."""

    def leaky(adapter, params, site):
        first = adapter.sites[0]
        path = site if isinstance(site, str) else site.path
        leak = true(adapter, params, first).ravel()[0] if path != first.path else 0.0
        return true(adapter, params, site) + leak

    return leaky


def upside_down_by_path(true):
    return lambda adapter, params, at: true(adapter, params, at)[:: -1 if isinstance(at, str) else 1]


def moved_by_place(true):
    return lambda adapter: {name: value + n * 0.1 for n, (name, value) in enumerate(true(adapter).items())}


def bound_too_low(true):
    return lambda *args, **words: dataclasses.replace(true(*args, **words), rank=0)


def bound_too_high(true):
    return lambda *args, **words: dataclasses.replace(true(*args, **words), rank=true(*args, **words).rank + 1)


def counted_on(true):
    return lambda adapter: dataclasses.replace(true(adapter), trainable=true(adapter).trainable + 1)


def with_another_formula(true):
    return lambda adapter: dataclasses.replace(true(adapter), formula="out*p + in*q")


def starts_at_one(true):
    return lambda adapter: {name: np.ones_like(value) for name, value in true(adapter).items()}


def loses_a_factor(true):
    return lambda path: (true(path)[0], {name: 0 * value for name, value in true(path)[1].items()})


def rounds_to_half(true):
    return lambda path: (
        true(path)[0],
        {name: value.astype(np.float16).astype(float) for name, value in true(path)[1].items()},
    )


def another_seed(true):
    def read(text):
        found = true(text)
        return dataclasses.replace(found, seed=found.seed + 1) if isinstance(found, Adapter) else found

    return read


def _with_first_term(adapter):
    """Return the adapter whose networks have only the first term of several."""
    if len(adapter.spec.sum) == 1:
        return adapter
    other = copy.copy(adapter)
    groups = [
        dataclasses.replace(one, network=dataclasses.replace(one.network, terms=one.network.terms[:1]))
        for one in adapter.groups
    ]
    object.__setattr__(other, "groups", tuple(groups))
    for name in ("_places", "slots"):
        other.__dict__.pop(name, None)
    return other


PAIRS = tnadapt.AdapterSpec(
    name="pairs",
    weight="out in",
    factors={
        "A": tnadapt.trainable("r in"),
        "B": tnadapt.trainable("out r", init=tnadapt.zeros()),
        "C": tnadapt.trainable("out r", init=tnadapt.zeros()),
    },
    terms=["B A", "C A"],
)

FREE = tnadapt.AdapterSpec(  # its first factor moves dW most
    name="free",
    weight="out in",
    factors={"A": tnadapt.trainable("r in"), "B": tnadapt.trainable("out r", init=tnadapt.normal(3.0))},
    start="centered",
)
FANNED = tnadapt.AdapterSpec(  # its B is drawn at the largest number of outputs
    name="fanned",
    weight="out in",
    factors={
        "A": tnadapt.trainable("r in", init=tnadapt.zeros()),
        "B": tnadapt.frozen("out r", init=tnadapt.normal(fan="out")),
    },
)

FAULTS = [  # description, fault, spec, and the law that catches the fault
    (
        "the scale is squared",
        planted(_laws, "delta", lambda true: lambda a, p, s: true(a, p, s) * a.networks[0].scale),
        LORA,
        "update_is_its_definition",
    ),
    (
        "the update is transposed where it is square",
        planted(
            _laws,
            "delta",
            lambda true: lambda a, p, s: turned_if_square(true(a, p, s)),
        ),
        LORA,
        "update_is_its_definition",
    ),
    ("starting values are all one", planted(_laws, "start_params", starts_at_one), LORA, "identity_at_the_start"),
    (
        "first_gradients names every factor",
        planted(_laws, "first_gradients", lambda true: lambda spec: tuple(spec.factors)),
        LORA,
        "living_gradient",
    ),
    (
        "first_gradients names no factor",
        planted(_laws, "first_gradients", lambda true: lambda spec: ()),
        LORA,
        "living_gradient",
    ),
    ("count states one trainable entry too many", planted(_laws, "count", counted_on), LOTR, "counts_are_sizes"),
    ("the formula omits the cores", planted(_laws, "count", with_another_formula), LOTR, "formula_is_count"),
    ("the bound is one too high", planted(_laws, "rank_bound", bound_too_high), LOTR, "rank_keeps_its_bound"),
    (
        "degrees_of_freedom states one trainable entry too many",
        planted(
            _laws,
            "degrees_of_freedom",
            lambda true: lambda a, g: dataclasses.replace(true(a, g), trainable=true(a, g).trainable + 1),
        ),
        LOTR,
        "freedom_is_the_rank_of_the_jacobian",
    ),
    (
        "apply of tiny updates has the wrong sign",
        planted(_laws, "apply", lambda true: lambda *args: -true(*args)),
        SMALL,
        "apply_is_multiplication",
    ),
    ("the bound is 0", planted(_laws, "rank_bound", bound_too_low), LOTR, "rank_keeps_its_bound"),
    (
        "the generic rank is 1",
        planted(_laws, "generic_rank", lambda true: lambda *args: 1),
        LOTR,
        "rank_keeps_its_bound",
    ),
    (
        "degrees_of_freedom states that every entry is free",
        planted(
            _laws,
            "degrees_of_freedom",
            lambda true: lambda a, g: dataclasses.replace(true(a, g), degrees=true(a, g).trainable),
        ),
        LOTR,
        "freedom_is_the_rank_of_the_jacobian",
    ),
    (
        "apply has the wrong sign",
        planted(_laws, "apply", lambda true: lambda *args: -true(*args)),
        LORA,
        "apply_is_multiplication",
    ),
    (
        "the update of a weight is upside down",
        planted(
            _laws, "delta", lambda true: lambda a, p, s: true(a, p, s)[::-1] if isinstance(s, str) else true(a, p, s)
        ),
        LORA,
        "weights_are_their_blocks",
    ),
    ("all sites read the first row", planted(_laws, "delta", shares_too_little), LOTR, "sharing_is_what_the_modes_say"),
    (
        "the factor of one site leaks into others",
        planted(_laws, "delta", shares_too_much),
        LOTR,
        "sharing_is_what_the_modes_say",
    ),
    (
        "the update is squared",
        planted(_laws, "delta", lambda true: lambda *args: true(*args) ** 2),
        LORA,
        "linear_in_each_factor",
    ),
    (
        "the update contains a term without alpha",
        planted(_sums, "delta", lambda true: lambda a, p, s: true(a, p, s) + 1.0),
        LORA,
        "linear_in_alpha",
    ),
    ("a plan states 7 flops", planted(_laws, "plan", one_off), LOTR, "plans_give_the_numbers"),
    (
        "a plan gives twice the result",
        planted(_laws, "run_plan", lambda true: lambda *args: (2 * true(*args)[0], true(*args)[1])),
        LOTR,
        "plans_give_the_numbers",
    ),
    (
        "gradients are halved",
        planted(
            _laws, "gradients", lambda true: lambda *args: {name: value / 2 for name, value in true(*args).items()}
        ),
        LOTR,
        "gradients_are_differences",
    ),
    ("a file loses its values", planted(_stored, "load", loses_a_factor), LOTR, "files_give_back"),
    ("a file rounds its values", planted(_stored, "load", rounds_to_half), LOTR, "files_give_back"),
    ("a text has another seed", planted(_stored, "from_json", another_seed), LOTR, "texts_give_back"),
    (
        "specs are equal only to themselves",
        planted(tnadapt.AdapterSpec, "__eq__", lambda true: object.__eq__),
        LOTR,
        "equal_specs_are_one",
    ),
    (
        "hashes depend on the identity of the object",
        planted(tnadapt.AdapterSpec, "__hash__", lambda true: object.__hash__),
        LOTR,
        "equal_specs_are_one",
    ),
    (
        "starting values depend on the order of factors",
        planted(
            _laws, "start_params", lambda true: lambda a: {n: v + i * 0.1 for i, (n, v) in enumerate(true(a).items())}
        ),
        VERA,
        "order_of_factors_is_nothing",
    ),
    (
        "an update has its first term alone",
        planted(_sums, "delta", lambda true: lambda a, p, s: true(_with_first_term(a), p, s)),
        PAIRS,
        "terms_add_up",
    ),
    (
        "a second name is an array of its own in the count",
        planted(_sums, "count", lambda true: lambda a: counted_on(true)(a) if "_again" in str(a.spec) else true(a)),
        LORA,
        "second_names_change_nothing",
    ),
    (
        "a second name is a factor of its own in the bound",
        planted(
            _sums,
            "rank_bound",
            lambda true: lambda a, s: bound_too_high(true)(a, s) if "_again" in str(a.spec) else true(a, s),
        ),
        PAIRS,
        "second_names_change_nothing",
    ),
    (
        "a magnitude scales the update alone",
        planted(_magnitude, "delta", lambda true: lambda a, p, s: true(a, p, s) * 1.01),
        tnadapt.magnitude(LORA),
        "magnitudes_set_lengths",
    ),
    (
        "gradients below a magnitude are too long",
        planted(_magnitude, "gradients", lambda true: lambda *args: {n: 1.1 * v for n, v in true(*args).items()}),
        tnadapt.magnitude(LORA),
        "magnitudes_set_lengths",
    ),
    (
        "uniform entries have the mean square of their bound",
        planted(
            movement,
            "mean_square",
            lambda true: lambda factor, *rest: true(factor, *rest) * Monomial(3.0 if factor.init.amount else 1.0),
        ),
        LORA,
        "first_steps_are_predicted",
    ),
    (
        "the sizes of bonds are forgotten",
        planted(movement.Joined, "volume", lambda true: lambda joined: Monomial()),
        LORA,
        "first_steps_are_predicted",
    ),
    (
        "an array is taken to be made for sizes twice as large",
        planted(
            Adapter,
            "sizes_made_for",
            lambda true: lambda *args: {mode: 2 * size for mode, size in true(*args).items()},
        ),
        FANNED,
        "first_steps_are_predicted",
    ),
    (
        "only one of the factors that move is seen",
        planted(step, "moves_of", lambda true: lambda *args: true(*args)[1:]),
        FREE,
        "first_steps_are_predicted",
    ),
    (
        "the host's weight is taken twice as large",
        planted(step, "_squares", lambda true: lambda *args: {name: 4 * one for name, one in true(*args).items()}),
        families.hira(),
        "first_steps_are_predicted",
    ),
    (
        "a map is taken for its parameters",
        planted(movement, "node_step", lambda true: lambda *args: Monomial()),
        families.oft(),
        "first_steps_are_predicted",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_caught(fault, monkeypatch):
    _, (module, name, change), spec, law_name = fault
    (law,) = [law for law in LAWS if law.__name__ == law_name]
    check(spec, laws=[law], examples=5)  # other tests try laws on the true code
    monkeypatch.setattr(module, name, change(getattr(module, name)))
    with pytest.raises(LawError, match=rf"^{spec.name}: law {law_name}: .*: expected .*, got .*\.\nThe law states: "):
        check(spec, laws=[law])


def test_every_law_catches_some_fault():
    assert {fault[3] for fault in FAULTS} == {law.__name__ for law in LAWS}


def test_check_reports_the_smallest_case(monkeypatch):
    monkeypatch.setattr(_laws, "count", counted_on(_laws.count))
    with pytest.raises(LawError, match=r"count: expected \d+ trainable entries, got \d+\.") as caught:
        check(LOTR)
    assert "lotr: 1 site in 1 group, seed 0" in str(caught.value)
    assert "1 x 1" in str(caught.value)


def test_a_custom_law_is_checked_and_progress_is_reported():
    def small(adapter, random):
        """An adapter trains fewer than ten numbers."""
        _laws.expect(tnadapt.count(adapter).trainable < 10, "count: expected fewer than ten, got more")

    told = []
    with pytest.raises(
        LawError, match=r"law small: count: expected .*\.\nThe law states: An adapter trains fewer than ten"
    ):
        check(LORA, laws=[*LAWS[:1], small], tell=told.append)
    assert [(one.law, one.examples) for one in told] == [("update_is_its_definition", 25)]
    assert isinstance(told[0], Held)
    assert told[0].statement.startswith("`delta` is the scale times the signed sum of its terms, each the product")


def test_check_uses_the_given_ranks_and_sizes():
    seen = []

    def look(adapter, random):
        """Record the adapter."""
        seen.append((adapter.rank, adapter.networks[0].sizes["head"]))

    check(families.lorta(), laws=[look], rank=5, sizes={"head": 3})
    assert set(seen) == {(5, 3)}


def test_check_does_not_catch_other_errors():
    def broken(adapter, random):
        """Raise another error."""
        raise SpecError("x", ["of its own"])

    with pytest.raises(SpecError, match="of its own"):
        check(LORA, laws=[broken])


def test_every_call_tests_the_same_adapters():
    runs = []
    for _ in range(2):
        seen = []
        check(LORA, laws=[lambda adapter, random, seen=seen: seen.append((adapter, random.random()))], examples=7)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 7


@pytest.mark.parametrize("alpha", [-1.0, 1e-20, 1e20])
def test_a_valid_spec_of_any_scale_satisfies_all_laws(alpha):
    assert len(check(dataclasses.replace(LOTR, scale=tnadapt.raw(alpha)), examples=10)) == len(LAWS)


def test_a_large_rank_breaks_no_law():
    assert len(check(LORA, examples=2, rank=300)) == len(LAWS)


def test_check_rejects_zero_examples():
    with pytest.raises(LawError, match=r"^check: expected at least 1 example, got 0\.$"):
        check(LORA, examples=0)
