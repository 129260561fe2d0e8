"""An argument of another type is accepted if its meaning is clear; otherwise the error of the step is raised."""

import pickle

import numpy as np
import pytest

import tnadapt
from tnadapt import (
    AdapterSpec,
    FormatError,
    Site,
    SiteError,
    SpecError,
    families,
    find_host,
    grid,
    kaiming_uniform,
    normal,
    over_rank,
    raw,
    same,
    trainable,
    zeros,
)
from tnadapt._values import sample
from tnadapt.binding import Factor, Slot, digests, file_size, map_factor, pull_back, redraw
from tnadapt.initializers import Initializer, constant
from tnadapt.sizes import at_most, like, required

FACTORS = {"A": trainable("out r", init=zeros()), "B": trainable("r in")}
HOST = find_host("llama-2-7b")
SITES = grid(layers=2, kinds={"q": (8, 8)})
ONE = Site("q", (8, 8))


def spec(**changes):
    return AdapterSpec(**({"name": "x", "weight": "out in", "factors": FACTORS} | changes))


SPEC = spec()
ADAPTER = SPEC.bind(SITES, rank=2)
PARAMS = tnadapt.init(ADAPTER)

CAUCHY = Slot("A", Factor(("r",), Initializer("cauchy", 1.0), True), (2,), {"r": 2}, ("r",))

