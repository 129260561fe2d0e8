"""JSON text as plain data: what is read, and what is refused before it is believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import FormatError
from tnadapt._files import limits
from tnadapt._files.plain import dump, parse, read_object, take, typed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)
CANNOT = "^the text: expected JSON, got text that cannot be parsed"


@given(OBJECTS)
def test_what_is_dumped_is_parsed_again(data):
    try:
        text = dump(data)
        text.encode()
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return
    assert parse(text) == data
    assert parse(text.encode()) == data
    assert "\n" not in text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_not_dumped(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"a": number})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", CANNOT),
        ("{", CANNOT),
        (b"\xff", CANNOT),
        ("[" * 100_000, CANNOT),
        ('{"a":"\\ud800"}', CANNOT),
        ('{"a":"\ud800"}', CANNOT),
        ('{"\\uDFFF":1}', CANNOT),
        ("[]", "^the text: expected a value of type dict, got list"),
        ("null", "^the text: expected a value of type dict, got NoneType"),
        ('{"a":1,"b":2,"a":3}', "^the text: expected each key of an object once, got 'a' twice"),
        ('{"a":{"b":1,"b":1}}', "^the text: expected each key of an object once, got 'b' twice"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_object_is_refused(text, message):
    with pytest.raises(FormatError, match=message):
        parse(text)


def test_a_pair_of_surrogates_is_a_character():
    assert parse('{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_text_above_the_limits_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "HEADER", 20)
    with pytest.raises(FormatError, match="the text: expected at most 20 characters, got 21"):
        parse('{"a":"' + "x" * 13 + '"}')
    monkeypatch.setattr(limits, "NESTED", 3)
    with pytest.raises(FormatError, match="the text: expected at most 3 lists and objects, got 4"):
        parse('{"a":[[[]]]}')


def test_an_object_is_read_from_a_file_within_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path) == read_object(path, most=8) == {"a": 1}
    with pytest.raises(FormatError, match=r"a\.json: expected at most 7 bytes, got more"):
        read_object(path, most=7)
    for content in (b"[]", b"{", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(
            FormatError, match=r"a\.json: expected one JSON object, got a file that cannot be read \(.*\)"
        ):
            read_object(path)


KINDS = {"a": int, "b": (str, type(None))}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "^here: expected a value of type dict, got list"),
        ({"a": 1}, "^here: expected the keys \\['b'\\], got none"),
        (
            {"a": 1, "b": "", "z": 1, "y": 2},
            "^here: expected no unknown keys, got \\['y', 'z'\\].\nWas it saved by a newer",
        ),
        ({"a": "1", "b": ""}, "^here.a: expected a value of type int, got str"),
        ({"a": True, "b": ""}, "^here.a: expected a value of type int, got bool"),
        ({"a": 1, "b": 2}, "^here.b: expected a value of type str or NoneType, got int"),
        ({"a": 1, "b": "", "c": 1}, "^here.c: expected a value of type bool, got int"),
    ],
    ids=str,
)
def test_the_fields_of_an_object_are_checked(data, message):
    with pytest.raises(FormatError, match=message):
        take("here", data, KINDS, {"c": bool})


def test_the_fields_of_an_object_are_taken():
    assert take("here", {"b": None, "a": 1}, KINDS, {"c": bool}) == {"a": 1, "b": None}
    assert take("here", {"b": "", "a": 1, "c": True}, KINDS, {"c": bool}) == {"a": 1, "b": "", "c": True}


def test_a_bool_is_no_number_but_a_bool():
    assert typed("here", True, bool) is True
    with pytest.raises(FormatError, match="here: expected a value of type int or float, got bool"):
        typed("here", False, (int, float))


def test_a_long_place_is_shortened():
    with pytest.raises(FormatError, match="expected a value of type int, got str") as caught:
        typed("x" * 10**5, "", int)
    assert len(str(caught.value)) < 5000
