"""Files that were truncated, changed, forged or written by other programs: each is refused, and none is misread."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.core.files.forged import as_format_1
from tnadapt import FormatError, families, grid, load, read_peft, save
from tnadapt.binding import read_checkpoint
from tnadapt.testing import start_params

SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)})
VERA = families.vera().bind(SITES, rank=2, seed=3)
EXTRA = {"head.bias": np.arange(4, dtype=np.float32).reshape(2, 2)}


def params_of(adapter, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(value.shape).astype(np.float32) if adapter.slots[name].factor.trainable else value
        for name, value in start_params(adapter).items()
    }


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The bytes of a valid file, and a path for changed copies."""
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save(VERA, params_of(VERA), path, extra=EXTRA)
    return path.read_bytes(), path


def outcome(content, path):
    """Return the checkpoint in these bytes as plain values, or None if the file is refused."""
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except FormatError:
        return None
    arrays = [
        (kind, name, value.dtype.name, value.shape, value.tobytes())
        for kind, some in (("params", checkpoint.params), ("extra", checkpoint.extra))
        for name, value in sorted(some.items())
    ]
    return checkpoint.adapter, arrays


def test_a_valid_file_is_read(saved):
    content, path = saved
    assert outcome(content, path)[0] == VERA


def test_every_truncated_file_is_refused(saved):
    content, path = saved
    lengths = {*range(0, len(content), 17), *range(12), *range(len(content) - 12, len(content))}
    assert [length for length in sorted(lengths) if outcome(content[:length], path) is not None] == []


@pytest.mark.parametrize("tail", [b"\0", b" ", b"}", b"\0" * 4096])
def test_a_file_with_bytes_at_its_end_is_refused(saved, tail):
    content, path = saved
    assert outcome(content + tail, path) is None


def flipped(content, place, bits):
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_no_bit_flip_in_the_header_changes_the_result(saved, bits):
    content, path = saved
    whole = outcome(content, path)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    wrong = [place for place in range(end) if outcome(flipped(content, place, bits), path) not in (None, whole)]
    assert [content[max(place - 12, 0) : place + 12] for place in wrong] == []


@given(data=st.data(), bits=st.integers(1, 255))
def test_no_bit_flip_anywhere_changes_the_result(saved, data, bits):
    content, path = saved
    place = data.draw(st.integers(0, len(content) - 1))
    assert outcome(flipped(content, place, bits), path) in (None, outcome(content, path))


