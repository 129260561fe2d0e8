"""Invalid specs and their faults, and unusual specs that are valid."""

import pickle
import time

import pytest

from tnadapt import AdapterSpec, SpecError, TnadaptError, frozen, normal, over_rank, raw, same, trainable, zeros
from tnadapt.initializers import (
    Initializer,
    constant,
    cyclic,
    ones,
    over_sqrt_rank,
)
from tnadapt.sizes import at_most, like, required

A, B = trainable("r in"), trainable("out r", init=zeros())
M64 = " ".join(f"m{n:02}" for n in range(64))
SVD, T_SVD, TT_SVD, TENSOR_CUR = (Initializer(kind, 1.0) for kind in ("svd", "t_svd", "tt_svd", "tensor_cur"))
INF, NAN = float("inf"), float("nan")
AT_MOST = "sizes: expected a bond that is at most a mode of the weight"
LIKE = "sizes: expected a bond like a mode of the weight or the sites"
REQUIRED = "sizes: expected a mode of the weight as required"
AGAIN = "expected the name of a factor to use again"
CANCEL = "the terms cancel at the start, so that no factor ever gets a gradient; change a sign or a factor of one"
NOT_BETWEEN = "factor 'A': {}: expected a {} of 0 or of 1e-30 to 1e+30 in size, got {}"


def spec(**changes):
    """Return a small valid spec with changes; names that begin with a capital letter are factors."""
    factors = {"A": A, "B": B} | {name: changes.pop(name) for name in list(changes) if name[0].isupper()}
    return AdapterSpec(**({"name": "own", "weight": "out in", "factors": factors, "scale": raw()} | changes))


