"""The file of a chain: the round trip of every family, and what is refused."""

import gc
import json
import time

import numpy as np
import pytest
from safetensors import safe_open

import tnadapt
from tests.core.files.forged import SECONDS, write_text
from tests.thorough import each_kind, left_to_laws
from tnadapt import FormatError, PlanError, SiteError, families, grid, read_peft, save
from tnadapt._files import limits
from tnadapt.policies import Chain, load_chain, save_chain, save_chain_as_lora
from tnadapt.testing import random_params

SITES = grid(layers=2, kinds={"q": (6, 4), "up": (8, 4)})
LINKS = 3


@pytest.fixture
def file(tmp_path):
    return tmp_path / "chain.safetensors"


def chain_of(spec, links=LINKS, rank=2, sites=SITES):
    adapters = [spec.bind(sites, rank=rank, seed=seed) for seed in range(links)]
    return Chain([(one, random_params(one, np.random.default_rng(one.seed))) for one in adapters])


def taken(path):
    """Return the text of a file as plain data, and its tensors."""
    with safe_open(path, framework="np") as opened:
        text = opened.metadata()["tnadapt"].partition(" ")[2]
        return json.loads(text), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def forge(path, change):
    """Change the text and the tensors of a file, and seal the text again."""
    data, arrays = taken(path)
    change(data, arrays)
    return write_text(path, json.dumps(data), arrays)


def same(found, wanted):
    assert len(found) == len(wanted)
    for (one, values), (other, others) in zip(found.links, wanted.links, strict=True):
        assert one == other
        assert values.keys() == others.keys()
        for name, value in others.items():
            np.testing.assert_array_equal(values[name], value, strict=True, err_msg=name)


@each_kind
def test_every_family_comes_back(adapter, moved, file):
    if adapter.hosts:
        pytest.skip("such a spec forms no chain")
    chain = Chain([(adapter, moved(adapter, seed)) for seed in range(LINKS)])
    save_chain(file, chain)
    same(load_chain(file), chain)


def test_links_may_differ_in_spec_rank_and_dtype(file):
    first, second = chain_of(families.vera(), 1, 5).links[0], chain_of(families.lora(), 1, 1).links[0]
    chain = Chain([first, (second.adapter, {name: value.astype(np.float32) for name, value in second.params.items()})])
    save_chain(file, chain)
    same(load_chain(file), chain)
    assert {name.split("/")[0] for name in taken(file)[1]} == {"0", "1"}


def test_frozen_factors_of_the_seeds_are_not_stored(file):
    chain = chain_of(families.vera(), rank=5)
    save_chain(file, chain)
    data, arrays = taken(file)
    frozen = {f"{n}/{name}" for n in range(LINKS) for name in data["links"][n]["drawn"]}
    assert frozen
    assert frozen.isdisjoint(arrays)


def test_the_file_of_one_adapter_is_a_chain_of_one_link(file):
    ((adapter, params),) = chain_of(families.lotr(), 1).links
    save(adapter, params, file)
    same(load_chain(file), Chain([(adapter, params)]))


def test_the_same_chain_gives_the_same_bytes(file, tmp_path):
    save_chain(file, chain_of(families.lora()))
    save_chain(tmp_path / "other", chain_of(families.lora()))
    assert file.read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("links", [1, LINKS])
def test_the_file_of_a_chain_is_not_that_of_an_adapter(file, links):
    save_chain(file, chain_of(families.lora(), links))
    with pytest.raises(FormatError, match=r"got the file of a chain\.\nRead it with tnadapt\.policies\.load_chain"):
        tnadapt.load(file)


def drop(data, arrays):
    del arrays[next(name for name in arrays if name.startswith("1/"))]


def swap(data, arrays):
    for name in [name for name in arrays if name.startswith("1/")]:
        other = "2" + name[1:]
        arrays[name], arrays[other] = arrays[other], arrays[name]