PARTS = {  # parts of a spec -> a call, and the words of the SpecError
    "a scale not called": (lambda: spec(scale=raw), r"the function raw; write scale=raw\(\)"),
    "a scale of text": (lambda: spec(scale="16"), r"expected a Scale or a number, got '16'"),
    "a scale of truth": (lambda: spec(scale=True), r"expected a Scale or a number, got True"),
    "a scale of 0": (lambda: spec(scale=0.0), r"expected an alpha that is not 0, got 0.0: nothing would ever train"),
    "an alpha of 0": (lambda: spec(scale=over_rank("r", alpha=0)), r"expected an alpha that is not 0, got 0"),
    "an alpha of 0 at bind": (lambda: SPEC.bind(SITES, rank=2, alpha=0), r"expected an alpha that is not 0, got 0"),
    "a family's alpha of 0": (lambda: families.lora(alpha=-0.0), r"expected an alpha that is not 0"),
    "an alpha of text": (lambda: spec(scale=raw("16")), r"alpha, got '16'; write the number without quotes"),
    "an initializer's name": (
        lambda: trainable("r", init="normal"),
        r"^trainable: .*got 'normal'.\nWrite init=normal\(",
    ),
    "an initializer not called": (lambda: trainable("r", init=normal), r"function normal.\nWrite init=normal\(\)."),
    "one that needs a fan": (lambda: trainable("r", init=kaiming_uniform), r'\nWrite init=kaiming_uniform\("in"\).'),
    "an initializer of 0": (lambda: trainable("r", init=0), r"got 0.\nWrite init=normal\(\), or another of"),
    "modes as a list": (lambda: trainable(["out", "r"]), r'as one string, got .*\nWrite trainable\("out r"\).'),
    "no modes": (lambda: tnadapt.frozen(None), r'^frozen: .*got None.\nWrite frozen\("out r"\).'),
    "a map of no text": (lambda: trainable("a b", map=None), r"expected a map, one of rotation, .*got None"),
    "a fan by position": (lambda: normal("in"), r'^normal: .*got \'in\'.\nWrite normal\(fan="in"\).'),
    "a fan as a list": (lambda: kaiming_uniform(["in"]), r'\nWrite kaiming_uniform\(fan="in"\).'),
    "a number in quotes": (lambda: constant("1"), r"expected a number as value, got '1'.\nWrite constant\(1.0\)."),
    "a number of truth": (lambda: constant(True), r"expected a number as value, got True"),
    "a number beyond floats": (lambda: constant(10**400), r"expected a number as value, got 1000"),
    "a bond as a number": (lambda: over_rank(8), r'expected the name of a bond, got 8.\nWrite over_rank\("r"\)'),
    "factors of text": (lambda: spec(factors={"A": "out r"}), r"factor 'A': .*got 'out r'; write trainable\(\"out r\""),
    "a factor not called": (lambda: spec(factors={"A": trainable}), r"got the function trainable; write trainable\("),
    "factors as a list": (lambda: spec(factors=[1]), r'expected factors by name, got \[1\]; write {"A": trainable'),
    "a factor's name": (lambda: spec(factors={3: FACTORS["A"]}), r"expected strings as names, got 3 among them"),
    "over as a list": (
        lambda: spec(over=["layer"]),
        r"over: expected one string, got \['layer'\]; write over=\"layer\"",
    ),
    "weight as a tuple": (lambda: spec(weight=("out", "in")), r'weight: expected one string, .*write weight="out in"'),
    "the in axis first": (
        lambda: spec(weight="in out"),
        r'expected the out axis first, as in "out in", got \'in out\'',
    ),
    "alpha beside a number": (
        lambda: spec().bind(tnadapt.Site("w", (4, 4)), alpha=2, scale=0.5),
        r"expected an alpha or a number as scale, got both, 2 and 0.5; leave one",
    ),
    "a name of 3": (lambda: spec(name=3), r'name: expected one string, got 3; write name="own"'),
    "commas": (lambda: spec(factors={"A": trainable("out,r")}), r"'out,r': .*separate modes by spaces, as in 'out r'"),
    "an arrow": (lambda: spec(over="a->b"), r"separate modes by spaces, as in 'a b'"),
    "einsum's axes": (lambda: spec(weight="oi"), r"weight 'oi': .*separate axes by spaces, as in 'out in'"),
    "a start of text": (
        lambda: spec(start="yes"),
        r"start: expected one of 'zero', 'centered', 'free', got 'yes'; write start=\"centered\"",
    ),
    "a start of truth": (lambda: spec(start=True), r"start: expected one of .*, got True; write start="),
    "a start of nothing": (lambda: spec(start=None), r"start: expected one of .*, got None; write start="),
    "terms of text": (
        lambda: spec(terms="A B"),
        r"terms: expected a list of strings, got 'A B'; write terms=\[\"A B\"",
    ),
    "terms of numbers": (lambda: spec(terms=[1]), r"terms: expected a list of strings, got \[1\]; write terms=\["),
    "terms of lists": (lambda: spec(terms=[["A", "B"]]), r"terms: expected a list of strings, got \[\['A', 'B'\]\]"),
    "sizes of text": (
        lambda: spec(sizes="r"),
        r'sizes: expected sizes by mode, got \'r\'; write sizes={"r": at_most\(',
    ),
    "sizes as a list": (lambda: spec(sizes=["r"]), r"sizes: expected sizes by mode, got \['r'\]"),
    "sizes by number": (lambda: spec(sizes={3: 3}), r"sizes: expected strings as modes, got 3 among them"),
    "a rule of text": (
        lambda: spec(sizes={"r": "in"}),
        r"sizes: expected a rule or a number for 'r', got 'in'; write li",
    ),
    "a rule not called": (lambda: spec(sizes={"out": required}), r"for 'out', got the function required; write like\("),
    "a rule for no mode": (
        lambda: at_most(3),
        r'^at_most: expected the name of a mode, got 3.\nWrite at_most\("in"\).',
    ),
    "a rule like no mode": (lambda: like(None), r"^like: expected the name of a mode, got None."),
    "a rule with a mode": (lambda: required("head"), r"^required: expected no positional arguments, got 1"),
    "a copy of a factor": (
        lambda: same(FACTORS["A"]),
        r'^same: expected the name of a factor, got .*\nWrite same\("C", "q s"\).',
    ),
    "a copy of nothing": (lambda: same(None), r"^same: expected the name of a factor, got None."),
    "a copy with modes as a list": (lambda: same("A", ["q"]), r'^same: .*as one string, got .*\nWrite same\("q"\)'),
    "a copy at a start of 1": (lambda: same("A", at_start=1), r"^same: expected True or False as at_start, got 1."),
    "a copy not called": (lambda: spec(factors={**FACTORS, "C": same}), r"factor 'C': .*got the function same; write"),
    "shared by 1": (
        lambda: trainable("r", shared=1),
        r"^trainable: expected True or False as shared, got 1.\nWrite sh",
    ),
    "a frozen one that is shared": (lambda: tnadapt.frozen("r", shared=True), r"^frozen: .*got 'shared'"),
    "an old word": (lambda: spec(centered=True), r"expected a known argument, got 'centered'"),
    "first gradients of a name": (lambda: tnadapt.first_gradients("lora"), r"AdapterSpec or an Adapter, got 'lora'"),
    "an unknown map": (lambda: map_factor("no_such_map", np.eye(2)), r"expected one of .*'cayley'.* got 'no_such_map'"),
    "an unknown initializer": (
        lambda: sample(CAUCHY, 0),
        r"factor 'A' is not valid:.*expected a known initializer, got 'cauchy'",
    ),
    "a map back": (lambda: pull_back("no_such_map", np.eye(2), np.eye(2)), r"expected one of .* got 'no_such_map'"),
}
SITED = {  # arguments that should be sites, sizes or arrays -> a call, and the words of the SiteError
    "a host": (lambda: SPEC.bind(HOST, rank=2), r"^bind: .*the Host 'llama-2-7b'.\nPass its sites: host.sites\(\)."),
    "a path": (lambda: SPEC.bind("q_proj"), r"expected sites, got 'q_proj'.\nWrite \[Site\("),
    "a pair": (lambda: SPEC.bind([("q", (8, 8))]), r"got \('q', \(8, 8\)\) among them.\nWrite Site\('q', \(8, 8\)\)."),
    "shapes by path": (lambda: SPEC.bind({"q": (8, 8)}), r"got a dict of 'q'.\nMake sites .*: sites_of\(shapes\)."),
    "an adapter": (lambda: SPEC.bind(ADAPTER), r"got the Adapter 'x'.\nPass its sites: .sites."),
    "a path in a list": (lambda: SPEC.bind(["q"]), r"got 'q' among them.\nWrite Site\('q', \(out, in\)\)"),
    "a flag of text": (
        lambda: SPEC.bind(SITES, rank=2, overparametrized="no"),
        r"^bind: expected True or False as overparametrized, got 'no'.\nWrite overparametrized=True.",
    ),
    "a rank of text": (lambda: SPEC.bind(SITES, rank="8"), r"^rank: .*got '8'.\nWrite a whole number, such as 8."),
    "a rank of 8.0": (lambda: SPEC.bind(SITES, rank=8.0), r"^rank: .*got 8.0.\nWrite a whole number, such as 8."),
    "a rank of truth": (lambda: SPEC.bind(SITES, rank=True), r"^rank: .*got True."),
    "a rank as a list": (lambda: SPEC.bind(SITES, rank=[8]), r"^rank: .*got \[8\]."),
    "a bond's rank of text": (lambda: SPEC.bind(SITES, rank={"r": "8"}), r"^rank of 'r': .*got '8'."),
    "sizes as a list": (lambda: SPEC.bind(SITES, rank=2, sizes=[1]), r'sizes by mode, got \[1\].\nWrite sizes={"head"'),
    "a size of 2.0": (lambda: SPEC.bind(SITES, rank=2, sizes={"out": 2.0}), r"^size of 'out': .*got 2.0."),
    "a seed of text": (lambda: SPEC.bind(SITES, rank=2, seed="0"), r"^seed: .*got '0'.\nWrite seed=0."),
    "delta's site": (
        lambda: tnadapt.delta(ADAPTER, PARAMS, 3),
        r"expected a site or its path, got 3.\nPass one of adap",
    ),
    "delta's params": (
        lambda: tnadapt.delta(ADAPTER, None, "q"),
        r"^delta: expected params, .*got None.\nPass what init",
    ),
    "a merge of integers": (
        lambda: tnadapt.merge([1, 2], [0.5, 0.5]),
        r"expected a weight of floats, got one of int64",
    ),
    "weights as a list": (lambda: tnadapt.init(ADAPTER, []), r"expected the host's weights by path, got \[\]."),
    "a shape of 8": (
        lambda: Site("q", 8),
        r'^q: expected the shape of a weight, got 8.\nWrite Site\("q", \(out, in\)\).',
    ),
    "a path of 3": (lambda: Site(3, (8, 8)), r"^Site: expected the path of a weight as a string, got 3."),
    "coordinates of text": (lambda: Site("q", (8, 8), "layer"), r"^q: expected coordinates by name, got 'layer'."),
    "kinds as a list": (lambda: grid(layers=2, kinds=["q"]), r"expected kinds by name, got \['q'\].\nWrite kinds={"),
    "a host to split": (
        lambda: tnadapt.split_sites(HOST),
        r"expected sites, got the Host .*\nPass what grid, sites_of",
    ),
    "one task": (lambda: grid(layers=2, kinds={"q": (8, 8)}, tasks="nli"), r'got \'nli\'.\nWrite tasks=\["nli"\].'),
    "blocks as a list": (lambda: tnadapt.split_sites(SITES, blocks=["q"]), r"expected blocks by the name of a weight"),
    "a host of a host": (lambda: find_host(HOST), r"^find_host: expected a model's name or a path, got the Host"),
    "updates": (lambda: tnadapt.compress(ADAPTER, "lora"), r"got the Adapter 'x'.\nPass low_rank_updates\(adapter, p"),
    "updates by path": (lambda: tnadapt.compress({"q": 1}, "lora"), r"^compress: expected sites, got a dict of 'q'."),
}
FILES = {  # arguments of the functions for files -> a call, and the words of the FormatError
    "params of text": (lambda: tnadapt.save(ADAPTER, "f", {}), r"^save: expected params, arrays by name, got 'f'."),
    "a path of 3": (lambda: tnadapt.save(ADAPTER, PARAMS, 3), r"^save: expected the path of a file, got 3.\nWrite it"),
    "a file of 3": (lambda: tnadapt.load(3), r"^load: expected the path of a file, got 3."),
    "the text of a family": (lambda: tnadapt.to_json(families.lora), r"^to_json: .*got the function lora."),
    "a folder of 3": (lambda: tnadapt.read_peft(3), r"^read_peft: expected the path of a file, got 3."),
    "a slip at read_peft": (lambda: tnadapt.read_peft("f", shape={}), r"got 'shape'.\nThe nearest names are shapes"),
    "a saved alpha of 0": (
        lambda: tnadapt.from_json(tnadapt.to_json(SPEC).replace('"alpha":1.0', '"alpha":0')),
        r"the text: expected a valid spec, got an invalid one\.\n.*expected an alpha that is not 0",
    ),
    "a text of data": (lambda: tnadapt.from_json({}), r"^from_json: expected a text that to_json wrote, got a dict."),
}
MISTAKES = [
    (error, *row)
    for error, table in ((SpecError, PARTS), (SiteError, SITED), (FormatError, FILES))
    for row in table.values()
]


