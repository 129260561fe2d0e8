"""The reader of safetensors files: what it accepts is what the format allows, and it reads the header alone first."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from tests.core.files.forged import write_header
from tnadapt import FormatError
from tnadapt._files.tensors import DTYPES as TENSOR_DTYPES
from tnadapt._files.tensors import open_tensors

DTYPES = ["f2", "f4", "f8"]


def read(path):
    with open_tensors(path, str(path)) as file:
        return dict(file.metadata), file.read()


def entry(shape, start, stop, dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]} | more


@given(data=st.data())
def test_what_safetensors_writes_is_read(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "a"
    shapes = data.draw(st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 4), max_size=4), max_size=5))
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(data.draw(st.sampled_from(DTYPES)))
        for name, shape in shapes.items()
        if name != "__metadata__"
    }
    metadata = data.draw(st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=5), min_size=1, max_size=3))
    save_file(tensors, path, metadata=metadata)
    told, found = read(path)
    assert told == (metadata or {})
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
        assert found[name].flags.writeable


def test_bfloat16_is_read_as_its_bits(tmp_path):
    body = np.arange(6, dtype="<u2").tobytes()
    path = write_header(tmp_path / "a", json.dumps({"w": entry([2, 3], 0, 12, "BF16")}).encode(), body)
    np.testing.assert_array_equal(read(path)[1]["w"], np.arange(6, dtype=np.uint16).reshape(2, 3), strict=True)


def test_nothing_but_the_header_is_read_before_it_is_asked_for(tmp_path):
    save_file({"w": np.ones(2**20, "f4")}, tmp_path / "a", metadata={"x": "y"})
    with open_tensors(tmp_path / "a", "a") as file:
        assert (file.metadata, file.numbers, file.entries["w"].shape) == ({"x": "y"}, 2**20, (2**20,))
        assert file.file.tell() < 2**17  # a buffer of the header


def test_a_file_that_was_cut_meanwhile_is_refused(tmp_path):
    save_file({"w": np.ones(2**20, "f4")}, tmp_path / "a")
    with open_tensors(tmp_path / "a", "a") as file:
        with (tmp_path / "a").open("r+b") as other:
            other.truncate(2**21)
        with pytest.raises(FormatError, match=r"a: expected a whole safetensors file, .*: it ends before its"):
            file.read()


INVALID = {  # header and length of the body -> the reason
    "no object": (b"[]", 0, "its header is not JSON"),
    "a blank before it": (b" {}", 0, "its header is not JSON"),
    "no JSON": (b"{", 0, "expected JSON"),
    "no text": (b"{\xff}", 0, "can't decode byte"),
    "a key twice": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}',
        4,
        "each key of an object once",
    ),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "its metadata are not strings by name"),
    "metadata in a list": ({"__metadata__": []}, 0, "its metadata are not strings by name"),
    "a number": ({"a": 1}, 0, "the entry of 'a' is not valid"),
    "an unknown key": ({"a": entry([], 0, 4, more=1)}, 4, "the entry of 'a' is not valid"),
    "a missing key": ({"a": {"dtype": "F32", "shape": []}}, 4, "the entry of 'a' is not valid"),
    "three offsets": ({"a": entry([], 0, 4) | {"data_offsets": [0, 4, 4]}}, 4, "the entry of 'a' is not valid"),
    "a dtype that is a number": ({"a": entry([], 0, 4, 32)}, 4, "the entry of 'a' is not valid"),
    "a long dtype": ({"a": entry([], 0, 4, "F" * 10**6)}, 4, "the dtype, the shape or the place of 'a' is not valid"),
    "a negative size": ({"a": entry([-1, -1], 0, 4)}, 4, "the dtype, the shape or the place of 'a' is not valid"),
    "a size that is no integer": ({"a": entry([1.0], 0, 4)}, 4, "the dtype, the shape or the place of 'a' is"),
    "a size that is true": ({"a": entry([True], 0, 4)}, 4, "the dtype, the shape or the place of 'a' is not valid"),
    "more axes than an array": ({"a": entry([1] * 65, 0, 4)}, 4, "the dtype, the shape or the place of 'a' is not"),
    "no entries but large sizes": (
        {"a": entry([0, 2**40, 2**40], 0, 0)},
        0,
        "the shape of 'a' is not that of an array",
    ),
    "a shape that does not fit": ({"a": entry([2], 0, 4)}, 4, "the shape of 'a' does not fit its bytes"),
    "a huge shape": ({"a": entry([2**62, 2**62], 0, 4)}, 4, "the shape of 'a' does not fit its bytes"),
    "offsets that go down": ({"a": entry([1], 4, 0)}, 4, "the shape of 'a' does not fit its bytes"),
    "a gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12, "its tensors do not fill it exactly"),
    "an overlap": ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, 8, "its tensors do not fill it exactly"),
    "bytes before": ({"a": entry([1], 4, 8)}, 8, "its tensors do not fill it exactly"),
    "bytes behind": ({"a": entry([1], 0, 4)}, 8, "its tensors do not fill it exactly"),
    "bytes without tensors": ({}, 4, "its tensors do not fill it exactly"),
    "missing bytes": ({"a": entry([2], 0, 8)}, 4, "its tensors do not fill it exactly"),
}
# what safetensors reads all the same
LAX = {"a blank before it", "an unknown key", "a key twice", "more axes than an array", "no entries but large sizes"}


@pytest.mark.parametrize("name", INVALID)
def test_a_file_that_the_format_does_not_allow_is_refused(name, tmp_path):
    header, size, message = INVALID[name]
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = write_header(tmp_path / "a", content, bytes(size))
    with pytest.raises(FormatError, match=rf"a: expected a whole safetensors file, got one .*: .*{message}") as caught:
        read(path)
    assert len(str(caught.value)) < 500
    if name not in LAX:
        with pytest.raises(SafetensorError, match=r"\w"), safe_open(path, framework="np"):
            pass


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8, (9).to_bytes(8, "little") + b"{}"])
def test_a_length_that_does_not_fit_is_refused(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=r"a header of [\d,]+ bytes does not fit in \d+"):
        read(tmp_path / "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("changed")


@example(b" ", 48)  # the dtype " 64", which is none
@given(st.binary(max_size=60), st.integers(0, 59))
def test_changed_bytes_are_read_as_safetensors_reads_them_or_refused(folder, noise, place):
    content = bytearray(save({"a": np.arange(3, dtype="f4"), "b": np.ones((2, 2))}, metadata={"x": "y"}))
    content[place : place + len(noise)] = noise
    (folder / "a").write_bytes(content)
    try:
        with open_tensors(folder / "a", "a") as file:
            if not {entry.dtype for entry in file.entries.values()} <= TENSOR_DTYPES.keys():
                return  # whoever reads values looks at their dtypes before
            found = file.read()
    except FormatError:
        return
    with safe_open(folder / "a", framework="np") as file:
        for name, value in found.items():
            np.testing.assert_array_equal(file.get_tensor(name), value, strict=True)
