"""What the words of the command mean."""

import argparse

import pytest

from tnadapt import AdapterSpec, families
from tnadapt._command.arguments import rank_of, sizes_by_name, spec_named, whole_number

OWN = """\
from tnadapt import AdapterSpec, trainable, zeros
print("loading")
factors = {"A": trainable("out r", init=zeros()), "B": trainable("r in")}
mine = AdapterSpec(name="mine", weight="out in", factors=factors)
def make(): return mine
three = 3
"""


@pytest.mark.parametrize(("text", "number"), [("8", 8), ("1,000", 1000), ("10_000", 10_000)])
def test_a_whole_number(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "2.5", "many"])
def test_anything_else_is_no_whole_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"whole number|1 or more"):
        whole_number(text)


def test_sizes_come_by_name():
    assert sizes_by_name("p=8,q=1_000") == {"p": 8, "q": 1000}
    assert rank_of("p=8,q=4") == {"p": 8, "q": 4}
    assert rank_of("16") == 16


@pytest.mark.parametrize(
    ("text", "word"), [("p=8,q", "name=size"), ("=8", "name=size"), ("p=1,p=2", "twice"), ("p=x", "x")]
)
def test_sizes_without_a_name_or_named_twice_are_refused(text, word):
    with pytest.raises(argparse.ArgumentTypeError, match=word):
        sizes_by_name(text)


def test_a_spec_is_a_family_or_a_name_in_a_file(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    assert spec_named("lotr") == families.lotr()
    made = spec_named(f"{file}:mine")
    assert isinstance(made, AdapterSpec)
    assert spec_named(f"{file}:make") == made
    printed = capsys.readouterr()
    assert (printed.out, "loading" in printed.err) == ("", True)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("lotrr", "got 'lotrr'; the families are"),
        ("{file}:other", "got 'other'; its specs are mine"),
        ("{file}:three", "expected an AdapterSpec or a function"),
        ("{folder}/none.py:mine", "No such file"),
    ],
)
def test_a_spec_that_is_not_there_is_refused(text, word, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    with pytest.raises(argparse.ArgumentTypeError, match=word):
        spec_named(text.format(file=file, folder=tmp_path))


def test_an_error_in_the_file_is_one_line(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("1 / 0")
    with pytest.raises(argparse.ArgumentTypeError, match=r"own\.py: ZeroDivisionError: division by zero$"):
        spec_named(f"{file}:mine")