REFUSED = {  # changes -> the only fault that is reported
    "a lonely bond": ({"B": trainable("out r q", init=zeros())}, "bond 'q': in one factor only"),
    "a site mode left out of over": ({"A": trainable("layer r in")}, "bond 'layer': in one factor only"),
    "a weight mode without factor": ({"weight": "out in kh"}, "weight mode 'kh': no factor has it"),
    "a mode twice in a factor": ({"A": trainable("r in r")}, "factor 'A': mode 'r' occurs twice"),
    "a mode twice in weight": ({"weight": "out in in"}, "mode 'in': occurs twice in weight and over"),
    "a mode twice in an axis": ({"weight": "(out out) in"}, "mode 'out': occurs twice in weight and over"),
    "a mode in weight and over": ({"over": "in"}, "mode 'in': occurs twice in weight and over"),
    "a mode twice in over": ({"over": "layer layer"}, "mode 'layer': occurs twice in weight and over"),
    "a name with a blank": ({"name": "my own"}, "spec 'my own': expected an identifier as its name"),
    "an empty name": ({"name": ""}, "spec '': expected an identifier as its name"),
    "a factor named as the header of a file": (
        {"factors": {"__metadata__": A, "B": B}},
        "factor '__metadata__': expected a name that does not begin with '_'",
    ),
    "a factor that begins with a line": (
        {"factors": {"_": A, "B": B}},
        "factor '_': expected a name that does not begin with '_'",
    ),
    "a factor with a dot": ({"factors": {"a.b": A, "B": B}}, "factor 'a.b': expected an identifier as its name"),
    "a mode that is a number": ({"over": "3"}, "mode '3': expected an identifier as its name"),
    "a scale over an unknown mode": ({"scale": over_rank("z")}, "scale: unknown mode 'z'; the bonds are r"),
    "a scale over a weight mode": ({"scale": over_sqrt_rank("in")}, "scale: unknown mode 'in'; the bonds are r"),
    "a scale over nothing": ({"scale": over_rank("")}, "scale: unknown mode ''; the bonds are r"),
    "an infinite alpha": ({"scale": raw(INF)}, "scale: expected a finite number as alpha, got inf"),
    "an unknown fan": (
        {"A": trainable("r in", init=normal(fan="z"))},
        "factor 'A': its fan names the unknown mode",
    ),
    "an unknown law": (
        {"A": trainable("r in", init=Initializer("cauchy", 1.0))},
        "factor 'A': initializer: expected one of constant",
    ),
    "a large deviation": ({"A": trainable("r in", init=normal(2e30))}, NOT_BETWEEN.format("normal", "std", "2e+30")),
    "a limit on no bond": ({"sizes": {"out": at_most("in")}}, f"{AT_MOST}, got 'out' and 'in'"),
    "a limit by no mode": ({"sizes": {"r": at_most("z")}}, f"{AT_MOST}, got 'r' and 'z'"),
    "a limit by a bond": ({"sizes": {"r": at_most("r")}}, f"{AT_MOST}, got 'r' and 'r'"),
    "a limit by a site mode": ({"over": "layer", "sizes": {"r": at_most("layer")}}, f"{AT_MOST}, got 'r' and 'layer'"),
    "a limit on a site mode": ({"over": "layer", "sizes": {"layer": at_most("in")}}, f"{AT_MOST}, got 'layer' and"),
    "a size like that of no mode": ({"sizes": {"r": like("z")}}, f"{LIKE}, got 'r' and 'z'"),
    "a size like its own": ({"sizes": {"r": like("r")}}, f"{LIKE}, got 'r' and 'r'"),
    "a mode of the weight like another": ({"sizes": {"out": like("in")}}, f"{LIKE}, got 'out' and 'in'"),
    "a site mode like another": ({"over": "layer", "sizes": {"layer": like("in")}}, f"{LIKE}, got 'layer' and 'in'"),
    "a rule for no mode": ({"sizes": {"z": like("in")}}, f"{LIKE}, got 'z' and 'in'"),
    "a rule for the name of a mode that is none": ({"sizes": {"": at_most("in")}}, f"{AT_MOST}, got '' and 'in'"),
    "a rank that is required": ({"sizes": {"r": required()}}, f"{REQUIRED}, got 'r'"),
    "a site mode that is required": ({"over": "layer", "sizes": {"layer": required()}}, f"{REQUIRED}, got 'layer'"),
    "a size of no mode": ({"sizes": {"z": 3}}, "sizes: expected a bond or a mode of the weight, got 'z'"),
    "a size of a site mode": (
        {"over": "layer", "sizes": {"layer": 3}},
        "sizes: expected a bond or a mode of the weight, got 'layer'",
    ),
    "a size of 0": ({"sizes": {"r": 0}}, "sizes: expected a size of at least 1 for 'r', got 0"),
    "a negative size": ({"sizes": {"in": -2}}, "sizes: expected a size of at least 1 for 'in', got -2"),
    "a term of no factor": ({"terms": ["B A", " - "]}, "term ' - ': expected the names of factors, got none"),
    "an empty term": ({"terms": ["", "B A"]}, "term '': expected the names of factors, got none"),
    "an unknown factor in a term": ({"terms": ["B A", "B Z"]}, "term 'B Z': 'Z' is no factor"),
    "a sign between": ({"terms": ["B - A"]}, "term 'B - A': '-' is no factor"),
    "a factor twice in a term": (
        {"terms": ["B A A"]},
        "term 'B A A': 'A' occurs twice; give it a second name with same('A')",
    ),
    "a factor in no term": ({"terms": ["B A"], "C": trainable("r")}, "factor 'C': in no term"),
    "a copy in no term": ({"terms": ["B A"], "C": same("A")}, "factor 'C': in no term"),
    "a copy of nothing": ({"C": same("Z")}, f"factor 'C': {AGAIN}, got 'Z', which does not exist"),
    "a copy of itself": ({"C": same("C")}, f"factor 'C': {AGAIN}, got 'C', which is a copy itself; name its factor"),
    "a copy of a copy": (
        {"factors": {"A": A, "B": B, "C": same("A"), "D": same("C")}},
        f"factor 'D': {AGAIN}, got 'C', which is a copy itself; name its factor",
    ),
    "a copy with fewer modes": ({"C": same("A", "r")}, "factor 'C': expected 2 modes, as 'A' has, got 1"),
    "a copy with more modes": ({"C": same("A", "r in out")}, "factor 'C': expected 2 modes, as 'A' has, got 3"),
    "a copy with no modes": ({"C": same("A", "")}, "factor 'C': expected 2 modes, as 'A' has, got 0"),
    "a copy with a mode twice": ({"C": same("A", "r r")}, "factor 'C': mode 'r' occurs twice"),
    "a copy without its site mode": (
        {"over": "layer", "A": trainable("layer r in"), "C": same("A", "out r in")},
        "factor 'C': expected the site mode 'layer' in its place, as in 'A'; only other modes can be renamed",
    ),
    "a copy with a site mode in place of another": (
        {"over": "layer", "C": same("A", "r layer")},
        "factor 'C': expected the site mode 'layer' in its place, as in 'A'; only other modes can be renamed",
    ),
    "a weight mode that one term lacks": (
        {"C": trainable("out", init=zeros()), "terms": ["B A", "C"]},
        "term 'C': weight mode 'in': no factor has it",
    ),
    "a lonely bond in a term": (
        {"C": trainable("out in r", init=zeros()), "terms": ["B A", "- C"]},
        "term '- C': bond 'r': in one factor only",
    ),
    "a lonely bond of a copy": ({"C": same("A", "q in")}, "bond 'q': in one factor only"),
    "shared along the sites": (
        {"over": "layer", "A": trainable("layer r in", shared=True)},
        "factor 'A': shared: expected no site mode, since every site reads a shared factor alike",
    ),
    "shared but read from the host": (
        {"A": trainable("r in", init=SVD, shared=True)},
        "factor 'A': shared: expected an initializer that is drawn, got svd",
    ),
    "a second term that does not start at 0": (
        {"C": trainable("out r"), "terms": ["B A", "C A"]},
        "the update does not start at 0: give one trainable factor of each term zeros(), ",
    ),
    "a term that is added to itself": (
        {"B": trainable("out r"), "B0": same("B", at_start=True), "terms": ["B A", "B0 A"]},
        "the update does not start at 0",
    ),
    "a start of a factor whose own modes are others": (
        {"B": trainable("out r"), "C": same("B", "r out", at_start=True), "terms": ["B A", "- C A"]},
        "the update does not start at 0",
    ),
    "terms that are the same": ({"terms": ["B A", "- A B"]}, CANCEL),
    "terms that are the same under another name": ({"C": same("A"), "terms": ["B A", "- B C"]}, CANCEL),
    "a term of the start of the zero": (
        {"B0": same("B", at_start=True), "terms": ["B A", "- B0 A"]},
        "term '- A B0': always 0, since 'B', whose starting value it has, starts at 0",
    ),
    "terms that are the same at the start": (
        {
            "B": trainable("out r"),
            "A0": same("A", at_start=True),
            "B0": same("B", at_start=True),
            "terms": ["B A", "- B0 A", "- B A0", "B0 A0"],
        },
        CANCEL,
    ),
    "the zero itself cancels": ({"A0": same("A", at_start=True), "terms": ["B A", "- B A0"]}, CANCEL),
    "terms that are the same, from any start": ({"terms": ["B A", "- A B"], "start": "free"}, CANCEL),
    "terms that are the same, centered": ({"terms": ["B A", "- A B"], "start": "centered"}, CANCEL),
    "two zeros in each term": (
        {"A": trainable("r in", init=zeros()), "C": trainable("r"), "terms": ["B A", "B A C"]},
        "A and B all start at 0, so that no factor ever gets a gradient",
    ),
    "a copy of the zero": ({"C": same("B")}, "B starts at 0, so that no factor ever gets a gradient"),
    "a factor only at its start": (
        {"C": trainable("r"), "C0": same("C", at_start=True), "terms": ["B A C0"]},
        "factor 'C': trainable, but only its starting values are in a term; make it frozen",
    ),
    "a term with the start of a zero": (
        {"C": trainable("r in"), "B0": same("B", at_start=True), "terms": ["B A", "B0 C"]},
        "term 'B0 C': always 0, since 'B', whose starting value it has, starts at 0",
    ),
    "a term with the start of a zero, from any start": (
        {"B0": same("B", at_start=True), "A0": same("A", at_start=True), "terms": ["B A", "- B0 A0"], "start": "free"},
        "term '- A0 B0': always 0, since 'B', whose starting value it has, starts at 0",
    ),
    "a factor only at its start, from any start": (
        {"B": trainable("out r"), "B0": same("B", at_start=True), "terms": ["B0 A"], "start": "free"},
        "factor 'B': trainable, but only its starting values are in a term; make it frozen",
    ),
    "nothing trainable": ({"A": frozen("r in"), "B": frozen("out r", init=zeros())}, "nothing is trainable"),
    "a start that is not zero": ({"B": trainable("out r")}, "the update does not start at 0"),
    "two zeros": ({"A": trainable("r in", init=zeros())}, "A and B all start at 0"),
    "two zeros, one frozen": ({"A": frozen("r in", init=zeros())}, "A and B all start at 0"),
    "two zeros by other words": ({"A": trainable("r in", init=normal(0))}, "A and B all start at 0"),
    "more modes than an array has axes": (
        {"B": trainable(f"out r {M64}", init=zeros()), "A": trainable(f"r in {M64[:-8]}"), "C": trainable("m62 m63")},
        "factor 'B': expected at most 64 modes, as many as an array can have axes, got 66",
    ),
    "a cyclic scalar": ({"C": frozen("", init=cyclic())}, "factor 'C': cyclic needs at least one mode"),
    "a frozen zero": ({"B": frozen("out r", init=constant(0))}, "B starts at 0 and is frozen"),
}