@pytest.mark.parametrize(("error", "act", "words"), MISTAKES, ids=[*PARTS, *SITED, *FILES])
def test_an_argument_of_the_wrong_type_is_rejected(error, act, words):
    with pytest.raises(error, match=f"(?s){words}"):
        act()


ASKING = {
    **{f: getattr(tnadapt, f) for f in ("count", "report", "init", "rank_bound", "generic_rank", "compare")},
    "degrees_of_freedom": tnadapt.degrees_of_freedom,
    "digests": digests,
    "file_size": file_size,
    "redraw": redraw,
    "delta": lambda given: tnadapt.delta(given, PARAMS, "q"),
    "apply": lambda given: tnadapt.apply(given, PARAMS, "q", np.ones(8)),
    "to_lora": lambda given: tnadapt.to_lora(given, PARAMS, "q"),
    "low_rank_updates": lambda given: tnadapt.low_rank_updates(given, PARAMS),
    "save": lambda given: tnadapt.save(given, PARAMS, "never_written"),
    "save_as_lora": lambda given: tnadapt.save_as_lora(given, PARAMS, "never_written"),
}
IN_PLACE = {
    "spec": (SPEC, r"the AdapterSpec 'x'.\nBind it first: spec.bind\(sites, rank=8\)."),
    "family": (families.lora, r"the function lora.\nMake a spec and bind it first: spec.bind\(sites, rank=8\)."),
    "name": ("lora", r"'lora'.\nMake a spec and bind it first"),
    "nothing": (None, r"None.\nPass what spec.bind"),
}


