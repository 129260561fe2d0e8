"""Files that were cut, changed, forged or never were ours: each is refused, none gives a wrong number."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from tnadapt import FormatError, families, grid, load, save
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
    """A file as it should be, as bytes, and a place for changed ones."""
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save(VERA, params_of(VERA), path, extra=EXTRA)
    return path.read_bytes(), path


def outcome(content, path):
    """What reading these bytes gives: the checkpoint as plain values, or None where the file is refused."""
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


def test_the_whole_file_is_read(saved):
    content, path = saved
    assert outcome(content, path)[0] == VERA


def test_every_cut_is_refused(saved):
    content, path = saved
    lengths = {*range(0, len(content), 17), *range(12), *range(len(content) - 12, len(content))}
    assert [length for length in sorted(lengths) if outcome(content[:length], path) is not None] == []


@pytest.mark.parametrize("tail", [b"\0", b" ", b"}", b"\0" * 4096])
def test_a_tail_is_refused(saved, tail):
    content, path = saved
    assert outcome(content + tail, path) is None


def flipped(content, place, bits):
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_no_flip_in_the_header_gives_another_result(saved, bits):
    content, path = saved
    whole = outcome(content, path)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    wrong = [place for place in range(end) if outcome(flipped(content, place, bits), path) not in (None, whole)]
    assert [content[max(place - 12, 0) : place + 12] for place in wrong] == []


@given(data=st.data(), bits=st.integers(1, 255))
def test_no_flip_anywhere_gives_another_result(saved, data, bits):
    content, path = saved
    place = data.draw(st.integers(0, len(content) - 1))
    assert outcome(flipped(content, place, bits), path) in (None, outcome(content, path))


@given(data=st.data())
def test_every_flip_in_the_numbers_is_refused(saved, data):
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
    """The digest of all stored tensors, written down a second time."""
    parts = [
        f"{name} {array.dtype.name} {array.shape}\n".encode() + array.tobytes()
        for name, array in sorted(arrays.items())
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def forge(path, edit=lambda data: None, swap=lambda arrays: None, *, resealed=False):
    """Change a saved file as somebody would who knows the format: the digest of its text is made anew.

    The digest of its tensors is so on request.
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
    """A small saved file that a test may change."""
    save(VERA, params_of(VERA), tmp_path / "a.safetensors", extra=EXTRA)
    return tmp_path / "a.safetensors"


FORGED = {
    "another version": (lambda d: d.update(format=2), "saved with format 2.\nHowever, this release reads format 1"),
    "a version of truth": (lambda d: d.update(format=True), "a.safetensors: saved with format True"),
    "a version of text": (lambda d: d.update(format="1"), "a.safetensors: saved with format '1'"),
    "no version": (lambda d: d.pop("format"), "saved with format None"),
    "an unknown key": (lambda d: d.update(dora=True), "adapter: unknown keys .'dora'."),
    "an unknown key of the spec": (lambda d: d["spec"].update(dora=True), "spec: unknown keys .'dora'."),
    "no seed": (lambda d: d.pop("seed"), "adapter: missing keys .'seed'."),
    "no digests": (lambda d: d.pop("drawn"), "file.drawn: a value of the wrong type, NoneType"),
    "no digest of the numbers": (lambda d: d.pop("stored"), "file.stored: a value of the wrong type"),
    "a wrong digest of the numbers": (lambda d: d.update(stored="0" * 64), "stored numbers do not have the digest"),
    "a wrong digest of a draw": (
        lambda d: d["drawn"].update(A="0" * 64),
        "A was drawn again from seed 3, but has another",
    ),
    "a digest of no text": (lambda d: d["drawn"].update(A=3), "A was drawn again from seed 3, but has another"),
    "another seed": (lambda d: d.update(seed=4), "A was drawn again from seed 4, but has another digest"),
    "a digest too many": (lambda d: d["drawn"].update(C=""), "the factors are not those of its adapter; at odds: C"),
    "a digest too few": (lambda d: d["drawn"].pop("A"), "the factors are not those of its adapter; at odds: A"),
    "another rank": (lambda d: d.update(rank=3), r"A|d must have shape|another digest"),
    "a site less": (lambda d: d["sites"].pop(), r"the factors are not those of its adapter; at odds: 1.up.b, 1.up.d"),
    "another law": (lambda d: d["spec"]["factors"]["A"]["init"].update(amount=1), "A was drawn again from seed 3"),
    "frozen told trainable": (
        lambda d: d["spec"]["factors"]["A"].update(trainable=True),
        "the factors are not those of its adapter",
    ),
    "trainable told frozen": (
        lambda d: d["spec"]["factors"]["d"].update(trainable=False),
        "the factors are not those of its adapter",
    ),
    "a spec that cannot be": (lambda d: d["spec"].update(weight="out"), "the text holds a spec that cannot be"),
    "a factor named as the header": (
        lambda d: d["spec"]["factors"].update(__metadata__=d["spec"]["factors"].pop("A")),
        "factor '__metadata__': expected a name that does not begin with '_'",
    ),
    "a layer in a pattern": (
        lambda d: d["patterns"][0]["coordinates"].update(layer=1),
        "pattern: must have a path of one or two strings and no layer",
    ),
    "a site twice": (
        lambda d: d["sites"].append(d["sites"][0]),
        "layers.0.q: expected each site once, got this one 2 times",
    ),
}


