"""A family, or its name, can be passed wherever a spec is expected."""

import numpy as np
import pytest

from tnadapt import Site, SpecError, compress, draw, families, fit_rank, grid
from tnadapt.binding import spec_of

SITES = grid(layers=2, kinds={"q": (8, 8)})
ADAPTER = families.lora().bind(SITES, rank=2)


@pytest.mark.parametrize("given", ["lotr", families.lotr, families.lotr()], ids=["name", "family", "spec"])
def test_a_spec_a_family_and_its_name_are_equivalent(given):
    assert spec_of(given, "here") == families.lotr()
    assert str(draw(given)) == str(draw(families.lotr()))
    assert fit_rank(given, SITES, trainable=500) == fit_rank(families.lotr(), SITES, trainable=500)
    assert compress({Site("q", (3, 2)): np.ones((3, 2))}, given, rank=1, sweeps=2).adapter.spec == families.lotr()


def test_check_takes_the_name_of_a_family():
    pytest.importorskip("hypothesis")
    from tnadapt.testing import LAWS, check

    assert [held.examples for held in check("lora", examples=1, laws=LAWS[:1])] == [1]


def own(order):
    return families.quanta(order=order)


MISTAKES = {
    "a slip": ("lotrr", r"^here: expected an AdapterSpec.*got 'lotrr'.\nThe nearest names are lotr, "),
    "capitals": ("LoTR", r"got 'LoTR'.\nThe nearest names are lotr, "),
    "a wrapper": ("magnitude", r"got 'magnitude'.\nWrap a family: magnitude\(families.lora\(\)\)\."),
    "a wrapper of a name": ("masked(lora)", r"got 'masked\(lora\)'.\nWrap a family: masked\(families.lora\(\)\)\."),
    "DoRA": ("DoRA", r"got 'DoRA'.\nWrap a family: magnitude\(families.lora\(\)\)\."),
    "an adapter": (ADAPTER, r"got the Adapter 'lora'.\nPass its spec, which is bound again: adapter.spec."),
    "a number": (3, r'got 3.\nWrite "lotr", or a call that makes a spec'),
    "nothing": (None, r'got None.\nWrite "lotr"'),
    "a family with a required argument": (
        own,
        r"the function own, which requires 'order'.\nCall it: own\(order=...\).",
    ),
    "a function of something else": (lambda: 3, r"which returns 3.\nPass a function that returns an AdapterSpec"),
}


@pytest.mark.parametrize(("given", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_value_that_is_not_a_spec_is_rejected(given, words):
    with pytest.raises(SpecError, match=f"(?s){words}"):
        spec_of(given, "here")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: families.quanta(order="4"), r"^quanta: expected an integer as order, got '4'.\nWrite order=4."),
        (lambda: families.quanta(order=True), r"expected an integer as order, got True"),
        (lambda: families.lotr(start="zero"), r"expected 'normal' or 'neutral' or 'svd' as start, got 'zero'"),
        (lambda: families.lora(alpha="8"), r"^lora: expected a number as alpha, got '8'.\nWrite alpha=8.0."),
        (lambda: families.lora(alpha=None), r"expected a number as alpha, got None"),
        (lambda: families.lora(gaussian=1), r"expected True or False as gaussian, got 1.\nWrite gaussian=True."),
    ],
)
def test_a_family_rejects_arguments_of_the_wrong_type(make, words):
    with pytest.raises(SpecError, match=words):
        make()


@pytest.mark.parametrize("name", families.__all__)
def test_every_family_answers_a_word_that_it_does_not_have(name):
    with pytest.raises(SpecError, match=rf"^{name}: .*'?rang'?"):
        getattr(families, name)(rang=4)


def test_draw_takes_an_adapter():
    assert str(draw(ADAPTER)) == str(draw(ADAPTER.networks[0]))  # all its groups have one network
    mixed = families.lora().bind(grid(layers=1, kinds={"q": (8, 8), "k": (4, 8)}), rank=2)
    assert str(draw(mixed)) == str(draw(families.lora()))
