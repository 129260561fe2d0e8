"""Who carries what in a network that is drawn, and who stands where."""

from dataclasses import replace

from hypothesis import given

from tests.core.diagram.shown import shown
from tnadapt import families, frozen, trainable
from tnadapt._diagram.subject import Subject
from tnadapt.initializers import host
from tnadapt.testing import specs


def subject_of(spec):
    return Subject(spec.axes, spec.site_modes, shown(spec))


@given(spec=specs())
def test_what_a_random_spec_carries(spec):
    subject = subject_of(spec)
    over = set(spec.site_modes)
    factors = shown(spec)
    assert subject.local == {name: tuple(m for m in one.modes if m not in over) for name, one in factors.items()}
    pairs = {(mode, name) for name, modes in subject.local.items() for mode in modes}
    assert {(mode, name) for mode, names in subject.carriers.items() for name in names} == pairs
    bonds = {mode for factor in factors.values() for mode in factor.modes if mode in spec.bonds}
    assert set(subject.carriers) == {mode for axis in spec.axes for mode in axis} | bonds
    assert len(spec.sum) > 1 or bonds == set(spec.bonds)
    for mode, names in subject.carriers.items():
        ends = len(names) + (mode in (*subject.outs, *subject.ins))
        assert subject.is_dot(mode) == (ends > 2)
    assert subject.scalars == [name for name, modes in subject.local.items() if not modes]
    lone = {*subject.scalars, *(name for names in subject.vectors.values() for name in names)}
    assert set(subject.columns) == set(factors) - lone
    assert set(subject.columns.values()) == set(range(len(set(subject.columns.values()))))  # no column is empty
    for mode, names in subject.vectors.items():
        assert subject.is_dot(mode)
        assert all(subject.local[name] == (mode,) for name in names)


@given(spec=specs())
def test_a_network_is_mirrored_with_its_two_sides(spec):
    subject = subject_of(spec)
    mirrored = replace(subject, axes=(subject.ins, subject.outs))
    last = max(subject.columns.values(), default=0)
    assert mirrored.columns == {name: last - column for name, column in subject.columns.items()}


def test_a_product_stands_from_out_to_in():
    lotr = subject_of(families.lotr())
    assert (lotr.outs, lotr.ins) == (("out",), ("in",))
    assert lotr.columns == {"A": 0, "G": 1, "B": 2}
    assert lotr.local["G"] == ("p", "q")
    assert [name for name in lotr.factors if lotr.is_shared(name)] == ["A", "B"]
    assert not any(lotr.is_dot(mode) for mode in lotr.carriers)


def test_further_axes_of_a_weight_leave_on_the_right():
    flora = subject_of(families.flora())
    assert (flora.outs, flora.ins) == (("out",), ("in", *flora.ins[1:]))
    assert len(flora.ins) == len(families.flora().axes) - 1


def test_a_factor_that_joins_one_side_only_stands_on_that_side():
    factors = {"a": trainable("out p"), "b": trainable("p"), "c": trainable("in q"), "d": trainable("q")}
    subject = Subject((("out",), ("in",)), (), factors)
    assert subject.columns == {"a": 0, "b": 1, "d": 2, "c": 3}


def test_a_diagonal_is_drawn_above_the_dot_of_its_mode():
    vera = subject_of(families.vera())
    assert vera.is_dot("r")
    assert vera.is_dot("out")
    assert vera.vectors == {"r": ["d"], "out": ["b"]}
    assert set(vera.columns) == {"A", "B"}


def test_shared_is_a_factor_that_several_sites_read():
    """A frozen factor is one for all sites; so is a trained one without a site mode, if sites share a network."""
    factors = {"W": trainable("out in"), "F": frozen("out"), "L": trainable("layer in"), "M": frozen("layer out")}
    axes = (("out",), ("in",))
    assert [name for name in factors if Subject(axes, ("layer",), factors).is_shared(name)] == ["W", "F"]
    alone = {name: factors[name] for name in "WF"} | {"S": trainable("out", shared=True)}
    alone |= {"H": frozen("out in", init=host())}
    assert [name for name in alone if Subject(axes, (), alone).is_shared(name)] == ["F", "S"]
    assert not Subject(axes, ("layer",), alone).is_shared("H")  # each site has a weight of its own


def test_a_factor_that_joins_nothing_is_a_scalar():
    assert subject_of(families.tlora()).scalars == ["a"]


def test_a_label_has_a_size_where_there_is_one():
    spec = families.lora()
    assert subject_of(spec).label("r") == "r"
    assert Subject(spec.axes, (), spec.factors, {"r": 1024}).label("r") == "r = 1,024"
