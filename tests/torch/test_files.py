"""Save an adapter to a file and load it onto another model, in torch and in the core."""

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
from tests.torch import hosts
from tnadapt import FormatError, SiteError, count, families
from tnadapt_torch import attach, load

representative = pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
HEAD = ["score"]


def nudge(module, by=0.5):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapter.safetensors"


@representative
@pytest.mark.parametrize("saved", [None, HEAD, ["norm", "score"]])
def test_a_fresh_model_with_the_loaded_adapter_gives_equal_bits(family, saved, file):
    model = hosts.toy()
    state = hosts.adapt(model, family, modules_to_save=saved)
    for path in saved or []:
        nudge(model.get_submodule(path) if path != "norm" else model.norm)
    state.save(file)
    fresh = hosts.toy()
    plain = fresh(hosts.words())
    loaded = load(fresh, file)
    assert torch.equal(fresh(hosts.words()), model(hosts.words()))
    assert loaded.adapter == state.adapter
    assert loaded.saved.modules.keys() == state.saved.modules.keys()
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    with loaded.disabled():
        assert torch.equal(fresh(hosts.words()), plain)
    loaded.detach()
    assert torch.equal(fresh(hosts.words()), plain)


def test_several_groups_load_under_another_name(file):
    model = hosts.toy(3)
    state = hosts.adapt(model, "lora", target_modules="all-linear", layers_to_transform=[0, 2])
    assert len(state.adapter.groups) > 10
    state.save(file)
    fresh = hosts.toy(3)
    loaded = load(fresh, file, adapter_name="other", dropout=0.1)
    assert fresh.get_submodule("tnadapt_other") is loaded
    assert loaded.dropout == 0.1
    fresh.eval()
    assert torch.equal(fresh(hosts.words()), model.eval()(hosts.words()))


def test_adapters_from_two_files_add_up(tmp_path):
    model = hosts.toy()
    for name in ("lotr", "tera"):
        hosts.adapt(model, name, name=name).save(tmp_path / name)
    fresh = hosts.toy()
    for name in ("lotr", "tera"):
        load(fresh, tmp_path / name, adapter_name=name)
    assert torch.equal(fresh(hosts.words()), model(hosts.words()))


def test_load_leaves_an_attached_adapter_unchanged(file):
    hosts.adapt(hosts.toy(), "lora").save(file)
    model = hosts.toy()
    first = hosts.adapt(model, "lora", name="first")
    before = {name: value.clone() for name, value in first.state_dict().items()}
    load(model, file)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_another_dtype_are_saved_and_loaded(family, dtype, file):
    model = hosts.toy(dtype=dtype)
    state = hosts.adapt(model, family, modules_to_save=HEAD)
    model.to(dtype)
    hosts.wake(state)
    nudge(model.score)
    state.save(file)
    fresh = hosts.toy(dtype=dtype)
    loaded = load(fresh, file)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for value in loaded.parameters()} == {wide}
    for name, value in state.params().items():
        assert not state.adapter.slots[name].factor.trainable or torch.equal(loaded.params()[name], value.to(wide))
    assert fresh.score.weight.dtype == dtype
    assert torch.equal(fresh(hosts.words()), model(hosts.words()))


def test_bfloat16_values_of_any_magnitude_are_kept(file):
    model = hosts.toy()
    state = hosts.adapt(model, "lora").to(torch.bfloat16)
    with torch.no_grad():
        for parameter, value in zip(state.parameters(), [1e30, 1e-30, 70000.0], strict=False):
            parameter.fill_(value)
    state.save(file)
    loaded = load(hosts.toy(), file)
    assert all(torch.equal(value.float(), loaded.params()[name]) for name, value in state.params().items())


@pytest.mark.parametrize("family", ["lora", "vera", "loha"])
@pytest.mark.parametrize("layers", [2, 9])
def test_the_file_is_little_larger_than_its_trained_factors(family, layers, file):
    state = hosts.adapt(hosts.toy(layers), family, target_modules="all-linear", exclude_modules=["score"])
    state.save(file)
    law = 4 * count(state.adapter).trainable + 4096 + 200 * len(state.adapter.sites)
    if family == "loha":  # four arrays per site, each with its own entry in the header
        law += 2 * 110 * len(state.adapter.sites)
    assert 4 * count(state.adapter).trainable < file.stat().st_size <= law


