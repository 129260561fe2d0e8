"""Invalid specs and their faults, and unusual specs that are valid."""

import pickle
import time

import pytest

from tnadapt import AdapterSpec, SpecError, TnadaptError, frozen, normal, over_rank, raw, trainable, zeros
from tnadapt.initializers import (
    Initializer,
    constant,
    cyclic,
    ones,
    over_sqrt_rank,
    svd,
    t_svd,
    tensor_cur,
    tt_svd,
)

A, B = trainable("r in"), trainable("out r", init=zeros())
M64 = " ".join(f"m{n:02}" for n in range(64))
INF, NAN = float("inf"), float("nan")
NOT_BETWEEN = "factor 'A': {}: expected a {} of 0 or of 1e-30 to 1e+30 in size, got {}"


def spec(**changes):
    """Return a small valid spec with changes; `A`, `B` and `C` are factors."""
    factors = {"A": changes.pop("A", A), "B": changes.pop("B", B)}
    factors |= {"C": changes.pop("C")} if "C" in changes else {}
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
    "a cap on no bond": ({"caps": {"out": "in"}}, "caps: expected a bond and a mode of the weight, got 'out' and 'in'"),
    "a cap by no mode": ({"caps": {"r": "z"}}, "caps: expected a bond and a mode of the weight, got 'r' and 'z'"),
    "a cap by a site mode": (
        {"over": "layer", "caps": {"r": "layer"}},
        "caps: expected a bond and a mode of the weight, got 'r' and 'layer'",
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
        "caps: expected a bond and a mode of the weight, got 'q' and 'in'",
        "does not start at 0",
    ):
        assert text.count(part) == 1 + (part == "spec 'my own'"), part  # its name is in the first line too


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
        ("", {"A": ("out r q", svd()), "B": ("r q in", zeros())}, "'A': svd needs one bond and a mode"),
        (
            "layer",
            {"A": ("out r", t_svd()), "B": ("layer r in", zeros())},
            "'A': t_svd needs one site mode, and one",
        ),
        (
            "",
            {"A": ("out r", tensor_cur()), "B": ("r in", zeros())},
            "'A': tensor_cur needs one site mode, and one",
        ),
        (
            "",
            {"A": ("out r", tt_svd()), "B": ("q in", tt_svd()), "C": ("r q", zeros())},
            "'A' and 'B': cores must share one bond with the next",
        ),
        (
            "",
            {"A": ("out r", tt_svd()), "B": ("r in", zeros())},
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
