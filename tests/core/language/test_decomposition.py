"""Joint starts: which factors a decomposition names, what initializers they get, and what is refused."""

import pytest

from tnadapt import AdapterSpec, SpecError, from_json, frozen, normal, same, to_json, trainable, zeros
from tnadapt.initializers import Decomposition, Initializer, hosvd, svd, t_svd, tensor_cur, tt_svd

A, B = trainable("r in"), trainable("out r")


def own(**words):
    return AdapterSpec(**({"name": "own", "weight": "out in", "factors": {"A": A, "B": B}} | words))


def read(kind, **words):
    return Initializer(kind, 1.0, **words)


MADE = {  # a decomposition -> the initializers that it gives
    "svd": (svd("B", "A"), {"B": read("svd", power=0.5, share=0.5), "A": read("svd", power=0.5, share=0.5)}),
    "svd, powers": (svd("B", "A", powers=(1, 0)), {"B": read("svd", power=1, share=1), "A": read("svd")}),
    "svd, not scaled": (svd("B", "A", scaled=False), {"B": read("svd", power=0.5), "A": read("svd", power=0.5)}),
    "svd, one side": (svd(right="A", powers=(0, 1)), {"A": read("svd", power=1, share=1)}),
    "tt_svd": (tt_svd("G1", "G2"), {"G1": read("tt_svd"), "G2": read("tt_svd")}),
    "hosvd": (hosvd("G", "A", "B"), {"G": read("hosvd_core"), "A": read("svd"), "B": read("svd")}),
    "hosvd, core alone": (hosvd("G"), {"G": read("hosvd_core")}),
    "t_svd": (t_svd("U", "S", "V"), dict.fromkeys("USV", read("t_svd"))),
    "tensor_cur": (tensor_cur("C", "U", "R"), dict.fromkeys("CUR", read("tensor_cur"))),
}


@pytest.mark.parametrize("name", MADE)
def test_a_decomposition_gives_its_factors_their_initializers(name):
    made, inits = MADE[name]
    assert made == Decomposition(made.inits, "centered")
    assert dict(made.inits) == inits


@pytest.mark.parametrize("start", ["zero", "centered", "free"])
def test_a_decomposition_says_how_the_update_starts(start):
    made = [
        svd("B", "A", start=start),
        tt_svd("A", "B", start=start),
        hosvd("A", "B", start=start),
        t_svd("A", "B", "C", start=start),
        tensor_cur("A", "B", "C", start=start),
    ]
    assert {one.start for one in made} == {start}


def test_a_spec_has_the_initializers_and_the_start_of_its_decomposition():
    spec = own(start=svd("B", "A", powers=(0, 1)))
    assert (spec.factors["B"].init, spec.factors["A"].init) == (read("svd"), read("svd", power=1, share=1))
    assert spec.start == "centered"
    written = {"A": trainable("r in", init=read("svd", power=1, share=1)), "B": trainable("out r", init=read("svd"))}
    assert spec == own(factors=written, start="centered")
    assert from_json(to_json(spec)) == spec


def test_the_other_factors_keep_theirs():
    factors = {"A": A, "B": B, "d": frozen("r", init=normal(2)), "A2": same("A")}
    spec = own(factors=factors, start=svd("B", start="free", powers=(1, 0)))
    assert spec.factors["B"].init == read("svd", power=1, share=1)
    assert {name: spec.factors[name] for name in ("A", "d", "A2")} == {name: factors[name] for name in ("A", "d", "A2")}


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (svd("B", "Z"), "start: expected the names of factors, got 'Z'"),
        (svd("B", "A2"), "start: expected the names of factors, got 'A2'"),
        (svd("B", "Y"), "factor 'Y': expected no initializer, since the start gives its values, got zeros"),
    ],
)
def test_a_name_that_is_no_factor_to_start_is_a_fault_of_the_spec(start, fault):
    factors = {"A": A, "B": B, "A2": same("A"), "Y": trainable("r", init=zeros())}
    with pytest.raises(SpecError, match="spec 'own' is not valid") as caught:
        own(factors=factors, start=start)
    assert caught.value.faults == (fault,)


def test_all_wrong_names_of_a_start_are_reported_together():
    with pytest.raises(SpecError, match="spec 'own' is not valid") as caught:
        own(start=t_svd("X", "Y", "A"))
    assert [fault.rpartition(" ")[2] for fault in caught.value.faults] == ["'X'", "'Y'"]


MISTAKES = {
    "no names": (svd, r"^svd: expected the names of factors, got None"),
    "a factor": (lambda: svd(A, B), r"^svd: expected the names of factors, got "),
    "a power in place of a name": (lambda: svd(0.5), r"^svd: expected the names of factors, got 0.5"),
    "no cores": (tt_svd, r"^tt_svd: expected the names of factors, got None"),
    "cores in another order": (lambda: tt_svd("G2", "G1"), r"expected the cores in alphabetical order, got G2, G1"),
    "a number as a core": (lambda: hosvd(3), r"^hosvd: expected the names of factors, got 3"),
    "an unknown start": (lambda: svd("B", "A", start="none"), r"^svd: expected one of 'zero', .* as start, got 'none'"),
    "a start of truth": (lambda: t_svd("A", "B", "C", start=True), r"^t_svd: expected one of .* as start, got True"),
    "a power of 2": (lambda: own(start=svd("B", "A", powers=(2, 0))), "expected a power of the singular values of 0"),
}


@pytest.mark.parametrize(("act", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_decomposition_is_told(act, message):
    with pytest.raises(SpecError, match=message):
        act()


@pytest.mark.parametrize(
    ("make", "names"),
    [(svd, "BB"), (tt_svd, "GG"), (hosvd, "GAA"), (hosvd, "GG"), (t_svd, "UUV"), (tensor_cur, "CRR")],
)
def test_a_factor_cannot_be_two_parts_of_a_decomposition(make, names):
    with pytest.raises(SpecError, match=f"{make.__name__}: expected each factor once, got '[A-Z]' twice"):
        make(*names)


@pytest.mark.parametrize("powers", [(1,), (0, 1, 1), 1, None, "01"], ids=str)
def test_powers_that_are_not_two_are_refused(powers):
    with pytest.raises(SpecError, match=r"svd: expected two powers, got "):
        svd("B", "A", powers=powers)