@pytest.mark.parametrize(("given", "words"), IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("name", ASKING)
def test_a_value_that_is_not_an_adapter_is_rejected(name, given, words):
    error = FormatError if name in ("digests", "file_size", "save", "save_as_lora") else SiteError
    with pytest.raises(error, match=f"^{name}: expected an Adapter, got {words}"):
        ASKING[name](given)


def test_the_message_points_to_the_adapter_inside_the_value():
    with pytest.raises(SiteError, match=r"got a value of type Report.\nPass the adapter that it contains: .adapter."):
        tnadapt.count(tnadapt.report(ADAPTER))


@pytest.mark.parametrize("scale", [2.0, 2, raw(2)], ids=repr)
def test_a_number_is_accepted_as_the_scale(scale):
    assert spec(scale=scale) == spec(scale=raw(2.0))


def test_a_single_site_is_accepted_as_sites():
    assert SPEC.bind(ONE, rank=2) == SPEC.bind([ONE], rank=2)
    assert tnadapt.fit_rank(SPEC, ONE, trainable=32) == 2
    assert tnadapt.split_sites(ONE) == (ONE,)


def test_compare_takes_adapters_or_a_list_of_them():
    assert tnadapt.compare(ADAPTER, ADAPTER) == tnadapt.compare([ADAPTER, ADAPTER])
    assert len(tnadapt.compare(ADAPTER, [ADAPTER]).reports) == 2


def test_the_first_gradients_of_an_adapter_are_those_of_its_spec():
    assert tnadapt.first_gradients(ADAPTER) == tnadapt.first_gradients(SPEC) == ("A",)


def test_a_spec_error_without_a_spec_can_be_pickled():
    with pytest.raises(SpecError, match="expected a number") as caught:
        constant("1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (SpecError, str(caught.value))
