"""Several adapters on one model, modules trained in full, disabling and detaching."""

import pytest
import torch

from tests.torch import hosts
from tnadapt import SiteError, count, families
from tnadapt_torch import attach, load

HEAD = ["score"]


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_adapter(model, name):
    return {key for key in trained(model) if key.startswith(f"tnadapt_{name}.")}


def nudge(module, by=0.5):
    """Change every parameter, in place of a training step."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


# ---- several adapters


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down"], r"layers\..*(q_proj|v_proj|down)"])
@pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
def test_a_second_adapter_can_have_the_same_targets(family, targets):
    model = hosts.toy()
    first = hosts.adapt(model, family, name="first")
    second = hosts.adapt(model, family, name="second", target_modules=targets)
    assert second.adapter.sites == first.adapter.sites


def test_two_adapters_can_both_be_on_all_linear_layers():
    model = hosts.toy()
    first = attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0, adapter_name="first")
    second = attach(model, families.lotr(), target_modules="all-linear", rank=2, seed=0, adapter_name="second")
    assert first.adapter.sites == second.adapter.sites


def test_a_module_to_save_can_have_the_name_of_a_kind_in_another_adapter():
    model = hosts.toy()
    hosts.adapt(model, "lora", name="first", target_modules=["q_proj"])
    second = hosts.adapt(model, "lotr", name="second", target_modules=["v_proj"], modules_to_save=["self_attn.k_proj"])
    assert list(second.saved.modules) == [f"layers.{layer}.self_attn.k_proj" for layer in (0, 1)]


def test_two_adapters_add_up():
    model, x = hosts.toy(), hosts.normal(3, 16)
    plain = model.layers[1].self_attn.q_proj(x)
    first = hosts.adapt(model, "lotr", name="first")
    second = hosts.adapt(model, "vera", name="second")
    path = "layers.1.self_attn.q_proj"
    hosts.close(model.get_submodule(path)(x) - plain, x @ (first.delta(path) + second.delta(path)).T)
    assert not torch.allclose(first.delta(path), second.delta(path))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_detach_in_either_order_restores_the_model(order):
    model = hosts.toy()
    model.embed.requires_grad_(requires_grad=False)
    model.layers[0].mlp.up.bias.requires_grad_(requires_grad=False)
    before, wanted = hosts.photo(model), model(hosts.words())
    states = [hosts.adapt(model, "lotr", name="a"), hosts.adapt(model, "tlora", name="b", modules_to_save=HEAD)]
    nudge(model.score)
    states[order[0]].detach()
    left = states[order[1]].name
    assert trained(model) == of_adapter(model, left) | ({"score.weight", "score.bias"} if left == "b" else set())
    states[order[1]].detach()
    hosts.assert_same_photo(before, hosts.photo(model))
    assert torch.equal(model(hosts.words()), wanted)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_detach_in_either_order_restores_a_head_that_the_first_adapter_trained(order):
    model = hosts.toy()
    before, wanted = hosts.photo(model), model(hosts.words())
    states = [hosts.adapt(model, "lotr", name="a", modules_to_save=HEAD), hosts.adapt(model, "tlora", name="b")]
    assert trained(model) == of_adapter(model, "a") | of_adapter(model, "b") | {"score.weight", "score.bias"}
    nudge(model.score)
    for place in order:
        states[place].detach()
    hosts.assert_same_photo(before, hosts.photo(model))
    assert torch.equal(model(hosts.words()), wanted)


def test_the_model_stays_frozen_under_the_remaining_adapter():
    model = hosts.toy()
    first = hosts.adapt(model, "lotr", name="a", modules_to_save=HEAD)
    hosts.adapt(model, "tlora", name="b")
    first.detach()
    assert trained(model) == of_adapter(model, "b")


def test_a_name_can_be_used_again_after_detach():
    model = hosts.toy()
    hosts.adapt(model).detach()
    state = hosts.adapt(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count(state.adapter).trainable


@pytest.mark.parametrize(
    "act",
    [
        lambda state, _: state.detach(),
        lambda state, _: state.merge(),
        lambda state, _: state.unmerge(),
        lambda state, _: state.disabled().__enter__(),
        lambda state, _: state.print_trainable_parameters(),
    ],
    ids=["detach", "merge", "unmerge", "disabled", "print"],
)
def test_every_call_on_a_detached_adapter_raises(act, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    state.detach()
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=r"default"):
        act(state, tmp_path)
    hosts.assert_same_photo(before, hosts.photo(model))


# ---- modules that are trained in full


def test_only_modules_to_save_are_trained_besides_the_adapter():
    model = hosts.toy()
    model.score.bias.requires_grad_(requires_grad=False)
    state = hosts.adapt(model, modules_to_save=["score", "layers.1.norm"])
    kept = {"score.weight", "score.bias", "layers.1.norm.weight", "layers.1.norm.bias"}
    assert trained(model) == of_adapter(model, "default") | kept
    model(hosts.words()).square().sum().backward()
    assert model.score.bias.grad.abs().max() > 0
    state.detach()
    assert not model.score.bias.requires_grad
    assert model.score.weight.requires_grad


def test_disabled_gives_the_model_without_adapter_and_without_trained_head():
    model = hosts.toy()
    wanted = model(hosts.words())
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    adapted, flags = model(hosts.words()), hosts.photo(model)["flags"]
    assert not torch.allclose(adapted, wanted)
    with state.disabled():
        assert torch.equal(model(hosts.words()), wanted)
        with state.disabled():
            assert torch.equal(model(hosts.words()), wanted)
        assert torch.equal(model(hosts.words()), wanted)
    assert torch.equal(model(hosts.words()), adapted)
    assert hosts.photo(model)["flags"] == flags


def test_an_error_inside_disabled_enables_the_adapter_again():
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    adapted = model(hosts.words())
    with pytest.raises(KeyError, match="mine"), state.disabled():
        raise KeyError("mine")
    assert torch.equal(model(hosts.words()), adapted)


def test_disabled_affects_only_its_own_adapter():
    model = hosts.toy()
    first = hosts.adapt(model, "lotr", name="first")
    wanted = model(hosts.words())
    second = hosts.adapt(model, "vera", name="second")
    both = model(hosts.words())
    with second.disabled():  # not in the order of sums of one adapter alone, which some processors round otherwise
        hosts.close(model(hosts.words()), wanted, 1e-6)
        with first.disabled():
            alone = model(hosts.words())
    assert torch.equal(model(hosts.words()), both)
    assert not torch.allclose(alone, wanted)


@pytest.mark.parametrize("saved", [None, HEAD])
def test_a_disabled_forward_before_backward_does_not_change_gradients(saved):
    """A loss that keeps the model close to its base needs this."""

    def gradients(reference_first):
        model = hosts.toy()
        state = hosts.adapt(model, modules_to_save=saved)
        nudge(model.score)
        with state.disabled(), torch.no_grad():
            reference = model(hosts.words())
        output = model(hosts.words())
        if not reference_first:
            with state.disabled(), torch.no_grad():
                reference = model(hosts.words())
        (output - reference).square().sum().backward()
        return hosts.grads(model)

    wanted, found = gradients(reference_first=True), gradients(reference_first=False)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        hosts.close(found[name], gradient)


def test_a_file_saved_while_disabled_holds_the_trained_values(tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    wanted = model(hosts.words())
    with state.disabled():
        state.save(tmp_path / "a.safetensors")
    fresh = hosts.toy()
    load(fresh, tmp_path / "a.safetensors")
    assert torch.equal(fresh(hosts.words()), wanted)


def test_detach_while_disabled_restores_the_model():
    model = hosts.toy()
    before = hosts.photo(model)
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    with state.disabled():
        state.detach()
        hosts.assert_same_photo(before, hosts.photo(model))
    hosts.assert_same_photo(before, hosts.photo(model))


def test_a_module_to_save_survives_a_cast():
    model = hosts.toy()
    wanted = model.score.weight.detach().clone()
    state = hosts.adapt(model, modules_to_save=HEAD)
    nudge(model.score)
    model.double()
    with state.disabled():
        assert torch.equal(model.score.weight, wanted.double())
    state.detach()
    assert torch.equal(model.score.weight, wanted.double())


def test_detach_restores_floating_point_buffers_of_a_module_to_save():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    before = hosts.photo(model)["tensors"]
    state = attach(model, families.lora(), target_modules=["0"], rank=1, modules_to_save=["1"], seed=0)
    model(hosts.normal(8, 4))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    state.detach()
    after = model.state_dict()
    for key in ("1.running_mean", "1.running_var", "1.weight"):
        assert torch.equal(after[key], before[key])
