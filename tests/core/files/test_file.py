"""The adapter file: its round trip, its size, and that it is written completely or not at all."""

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from safetensors import safe_open

from tests.table import REPRESENTATIVES, required_of
from tnadapt import (
    AdapterSpec,
    FormatError,
    Site,
    count,
    families,
    from_json,
    frozen,
    grid,
    init,
    load,
    normal,
    raw,
    save,
    to_json,
    trainable,
    zeros,
)
from tnadapt.binding import digests, read_checkpoint
from tnadapt.initializers import orthogonal
from tnadapt.testing import start_params

representative = pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
LOTR = families.lotr().bind(grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)}), rank=2, seed=3)
VERA = families.vera().bind(grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)}), rank=2, seed=3)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)  # shape and dtype too


def trained(adapter, params, dtype=np.float32):
    return {
        name: value.astype(dtype) if adapter.slots[name].factor.trainable else value for name, value in params.items()
    }


def tensor_names(path):
    with safe_open(path, framework="np") as file:
        return set(file.keys())


@representative
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_dtype_of_trained_factors_is_kept(adapter, dtype, moved, tmp_path):
    params = trained(adapter, moved(adapter), dtype)
    save(adapter, params, tmp_path / "a.safetensors")
    again, loaded = load(tmp_path / "a.safetensors")
    assert again == adapter
    same(loaded, params)


@representative
def test_the_file_holds_trained_factors_and_starts_read_from_the_host(adapter, moved, tmp_path):
    save(adapter, moved(adapter), tmp_path / "a")
    kept = {name for name, slot in adapter.slots.items() if slot.factor.trainable or slot.factor.init.is_read}
    assert tensor_names(tmp_path / "a") == kept


def test_digests_cover_the_factors_drawn_from_the_seed():
    values = init(VERA)
    wanted = {name: hashlib.sha256(values[name].astype("<f4").tobytes()).hexdigest() for name in ("A", "B")}
    assert digests(VERA) == wanted
    assert digests(LOTR) == {}
    entries = sum(values[name].size for name in wanted)
    with pytest.raises(
        FormatError, match=f"the adapter: expected at most {entries - 1} frozen numbers to draw, got {entries}"
    ):
        digests(VERA, draw_limit=entries - 1)


@representative
def test_frozen_factors_need_not_be_given(adapter, moved, tmp_path):
    params = moved(adapter)
    save(adapter, params, tmp_path / "a")
    save(adapter, {name: params[name] for name in tensor_names(tmp_path / "a")}, tmp_path / "b")
    same(load(tmp_path / "b")[1], load(tmp_path / "a")[1])
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size


def test_a_frozen_orthogonal_factor_is_stored(tmp_path):
    factors = {"Q": frozen("out r", init=orthogonal()), "R": trainable("r in", init=zeros())}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw()).bind(LOTR.sites[:1], rank=3)
    params = start_params(adapter)
    save(adapter, params, tmp_path / "a")
    assert tensor_names(tmp_path / "a") == {"Q", "R"}
    same(load(tmp_path / "a")[1], params)
    with pytest.raises(FormatError, match=r"params: expected an array 'Q', got none.\nNothing was written."):
        save(adapter, {"R": params["R"]}, tmp_path / "b")


def test_an_array_in_fortran_order_and_a_scalar_survive_the_round_trip(tmp_path):
    factors = {"W": frozen("out in"), "s": trainable("", init=zeros()), "V": trainable("out in")}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw()).bind(LOTR.sites[:1])
    params = start_params(adapter) | {"s": np.array(3.5), "V": np.asfortranarray(np.arange(24.0).reshape(6, 4))}
    save(adapter, params, tmp_path / "a")
    same(load(tmp_path / "a")[1], params)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_arrays_of_another_byte_order_are_read_in_native_order(dtype, moved, tmp_path):
    params = {name: value.astype(dtype) for name, value in moved(LOTR).items()}
    extra = {"head": np.arange(6.0).reshape(2, 3).astype(dtype), "scalar": np.array(2.5, dtype)}
    turned = [{name: value.astype(f">{dtype}") for name, value in some.items()} for some in (params, extra)]
    save(LOTR, turned[0], tmp_path / "a", extra=turned[1])
    checkpoint = read_checkpoint(tmp_path / "a")
    same(checkpoint.params, params)
    same(checkpoint.extra, extra)
    save(LOTR, params, tmp_path / "b", extra=extra)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@representative