@pytest.mark.parametrize(("changes", "fault"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_spec_is_rejected(changes, fault):
    with pytest.raises(SpecError, match="is not valid:\n  - ") as caught:
        spec(**changes)
    assert len(caught.value.faults) == 1, caught.value
    assert caught.value.faults[0].startswith(fault)
    assert isinstance(caught.value, TnadaptError)


@pytest.mark.parametrize("weight", ["", "out"])
def test_a_weight_of_less_than_two_axes_is_refused(weight):
    with pytest.raises(SpecError, match="expected an out axis and at least one in axis"):
        spec(weight=weight)


@pytest.mark.parametrize(
    ("weight", "message"),
    [("(out in", "is never closed"), ("out in)", "closes nothing"), ("((a b) out) in", "bracket inside a bracket")],
)
def test_brackets_of_the_weight_are_faults_of_the_spec(weight, message):
    with pytest.raises(SpecError, match=f"spec 'own' is not valid:\n  - weight: .*{message}"):
        spec(weight=weight)


@pytest.mark.parametrize("place", ["over", "factor"])
def test_brackets_outside_of_the_weight_are_refused(place):
    changes = {"over": "(layer kind)"} if place == "over" else {"A": trainable("(r in)")}
    with pytest.raises(SpecError, match=r"mode '\(': expected an identifier as its name"):
        spec(**changes)


def test_all_faults_are_reported_together():
    with pytest.raises(SpecError, match="spec 'my own' is not valid") as caught:
        AdapterSpec(
            name="my own",
            weight="(out out) in",
            factors={"A": trainable("r p"), "B": trainable("out r", init=normal(fan="z"))},
            scale=over_rank("q", alpha=NAN),
            sizes={"q": at_most("in")},
        )
    assert caught.value.name == "my own"
    text = str(caught.value)
    assert text.splitlines()[1:] == [f"  - {fault}" for fault in caught.value.faults]
    for part in (
        "spec 'my own'",
        "'out': occurs twice",
        "weight mode 'in'",
        "bond 'p'",
        "unknown mode 'z'",
        "scale: expected a finite number as alpha, got nan",
        "scale: unknown mode 'q'",
        f"{AT_MOST}, got 'q' and 'in'",
        "does not start at 0",
    ):
        assert text.count(part) == 1 + (part == "spec 'my own'"), part  # its name is in the first line too


def test_all_faults_of_a_sum_are_reported_together():
    with pytest.raises(SpecError, match="spec 'sum' is not valid") as caught:
        AdapterSpec(
            name="sum",
            weight="out in",
            over="layer",
            factors={
                "A": trainable("layer r in", shared=True),
                "B": trainable("out r", init=SVD, shared=True),
                "C": same("A", "layer in"),
                "D": same("A", "r r in"),
                "E": frozen("q"),
            },
            terms=["B A", "- Z A A", "", "B C D"],
            sizes={"in": 0, "out": like("r"), "r": at_most("q"), "layer": required(), "z": 2},
        )
    assert caught.value.faults == (
        "factor 'C': expected 3 modes, as 'A' has, got 2",
        "factor 'D': expected the site mode 'layer' in its place, as in 'A'; only other modes can be renamed",
        "factor 'D': mode 'r' occurs twice",
        "term '- Z A A': 'Z' is no factor",
        "term '- Z A A': 'A' occurs twice; give it a second name with same('A')",
        "term '': expected the names of factors, got none",
        "factor 'E': in no term",
        "factor 'A': shared: expected no site mode, since every site reads a shared factor alike",
        "factor 'B': shared: expected an initializer that is drawn, got svd",
        "sizes: expected a size of at least 1 for 'in', got 0",
        f"{LIKE}, got 'out' and 'r'",
        f"{AT_MOST}, got 'r' and 'q'",
        f"{REQUIRED}, got 'layer'",
        "sizes: expected a bond or a mode of the weight, got 'z'",
    )


def test_the_faults_of_copies_of_nothing_are_reported_together():
    """The modes of such a copy are not known, so that modes and starting values cannot be checked."""
    with pytest.raises(SpecError, match="spec 'own' is not valid") as caught:
        spec(C=same("Z"), D=same("C"), E=trainable("r r"), terms=["B A", "C D", "Y"])
    assert caught.value.faults == (
        f"factor 'C': {AGAIN}, got 'Z', which does not exist",
        f"factor 'D': {AGAIN}, got 'C', which is a copy itself; name its factor",
        "term 'Y': 'Y' is no factor",
        "factor 'E': in no term",
        "factor 'E': mode 'r' occurs twice",
    )


def test_a_spec_error_can_be_pickled():
    with pytest.raises(SpecError, match="nothing is trainable") as caught:
        spec(A=frozen("r in"), B=frozen("out r"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.faults) == (SpecError, str(caught.value), caught.value.faults)


@pytest.mark.parametrize("words", [{"start": "centered"}, {"start": "free"}])
@pytest.mark.parametrize("law", [ones(), normal(), zeros()])
def test_any_start_is_valid_if_the_spec_allows_it(words, law):
    assert spec(B=trainable("out r", init=law), **words).factors["B"].init == law


def test_centered_needs_something_trainable_too():
    with pytest.raises(SpecError, match="nothing is trainable"):
        spec(A=frozen("r in"), B=frozen("out r"), start="centered")


TAKEN = {
    "a site mode that no factor carries": {"over": "layer"},
    "a scalar": {"factors": {"A": A, "B": B, "s": trainable("", init=ones())}},
    "a bond in three factors": {"factors": {"A": A, "B": B, "d": trainable("r")}},
    "a weight mode in two factors": {"factors": {"A": A, "B": B, "b": trainable("out")}},
    "one factor": {"factors": {"W": trainable("in out", init=zeros())}},
    "a frozen partner": {"A": frozen("r in")},
    "a fan over a mode of another factor": {"A": trainable("r in", init=normal(fan="out"))},
    "a negative alpha": {"scale": raw(-2)},
    "a factor times itself": {"A2": same("A")},
    "a matrix times its transpose": {"A": trainable("s in"), "C": trainable("r q"), "Ct": same("C", "s q")},
    "the start of a frozen factor": {"C": frozen("r"), "C0": same("C", at_start=True)},
    "a difference of the starting values": {
        "factors": {"A": A, "B": trainable("out r"), "A0": same("A", at_start=True), "B0": same("B", at_start=True)},
        "terms": ["B A", "- B0 A0"],
    },
    "a difference from the start of one factor": {
        "factors": {"A": A, "B": trainable("out r"), "B0": same("B", at_start=True)},
        "terms": ["B A", "-B0 A"],
    },
    "terms that share the zero": {"C": trainable("r in"), "terms": ["B A", "B C"]},
    "a zero in each term": {"C": trainable("r in"), "D": trainable("out r", init=zeros()), "terms": ["B A", "D C"]},
    "a term that stays at 0 at first": {"C": trainable("r", init=zeros()), "terms": ["B A", "B A C"]},
    "one term that is subtracted": {"terms": ["- B A"]},
    "a plus": {"terms": ["+ B A"]},
    "an order of names": {"terms": ["A   B"]},
    "a shared factor": {"A": trainable("r in", shared=True)},
    "a shared factor again": {"A": trainable("r in", shared=True), "A2": same("A")},
    "a size of each mode": {"sizes": {"r": 3, "in": 8, "out": 4}},
    "a rule of each kind": {
        "weight": "(out) in",
        "A": trainable("r s t in"),
        "B": trainable("out r s t", init=zeros()),
        "sizes": {"r": like("in"), "s": at_most("out"), "in": required()},
    },
    "a line within a name": {"factors": {"A_": A, "B_1": B}},
    "a mode that begins with a line": {"A": trainable("_r in"), "B": trainable("out _r", init=zeros())},
}


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_an_unusual_spec_is_valid(changes):
    made = spec(**changes)
    assert made.axes == (("out",), ("in",))


def test_bonds_are_the_modes_of_neither_weight_nor_sites():
    made = spec(
        over="layer",
        factors={"A": trainable("p in"), "G": trainable("q layer p"), "B": trainable("out q", init=zeros())},
    )
    assert made.bonds == ("p", "q")
    assert made.site_modes == ("layer",)


def test_a_copy_of_a_bond_is_a_bond():
    made = spec(A=trainable("s in"), C=trainable("r q"), Ct=same("C", "s q"))
    assert made.bonds == ("s", "r", "q")
    assert (made.tied, made.free_bonds) == ({"s": "r"}, ("r", "q"))


def test_the_order_and_the_signs_of_a_term_are_written_in_one_way():
    made = spec(C=trainable("r in"), terms=["A  B", "+B C", "-B   A C"])
    assert made.terms == ("A B", "B C", "- B A C")
    assert spec(terms=["+ B A"]).terms == ("B A",)


def test_blanks_have_no_meaning():
    assert spec(weight="  out \t in", over=" layer  kind ") == spec(over="layer kind")
    assert spec(weight="(out) in") == spec()


def test_the_table_of_a_spec_tells_what_is_shared_and_what_is_subtracted():
    factors = {
        "A": trainable("out p"),
        "G": trainable("site p q"),
        "C": frozen("in q"),
    }
    made = spec(over="site", factors=factors, scale=over_rank("p", alpha=2), start="centered")
    assert str(made).splitlines() == [
        "own: updates weights [out in], stacked over site",
        '  A  trainable "out p" normal(std=1)',
        '  G  trainable "site p q" normal(std=1)',
        '  C  frozen "in q" normal(std=1)',
        "  scale 2 / p, minus the update of the starting values",
        "  shared by the sites of a network: A",
        "  one for the whole adapter: C",
        "  per network: out*p + site*p*q trainable, in*q frozen",
    ]
    assert "shared by" not in str(spec())


@pytest.mark.parametrize(
    ("over", "factors", "message"),
    [
        ("", {"A": ("out r q", SVD), "B": ("r q in", zeros())}, "'A': svd needs one bond and a mode"),
        (
            "layer",
            {"A": ("out r", T_SVD), "B": ("layer r in", zeros())},
            "'A': t_svd needs one site mode, and one",
        ),
        (
            "",
            {"A": ("out r", TENSOR_CUR), "B": ("r in", zeros())},
            "'A': tensor_cur needs one site mode, and one",
        ),
        (
            "",
            {"A": ("out r", TT_SVD), "B": ("q in", TT_SVD), "C": ("r q", zeros())},
            "'A' and 'B': cores must share one bond with the next",
        ),
        (
            "",
            {"A": ("out r", TT_SVD), "B": ("r in", zeros())},
            "tt_svd: its cores must carry every mode of the weight",
        ),
    ],
)
def test_a_factor_without_the_modes_for_its_start_is_refused(over, factors, message):
    with pytest.raises(SpecError, match=message):
        AdapterSpec(
            name="own",
            weight="out in",
            over=over,
            factors={name: trainable(modes, init=law) for name, (modes, law) in factors.items()},
            scale=raw(),
        )


def test_a_weight_of_more_axes_than_an_array_is_refused():
    with pytest.raises(SpecError, match="weight: expected at most 64 axes, as many as an array can have, got 66"):
        spec(weight=f"out in {M64}", A=trainable(f"r in {M64[:128]}"), B=trainable(f"out r {M64[128:]}", init=zeros()))


def test_the_modes_of_a_large_spec_are_checked_in_linear_time():
    """An axis of 20,000 modes took 18 seconds when each mode was counted by itself."""
    modes = [f"m{n}" for n in range(20_000)]
    factors = {f"F{n}": trainable(" ".join(modes[n : n + 50])) for n in range(0, len(modes), 50)}
    start = time.process_time()
    weight, factors = f"({' '.join(modes)}) in", factors | {"B": trainable("in", init=zeros())}
    own = AdapterSpec(name="own", weight=weight, factors=factors, scale=raw())
    assert time.process_time() - start < 3
    assert len(own.axes[0]) == 20_000