@given(data=st.data())
def test_every_bit_flip_in_the_numbers_is_refused(saved, data):
    content, path = saved
    start = 8 + struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.integers(start, len(content) - 1))
    assert outcome(flipped(content, place, data.draw(st.integers(1, 255))), path) is None


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(saved, content):
    assert outcome(content, saved[1]) is None
    header = struct.pack("<Q", len(content)) + content
    assert outcome(header, saved[1]) is None


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def seal(arrays):
    """Return the digest of all stored tensors, by code that is independent of the library."""
    parts = [
        f"{name} {array.dtype.name} {array.shape}\n".encode() + array.tobytes()
        for name, array in sorted(arrays.items())
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def forge(path, edit=lambda data: None, swap=lambda arrays: None, *, resealed=False):
    """Change a saved file like somebody who knows the format, with a new digest of its text.

    If `resealed`, the digest of its tensors is new too.
    """
    with safe_open(path, framework="np") as file:
        data = json.loads(file.metadata()["tnadapt"].partition(" ")[2])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(data)
    swap(arrays)
    if resealed:
        data["stored"] = seal(arrays)
    text = json.dumps(data)
    save_file(arrays, path, metadata={"tnadapt": f"{sha256(text)} {text}"})


@pytest.fixture
def path(tmp_path):
    """The path of a small saved file that a test may change."""
    save(VERA, params_of(VERA), tmp_path / "a.safetensors", extra=EXTRA)
    return tmp_path / "a.safetensors"


ANOTHER_DRAW = "expected A, drawn again from seed 3, to have its saved digest, got another"
DIGEST = "expected stored numbers with the digest that was saved with them, got another"
FACTORS = "expected exactly the factors of its adapter, got a file that differs in "
VERSION = "expected format 1 or 2, which this release reads, got format "
FORGED = {
    "another version": (lambda d: d.update(format=3), VERSION + "3"),
    "the other version": (lambda d: d.update(format=3 - d["format"]), "spec: expected no unknown keys, got"),
    "a version that is a boolean": (lambda d: d.update(format=True), "a.safetensors: " + VERSION + "True"),
    "a version that is a string": (lambda d: d.update(format="1"), "a.safetensors: " + VERSION + "'1'"),
    "no version": (lambda d: d.pop("format"), VERSION + "None"),
    "an unknown key": (lambda d: d.update(dora=True), "adapter: expected no unknown keys, got .'dora'."),
    "an unknown key of the spec": (
        lambda d: d["spec"].update(dora=True),
        "spec: expected no unknown keys, got .'dora'.",
    ),
    "no seed": (lambda d: d.pop("seed"), "adapter: expected the keys .'seed'."),
    "no digests": (lambda d: d.pop("drawn"), "file.drawn: expected a value of type .+, got NoneType"),
    "no digest of the numbers": (lambda d: d.pop("stored"), "file.stored: expected a value of type str, got NoneType"),
    "a wrong digest of the numbers": (lambda d: d.update(stored="0" * 64), DIGEST),
    "a wrong digest of a drawn factor": (lambda d: d["drawn"].update(A="0" * 64), ANOTHER_DRAW),
    "a digest that is not a string": (lambda d: d["drawn"].update(A=3), ANOTHER_DRAW),
    "another seed": (
        lambda d: d.update(seed=4),
        "expected A, drawn again from seed 4, to have its saved digest, got another",
    ),
    "an extra digest": (lambda d: d["drawn"].update(C=""), FACTORS + "C"),
    "a missing digest": (lambda d: d["drawn"].pop("A"), FACTORS + "A"),
    "another rank": (lambda d: d.update(rank=3), r"expected (A|\S+\.d) of shape|to have its saved digest, got another"),
    "a missing site": (lambda d: d["sites"].pop(), FACTORS + "1.up.b, 1.up.d"),
    "another initializer": (lambda d: d["spec"]["factors"]["A"]["init"].update(amount=1), ANOTHER_DRAW),
    "a frozen factor declared trainable": (lambda d: d["spec"]["factors"]["A"].update(trainable=True), FACTORS),
    "a trainable factor declared frozen": (lambda d: d["spec"]["factors"]["d"].update(trainable=False), FACTORS),
    "an invalid spec": (
        lambda d: d["spec"].update(weight="out"),
        "the text: expected a valid spec, got an invalid one",
    ),
    "a factor with the name of the header": (
        lambda d: d["spec"]["factors"].update(__metadata__=d["spec"]["factors"].pop("A")),
        "factor '__metadata__': expected a name that does not begin with '_'",
    ),
    "a layer in a pattern": (
        lambda d: d["patterns"][0]["coordinates"].update(layer=1),
        "pattern: expected a path of one or two strings and no layer",
    ),
    "a site twice": (
        lambda d: d["sites"].append(d["sites"][0]),
        "layers.0.q: expected each site once, got this one 2 times",
    ),
}


@pytest.mark.parametrize("is_old", [False, True], ids=["format 2", "format 1"])
@pytest.mark.parametrize(("edit", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_text_is_refused(edit, message, is_old, path):
    if is_old:
        path.write_bytes(as_format_1(path.read_bytes()))
        assert load(path)[0] == VERA
    forge(path, edit)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_a_file_rewritten_without_changes_is_read(path):
    before = outcome(path.read_bytes(), path)
    forge(path, resealed=True)
    assert outcome(path.read_bytes(), path) == before
    assert before[0] == VERA


BIAS = "head.bias:extra"
SWAPS = {  # only the last two change a byte of the numbers
    "two swapped names": lambda a: a.update({"0.q.b": a["1.q.b"], "1.q.b": a["0.q.b"]}),
    "the name of an extra": lambda a: a.update({"head.bias2:extra": a.pop(BIAS)}),
    "a shape": lambda a: a.update({BIAS: a[BIAS].reshape(4)}),
    "a shape with the same number of axes": lambda a: a.update({BIAS: a[BIAS].reshape(1, 4)}),
    "a wider dtype": lambda a: a.update({BIAS: a[BIAS].view(np.float64)}),
    "a narrower dtype": lambda a: a.update({BIAS: a[BIAS].view(np.float16)}),
    "an added empty extra": lambda a: a.update({"none:extra": np.zeros(0, np.float32)}),
    "an added extra": lambda a: a.update({"more:extra": np.zeros(1, np.float32)}),
    "a removed extra": lambda a: a.pop(BIAS),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_the_digest_of_the_numbers_covers_names_and_dtypes_and_shapes(swap, path):
    forge(path, swap=swap)
    with pytest.raises(FormatError, match=DIGEST):
        load(path)


@pytest.mark.parametrize("name", ["A", "0.q.c", "Z", "head.bias"])
@pytest.mark.parametrize("resealed", [False, True])
def test_an_unknown_tensor_is_refused(name, resealed, path):
    forge(path, swap=lambda arrays: arrays.update({name: np.zeros((2, 8), np.float32)}), resealed=resealed)
    with pytest.raises(FormatError, match=FACTORS + name):  # before any tensor is read and its digest compared
        load(path)


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        (lambda a: a.pop("0.q.b"), FACTORS + "0.q.b"),
        (lambda a: a.update({"0.q.b:extra": a.pop("0.q.b")}), FACTORS + "0.q"),
        (lambda a: a.update({"0.q.b": a["0.q.b"][:5]}), r"expected 0.q.b of shape \(6,\), got \(5,\)"),
        (lambda a: a.update({"0.q.b": a["0.q.b"][None]}), r"expected 0.q.b of shape \(6,\), got \(1, 6\)"),
        (
            lambda a: a.update({"0.q.b": np.zeros(6, int)}),
            "expected tensors of float16, float32, float64, got 0.q.b of int64",
        ),
        (
            lambda a: a.update({"steps:extra": np.arange(3)}),
            "expected tensors of float16, float32, float64, got steps:extra of int64",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_even_with_a_valid_digest(swap, message, path):
    forge(path, swap=swap, resealed=True)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_a_trained_factor_declared_as_drawn_is_refused(path):
    zeros = hashlib.sha256(np.zeros(6, "<f4").tobytes()).hexdigest()  # as drawn from its seed
    forge(path, lambda d: d["drawn"].update({"0.q.b": zeros}), lambda a: a.pop("0.q.b"), resealed=True)
    with pytest.raises(FormatError, match=FACTORS + "0.q.b"):
        load(path)


LARGEST = 2**31 - 1


def claim(shape, rank):
    """Return an edit of the text that gives every site this shape and every bond this size."""

    def edit(data):
        data["rank"] = rank
        for pattern in data["patterns"]:
            pattern["shape"] = list(shape)

    return edit


@pytest.mark.parametrize("shape", [(LARGEST, LARGEST), (LARGEST, 2), (2, LARGEST)])
def test_huge_sizes_are_refused_before_anything_is_drawn(shape, path):
    # no machine can hold these, so without the limit the test would fail at once instead of filling the memory
    forge(path, claim(shape, LARGEST))
    entries = f"{LARGEST * sum(shape):,}"
    with pytest.raises(FormatError, match=f"expected at most 67,108,864 frozen numbers to draw, got {entries}"):
        load(path)


@pytest.mark.parametrize(("shape", "rank"), [((2**31, 4), 2), ((6, 2**62), 2), ((6, 2**64), 2), ((6, 4), 2**31)])
def test_sizes_above_the_largest_mode_size_are_refused(shape, rank, path):
    forge(path, claim(shape, rank))
    with pytest.raises(FormatError, match=f"expected at most 2,147,483,647, got {max(*shape, rank):,}"):
        load(path)


def test_the_limit_of_drawn_numbers_can_be_set(path):
    frozen = 2 * (4 + 8)
    assert read_checkpoint(path, draw_limit=frozen).adapter == VERA
    with pytest.raises(FormatError, match=f"expected at most {frozen - 1} frozen numbers to draw, got {frozen}"):
        read_checkpoint(path, draw_limit=frozen - 1)


def test_a_missing_file_raises_file_not_found(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            load(path)
    with pytest.raises(
        FileNotFoundError, match=r"expected a file, got a folder\.\nRead a checkpoint of PEFT with read_peft"
    ):
        load(tmp_path)
    (tmp_path / "tnadapt_default.safetensors").touch()  # as in a checkpoint of a Trainer
    with pytest.raises(FileNotFoundError, match=r"got a folder\.\nLoad .*tnadapt_default\.safetensors\."):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got none\.\n.*read .*tnadapt_default\.safetensors with load"):
        read_peft(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "expected a tnadapt file, got another file, or one whose text was changed"),
        ({"format": "pt"}, "expected a tnadapt file"),
        ({"tnadapt": ""}, "expected a tnadapt file"),
        ({"tnadapt": "{}"}, "expected a tnadapt file"),
        ({"tnadapt": " {}"}, "expected a tnadapt file"),
        ({"tnadapt": sha256("{}")}, "expected a tnadapt file"),
        ({"tnadapt": sha256("{}").upper() + " {}"}, "expected a tnadapt file"),
        ({"tnadapt": "{}", "sha256": sha256("{}")}, "expected a tnadapt file"),
        ({"sha256": sha256("")}, "expected a tnadapt file"),
        ({"tnadapt": sha256("")}, "the text: expected JSON, got text that cannot be parsed"),
        ({"tnadapt": sha256("lora") + " lora"}, "the text: expected JSON, got text that cannot be parsed"),
        ({"tnadapt": sha256("{}") + " {}"}, VERSION + "None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_of_another_program_is_refused(metadata, message, tmp_path):
    save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "I8", "I64", "BOOL", "C64", "F4", "F8_E8M0"])
def test_a_file_of_an_unsupported_dtype_is_refused(dtype, tmp_path):
    header = json.dumps({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, 64]}})
    width = {"BF16": 2, "I64": 8, "C64": 8, "F4": 0.5}.get(dtype, 1)
    header = header.replace("64]", f"{int(8 * width)}]").encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(int(8 * width)))
    with pytest.raises(FormatError, match=r"a: expected a (whole safetensors|tnadapt) file"):
        load(tmp_path / "a")