@representative
def test_the_core_reads_files_written_by_torch(family, file):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    state.save(file)
    adapter, params = tnadapt.load(file)
    assert adapter == state.adapter
    for site in adapter.sites:
        wanted = torch.from_numpy(tnadapt.delta(adapter, params, site))
        hosts.close(state.delta(site.path), wanted)


@representative
def test_torch_reads_files_written_by_the_core(family, file):
    model = hosts.toy()
    adapter = hosts.adapt(hosts.toy(), family).adapter
    random = np.random.default_rng(0)
    params = {
        name: random.standard_normal(value.shape).astype(np.float32) if adapter.slots[name].factor.trainable else value
        for name, value in tnadapt.init(adapter).items()
    }
    tnadapt.save(adapter, params, file)
    state = load(model, file)
    for site in adapter.sites:
        hosts.close(state.delta(site.path), torch.from_numpy(tnadapt.delta(adapter, params, site)))


def test_an_adapter_on_conv1d_is_saved_and_loaded(file):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(6, 4))
    state = hosts.adapt(model, "lora", target_modules=["0"])
    state.save(file)
    torch.manual_seed(0)
    fresh = nn.Sequential(Conv1D(6, 4))
    load(fresh, file)
    assert torch.equal(fresh(hosts.normal(3, 4)), model(hosts.normal(3, 4)))


def test_a_second_save_replaces_the_file_and_a_failed_save_keeps_it(file, monkeypatch):
    state = hosts.adapt(hosts.toy(), "vera")
    state.save(file)
    first = file.read_bytes()
    hosts.wake(state, seed=50)
    state.save(file)
    second = file.read_bytes()
    assert second != first

    def full(_):
        raise OSError("disk full")

    hosts.wake(state, seed=51)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FormatError, match="expected a writable path, got error 'disk full'") as caught:
        state.save(file)
    assert isinstance(caught.value.__cause__, OSError)
    assert file.read_bytes() == second
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_frozen_factors_that_differ_from_their_seed_are_stored(file):
    """A state dict may bring frozen factors of another seed; drawing them again would change the adapter."""
    model, other, fresh = hosts.toy(), hosts.toy(), hosts.toy()
    hosts.wake(hosts.adapt(other, "vera", seed=4))
    state = hosts.adapt(model, "vera", seed=3)
    model.load_state_dict(other.state_dict())
    state.save(file)
    load(fresh, file)
    hosts.close(fresh(hosts.words()), other(hosts.words()))


# ---- errors


def toy_without(path):
    model = hosts.toy()
    parent, _, leaf = path.rpartition(".")
    delattr(model.get_submodule(parent), leaf)
    return model


def toy_with(path, module):
    model = hosts.toy()
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


def toy_adapted():
    model = hosts.toy()
    hosts.adapt(model, "vera")
    return model