def bend(data, arrays):
    arrays[next(name for name in arrays if name.startswith("1/"))][...] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, arrays: data["links"].pop(), r"expected only tensors of its 2 links, got 2/"),
        (lambda data, arrays: data["links"].append(3), "link: expected a value of type dict, got int"),
        (lambda data, arrays: data.update(links={}), "file.links: expected a value of type list, got dict"),
        (lambda data, arrays: data.update(extra=1), r"file: expected no unknown keys, got \['extra'\]"),
        (lambda data, arrays: data["links"][1].update(odd=1), r"adapter: expected no unknown keys, got \['odd'\]"),
        (lambda data, arrays: data["links"][1].pop("seed"), r"adapter: expected the keys \['seed'\]"),
        (lambda data, arrays: data["links"][1].pop("drawn"), "file.drawn: expected a value of type dict"),
        (lambda data, arrays: data["links"][1].update(seed=9), "to have its saved digest, got another"),
        (lambda data, arrays: data.update(format=9), "expected format 1 or 2"),
        (lambda data, arrays: data.update(links=[]) or arrays.clear(), "expected a chain of at least one link"),
        (lambda data, arrays: arrays.update({"x": np.ones(1, "f4")}), "expected only tensors of its 3 links, got x"),
        (lambda data, arrays: arrays.update({"01/B": np.ones(1, "f4")}), "got 01/B"),
        (lambda data, arrays: arrays.update({"0/h:extra": np.ones(1, "f4")}), "trained in full"),
        (drop, "expected exactly the factors of its adapter"),
        (swap, "with the digest that was saved with them"),
        (bend, "with the digest that was saved with them"),
    ],
)
def test_a_changed_file_is_refused(change, message, file):
    save_chain(file, chain_of(families.vera(), rank=5))
    forge(file, change)
    with pytest.raises(FormatError, match=message):
        load_chain(file)


def test_every_truncated_file_is_refused(file):
    save_chain(file, chain_of(families.lora(), 2))
    content = file.read_bytes()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        with pytest.raises(FormatError, match="expected"):
            load_chain(file)


def test_links_on_other_weights_are_refused(file):
    save_chain(file, chain_of(families.lora(), 2))

    def change(data, arrays):
        data["links"][1]["patterns"][0]["path"][1] = ".other"

    def rename(data, arrays):
        change(data, arrays)
        for name in [name for name in arrays if name.startswith("1/")]:
            arrays[name.replace(".q", ".other")] = arrays.pop(name)

    forge(file, rename)
    with pytest.raises(FormatError, match=r"expected (links that form a chain|stored numbers with the digest)"):
        load_chain(file)


def test_modules_trained_in_full_are_refused(file):
    ((adapter, params),) = chain_of(families.lora(), 1).links
    save(adapter, params, file, extra={"head": np.ones(2)})
    with pytest.raises(FormatError, match="whose links have factors alone, got head:extra"):
        load_chain(file)


def test_the_limits_hold_for_all_links_together(file, monkeypatch):
    chain = chain_of(families.vera(), rank=5)
    work = LINKS * 4 * (4 + 3)  # sites, factors and modes of VeRA
    drawn = sum(
        slot.shape[0] * slot.shape[1]
        for adapter, _ in chain.links
        for slot in adapter.slots.values()
        if not slot.is_stored
    )
    save_chain(file, chain)
    same(load_chain(file, draw_limit=drawn), chain)
    with pytest.raises(FormatError, match=rf"at most {drawn - 1} frozen numbers to draw, got {drawn}\."):
        load_chain(file, draw_limit=drawn - 1)
    for name, most, what in (("MOST_LINKS", LINKS, "links"), ("CHAINED", work, "sites times")):
        monkeypatch.setattr(f"tnadapt._files.links.{name}", most)
        same(load_chain(file), chain)
        save_chain(file, chain)
        monkeypatch.setattr(f"tnadapt._files.links.{name}", most - 1)
        with pytest.raises(FormatError, match=rf"at most {most - 1} {what}"):
            load_chain(file)
        with pytest.raises(FormatError, match=rf"save_chain: expected at most {most - 1} {what}"):
            save_chain(file.with_name("new"), chain)
        monkeypatch.undo()
    assert not file.with_name("new").exists()