def test_the_metadata_is_one_entry_with_a_digest_and_a_text(adapter, moved, tmp_path):
    save(adapter, moved(adapter), tmp_path / "a", extra={"head": np.ones(2)})
    with safe_open(tmp_path / "a", framework="np") as file:
        ((name, entry),) = file.metadata().items()
    digest, _, text = entry.partition(" ")
    assert name == "tnadapt"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    data = json.loads(text)
    assert data.keys() == json.loads(to_json(adapter)).keys() | {"library", "drawn", "stored"}
    assert data | json.loads(to_json(adapter)) == data
    assert data["drawn"].keys() == {name for name, slot in adapter.slots.items() if not slot.is_stored}
    assert "\n" not in entry


@representative
def test_equal_adapters_and_numbers_give_equal_files(adapter, moved, tmp_path):
    extra = {"head": np.arange(6.0).reshape(2, 3), "bias": np.ones(3, np.float32), "half": np.ones(1, np.float16)}
    rank = dict(adapter.rank) if isinstance(adapter.rank, Mapping) else adapter.rank
    again = adapter.spec.bind(list(adapter.sites), rank=rank, sizes=dict(adapter.sizes), seed=5)
    params = moved(adapter)
    turned = {
        name: np.array(params[name], order="F") for name in reversed(params)
    }  # another order of names, and another memory layout
    strided = {name: np.repeat(extra[name], 2, axis=0)[::2] for name in reversed(extra)}
    save(adapter, params, tmp_path / "a", extra=extra)
    save(again, turned, tmp_path / "b", extra=strided)
    loaded = read_checkpoint(tmp_path / "a")
    save(loaded.adapter, loaded.params, tmp_path / "c", extra=loaded.extra)
    one, two, three = ((tmp_path / name).read_bytes() for name in "abc")
    assert again == adapter
    assert one == two
    assert one == three


def test_another_process_writes_an_equal_file(tmp_path):
    program = """
import sys, tnadapt
adapter = tnadapt.families.vera().bind(tnadapt.grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)}), rank=2, seed=3)
tnadapt.save(adapter, tnadapt.init(adapter), sys.argv[1], extra={"head": [1.0], "bias": [2.0]})
"""
    save(VERA, init(VERA), tmp_path / "a", extra={"head": [1.0], "bias": [2.0]})
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "b")]
    subprocess.run(command, check=True, env=dict(os.environ) | environment, timeout=120)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("path", [str, os.fspath, lambda path: path])
def test_a_path_may_be_a_string_or_a_path(path, moved, tmp_path):
    save(LOTR, moved(LOTR), path(tmp_path / "a"))
    assert load(path(tmp_path / "a"))[0] == LOTR


def test_extra_arrays_survive_the_round_trip(moved, tmp_path):
    extra = {
        "head.weight": np.ones((2, 3), np.float32),
        "A": np.arange(3.0),
        "": np.zeros(0),
        "half": np.ones(1, np.float16),
        "scalar": np.float32(2.5),
    }
    save(LOTR, moved(LOTR), tmp_path / "a", extra=extra)
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.adapter == LOTR
    same(checkpoint.params, moved(LOTR))
    same(checkpoint.extra, {name: np.asarray(value) for name, value in extra.items()})
    assert load(tmp_path / "a")[1].keys() == LOTR.slots.keys()


NO_FLOATS = [
    (np.arange(3), "int64"),
    ([1, 2], "int64"),
    (np.ones(2, bool), "bool"),
    (np.ones(2, complex), "complex128"),
    (np.array(["a"]), "<U1"),
    ("a", "<U1"),
    (np.array([None]), "object"),
    (None, "object"),
    (np.array(["2000-01-01"], "M8[D]"), r"datetime64\[D\]"),
]


