"""Attach an adapter: what it adds to the model, what it leaves alone, and that a failed attach changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt import AdapterSpec as Spec
from tnadapt import SiteError, SpecError, count, families, raw, trainable, zeros
from tnadapt_torch import AdapterState, attach

representative = pytest.mark.parametrize("family", hosts.REPRESENTATIVES)


@representative
def test_attach_adds_only_keys_under_the_name_of_the_adapter(family):
    model = hosts.toy()
    before = hosts.photo(model)["tensors"]
    hosts.adapt(model, family, name="mine", awake=False)
    after = hosts.photo(model)["tensors"]
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    fresh = after.keys() - before.keys()
    assert fresh
    assert all(key.startswith("tnadapt_mine.") for key in fresh)


@representative
def test_the_numbers_of_parameters_and_buffers_agree_with_count(family):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    total = count(state.adapter)
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == total.trainable > 0
    assert trained.keys() == {id(p) for p in state.parameters()}
    assert len(list(state.parameters())) == len(trained) == sum(row.trainable for row in total.rows)
    assert sum(b.numel() for b in state.buffers()) == total.frozen
    assert {name: tuple(value.shape) for name, value in state.params().items()} == {
        name: slot.shape for name, slot in state.adapter.slots.items()
    }


@representative
def test_every_value_is_registered_once(family):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    ours = [name for name in names if "tnadapt" in name]
    assert len(ours) == len(state.params())
    assert all(name.startswith("tnadapt_default.") for name in ours)
    storages = {value.untyped_storage().data_ptr() for value in state.params().values()}
    assert len(storages) == len(ours)


@representative
@pytest.mark.parametrize("is_training", [True, False])
def test_a_new_adapter_does_not_change_a_bit_of_the_output(family, is_training):
    model = hosts.toy().train(is_training)
    wanted = model(hosts.words())
    state = hosts.adapt(model, family, awake=False)
    assert torch.equal(model(hosts.words()), wanted)
    assert state.training is is_training
    hosts.wake(state)
    assert not torch.allclose(model(hosts.words()), wanted)


@representative
def test_a_training_step_changes_every_trainable_factor_and_nothing_else(family):
    model = hosts.toy()
    state = hosts.adapt(model, family)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(hosts.words()).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if any(p is q for q in state.parameters())}
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("tnadapt_"))


@representative
def test_a_new_adapter_gets_a_gradient(family):
    model = hosts.toy()
    state = hosts.adapt(model, family, awake=False)
    model(hosts.words()).square().sum().backward()
    alive = [p for p in state.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert alive


def test_factors_are_float32_on_any_host_and_their_starting_values_depend_on_the_seed():
    states = {dtype: hosts.adapt(hosts.toy(dtype=dtype), awake=False) for dtype in (torch.bfloat16, torch.float64)}
    for state in states.values():
        assert {value.dtype for value in state.params().values()} == {torch.float32}
    first, second = (state.params() for state in states.values())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = hosts.adapt(hosts.toy(), awake=False, seed=4).params()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_attach_returns_a_child_of_the_model_with_a_short_repr(capsys):
    model = hosts.toy()
    state = hosts.adapt(model, "lotr", name="mine")
    assert isinstance(state, AdapterState)
    assert model.get_submodule("tnadapt_mine") is state
    assert "AdapterState(lotr 'mine', 6 sites in 3 groups," in repr(model)
    state.print_trainable_parameters()
    trained = count(state.adapter).trainable
    whole = sum(p.numel() for p in model.parameters())
    share = f"{100 * trained / whole:.4f}"
    assert capsys.readouterr().out == f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {share}\n"


def test_the_printed_number_of_all_parameters_includes_frozen_factors(capsys):
    model = hosts.toy()
    state = hosts.adapt(model, "vera")
    state.print_trainable_parameters()
    host = sum(p.numel() for name, p in model.named_parameters() if "tnadapt" not in name)
    total = count(state.adapter)
    assert f"all params: {host + total.trainable + total.frozen:,} " in capsys.readouterr().out


def test_alpha_and_sizes_reach_the_networks():
    state = hosts.adapt(hosts.toy(), "lorta", alpha=5, sizes={"head": 8})
    assert {network.scale for network in state.adapter.networks} == {5 / 3}
    assert {network.sizes["head"] for network in state.adapter.networks} == {8}


# ---- an attach that fails changes nothing

NO_HOST = Spec(name="own", weight="out in k", factors={"D": trainable("out in k", init=zeros())}, scale=raw())
NO_PLACE = Spec(
    name="own", weight="out in", over="expert", factors={"D": trainable("out in", init=zeros())}, scale=raw()
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, r"expected an integer of at least 1, got 0"),
        ({"rank": -1}, r"at least 1, got -1"),
        ({"rank": 2.0}, r"expected an integer of at least 1, got 2.0"),
        ({"rank": None}, r"expected a size for every bond, got none for "),
        ({"rank": {"p": 2}}, r"rank: expected bonds of lora or names of adapted modules, got 'p'"),
        ({"spec": families.lorta(), "sizes": {"head": 5}}, r"got head=5, which does not divide 8"),
        (
            {"spec": families.lorta(), "sizes": {"heads": 4}},
            r"expected modes of lorta whose sizes are free, got 'heads'",
        ),
        ({"spec": NO_HOST, "rank": None}, r"expected a weight of 3 axes for this spec, got shape"),
        ({"spec": NO_PLACE, "rank": None}, r"expected the coordinate 'expert', since the spec stacks weights over it"),
        ({"seed": -1}, r"seed: expected an integer of at least 0"),
        ({"adapter_name": "first"}, r"adapter_name: expected a name that is not in use on the model, got 'first'"),
        ({"adapter_name": "a b"}, r"expected an identifier, got 'a b'"),
        ({"adapter_name": "a.b"}, r"expected an identifier, got 'a.b'"),
        ({"adapter_name": ""}, r"expected an identifier, got ''"),
        ({"dropout": 1.0}, r"dropout: expected a number of at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, r"below 1, got -0.1"),
        ({"dropout": float("nan")}, r"below 1, got nan"),
        ({"modules_to_save": ["scor"]}, r"got 'scor', which matches none"),
        (
            {"modules_to_save": ["layers.1"]},
            r"got layers.1, which holds layers.1.self_attn.k_proj.\nA weight cannot be both adapted",
        ),
        ({"modules_to_save": ["k_proj"]}, r"A weight cannot be both adapted and trained in full"),
        ({"modules_to_save": ["norm", "score"]}, r"expected modules that no other adapter trains, got score"),
        ({"target_modules": ["dwn"]}, r"which matches none"),
    ],
)
def test_an_attach_that_fails_leaves_the_model_unchanged(arguments, message):
    model = hosts.toy()
    model.embed.requires_grad_(requires_grad=False)
    hosts.adapt(model, name="first", modules_to_save=["score"])
    model.eval()
    before, wanted = hosts.photo(model), model(hosts.words())
    whole = {"spec": families.lora(), "target_modules": ["k_proj"], "rank": 2, "seed": 0, "adapter_name": "second"}
    whole |= arguments
    with pytest.raises(SiteError, match=message):
        attach(model, whole.pop("spec"), **whole)
    hosts.assert_same_photo(before, hosts.photo(model))
    assert torch.equal(model(hosts.words()), wanted)
    assert [name for name, _ in model.named_children() if name.startswith("tnadapt")] == ["tnadapt_first"]


def test_an_infinite_alpha_leaves_the_model_unchanged():
    model = hosts.toy()
    before = hosts.photo(model)
    with pytest.raises(SpecError, match="scale: expected a finite number as alpha"):
        hosts.adapt(model, "lora", alpha=float("inf"))
    hosts.assert_same_photo(before, hosts.photo(model))


def test_an_adapter_cannot_take_the_name_of_an_attribute_of_the_model():
    model = hosts.toy()
    model.tnadapt_default = "mine"
    before = hosts.photo(model)
    with pytest.raises(SiteError, match="expected a name that is not in use on the model"):
        hosts.adapt(model)
    hosts.assert_same_photo(before, hosts.photo(model))
    assert model.tnadapt_default == "mine"


@pytest.mark.parametrize("step", ["register_load_state_dict_pre_hook", "register_forward_hook"])
def test_an_attach_that_fails_at_its_last_steps_leaves_the_model_unchanged(step, monkeypatch):
    model = hosts.toy()
    before = hosts.photo(model)

    def refuse(*_, **__):
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(model, step, refuse)
    with pytest.raises(RuntimeError, match="no hooks here"):
        hosts.adapt(model)
    monkeypatch.undo()
    hosts.assert_same_photo(before, hosts.photo(model))


# ---- models that call all their children


@pytest.mark.parametrize("make", [hosts.sequential, hosts.CallsAll])
@pytest.mark.parametrize("family", ["lora", "tera"])
def test_a_model_that_calls_all_its_children_can_be_adapted(make, family):
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    spec, sizes = hosts.FAMILIES[family]
    x = hosts.normal(4, 5)
    state = attach(model, spec, target_modules="all-linear", seed=0, **sizes)
    assert torch.equal(model(x), plain(x))
    hosts.wake(state)
    with torch.no_grad():
        for path, module in plain.named_modules():
            if isinstance(module, nn.Linear):
                module.weight += state.delta(path)
    hosts.close(model(x), plain(x))
    state.detach()
    assert len(list(model.children())) == len(list(plain.children()))


def test_a_model_that_passes_a_tuple_between_its_children_can_be_adapted():
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, both):
            left, right = both
            return self.layer(left), right

    model = nn.Sequential(Twin(), Twin())
    x = hosts.normal(2, 3)
    wanted = model((x, x))
    attach(model, families.lora(), target_modules=["layer"], rank=1, seed=0)
    left, right = model((x, x))
    assert torch.equal(left, wanted[0])
    assert right is x


def test_a_module_list_can_be_adapted():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    state = hosts.wake(attach(model, families.lotr(), target_modules="all-linear", rank=2, seed=0))
    x = hosts.normal(3, 4)
    for path in ("0", "1"):
        module = model.get_submodule(path)
        hosts.close(module(x) - module.bias, x @ (module.weight + state.delta(path)).T)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_models_of_transformers_can_be_adapted_and_merged(name):
    import transformers as tf

    small = {"vocab_size": 40, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    targets, make = {
        "bert": (["query", "value"], lambda: tf.BertModel(tf.BertConfig(intermediate_size=48, **small))),
        "llama": (["q_proj", "v_proj"], lambda: tf.LlamaModel(tf.LlamaConfig(intermediate_size=48, **small))),
        "gpt2": (
            ["c_attn", "c_fc"],
            lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4)),
        ),
    }[name]
    model = make().eval()
    numbers = torch.arange(10).reshape(2, 5)
    wanted = model(input_ids=numbers).last_hidden_state
    keys = set(model.state_dict())
    state = attach(model, families.lotr(), target_modules=targets, rank=4, seed=0)
    assert torch.equal(model(input_ids=numbers).last_hidden_state, wanted)
    assert {key for key in model.state_dict() if not key.startswith("tnadapt_default.")} == keys
    hosts.wake(state)
    unmerged = model(input_ids=numbers).last_hidden_state
    unmerged.sum().backward()
    assert all(p.grad is not None for p in state.parameters())
    state.merge()
    hosts.close(model(input_ids=numbers).last_hidden_state, unmerged)
    state.detach()
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["half", "train", "forward"])
def test_a_factor_name_that_a_module_cannot_hold_raises(name):
    model = hosts.toy()
    before = hosts.photo(model)
    factors = {name: trainable("out r"), "B": trainable("r in", init=zeros())}
    spec = Spec(name="own", weight="out in", factors=factors, scale=raw())
    with pytest.raises(SiteError, match="expected a name that a torch module can hold, got"):
        attach(model, spec, target_modules=hosts.TARGETS, rank=2, seed=0)
    assert hosts.photo(model).keys() == before.keys()


def test_a_rank_above_that_of_any_update_is_to_be_asked_for():
    model = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(SiteError, match=r"pass overparametrized=True\.$"):
        attach(model, families.lora(), target_modules=["0"], rank=9)
    assert attach(model, families.lora(), target_modules=["0"], rank=9, overparametrized=True).adapter.rank == 9


def test_ranks_sizes_and_seeds_may_be_integers_of_numpy(tmp_path):
    words = [
        {"rank": kind(2), "sizes": {"in": kind(16)}, "seed": kind(3), "target_modules": ["q_proj"]}
        for kind in (np.int64, int)
    ]
    one, other = (attach(hosts.toy(), families.lora(), **more) for more in words)
    assert one.adapter == other.adapter
    assert type(one.adapter.rank) is type(one.adapter.seed) is int
    for state, name in ((one, "one"), (other, "other")):
        state.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with pytest.raises(SiteError, match="rank: expected an integer of at least 1, got"):
        attach(hosts.toy(), families.lora(), rank=np.True_, target_modules=["q_proj"])