@left_to_laws("it takes seconds, as such files of one adapter do")
def test_a_forged_file_with_many_links_is_refused_in_seconds(tmp_path):
    sites = [[0, layer] for layer in range(2000)]
    save_chain(tmp_path / "a", chain_of(families.lora(), 1, sites=grid(layers=2, kinds={"q": (6, 4)})))
    data, _ = taken(tmp_path / "a")
    link = data["links"][0] | {"sites": sites}
    path = write_text(tmp_path / "b", json.dumps(data | {"links": [link] * limits.MOST_LINKS}), {})
    gc.freeze()  # else each collection walks through all that other tests left
    try:
        start = time.process_time()
        with pytest.raises(FormatError, match="expected"):
            load_chain(path)
        assert time.process_time() - start < SECONDS
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: save_chain(path, 3), "save_chain: expected a Chain, got 3"),
        (lambda path: save_chain(3, chain_of(families.lora())), "save_chain: expected the path of a file"),
        (lambda path: save_chain(chain_of(families.lora()), path), "save_chain: expected a Chain"),
        (lambda path: load_chain(3), "load_chain: expected the path of a file"),
        (lambda path: load_chain(path, rank=2), "load_chain: expected a known argument"),
    ],
)
def test_mistakes_are_told(call, message, file):
    with pytest.raises(FormatError, match=message):
        call(file)
    assert not file.exists()


def test_a_missing_file_is_no_format_error(file):
    with pytest.raises(FileNotFoundError, match="chain"):
        load_chain(file)


def test_a_host_factor_in_a_file_is_refused(file):
    adapter = families.hira().bind(grid(layers=1, kinds={"q": (6, 4)}), rank=2)
    weights = {"layers.0.q": np.random.default_rng(0).standard_normal((6, 4))}
    save(adapter, tnadapt.init(adapter, weights), file)
    with pytest.raises(FormatError, match="links that form a chain"):
        load_chain(file)
    with pytest.raises(SiteError, match="reads the host's weight"):
        Chain([(adapter, tnadapt.init(adapter, weights))])


# ---- as a LoRA


@pytest.mark.parametrize("spec", [families.lora(), families.lotr(), families.vera()], ids=lambda spec: spec.name)
def test_a_chain_is_exported_as_the_lora_of_its_sum(spec, tmp_path):
    chain = chain_of(spec, 2, 1, grid(layers=2, kinds={"q": (6, 5), "up": (8, 4)}))
    written = save_chain_as_lora(chain, tmp_path / "lora", base_model="m", task_type="CAUSAL_LM")
    assert {one.rank for one in written.values()} == {2}
    assert {one.error for one in written.values()} == {0.0}
    found = read_peft(tmp_path / "lora", shapes={site.path: site.shape for site in chain.links[0].adapter.sites})
    for path in chain.weights:
        update = chain.delta(path)
        largest = np.abs(update).max()
        np.testing.assert_allclose(tnadapt.delta(found.adapter, found.params, path), update, atol=1e-5 * largest)
    config = config_in(tmp_path / "lora")
    assert (config["base_model_name_or_path"], config["task_type"], config["fan_in_fan_out"]) == (
        "m",
        "CAUSAL_LM",
        False,
    )
    save_chain_as_lora(chain, tmp_path / "conv1d", fan_in_fan_out=True)
    assert config_in(tmp_path / "conv1d")["fan_in_fan_out"] is True


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_chain_of_full_rank_needs_a_rank(tmp_path):
    chain = chain_of(families.lora(), 3, 2)
    with pytest.raises(PlanError, match="expected a chain of less than full rank"):
        save_chain_as_lora(chain, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    written = save_chain_as_lora(chain, tmp_path / "lora", rank=2)
    assert {one.rank for one in written.values()} == {2}
    assert all(0 < one.error < 1 for one in written.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: save_chain_as_lora(3, path), "save_chain_as_lora: expected a Chain, got 3"),
        (lambda path: save_chain_as_lora(chain_of(families.lora(), 1), 3), "expected the path of a file"),
        (lambda path: save_chain_as_lora(chain_of(families.lora(), 1), path, task_type="x"), "as task_type, got 'x'"),
    ],
)
def test_mistakes_of_an_export_are_told(call, message, file):
    with pytest.raises(FormatError, match=message):
        call(file)
    assert not file.exists()