V = r"layers.1.self_attn.v_proj"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hosts.toy(1), r"layers.1.self_attn.q_proj has a weight of shape \(16, 16\)(.|\n)*it is missing"),
        (lambda: toy_without(V), rf"{V} has a weight of shape \(8, 16\)(.|\n)*it is missing"),
        (lambda: toy_with(V, nn.Linear(16, 9)), rf"{V} has a weight of shape \(8, 16\)(.|\n)*it is \(9, 16\)\.\nLoad"),
        (lambda: toy_with(V, nn.Identity()), rf"{V}(.|\n)*it is Identity\.\nLoad"),
        (lambda: toy_without("score"), r"where score.\w+ has shape \(3(.|\n)*it is missing"),
        (lambda: toy_with("score", nn.Linear(16, 3, bias=False)), r"where score.bias has shape \(3,\)(.|\n)*missing"),
        (lambda: toy_with("score", nn.Linear(16, 4)), r"where score.\w+ has(.|\n)*it is of shape \(4"),
        (hosts.sequential, r"layers.0.self_attn.q_proj(.|\n)*it is missing\.\nThe nearest names are "),
    ],
)
def test_a_file_for_another_model_names_the_difference(make, message, file):
    hosts.adapt(hosts.toy(), modules_to_save=HEAD).save(file)
    model = make()
    before = hosts.photo(model)
    with pytest.raises(FormatError, match=message):
        load(model, file)
    hosts.assert_same_photo(before, hosts.photo(model))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (toy_adapted, {}, r"expected a name that is not in use on the model, got 'default'"),
        (hosts.toy, {"adapter_name": "a b"}, r"expected an identifier, got 'a b'"),
        (hosts.toy, {"dropout": 1.5}, r"dropout: expected a number of at least 0 and below 1"),
    ],
)
def test_a_bad_argument_leaves_the_model_unchanged(make, arguments, message, file):
    trained = hosts.toy()
    state = hosts.adapt(trained, modules_to_save=HEAD)
    nudge(trained.score)
    state.save(file)
    model = make()
    wanted, before = model(hosts.words()), hosts.photo(model)
    with pytest.raises(SiteError, match=message):
        load(model, file, **arguments)
    hosts.assert_same_photo(before, hosts.photo(model))
    assert torch.equal(model(hosts.words()), wanted)


def test_a_module_that_another_adapter_trains_is_not_overwritten(file):
    hosts.adapt(hosts.toy(), modules_to_save=HEAD).save(file)
    model = hosts.toy()
    hosts.adapt(model, name="first", modules_to_save=HEAD)
    nudge(model.score)
    before = hosts.photo(model)
    with pytest.raises((SiteError, FormatError), match=r"score"):
        load(model, file, adapter_name="second")
    hosts.assert_same_photo(before, hosts.photo(model))


def cut(content, part):
    return content[: int(len(content) * part)]


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES = {
    "empty": lambda content: b"",
    "head only": lambda content: cut(content, 0.1),
    "half": lambda content: cut(content, 0.5),
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "a bit of the last number": lambda content: flipped(content, -1),
    "a bit of an early number": lambda content: flipped(content, -400),
    "a bit of the text": lambda content: flipped(content, content.index(b"lotr")),
    "no safetensors": lambda content: b"weights" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_leaves_the_model_unchanged(damage, file):
    hosts.adapt(hosts.toy(), modules_to_save=HEAD).save(file)
    file.write_bytes(damage(file.read_bytes()))
    model = hosts.toy()
    before = hosts.photo(model)
    with pytest.raises(FormatError, match=r"adapter.safetensors"):
        load(model, file)
    hosts.assert_same_photo(before, hosts.photo(model))


def test_a_file_without_one_of_its_tensors_raises(file):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    hosts.adapt(hosts.toy(), modules_to_save=HEAD).save(file)
    tensors = load_file(file)
    (name,) = (name for name in tensors if "score.bias" in name)
    del tensors[name]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)
    with pytest.raises(FormatError, match="digest"):
        load(hosts.toy(), file)


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load(hosts.toy(), tmp_path / "nothing.safetensors")


def test_an_adapter_bound_without_a_model_loads_onto_a_model_with_its_paths(file):
    sites = tnadapt.grid(layers=2, kinds={"mlp.up": (24, 16), "mlp.down": (16, 24)})
    adapter = tnadapt.families.lotr().bind(sites, rank=2, seed=4)
    tnadapt.save(adapter, tnadapt.init(adapter), file)
    model = hosts.toy()
    state = load(model, file)
    twin = attach(hosts.toy(), tnadapt.families.lotr(), target_modules=["up", "down"], rank=2, seed=4)
    assert state.adapter == twin.adapter
    assert all(torch.equal(value, twin.params()[name]) for name, value in state.params().items())


def test_a_rounded_start_is_not_lost_in_silence(tmp_path):
    """A file starts from the values of its seed, so that another start would change every update."""
    model = nn.Sequential(nn.Linear(8, 8))
    state = attach(model, families.quanta(order=2), target_modules=["0"], seed=0)
    state.to(torch.bfloat16).to(torch.float32)
    with pytest.raises(FormatError, match=r":start'.*expected the starting value that follows from the seed"):
        state.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
