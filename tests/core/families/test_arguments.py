"""Errors for invalid options of a family, and for weights that it does not fit: the mode, the size, and what fits."""

import numpy as np
import pytest

from tnadapt import SiteError, SpecError, families, grid

SITES = grid(layers=2, kinds={"q": (12, 8)})


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: families.lotr_tt(out_order=0), r"lotr_tt.*out_order: expected at least 1, got 0"),
        (lambda: families.lotr_tt(in_order=-1), r"in_order: expected at least 1, got -1"),
        (lambda: families.tt_lora(in_order=0), r"tt_lora.*in_order: expected at least 1, got 0"),
        (lambda: families.loretta(out_order=0), r"loretta.*out_order: expected at least 1, got 0"),
        (lambda: families.metatt(order=3), r"metatt.*order: expected 4, or 5 with heads, got 3"),
        (lambda: families.mora(variant=2), r"mora.*variant: expected 1 or 6, got 2"),
        (lambda: families.soda(order=0), r"soda.*order: expected at least 1, got 0"),
        (lambda: families.hra(reflections=0), r"hra.*reflections: expected at least 1, got 0"),
        (lambda: families.cp(out_order=0), r"cp.*out_order: expected at least 1, got 0"),
        (lambda: families.cp(in_order=0), r"cp.*in_order: expected at least 1, got 0"),
        (lambda: families.quanta(order=1), r"quanta.*order: expected at least 2, since a gate joins two axes, got 1"),
        (lambda: families.flora(kernel_axes=-1), r"flora.*kernel_axes: expected at least 0, got -1"),
        (lambda: families.superlora(parts=0), r"superlora.*parts: expected at least 1, got 0"),
        (lambda: families.lora_xs(sigma=float("nan")), r"factor 'R': normal: expected a std of 0 or of"),
        (lambda: families.lora_xs(alpha=float("inf")), r"scale: expected a finite number as alpha, got inf"),
    ],
)
def test_invalid_options_are_rejected(make, fault):
    with pytest.raises(SpecError, match=f"(?s){fault}"):
        make()


def test_an_integer_of_numpy_is_taken_as_an_option():
    assert families.dota(order=np.int64(2)) == families.dota(order=2)
    with pytest.raises(SpecError, match="dota: expected an integer as order, got the bool"):
        families.dota(order=np.True_)


@pytest.mark.parametrize(
    ("spec", "words", "fault"),
    [
        (
            families.gralora(),
            {"sizes": {"o1": 5, "i1": 2}},
            r"sizes of \(o1 o2\) whose product is 12, got o1=5, which does not divide 12",
        ),
        (families.monarch(), {"sizes": {"i1": 3}}, r"i1=3, which does not divide 8.\nDivisors of 8: 1, 2, 4, 8"),
        (families.btt(), {"sizes": {"i1": 2, "i2": 2}}, r"i1=2, i2=2, which does not give 8"),
        (
            families.mora(),
            {"sizes": {"o2": 7, "i2": 7}},
            r"o2=7, which does not divide 12.\nDivisors of 12: 1, 2, 3, 4, 6",
        ),
        (families.krona(), {"sizes": {"i2": 3}}, r"i2=3, which does not divide 8"),
        (families.kadaptation(), {"sizes": {"o1": 32, "i1": 32}}, r"o1=32, which does not divide 12"),
        (
            families.cara(),
            {"sizes": {"head": 5}},
            r"\(head dim\) whose product is 12, got head=5, which does not divide 12",
        ),
        (families.metatt(order=5), {"sizes": {"head": 8}}, r"head=8, which does not divide 12"),
        (families.tenslora(heads="dim head"), {"sizes": {"head": 7}}, r"head=7, which does not divide 12"),
        (families.tenslora(), {"sizes": {"head": 4}}, r"expected modes of tenslora .*, got 'head'"),
        (families.quanta(), {"sizes": {"i1": 16}}, r"i1=16, which does not divide 8"),
        (families.tt_lora(), {"sizes": {"o1": 2, "o2": 2, "o3": 2}}, r"o1=2, o2=2, o3=2, which does not give 12"),
        (families.loretta(), {"sizes": {"o2": 9}}, r"o2=9, which does not divide 12"),
        (families.flora(kernel_axes=2), {}, r"expected a weight of 4 axes for this spec, got shape \(12, 8\)"),
        (
            families.mtlora_tasks(),
            {},
            r"expected the coordinate 'task', since the spec stacks weights over it, got only layer, kind",
        ),
        (families.randlora(), {"rank": {"r": 2}}, r"randlora: expected a size for every bond, got none for n"),
        (families.superlora(), {"rank": 0}, r"rank: expected an integer of at least 1, got 0"),
    ],
)
def test_weights_that_do_not_fit_a_family_are_rejected(spec, words, fault):
    with pytest.raises(SiteError, match=f"(?s){fault}"):
        spec.bind(SITES, **({"rank": 2} | words))
