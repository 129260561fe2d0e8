"""Patterns of PEFT's options: the first that matches decides, as in PEFT, and no search takes minutes."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.thorough import IS_THOROUGH
from tnadapt import FormatError
from tnadapt._files.peft_patterns import Patterns

MODULES = ["h.0.q", "h.1.q", "h.1.q_proj", "x.h.1.q", "q", "h-1.q", "hx1xq", "a b.q", "h.10.q"]


def as_peft(patterns, module):
    """Return the first pattern that matches, in PEFT's own way."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


PARTS = ["h", "q", ".", "1", "0", r"\.", "-", "_proj", "x", "^", "$", ".*", "|", "(1|0)", "[01]", r"\d", "a b", r"a\ b"]


@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join), max_size=6, unique=True))
def test_the_pattern_that_peft_takes_is_taken(patterns):
    table = Patterns("rank_pattern", {pattern: pattern for pattern in patterns})
    for module in MODULES:
        try:
            found = table.value(module, None)
        except FormatError:  # two groups that repeat, say
            continue
        assert found == as_peft(patterns, module)


@pytest.mark.parametrize("path", [*MODULES, "é.中", "a+b", "a\nb.q", "a(b)", "[0]", "a\\b", ""])
def test_the_escaped_path_of_a_module_matches_this_module_alone(path):
    table = Patterns("rank_pattern", {f"^{re.escape(path)}": 2})
    assert [other for other in [*MODULES, path] if table.value(other, 1) == 2] == ([path] * (1 + (path in MODULES)))


def test_a_pattern_behind_the_first_that_matches_is_not_looked_at():
    table = Patterns("rank_pattern", {"q": 2, "(": 3})
    assert table.value("h.0.q", 1) == 2
    with pytest.raises(FormatError, match=r"rank_pattern: expected names and regular expressions, got '\('"):
        table.value("h.0.v", 1)


LAYERS = [f"h.{n}.q" for n in range(20_000)]
FOUR = "(a|a|a|a|a|a|a|a)(a|a|a|a|a|a|a|a)(a|a|a|a|a|a|a)(a|a|a|a|a)b"
SLOW = {  # patterns and modules
    "expressions for many modules": (LAYERS, LAYERS),
    "repeats in long paths": ([f"a.*{n}.*b" for n in range(100)], ["." * 400 + f"a{n}" for n in range(100)]),
    "choices of choices": ([FOUR], ["a" * 400] * 50),
    "many expressions": ([f"h.{n}" for n in range(90_000)], ["q"]),
}


def search(patterns, modules):
    table = Patterns("rank_pattern", {pattern: place for place, pattern in enumerate(patterns)})
    return [table.value(module, None) for module in modules]


DEAR = "expressions for many modules"  # takes seconds to reach the same limit as the others
ASKED = {name: case for name, case in SLOW.items() if IS_THOROUGH or name != DEAR}


@pytest.mark.parametrize(("patterns", "modules"), ASKED.values(), ids=ASKED)
def test_a_search_that_would_take_minutes_is_refused_in_seconds(patterns, modules):
    start = time.process_time()
    with pytest.raises(FormatError, match="rank_pattern: expected at most 268,435,456 steps of a search"):
        search(patterns, modules)
    assert time.process_time() - start < 15  # 3 if the processor does nothing else


def test_a_pattern_for_each_of_many_modules_is_looked_up_at_once():
    start = time.process_time()
    assert search([f"^{re.escape(layer)}" for layer in LAYERS], LAYERS) == list(range(len(LAYERS)))
    assert time.process_time() - start < 3


def test_more_patterns_than_sites_are_refused():
    with pytest.raises(FormatError, match="rank_pattern: expected at most 100,000 patterns, got 100,001"):
        Patterns("rank_pattern", {str(n): 1 for n in range(100_001)})
