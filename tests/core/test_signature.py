"""A call that does not match a signature raises the error of its step: which argument, and what to write."""

import inspect

import pytest

import tnadapt
from tnadapt import (
    AdapterSpec,
    FormatError,
    SiteError,
    SpecError,
    TnadaptError,
    families,
    grid,
    initializers,
    normal,
    policies,
    trainable,
    zeros,
)
from tnadapt._signature import answers, told
from tnadapt.initializers import kaiming_uniform

SITES = grid(layers=2, kinds={"q": (8, 8)})
LORA = families.lora()
ADAPTER = LORA.bind(SITES, rank=2)

MISTAKES = {  # what is written -> the error, and its words
    "PEFT's r": (lambda: LORA.bind(SITES, r=2), SiteError, r"^bind: .*got 'r'.\nPEFT's r is called rank here."),
    "PEFT's alpha": (lambda: LORA.bind(SITES, lora_alpha=16), SiteError, r"PEFT's lora_alpha is called alpha here."),
    "PEFT's dropout": (lambda: LORA.bind(SITES, lora_dropout=0.1), SiteError, r"Dropout is an argument of tnadapt_t"),
    "PEFT's DoRA": (lambda: LORA.bind(SITES, use_dora=True), SiteError, r"Write magnitude\(families.lora\(\)\) as the"),
    "PEFT's bias": (lambda: LORA.bind(SITES, bias="none"), SiteError, r"Leave it out: no adapter trains biases"),
    "targets at bind": (lambda: LORA.bind(SITES, target_modules=["q"]), SiteError, r"Name the targets when you choose"),
    "a slip": (lambda: LORA.bind(SITES, rnak=2), SiteError, r"got 'rnak'.\nThe nearest names are rank, "),
    "no sites": (
        lambda: LORA.bind(rank=2),
        SiteError,
        r"^bind: expected the argument 'sites', got none.\nWrite bind\(",
    ),
    "two by position": (
        lambda: LORA.bind(SITES, 2),
        SiteError,
        r"at most 1 positional argument, got 2.\nPass .* rank=",
    ),
    "an argument twice": (lambda: LORA.bind(SITES, sites=SITES), SiteError, r"expected each argument once, got multi"),
    "a family's rank": (
        lambda: families.lora(r=8),
        SpecError,
        r"^lora: .*got 'r'.\nPass the rank when you bind the spec",
    ),
    "a family by position": (
        lambda: families.lora(8),
        SpecError,
        r"no positional arguments, got 1.\nPass .*alpha=",
    ),
    "a family's slip": (lambda: families.lotr(alfa=8), SpecError, r"got 'alfa'.\nThe nearest names are alpha"),
    "a spec's slip": (
        lambda: AdapterSpec(nam="x"),
        SpecError,
        r"^AdapterSpec: .*got 'nam'.\nThe nearest names are name",
    ),
    "a spec of nothing": (lambda: AdapterSpec(name="x"), SpecError, r"'weight', got none.\nWrite AdapterSpec\(name="),
    "init by position": (
        lambda: trainable("out r", normal()),
        SpecError,
        r"^trainable: .*got 2.\nPass .* init=, map=",
    ),
    "no fan": (kaiming_uniform, SpecError, r"^kaiming_uniform: expected the argument 'fan', got none."),
    "zeros of": (lambda: zeros(3), SpecError, r"^zeros: expected no positional .*got 1.\nWrite zeros\(\)."),
    "zeros by name": (lambda: zeros(std=3), SpecError, r"^zeros: .*got 'std'.\nWrite zeros\(\)."),
    "no budget": (
        lambda: tnadapt.fit_rank(LORA, SITES),
        SiteError,
        r"'trainable', got none.\nWrite fit_rank\(spec, si",
    ),
    "no spec": (lambda: tnadapt.compress({}), SiteError, r"^compress: expected the argument 'spec'"),
    "rank of a report": (
        lambda: tnadapt.report(ADAPTER, rank=8),
        SiteError,
        r"^report: .*got 'rank'.\nPass the rank when",
    ),
    "a slip in compare": (lambda: tnadapt.compare(ADAPTER, token=8), SiteError, r"got 'token'.\nThe nearest .*tokens"),
    "a site without shape": (
        lambda: tnadapt.Site("q"),
        SiteError,
        r"^Site: .*'shape', got none.\nWrite Site\(path, sh",
    ),
    "a file without params": (lambda: tnadapt.save(ADAPTER), FormatError, r"^save: expected the argument 'params'"),
}


@pytest.mark.parametrize(("act", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_call_that_does_not_match_the_signature_raises_the_error_of_its_step(act, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        act()


PLAIN = {"find_host", "from_json", "plan", "sites_of", "to_json"}  # of one or two plain arguments: Python's own answer
ANSWERING = {
    name: getattr(place, name)
    for place in (tnadapt, initializers, policies)
    for name in place.__all__
    if inspect.isfunction(getattr(place, name)) and name not in PLAIN
}


@pytest.mark.parametrize("name", ANSWERING)
def test_every_public_function_answers_a_word_that_it_does_not_have(name):
    with pytest.raises(TnadaptError, match=f"^{name}: expected .*, got 'rang'.\n"):
        ANSWERING[name](rang=2)


def test_a_type_error_inside_the_function_is_not_changed():
    @answers(SiteError)
    def add(one: int) -> int:
        return one + ""

    with pytest.raises(TypeError, match="unsupported operand"):
        add(1)


def test_a_decorated_function_keeps_its_signature_and_docstring():
    assert list(inspect.signature(families.lora).parameters) == ["alpha", "rank_stabilized", "gaussian", "frozen_a"]
    assert families.lora.__doc__.startswith("LoRA: ")
    assert list(inspect.signature(AdapterSpec).parameters)[:2] == ["name", "weight"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        ("q", "'q'"),
        (families.lora, "the function lora"),
        (dict, "the class dict"),
        (LORA, "the AdapterSpec 'lora'"),
        (ADAPTER, "the Adapter 'lora'"),
        ({"A": 1}, "a dict of 'A'"),
        (object(), "a value of type object"),
        (list(range(1000)), "[0, 1, 2, 3, 4, 5, ...]"),
    ],
)
def test_a_value_is_described_in_a_few_words(value, words):
    assert told(value) == words