@pytest.mark.parametrize(("value", "dtype"), NO_FLOATS, ids=repr)
def test_an_array_of_another_type_than_float_is_refused(value, dtype, moved, tmp_path):
    rule = rf"expected an array of float16, float32, float64, got one of {dtype}.\nNothing was written.$"
    with pytest.raises(FormatError, match=f"^steps: {rule}"):
        save(LOTR, moved(LOTR), tmp_path / "a", extra={"steps": value})
    for adapter, name in ((LOTR, "6x4.A"), (VERA, "A")):  # a trained factor, a frozen one
        with pytest.raises(FormatError, match=f"^{name}: {rule}"):
            save(adapter, moved(adapter) | {name: value}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["extra", "extra.A", "__metadata__", ":extra", "A:extra", "q.A:extra", "\u00e9 \n"])
def test_a_group_may_have_any_name(name, moved, tmp_path):
    sites = [Site("x", (6, 4), {"kind": name}), Site("y", (6, 4), {"kind": "q"})]
    adapter = families.lotr(over="layer").bind(sites, rank=2)
    params = moved(adapter)
    extra = {other: np.full(3, float(n)) for n, other in enumerate(["A", "q.A", "q", name, f"{name}.A", "q.A:extra"])}
    save(adapter, params, tmp_path / "a", extra=extra)
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.adapter == adapter
    same(checkpoint.params, params)
    same(checkpoint.extra, extra)
    assert tensor_names(tmp_path / "a") == params.keys() | {f"{other}:extra" for other in extra}


@pytest.mark.parametrize("name", ["metadata", "extra", "\u00e9", "format"])
def test_a_factor_may_have_any_name(name, tmp_path):
    factors = {name: trainable("out r"), "Z": trainable("r in", init=zeros())}
    adapter = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw()).bind(LOTR.sites[:1], rank=2)
    save(adapter, start_params(adapter), tmp_path / "a")
    again, loaded = load(tmp_path / "a")
    assert again == adapter
    same(loaded, start_params(adapter))


BERT = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}
LLAMA = {f"self_attn.{kind}_proj": (64, 64) for kind in "qkvo"}
LLAMA |= {"mlp.gate_proj": (172, 64), "mlp.up_proj": (172, 64), "mlp.down_proj": (64, 172)}


