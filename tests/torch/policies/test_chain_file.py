"""A chain from its file on a fresh host: the weights and the outputs of the trained model, or nothing changed."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
from tests.parity.cases import FAMILIES
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.policies.test_restarts import EVERY, PATH, made, train
from tnadapt import FormatError, SiteError, families
from tnadapt.policies import Chain, save_chain
from tnadapt_torch import attach, load
from tnadapt_torch.policies import Restarts, load_chain

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
both = pytest.mark.parametrize("beside", [False, True])
some = pytest.mark.parametrize("family", hosts.FAMILIES if IS_THOROUGH else hosts.REPRESENTATIVES)


@pytest.fixture
def file(tmp_path):
    """The file of a chain of three links of LoRA on the toy model, the last of which is running."""
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, 2 * EVERY + 1)
    restarts.save(tmp_path / "chain")
    return tmp_path / "chain"


def refused(model, error, message, *arguments, **options):
    before = hosts.photo(model)
    with pytest.raises(error, match=message):
        load_chain(model, *arguments, **options)
    hosts.assert_same_photo(before, hosts.photo(model))


@some
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_weight_is_that_of_the_trained_chain_to_the_last_bit(family, dtype, tmp_path):
    model, state, optimizer, restarts = made(family, dtype=dtype)
    train(model, state, restarts, optimizer, 2 * EVERY + 2)
    restarts.save(tmp_path / "chain")
    fresh = hosts.toy(dtype=dtype)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    flags = {name: value.requires_grad for name, value in fresh.named_parameters()}
    assert load_chain(fresh, tmp_path / "chain") == []
    for path, weight in restarts.merged().items():
        assert torch.equal(fresh.get_submodule(path).weight, weight), path
        assert not torch.equal(before.pop(f"{path}.weight"), weight)
    found = fresh.state_dict()
    assert [key for key, value in before.items() if not torch.equal(found[key], value)] == []
    assert {name: value.requires_grad for name, value in fresh.named_parameters()} == flags
    hosts.close(fresh(hosts.words()), model(hosts.words()), TOLERANCES[dtype])


@pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
def test_factors_that_were_cast_load_with_their_values(family, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, family, awake=False)
    model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.05)
    restarts = Restarts(state, optimizer, every=EVERY)
    train(model, state, restarts, optimizer, EVERY + 1)
    restarts.save(tmp_path / "chain")
    fresh = hosts.toy(dtype=torch.bfloat16)
    load_chain(fresh, tmp_path / "chain")
    for path, weight in restarts.merged().items():
        assert torch.equal(fresh.get_submodule(path).weight, weight), path


@some
@pytest.mark.parametrize("trained_beside", [False, True])
def test_links_beside_the_weights_give_the_same_outputs(family, trained_beside, tmp_path):
    model, state, optimizer, restarts = made(family, beside=trained_beside)
    train(model, state, restarts, optimizer, 2 * EVERY + 2)
    restarts.save(tmp_path / "chain")
    fresh = hosts.toy()
    plain, before = fresh(hosts.words()), hosts.photo(fresh)
    links = load_chain(fresh, tmp_path / "chain", beside=True)
    assert [link.name for link in links] == [f"default_link_{number}" for number in range(3)]
    hosts.close(fresh(hosts.words()), model(hosts.words()))
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert not torch.equal(fresh(hosts.words()), plain)
    for link in reversed(links):
        link.detach()
    hosts.assert_same_photo(before, hosts.photo(fresh))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_that_chains_loads(name, tmp_path):
    spec, sizes = FAMILIES[name]
    if spec.hosts or spec.start == "free":
        pytest.skip("no chain")

    def host():
        torch.manual_seed(0)
        return nn.ModuleDict({"q": nn.Linear(4, 6), "v": nn.Linear(4, 6)})

    model, x = host(), hosts.normal(5, 4)
    state = attach(model, spec, target_modules="all-linear", seed=5, overparametrized=True, **sizes)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    restarts = Restarts(state, optimizer, every=2)
    for _ in range(5):
        optimizer.zero_grad()
        (model["q"](x) + model["v"](x) - 3).square().sum().backward()
        optimizer.step()
        restarts.step()
    restarts.save(tmp_path / "chain")
    fresh = host()
    load_chain(fresh, tmp_path / "chain")
    for path, weight in restarts.merged().items():
        assert torch.equal(fresh[path].weight, weight)


def test_layouts_other_than_out_in(tmp_path):
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=4, n_positions=16)
    model, fresh = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    fresh.load_state_dict(model.state_dict())
    state = attach(model, families.lora(), target_modules=["c_attn"], rank=2)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    restarts = Restarts(state, optimizer, every=2)
    for _ in range(3):
        model(input_ids=hosts.words()).logits.square().mean().backward()
        optimizer.step()
        restarts.step()
    restarts.save(tmp_path / "chain")
    load_chain(fresh, tmp_path / "chain")
    for path, weight in restarts.merged().items():
        assert torch.equal(fresh.get_submodule(path).weight, weight)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(3, 4, 5))  # (expert, in, out)

    def forward(self, x):
        return torch.einsum("ti,eio->to", x, self.up)


def test_parameters_of_experts_need_their_layout(tmp_path):
    layouts = {"up": "expert in out"}
    model, fresh = Experts(), Experts()
    state = attach(model, families.lora(), target_parameters=layouts, rank=2)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    restarts = Restarts(state, optimizer, every=2)
    for _ in range(3):
        model(hosts.normal(2, 4)).square().mean().backward()
        optimizer.step()
        restarts.step()
    restarts.save(tmp_path / "chain")
    refused(fresh, FormatError, "expected a model where up has a weight", tmp_path / "chain")
    options = {"target_parameters": layouts, "beside": True}
    refused(fresh, SiteError, r"(folded into its weight|already parametrized)", tmp_path / "chain", **options)
    load_chain(fresh, tmp_path / "chain", target_parameters=layouts)
    (weight,) = restarts.merged().values()
    assert torch.equal(fresh.up, weight)


def test_the_file_of_one_adapter_is_a_chain_of_one_link(tmp_path):
    state = hosts.adapt(hosts.toy(), "vera")
    state.save(tmp_path / "one")
    fresh, merged = hosts.toy(), hosts.toy()
    load_chain(fresh, tmp_path / "one")
    load(merged, tmp_path / "one").merge()
    for path in state.weights:
        assert torch.equal(fresh.get_submodule(path).weight, merged.get_submodule(path).weight)
    hosts.adapt(hosts.toy(), "lora", modules_to_save=["score"]).save(tmp_path / "more")
    refused(hosts.toy(), FormatError, "trained in full", tmp_path / "more")


# ---- other adapters on the model


@both
def test_another_adapter_stays_as_it_is(file, beside):
    model, alone = hosts.toy(), hosts.toy()
    other = hosts.adapt(model, "lotr", name="other")
    values = {name: value.clone() for name, value in other.params().items()}
    load_chain(model, file, beside=beside)
    load_chain(alone, file)
    hosts.adapt(alone, "lotr", name="other")
    hosts.close(model(hosts.words()), alone(hosts.words()))
    assert all(torch.equal(value, values[name]) for name, value in other.params().items())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_merged_adapter_and_one_that_reads_a_weight_are_refused(file):
    model = hosts.toy()
    other = hosts.adapt(model, "lotr", name="other")
    other.merge()
    refused(model, SiteError, f"{PATH}: expected a weight without merged updates, got .*'other'", file, beside=False)
    other.unmerge()
    load_chain(model, file)
    model = hosts.toy()
    attach(model, families.hira(), target_modules=hosts.TARGETS, rank=2, adapter_name="other")
    refused(model, SiteError, f"{PATH}: expected a weight that no other adapter reads", file, beside=False)


def test_beside_is_no_word(file):
    refused(hosts.toy(), SiteError, "load_chain: expected True or False as beside, got 'no'", file, beside="no")


def test_a_new_chain_begins_on_a_loaded_one(file):
    model = hosts.toy()
    links = load_chain(model, file, beside=True, adapter_name="first")
    state = hosts.adapt(model, "lora", awake=False)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.05)
    restarts = Restarts(state, optimizer, every=2, beside=True)
    train(model, state, restarts, optimizer, 5)
    assert len(links) == len(restarts.links) == 3


# ---- failures change nothing


def test_tied_weights_take_links_beside_them_alone(file):
    model = hosts.toy()
    model.layers[1].self_attn.q_proj.weight = model.layers[0].self_attn.q_proj.weight
    refused(model, SiteError, "expected a weight that no other module shares", file)
    plain = model(hosts.words())
    links = load_chain(model, file, beside=True)
    assert not torch.equal(model(hosts.words()), plain)
    for link in reversed(links):
        link.detach()
    assert torch.equal(model(hosts.words()), plain)


@both
def test_a_sum_that_is_not_finite_and_a_name_in_use_are_refused(beside, file, tmp_path):
    model = hosts.toy()
    if beside:
        hosts.adapt(model, "lora", name="default_link_2")  # the first two are attached, and detached again
        refused(model, SiteError, "expected a name that is not in use", file, beside=True)
    else:
        links = []
        for seed in range(2):
            adapter = families.lora().bind(tnadapt.grid(layers=1, kinds={"q": (4, 4)}), rank=1, seed=seed)
            links.append((adapter, {name: np.full(slot.shape, 1e3) for name, slot in adapter.slots.items()}))
        save_chain(tmp_path / "large", Chain(links))
        model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4)})])}).to(torch.float16)
        refused(model, SiteError, "expected a finite sum of weight and update", tmp_path / "large")


@both
def test_files_and_hosts_that_do_not_fit_are_refused(beside, file, tmp_path):
    lost = hosts.toy()
    del lost.layers[1]
    refused(lost, FormatError, "expected a model where layers.1.* has a weight of shape", file, beside=beside)
    small = hosts.toy()
    small.layers[0].self_attn.q_proj = nn.Linear(3, 16)
    refused(small, FormatError, f"expected a model where {PATH} has a weight of shape", file, beside=beside)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-9])
    (tmp_path / "other").write_text("no chain")
    for name in ("cut", "other"):
        refused(hosts.toy(), FormatError, str(tmp_path / name), tmp_path / name, beside=beside)
    refused(hosts.toy(), FileNotFoundError, "none", tmp_path / "none", beside=beside)
    refused(hosts.toy(), FormatError, "expected", 3)
    with pytest.raises(SiteError, match="load_chain: expected"):
        load_chain(file, hosts.toy())
    with pytest.raises(FormatError, match="expected the argument 'path'"):
        load_chain(hosts.toy())
    with pytest.raises(FormatError, match=r"tnadapt_torch\.policies\.load_chain"):
        load(hosts.toy(), file)


def test_links_of_several_tasks_are_refused(tmp_path):
    model = hosts.toy()
    state = attach(model, families.mtlora_tasks(), target_modules=hosts.TARGETS, rank=2, tasks=["a", "b"])
    state.save(tmp_path / "tasks")
    refused(hosts.toy(), SiteError, "expected links of one task, got a, b", tmp_path / "tasks")


def test_nothing_of_the_links_stays_alive(file):
    model = hosts.toy()
    load_chain(model, file)
    gc.collect()
    assert not any("tnadapt" in name for name, _ in model.named_modules())
    assert {type(module).__module__.split(".")[0] for module in model.modules()} == {"torch", "tests"}
