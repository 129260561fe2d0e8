"""A family stands for its spec wherever a spec is asked for, by itself or by its name."""

import numpy as np
import pytest

from tnadapt import Site, SpecError, compress, draw, families, fit_rank, grid
from tnadapt.binding import spec_of

SITES = grid(layers=2, kinds={"q": (8, 8)})
ADAPTER = families.lora().bind(SITES, rank=2)


@pytest.mark.parametrize("given", ["lotr", families.lotr, families.lotr()], ids=["name", "family", "spec"])
def test_a_spec_is_named_in_three_ways(given):
    assert spec_of(given, "here") == families.lotr()
    assert str(draw(given)) == str(draw(families.lotr()))
    assert fit_rank(given, SITES, trainable=500) == fit_rank(families.lotr(), SITES, trainable=500)
    assert compress({Site("q", (3, 2)): np.ones((3, 2))}, given, rank=1, sweeps=2).adapter.spec == families.lotr()


def test_the_laws_take_a_family_by_its_name():
    pytest.importorskip("hypothesis")
    from tnadapt.testing import LAWS, check

    assert [held.examples for held in check("lora", examples=1, laws=LAWS[:1])] == [1]


def own(order):
    return families.quanta(order=order)


MISTAKES = {
    "a slip": ("lotrr", r"^here: expected an AdapterSpec.*got 'lotrr'.\nThe nearest names are lotr, "),
    "capitals": ("LoTR", r"got 'LoTR'.\nThe nearest names are lotr, "),
    "an adapter": (ADAPTER, r"got the Adapter 'lora'.\nPass its spec, which is bound anew: adapter.spec."),
    "a number": (3, r'got 3.\nWrite "lotr", or the call that makes a spec'),
    "nothing": (None, r'got None.\nWrite "lotr"'),
    "a family that asks for more": (own, r"the function own, which asks for 'order'.\nCall it: own\(order=...\)."),
    "a function of something else": (lambda: 3, r"which returns 3.\nPass a function that returns an AdapterSpec"),
}


@pytest.mark.parametrize(("given", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_names_no_spec_is_answered(given, words):
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
def test_a_family_answers_values_of_other_kinds(make, words):
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
