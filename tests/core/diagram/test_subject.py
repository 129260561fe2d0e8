"""Who carries what in a network that is drawn, and who stands where."""

from tnadapt import families
from tnadapt._diagram.subject import Subject


def subject_of(spec):
    return Subject(spec.axes, spec.site_modes, spec.factors)


def test_a_product_stands_from_out_to_in():
    lotr = subject_of(families.lotr())
    assert (lotr.outs, lotr.ins) == (("out",), ("in",))
    assert lotr.columns == {"A": 0, "G": 1, "B": 2}
    assert lotr.local["G"] == ("p", "q")
    assert [name for name in lotr.factors if lotr.is_shared(name)] == ["A", "B"]
    assert not any(lotr.is_dot(mode) for mode in lotr.carriers)


def test_a_diagonal_is_drawn_above_the_dot_of_its_mode():
    vera = subject_of(families.vera())
    assert vera.is_dot("r")
    assert vera.is_dot("out")
    assert vera.vectors == {"r": ["d"], "out": ["b"]}
    assert set(vera.columns) == {"A", "B"}
    assert vera.is_shared("A")  # frozen and the same for all


def test_a_factor_that_joins_nothing_is_a_scalar():
    assert subject_of(families.tlora()).scalars == ["a"]


def test_a_label_has_a_size_where_there_is_one():
    spec = families.lora()
    assert subject_of(spec).label("r") == "r"
    assert Subject(spec.axes, (), spec.factors, {"r": 1024}).label("r") == "r = 1,024"
