"""A state dict says what the weights beside the factors hold; the wrong one is refused before anything is loaded."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.torch import hosts
from tnadapt import FormatError, SiteError, families
from tnadapt_torch import attach

HEAD = ["score"]
MERGED = r"expected a state dict {} merged updates of adapter 'default'(.|\n)*Nothing of this model was loaded"


def host(*, merged=False, seed=7):
    model = hosts.toy()
    state = hosts.wake(hosts.adapt(model, "lotr", modules_to_save=HEAD), seed=seed)
    if merged:
        state.merge()
    return model, state


def taken(model):
    return copy.deepcopy(model.state_dict())


def test_a_plain_state_dict_has_the_keys_of_the_factors_alone():
    model, state = host()
    assert {key for key in model.state_dict() if "tnadapt" in key} == {
        f"tnadapt_default.factors.{name}" for name in state.params()
    }


def test_a_merged_state_dict_passes_through_safetensors(tmp_path):
    model, _ = host(merged=True)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    wanted = model(hosts.words())
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model(hosts.words()), wanted)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_merged_state_dict_and_a_plain_one_are_not_taken_for_each_other(merged, wrapped):
    given, _ = host(merged=merged, seed=1)
    model, _ = host(merged=not merged)
    if wrapped:
        given, model = torch.nn.Sequential(given), torch.nn.Sequential(model)
    before = taken(model)
    with pytest.raises(SiteError, match=MERGED.format("without" if merged else "with")):
        model.load_state_dict(given.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_state_dict_of_the_base_alone_is_refused_by_a_merged_host():
    model, _ = host(merged=True)
    with pytest.raises(SiteError, match=MERGED.format("with")):
        model.load_state_dict(hosts.toy().state_dict(), strict=False)


def test_other_merged_weights_are_refused_and_the_own_ones_are_loaded():
    model, state = host(merged=True)
    other, _ = host(merged=True, seed=2)
    with pytest.raises(SiteError, match=r"expected the merged weights of this model, got another layers.0"):
        model.load_state_dict(other.state_dict())
    before = hosts.toy().layers[0].mlp.down.weight
    model.load_state_dict(taken(model), assign=True)
    state.unmerge()
    assert torch.equal(model.layers[0].mlp.down.weight, before)


def test_factors_alone_can_be_loaded_into_a_merged_host():
    _, state = host(merged=True)
    _, given = host(seed=2)
    state.load_state_dict(given.state_dict())
    assert all(torch.equal(value, given.params()[name]) for name, value in state.params().items())


def test_a_state_dict_that_was_taken_while_disabled_is_refused():
    model, state = host()
    with torch.no_grad():
        model.score.weight.add_(1)
    other, _ = host()
    with state.disabled():
        given = taken(model)
        model.load_state_dict(given)
    with pytest.raises(SiteError, match=r"with the trained modules_to_save(.|\n)*inside or outside disabled\(\)"):
        other.load_state_dict(given)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score.weight, model.score.weight)


def test_a_detached_merge_leaves_a_plain_state_dict():
    model, state = host(merged=True)
    merged = model(hosts.words())
    state.detach()
    plain = hosts.toy()
    assert not torch.allclose(plain(hosts.words()), merged)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(hosts.words()), merged)


def test_a_copy_of_a_merged_host_checks_for_itself():
    model, state = host(merged=True)
    twin = copy.deepcopy(model)
    twin.tnadapt_default.unmerge()
    with pytest.raises(SiteError, match=MERGED.format("without")):
        twin.load_state_dict(model.state_dict())
    state.detach()
    other, _ = host(merged=True)
    with pytest.raises(SiteError, match=MERGED.format("with")):
        other.load_state_dict(twin.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_than_those_whose_svds_are_factors_are_refused(dtype):
    """The parts of the SVDs are no entries of a state dict, so that they would be those of the earlier weights."""
    model, other = hosts.toy(), hosts.toy()
    attach(model, families.svdiff(), target_modules=hosts.TARGETS)
    given = {key: value.to(dtype) for key, value in taken(model).items()}
    before = taken(model)
    model.load_state_dict(given)
    model.load_state_dict(before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    with pytest.raises(
        SiteError, match=r"expected the weight of this model as .*, since its SVD is a factor(.|\n)*Nothing"
    ):
        model.load_state_dict(other.state_dict(), strict=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pattern_that_plans_rely_on_is_refused_with_other_values(dtype):
    """A cast may have rounded it: 1 / 24 is no number of any dtype."""
    model = torch.nn.Sequential(torch.nn.Linear(24, 24))
    state = attach(model, families.c3a(), target_modules=["0"], sizes={"o2": 8, "i2": 8})
    state.to(dtype)
    given = taken(model)
    given["tnadapt_default.factors.c"] += 1
    model.load_state_dict(given)
    assert (state.params()["c"] == 1).all()
    given["tnadapt_default.factors.c"] += 1
    given["tnadapt_default.factors.J"] *= 2
    with pytest.raises(FormatError, match=r"^J: expected the pattern of cyclic\(\), which plans rely on, got other"):
        model.load_state_dict(given)
    assert (state.params()["c"] == 1).all()


def test_factors_of_an_adapter_of_another_name_are_told():
    """The Trainer resumes with strict=False: training would begin anew, with the moments of the other factors."""
    model, _ = host()
    other = hosts.toy()
    hosts.adapt(other, "lotr", modules_to_save=HEAD, adapter_name="second")
    with pytest.warns(UserWarning, match=r"factors of adapter 'second', got those of 'default'(.|\n)*='default'\."):
        other.load_state_dict(model.state_dict(), strict=False)
    hosts.adapt(model, "lora", adapter_name="second")
    other.load_state_dict(model.state_dict(), strict=False)  # has both
    model.load_state_dict(other.state_dict(), strict=False)  # on which both are
    other.load_state_dict(hosts.toy().state_dict(), strict=False)
