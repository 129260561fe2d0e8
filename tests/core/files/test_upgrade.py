"""Specs of format 1 are read as those of format 2: every key of them, and every file that was committed."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from safetensors import safe_open

from tests.core.files.forged import LAWS, older
from tests.table import FAMILIES
from tnadapt import AdapterSpec, families, from_json, load, save, to_json, trainable, zeros
from tnadapt._files.upgrade import FACTOR, INITIALIZER, KINDS, MORE, SPEC, upgrade_initializer, upgrade_spec
from tnadapt._language.initializer import Drawn, Read
from tnadapt.sizes import at_most, like, required
from tnadapt.testing import adapters

FILES = sorted((Path(__file__).parents[2] / "golden" / "format1").glob("*.safetensors"))
PLAIN = {"name": "own", "weight": "(h o) in", "over": "layer", "factors": {}, "scale": {}}
OLD = PLAIN | {"centered": False, "identity_at_start": True, "caps": {}}


@pytest.mark.parametrize(
    ("fields", "start", "sizes"),
    [
        ({}, "zero", {}),
        ({"identity_at_start": False}, "free", {}),
        ({"centered": True}, "centered", {}),
        ({"centered": True, "identity_at_start": False}, "centered", {}),  # which never asked for an identity
        ({"caps": {"r": "in", "q": "o"}}, "zero", {"r": {"at_most": "in"}, "q": {"at_most": "o"}}),
        ({"ties": {"r": "layer"}}, "zero", {"r": {"like": "layer"}}),
        ({"given": "h"}, "zero", {"h": "required"}),
        ({"given": "h in"}, "zero", {"h": "required", "in": "required"}),
        ({"given": ""}, "zero", {}),
        (
            {"given": "h", "ties": {"r": "layer"}, "caps": {"q": "o"}},
            "zero",
            {"h": "required", "q": {"at_most": "o"}, "r": {"like": "layer"}},
        ),
    ],
    ids=str,
)
def test_every_key_of_a_spec_of_format_1_has_its_place(fields, start, sizes):
    assert upgrade_spec(OLD | fields) == PLAIN | {"start": start, "sizes": sizes}


def test_the_keys_of_format_1_are_all_those_that_were_written():
    assert {*SPEC} == {"name", "weight", "over", "factors", "scale", "centered", "identity_at_start", "caps"}
    assert {*MORE} == {"given", "ties"}
    assert ({*FACTOR}, {*INITIALIZER}) == ({"modes", "trainable", "init"}, {"law", "amount", "fan"})


@pytest.mark.parametrize("kind", [*Drawn.__args__, *Read.__args__])
def test_every_initializer_of_format_1_has_its_present_name(kind):
    old = LAWS.get(kind, kind)
    fields = {"law": old, "amount": 2.0, "fan": "in", "power": 0.5}
    assert upgrade_initializer(fields) == {"kind": kind, "amount": 2.0, "fan": "in", "power": 0.5}
    assert KINDS.get(old, old) == kind


def has_words(spec):
    """Whether format 1 can say what a spec says: one product of factors that have arrays, none of them shared.

    It has no word for a decomposition that is divided by the scale.
    """
    is_plain = not spec.terms and spec.factors == spec.arrays
    return is_plain and not any(one.shared or one.init.share for one in spec.arrays.values())


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if has_words(case.spec)])
def test_a_family_in_format_1_is_the_family(name):
    spec = FAMILIES[name].spec
    assert from_json(json.dumps(older(json.loads(to_json(spec))))) == spec


RULES = {"r": at_most("in"), "q": like("layer"), "h": required()}


@pytest.mark.parametrize("start", ["zero", "centered", "free"])
def test_a_text_with_every_key_is_read_as_its_spec(start):
    factors = {"A": trainable("r q in"), "B": trainable("h o r q layer", init=zeros())}
    words = {"factors": factors, "sizes": RULES, "over": "layer", "start": start}
    spec = AdapterSpec(name="own", weight="(h o) in", **words)
    old = older(json.loads(to_json(spec)))
    assert {*old["spec"]} == {*SPEC, *MORE}
    assert from_json(json.dumps(old)) == spec


@given(adapter=adapters(plain=True))
def test_any_plain_adapter_in_format_1_is_the_adapter(adapter):
    assert from_json(json.dumps(older(json.loads(to_json(adapter))))) == adapter


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_file_of_format_1_is_saved_in_format_2_with_its_numbers(path, tmp_path):
    adapter, params = load(path)
    save(adapter, params, tmp_path / "again")
    texts = []
    for one in (path, tmp_path / "again"):
        with safe_open(one, framework="np") as file:
            texts.append(json.loads(file.metadata()["tnadapt"].partition(" ")[2]))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert all(np.array_equal(params[name], value) for name, value in stored.items())
    old, new = texts
    assert (old["format"], new["format"]) == (1, 2)
    assert {key: old[key] for key in old if key not in ("format", "spec", "library")} == {
        key: new[key] for key in new if key not in ("format", "spec", "library")
    }
    assert older(new)["spec"] == old["spec"]


def test_the_files_of_format_1_have_every_key_but_one():
    """`given` alone is in none of them: LoRTA has it, whose text in format 1 is read above."""
    keys, kinds = set(), set()
    for path in FILES:
        with safe_open(path, framework="np") as file:
            spec = json.loads(file.metadata()["tnadapt"].partition(" ")[2])["spec"]
        keys |= {*spec}
        kinds |= {factor["init"]["law"] for factor in spec["factors"].values()}
    assert keys >= {*SPEC}
    assert kinds >= {*KINDS}
    assert "given" in older(json.loads(to_json(families.lorta())))["spec"]