@pytest.mark.parametrize(
    ("prefix", "layers", "kinds"), [("encoder.layer", 12, BERT), ("model.layers", 32, LLAMA)], ids=["bert", "llama"]
)
@pytest.mark.parametrize("name", ["lora", "lotr", "lorta", "tlora", "vera", "tera"])
def test_a_file_is_only_slightly_larger_than_its_numbers(name, prefix, layers, kinds, tmp_path):
    sites = [
        Site(f"{prefix}.{layer}.{kind}", shape, {"layer": layer, "kind": kind})
        for layer in range(layers)
        for kind, shape in kinds.items()
    ]
    spec = getattr(families, name)()
    adapter = spec.bind(sites, rank=2, sizes=dict.fromkeys(required_of(spec), 4))
    params = {name: value.astype(np.float32) for name, value in start_params(adapter).items()}
    save(adapter, params, tmp_path / "a")
    spare = 4 * count(adapter).trainable + 4096 + 200 * len(sites) - (tmp_path / "a").stat().st_size
    assert spare >= 0, f"{-spare} bytes too many, {-spare / len(sites):.0f} per site"


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_while_writing_leaves_the_old_file(function, moved, tmp_path, monkeypatch):
    def crash(*_):
        raise OSError("no space left on device")

    path = tmp_path / "a"
    save(LOTR, moved(LOTR), path)
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(function, crash)
        with pytest.raises(FormatError, match=r"a: expected a writable path, got error 'no space left on device'"):
            save(LOTR, moved(LOTR, seed=1), path)
        with pytest.raises(FormatError, match=r"new: expected a writable path, got error 'no space left on device'"):
            save(LOTR, moved(LOTR), tmp_path / "new")
    assert [child.name for child in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == before
    save(LOTR, moved(LOTR, seed=1), path)
    same(load(path)[1], moved(LOTR, seed=1))


def test_an_interrupt_while_writing_leaves_nothing(moved, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt("now")

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt, match="now"):
        save(LOTR, moved(LOTR), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_permissions_of_any_new_file(moved, tmp_path):
    save(LOTR, moved(LOTR), tmp_path / "a")
    (tmp_path / "b").write_bytes(b"")
    rights = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(rights) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"6x4.A": np.zeros((2, 6))}, r"\(2, 6\)"),
        ({"6x4.A": np.zeros((6, 2, 1))}, r"\(6, 2, 1\)"),
        ({"6x4.A": np.zeros((0, 2), np.float16)}, r"\(0, 2\)"),
        ({"6x4.A": 0.0}, r"\(\)"),
    ],
)
def test_params_of_another_adapter_are_not_written(change, message, moved, tmp_path):
    rule = r"^params\['6x4.A'\]: expected shape \(6, 2\), got "
    with pytest.raises(FormatError, match=rf"{rule}{message}.\nNothing was written.$"):
        save(LOTR, moved(LOTR) | change, tmp_path / "a")
    with pytest.raises(FormatError, match=r"params: expected an array '6x4.A', got none.\nNothing was written."):
        save(LOTR, {name: value for name, value in moved(LOTR).items() if name not in change}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Z", "A", "6x4", "6x4.Z", "9x9.A", "6x4.A:extra", "", "__metadata__"])
def test_params_with_unknown_names_are_not_written(name, moved, tmp_path):
    with pytest.raises(
        FormatError, match=f"^params: expected only names of this adapter, got '{name}'.\nNothing was written.$"
    ):
        save(LOTR, moved(LOTR) | {name: np.zeros((6, 2))}, tmp_path / "a", extra={name: np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + 1e-3,
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.float32) * 2,
        lambda a: a[:, ::-1],
        lambda a: a * np.nan,
        lambda a: np.where(a == a[0, 0], np.inf, a),
        lambda a: a + 1e-12,
        lambda a: a * 1e300,
    ],
)
def test_a_frozen_factor_that_was_changed_is_stored(change, moved, tmp_path):
    params = moved(VERA)
    params["A"] = change(params["A"])
    save(VERA, params, tmp_path / "a")
    trained_too = {name for name, slot in VERA.slots.items() if slot.factor.trainable}
    assert tensor_names(tmp_path / "a") == trained_too | {"A"}
    again, loaded = load(tmp_path / "a")
    assert again == VERA
    same(loaded, params)
    save(again, loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", [">f4", "<f4", "f8"])
def test_a_frozen_factor_with_the_values_of_its_seed_is_not_stored(dtype, moved, tmp_path):
    params = moved(VERA)
    save(VERA, params | {"A": params["A"].astype(dtype)}, tmp_path / "a")
    assert tensor_names(tmp_path / "a") == {name for name, slot in VERA.slots.items() if slot.factor.trainable}
    same(load(tmp_path / "a")[1], params)


def test_a_frozen_factor_of_another_shape_is_not_written(moved, tmp_path):
    params = moved(VERA)
    message = r"^params\['A'\]: expected shape \(2, 4\), got \(4, 2\).\nNothing was written.$"
    with pytest.raises(FormatError, match=message):
        save(VERA, params | {"A": params["A"].T}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_centered_adapter_starts_again_from_its_seed(moved, tmp_path):
    factors = {"A": trainable("out r"), "B": trainable("r in", init=normal(2))}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw(), start="centered")
    adapter = spec.bind(LOTR.sites[:1], rank=2, seed=11)
    save(adapter, moved(adapter), tmp_path / "a")
    again, _ = load(tmp_path / "a")
    same(init(again), start_params(adapter))
    assert from_json(to_json(again)) == adapter


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code from the file was run",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_opened(protocol, tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(FormatError, match="a: expected a whole safetensors file, got one that cannot be read"):
        load(tmp_path / "a")
