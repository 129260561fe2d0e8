"""What the words of the command mean."""

import argparse

import pytest

from tnadapt import AdapterSpec, families, magnitude, masked, raw, unit
from tnadapt._command.arguments import rank_of, scale_of, sizes_by_name, spec_named, whole_number

OWN = """\
from tnadapt import AdapterSpec, trainable, zeros
print("loading")
factors = {"A": trainable("out r", init=zeros()), "B": trainable("r in")}
mine = AdapterSpec(name="mine", weight="out in", factors=factors)
def make(): return mine
def fail(): raise ValueError("one\\ntwo")
three = 3
"""


@pytest.mark.parametrize(
    ("text", "number"), [("8", 8), ("1", 1), (" 12 ", 12), ("1,000", 1000), ("10_000", 10_000), ("1,000_000", 10**6)]
)
def test_a_whole_number(text, number):
    assert whole_number(text) == rank_of(text) == number


@pytest.mark.parametrize("text", ["", ",", "2.5", "1e3", "many", "0x8"])
def test_anything_else_is_no_whole_number(text):
    for convert in (whole_number, rank_of):
        with pytest.raises(argparse.ArgumentTypeError, match=f"whole number.*got '{text}'"):
            convert(text)


@pytest.mark.parametrize("text", ["0", "-1"])
def test_a_number_below_1_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '?{text}'?$"):
        whole_number(text)


@pytest.mark.parametrize("convert", [sizes_by_name, rank_of])
def test_sizes_come_by_name(convert):
    assert convert("p=8") == {"p": 8}
    assert convert("p=8,q=1_000") == {"p": 8, "q": 1000}
    assert convert(" p=8, q = 4") == {"p": 8, "q": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p=8,q", r"name=size.*'?q'?"),
        ("=8", r"name=size.*'?=8'?"),
        ("p=8,", "name=size"),
        ("p=1,p=2", r"p.*twice|twice.*p"),
        ("p=1, p=2", r"p.*twice|twice.*p"),
        ("p=x", "whole number.*'x'"),
        ("p=1_000,q=1,000", "name=size"),  # a comma separates sizes
        ("p=1=2", "whole number.*'1=2'"),
        ("p=0", "got '?0"),
    ],
)
@pytest.mark.parametrize("convert", [sizes_by_name, rank_of])
def test_what_is_no_list_of_sizes_is_refused(convert, text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        convert(text)


def test_sizes_without_a_name_are_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"name=size.*'?8'?"):
        sizes_by_name("8")


@pytest.mark.parametrize("name", families.__all__)
def test_a_family_is_a_spec_by_its_name(name):
    assert spec_named(name) == getattr(families, name)()


@pytest.fixture
def own(tmp_path):
    """A file with specs of one's own."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def test_a_wrapper_around_a_spec(own):
    assert spec_named("magnitude(lora)") == magnitude(families.lora())
    assert spec_named("magnitude(masked(lotr))") == magnitude(masked(families.lotr()))
    assert spec_named(f"gated({own}:mine)").name == "mine_gated"
    assert spec_named("magnitude( masked(lotr) )") == magnitude(masked(families.lotr()))


def test_a_spec_is_a_name_in_a_file_or_what_a_function_of_it_returns(own, capsys):
    made = spec_named(f"{own}:mine")
    assert isinstance(made, AdapterSpec)
    assert made.name == "mine"
    assert spec_named(f"{own}:make") == made
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loading\nloading\n")  # what the file prints is no answer of ours


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lotrr", r"(?=.*file\.py:name).*'lotrr'.*lora.*lotr"),
        ("magnitude", r"got 'magnitude'; it is a wrapper, so write .*: 'magnitude\(lora\)'$"),
        ("DoRA", r"got 'DoRA'; it is a wrapper, so write .*: 'magnitude\(lora\)'$"),
        ("dora(lotr)", r"got 'dora\(lotr\)'; it is a wrapper, so write .*: 'magnitude\(lora\)'$"),
        ("masked(lora", r"got 'masked\(lora'; it is a wrapper, so write .*: 'masked\(lora\)'$"),
        ("masked()", r"got ''.*lora.*lotr"),
        ("masked(lotrr)", r"got 'lotrr'.*lora.*lotr"),
        ("masked(masked(lora))", r"masked: expected a spec without a factor 'mask'"),
        ("other(lora)", r"got 'other\(lora\)'"),
        ("{file}", r"(?=.*file\.py:name).*own\.py'.*lora"),
        ("{file}:other", r"own\.py.*'other'.*mine"),
        ("{file}:", r"own\.py.*''.*mine"),
        ("{file}:three", r"own\.py:three: .*AdapterSpec"),
        ("{file}:fail", r"own\.py: ValueError: one two$"),
        ("{folder}/none.py:mine", r"none\.py: No such file"),
        ("{folder}:mine", ": "),
    ],
)
def test_a_spec_that_is_not_there_is_refused_in_one_line(text, words, own, tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match=words) as caught:
        spec_named(text.format(file=own, folder=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", r"own\.py: ZeroDivisionError: division by zero$"),
        ("def (:", r"own\.py: SyntaxError: "),
        ("import sys; sys.exit(0)", r"own\.py: SystemExit: 0$"),
        ("raise ValueError('one\\ntwo')", r"own\.py: ValueError: one two$"),
        ("{}['gone']", r"own\.py: KeyError: 'gone'$"),
        ("from tnadapt import AdapterSpec; AdapterSpec(name='bad', weight='', factors={})", r"own\.py: spec 'bad' .*"),
        ("import missing_module", r"own\.py: ModuleNotFoundError: .*missing_module"),
        ("three = 3", r"own\.py.*'mine'"),
    ],
    ids=lambda text: text.partition(";")[0][:24],
)
def test_an_error_in_a_file_is_told_in_one_line(code, words, own):
    own.write_text(code)
    with pytest.raises(argparse.ArgumentTypeError, match=words) as caught:
        spec_named(f"{own}:mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "scale"), [("unit", unit()), ("unit:1.6", unit(1.6)), ("unit:-2", unit(-2.0)), ("2", raw(2.0))]
)
def test_a_scale_is_a_number_or_unit(text, scale):
    assert scale_of(text) == scale


@pytest.mark.parametrize("text", ["", "units", "unit:", ":2", "unit:x", "unit 2", "over_rank:r", "2:unit"])
def test_anything_else_is_no_scale(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected a number, unit or unit:1.6, got '{text}'"):
        scale_of(text)
