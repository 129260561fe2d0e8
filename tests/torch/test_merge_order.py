"""Merge, unmerge, save, disable and detach in every order: each has one result or raises."""

import contextlib
import copy

import pytest
import torch

from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt.binding import read_checkpoint
from tnadapt_torch import attach, load

PATH = "layers.0.self_attn.v_proj"


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("tnadapt_")}


def assert_equal_weights(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name]), name


MERGED = r"'default': expected an adapter that is not merged, got a merged one\.\n.*\. Call unmerge\(\) first\."


def test_a_second_merge_and_a_second_unmerge_raise():
    model = hosts.toy()
    state = hosts.adapt(model)
    with pytest.raises(SiteError, match="'default': expected a merged adapter, got one that is not merged"):
        state.unmerge()
    state.merge()
    once = weights(model)
    with pytest.raises(SiteError, match=MERGED):
        state.merge()
    assert_equal_weights(weights(model), once)
    state.unmerge()
    with pytest.raises(SiteError, match="'default': expected a merged adapter, got one that is not merged"):
        state.unmerge()


def test_disabling_a_merged_adapter_raises():
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=["score"])
    state.merge()
    merged = model(hosts.words())
    with pytest.raises(SiteError, match=MERGED), state.disabled():
        pytest.fail("the block must not run")
    assert torch.equal(model(hosts.words()), merged)


def test_a_merge_does_not_change_the_delta_or_the_saved_file(tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, modules_to_save=["score"])
    delta = state.delta(PATH)
    state.save(tmp_path / "before.safetensors")
    state.merge()
    assert torch.equal(state.delta(PATH), delta)
    state.save(tmp_path / "merged.safetensors")
    before, merged = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("before", "merged"))
    assert merged.adapter == before.adapter
    for kept, found in ((before.params, merged.params), (before.extra, merged.extra)):
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in kept.items()
        }
    fresh = hosts.toy()
    load(fresh, tmp_path / "merged.safetensors")
    hosts.close(fresh(hosts.words()), model(hosts.words()))


def test_detaching_a_merged_adapter_keeps_the_merged_weights():
    model = hosts.toy()
    flags = hosts.photo(model)["flags"]
    state = hosts.adapt(model, modules_to_save=["score"])
    with torch.no_grad():
        model.score.weight.add_(1)
    state.merge()
    merged, wanted = weights(model), model(hosts.words())
    state.detach()
    assert_equal_weights(weights(model), merged)
    assert torch.equal(model(hosts.words()), wanted)
    after = hosts.photo(model)
    assert after["flags"] == flags
    assert set(after["hooks"].values()) == {0}


def test_two_adapters_are_unmerged_in_reverse_order():
    model = hosts.toy()
    first, second = hosts.adapt(model, "lotr", name="first"), hosts.adapt(model, "tera", name="second")
    before, unmerged = weights(model), model(hosts.words())
    first.merge()
    one = weights(model)
    hosts.close(model(hosts.words()), unmerged)
    second.merge()
    both = weights(model)
    hosts.close(model(hosts.words()), unmerged)
    with pytest.raises(SiteError, match=r"'first': .*: 'second' was merged later\.\nUnmerge 'second' first"):
        first.unmerge()
    assert_equal_weights(weights(model), both)
    second.unmerge()
    assert_equal_weights(weights(model), one)
    first.unmerge()
    assert_equal_weights(weights(model), before)


def test_adapters_merged_into_different_weights_are_unmerged_in_any_order():
    model = hosts.toy()
    first = hosts.adapt(model, name="first", target_modules=["q_proj"])
    second = hosts.adapt(model, name="second", target_modules=["v_proj"])
    before = weights(model)
    first.merge()
    second.merge()
    first.unmerge()
    second.unmerge()
    assert_equal_weights(weights(model), before)


def test_the_error_names_a_later_merge_on_the_same_weights():
    model = hosts.toy()
    first = hosts.adapt(model, name="first", target_modules=["q_proj"])
    other = hosts.adapt(model, name="other", target_modules=["v_proj"])
    last = hosts.adapt(model, name="last", target_modules=["q_proj"])
    for state in (first, other, last):
        state.merge()
    with pytest.raises(SiteError, match=r"'first': .*: 'last' was merged later"):
        first.unmerge()


def test_unmerging_does_not_erase_a_later_update_that_was_detached():
    """The later adapter was detached while merged: unmerging the earlier one must not erase its update."""
    model = hosts.toy()
    first, second = hosts.adapt(model, "lotr", name="first"), hosts.adapt(model, "tera", name="second")
    weight = model.get_submodule(PATH).weight
    updates = {state: state.delta(PATH) for state in (first, second)}
    base = weight.clone()
    first.merge()
    second.merge()
    second.detach()
    with contextlib.suppress(SiteError):  # an error is fine too; then both updates are still there
        first.unmerge()
    hosts.close(weight, base + updates[second] + (updates[first] if first.merged else 0))


def test_an_adapter_merged_under_disabled_stays_merged():
    model = hosts.toy()
    state = hosts.adapt(model)
    unmerged = model(hosts.words())
    with state.disabled():
        state.merge()
    hosts.close(model(hosts.words()), unmerged)
    state.unmerge()
    assert torch.equal(model(hosts.words()), unmerged)


def test_training_continues_after_unmerge():
    model = hosts.toy()
    state = hosts.adapt(model)
    state.merge()
    twin = copy.deepcopy(model)
    state.unmerge()
    model(hosts.words()).square().sum().backward()
    assert all(p.grad is not None for p in state.parameters())
    assert all(p.grad is None for p in twin.parameters())


def test_the_delta_of_a_path_that_is_not_a_site_raises():
    state = hosts.adapt(hosts.toy())
    with pytest.raises(SiteError, match=r": expected a site of this adapter, got 'score'"):
        state.delta("score")


def test_the_delta_of_lora_is_the_scaled_product_of_its_factors():
    model = hosts.toy()
    state = attach(model, families.lora(alpha=6), target_modules=["layers.0.self_attn.v_proj"], rank=2, seed=0)
    hosts.wake(state)
    found = state.params()
    hosts.close(state.delta(PATH), 3 * found["B"] @ found["A"])