@pytest.mark.parametrize(("edit", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_text_is_refused(edit, message, path):
    forge(path, edit)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_a_text_written_anew_without_change_is_read(path):
    before = outcome(path.read_bytes(), path)
    forge(path, resealed=True)
    assert outcome(path.read_bytes(), path) == before
    assert before[0] == VERA


BIAS = "head.bias:extra"
SWAPS = {  # none of these moves a byte of the numbers, but for the last two
    "two names": lambda a: a.update({"0.q.b": a["1.q.b"], "1.q.b": a["0.q.b"]}),
    "the name of an extra": lambda a: a.update({"head.bias2:extra": a.pop(BIAS)}),
    "an extra told a factor": lambda a: a.update({"head.bias": a.pop(BIAS)}),
    "a shape": lambda a: a.update({BIAS: a[BIAS].reshape(4)}),
    "a shape of the same axes": lambda a: a.update({BIAS: a[BIAS].reshape(1, 4)}),
    "a wider dtype": lambda a: a.update({BIAS: a[BIAS].view(np.float64)}),
    "a narrower dtype": lambda a: a.update({BIAS: a[BIAS].view(np.float16)}),
    "an empty extra more": lambda a: a.update({"none:extra": np.zeros(0, np.float32)}),
    "an extra more": lambda a: a.update({"more:extra": np.zeros(1, np.float32)}),
    "an extra less": lambda a: a.pop(BIAS),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_the_digest_of_the_numbers_covers_names_and_dtypes_and_shapes(swap, path):
    forge(path, swap=swap)
    with pytest.raises(FormatError, match="the stored numbers do not have the digest that was saved with them"):
        load(path)


@pytest.mark.parametrize("name", ["A", "0.q.c", "Z", "head.bias"])
@pytest.mark.parametrize("resealed", [False, True])
def test_a_tensor_too_many_is_refused(name, resealed, path):
    forge(path, swap=lambda arrays: arrays.update({name: np.zeros((2, 8), np.float32)}), resealed=resealed)
    odd = f"the factors are not those of its adapter; at odds: {name}"
    with pytest.raises(FormatError, match=odd if resealed else "do not have the digest"):
        load(path)


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        (lambda a: a.pop("0.q.b"), "the factors are not those of its adapter; at odds: 0.q.b"),
        (lambda a: a.update({"0.q.b:extra": a.pop("0.q.b")}), "the factors are not those of its adapter; at odds: 0.q"),
        (lambda a: a.update({"0.q.b": a["0.q.b"][:5]}), r"0.q.b must have shape \(6,\).\nHowever, it has \(5,\)"),
        (lambda a: a.update({"0.q.b": a["0.q.b"][None]}), r"0.q.b must have shape \(6,\).\nHowever, it has \(1, 6\)"),
        (lambda a: a.update({"0.q.b": np.zeros(6, int)}), "0.q.b is of dtype int64; known: float16, float32, float64"),
        (lambda a: a.update({"steps:extra": np.arange(3)}), "steps:extra is of dtype int64; known: float16, float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_though_sealed(swap, message, path):
    forge(path, swap=swap, resealed=True)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_a_trained_factor_that_is_told_drawn_is_refused(path):
    zeros = hashlib.sha256(np.zeros(6, "<f4").tobytes()).hexdigest()  # as its seed would draw it
    forge(path, lambda d: d["drawn"].update({"0.q.b": zeros}), lambda a: a.pop("0.q.b"), resealed=True)
    with pytest.raises(FormatError, match=r"the factors are not those of its adapter; at odds: 0.q.b"):
        load(path)


LARGEST = 2**31 - 1


def claim(shape, rank):
    """An edit of the text: every site of this shape, every bond of this size."""

    def edit(data):
        data["rank"] = rank
        for pattern in data["patterns"]:
            pattern["shape"] = list(shape)

    return edit


@pytest.mark.parametrize("shape", [(LARGEST, LARGEST), (LARGEST, 2), (2, LARGEST)])
def test_huge_claims_are_refused_before_anything_is_drawn(shape, path):
    # no machine can hold these: if the limit were gone, the test would fail at once and not fill the memory
    forge(path, claim(shape, LARGEST))
    entries = f"{LARGEST * sum(shape):,}"
    with pytest.raises(FormatError, match=f"asks to draw {entries} frozen numbers; the limit is 268,435,456"):
        load(path)


@pytest.mark.parametrize(("shape", "rank"), [((2**31, 4), 2), ((6, 2**62), 2), ((6, 2**64), 2), ((6, 4), 2**31)])
def test_claims_of_sizes_that_no_mode_has_are_refused(shape, rank, path):
    forge(path, claim(shape, rank))
    with pytest.raises(FormatError, match=f"expected at most 2,147,483,647, got {max(*shape, rank):,}"):
        load(path)


def test_the_limit_of_drawn_numbers_can_be_set(path):
    frozen = 2 * (4 + 8)
    assert read_checkpoint(path, draw_limit=frozen).adapter == VERA
    with pytest.raises(FormatError, match=f"asks to draw {frozen} frozen numbers; the limit is {frozen - 1}"):
        read_checkpoint(path, draw_limit=frozen - 1)


def test_a_missing_file_is_missing(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a tnadapt file, or its text was changed"),
        ({"format": "pt"}, "not a tnadapt file"),
        ({"tnadapt": ""}, "not a tnadapt file"),
        ({"tnadapt": "{}"}, "not a tnadapt file"),
        ({"tnadapt": " {}"}, "not a tnadapt file"),
        ({"tnadapt": sha256("{}")}, "not a tnadapt file"),
        ({"tnadapt": sha256("{}").upper() + " {}"}, "not a tnadapt file"),
        ({"tnadapt": "{}", "sha256": sha256("{}")}, "not a tnadapt file"),
        ({"sha256": sha256("")}, "not a tnadapt file"),
        ({"tnadapt": sha256("")}, "not a JSON text"),
        ({"tnadapt": sha256("lora") + " lora"}, "not a JSON text"),
        ({"tnadapt": sha256("{}") + " {}"}, "saved with format None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_of_somebody_else_is_refused(metadata, message, tmp_path):
    save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "I8", "I64", "BOOL", "C64", "F4", "F8_E8M0"])
def test_a_file_of_other_numbers_is_refused(dtype, tmp_path):
    header = json.dumps({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, 64]}})
    width = {"BF16": 2, "I64": 8, "C64": 8, "F4": 0.5}.get(dtype, 1)
    header = header.replace("64]", f"{int(8 * width)}]").encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(int(8 * width)))
    with pytest.raises(FormatError, match=r"a: not a (whole safetensors|tnadapt) file"):
        load(tmp_path / "a")
