"""Weights that are elsewhere between calls: offloaded by accelerate, or partitioned by DeepSpeed's stage 3."""

import pytest
import torch

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.parallel.life import KINDS, adapt
from tests.torch.parallel.ways import dispatched, offloaded, on_disk, partition
from tnadapt import FormatError, SiteError
from tnadapt_torch import load

accelerate = pytest.importorskip("accelerate")

EVERY = [kind for kind in KINDS if kind not in ("pissa", "dora", "fold", "saved")]
PLAIN = EVERY if IS_THOROUGH else ["lotr", "vera"]


OFFLOADS = pytest.mark.parametrize("offload", [offloaded, on_disk, dispatched])


def pair(kind):
    """Return a plain host with its state, and an equal host."""
    plain = hosts.toy()
    return plain, hosts.wake(adapt(plain, kind)), hosts.toy()


def same(model, plain):
    hosts.close(model(hosts.words()), plain(hosts.words()))


def same_gradients(model, state, plain, wanted):
    for each, own in ((model, state), (plain, wanted)):
        own.zero_grad()
        each(hosts.words()).square().mean().backward()
    gradients = {key: value.grad for key, value in wanted.params().items() if value.grad is not None}
    assert gradients
    for key, gradient in gradients.items():
        hosts.close(state.params()[key].grad, gradient)


def right_but_for_merge(model, state, plain, wanted, folder):
    same(model, plain)
    same_gradients(model, state, plain, wanted)
    for path in state.updates:
        assert torch.equal(state.delta(path), wanted.delta(path))
    assert state.norms() == wanted.norms()
    state.save(folder / "found.safetensors")
    wanted.save(folder / "wanted.safetensors")
    assert (folder / "found.safetensors").read_bytes() == (folder / "wanted.safetensors").read_bytes()
    with state.disabled():
        same(model, hosts.toy())
    with pytest.raises(SiteError, match=r"^layers.*: expected a weight with values, got one on the meta device"):
        state.merge()
    same(model, plain)
    state.detach()
    same(model, hosts.toy())


@OFFLOADS
@pytest.mark.parametrize("kind", PLAIN)
def test_an_adapter_on_an_offloaded_host_is_right(offload, kind, tmp_path):
    plain, wanted, model = pair(kind)
    offload(model, tmp_path / "weights")
    state = hosts.wake(adapt(model, kind))
    right_but_for_merge(model, state, plain, wanted, tmp_path)
    loaded = load(model, tmp_path / "found.safetensors")
    same(model, plain)
    assert all(not value.is_meta for value in loaded.params().values())


@pytest.mark.parametrize("kind", [*PLAIN, "pissa"])
def test_a_host_that_is_dispatched_after_attach_is_right_where_the_factors_stay(kind, tmp_path):
    plain, wanted, model = pair(kind)
    state = hosts.wake(adapt(model, kind))
    dispatched(model, tmp_path / "weights")
    right_but_for_merge(model, state, plain, wanted, tmp_path)


def test_a_magnitude_on_a_host_that_is_dispatched_after_attach_is_right(tmp_path):
    """It reads the weights where accelerate brings them, in a call; between calls they are away."""
    plain, wanted, model = pair("dora")
    wanted.save(tmp_path / "wanted.safetensors")
    state = hosts.wake(adapt(model, "dora"))
    dispatched(model, tmp_path / "weights")
    same(model, plain)
    same_gradients(model, state, plain, wanted)
    away = r"^layers\.1.*: expected a weight with values, .*as offloaded weights are\.\n.* Call .*remove_hook_from_sub"
    for act in (lambda: state.delta("layers.1.mlp.down"), state.norms):
        with pytest.raises(SiteError, match=away):
            act()
    with state.disabled():
        same(model, hosts.toy())
    with pytest.raises(SiteError, match=r"^layers.*: expected a weight with values, got one on the meta device"):
        state.merge()
    with pytest.raises(SiteError, match=away):
        state.save(tmp_path / "a.safetensors")
    with pytest.raises(SiteError, match=r"got one on the meta device, as offloaded weights are"):
        load(model, tmp_path / "wanted.safetensors", adapter_name="b")
    same(model, plain)
    accelerate.hooks.remove_hook_from_submodules(model)
    same(model, plain)
    state.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "wanted.safetensors").read_bytes()
    state.detach()
    same(model, hosts.toy())


@pytest.mark.parametrize("offload", [offloaded, on_disk])
def test_factors_that_are_offloaded_are_refused_until_they_are_back(offload, tmp_path):
    plain, wanted, model = pair("pissa")
    state = hosts.wake(adapt(model, "pissa"))
    state.merge()
    same(model, plain)
    state.unmerge()
    offload(model, tmp_path / "weights")
    gone = r"expected (values of shape .*|a factor with values), got one on the meta device.*\n.*(remove_hook|Attach)"
    for act in (
        lambda: model(hosts.words()),
        lambda: state.delta("layers.0.mlp.down"),
        state.norms,
        state.merge,
        lambda: state.save(tmp_path / "a.safetensors"),
        lambda: state.save_as_lora(tmp_path / "lora"),
    ):
        with pytest.raises(SiteError, match=gone):
            act()
    assert sorted(path.name for path in tmp_path.iterdir()) == (["weights"] if offload is on_disk else [])
    accelerate.hooks.remove_hook_from_submodules(model)
    same(model, plain)
    same_gradients(model, state, plain, wanted)
    state.save(tmp_path / "found.safetensors")
    wanted.save(tmp_path / "wanted.safetensors")
    assert (tmp_path / "found.safetensors").read_bytes() == (tmp_path / "wanted.safetensors").read_bytes()


@OFFLOADS
def test_a_merge_is_not_undone_in_weights_that_are_away(offload, tmp_path):
    plain, _, model = pair("lora")
    state = hosts.wake(adapt(model, "lora"))
    state.merge()
    offload(model, tmp_path)
    same(model, plain)
    with pytest.raises(SiteError, match=r"expected a weight with values.*\n.*remove_hook_from_submodules"):
        state.unmerge()
    same(model, plain)
    accelerate.hooks.remove_hook_from_submodules(model)
    state.unmerge()
    same(model, plain)
    for name, value in hosts.toy().named_parameters():
        assert torch.equal(model.get_parameter(name), value)


@OFFLOADS
@pytest.mark.parametrize("kind", ["pissa", "dora", "fold", "saved"])
def test_what_needs_the_values_is_refused_on_an_offloaded_host(offload, kind, tmp_path):
    model = hosts.toy()
    offload(model, tmp_path)
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=r"got one (on the meta device, as offloaded|that is offloaded)"):
        adapt(model, kind)
    after = hosts.photo(model)
    assert {key: value for key, value in before.items() if key != "tensors"} == {
        key: value for key, value in after.items() if key != "tensors"
    }
    same(model, hosts.toy())


def test_a_file_with_saved_modules_is_refused_on_an_offloaded_host(tmp_path):
    adapt(hosts.toy(), "saved").save(tmp_path / "a.safetensors")
    model = hosts.toy()
    offloaded(model, tmp_path)
    with pytest.raises((SiteError, FormatError), match="expected a module of modules_to_save with its values"):
        load(model, tmp_path / "a.safetensors")


def test_saved_modules_that_are_offloaded_after_attach_are_refused(tmp_path):
    model = hosts.toy()
    state = adapt(model, "saved")
    dispatched(model, tmp_path)  # layers.1.norm is among what is on the disk
    for act in (
        lambda: model(hosts.words()),
        lambda: state.save(tmp_path / "a"),
        lambda: state.disabled().__enter__(),
        state.detach,
    ):
        with pytest.raises(SiteError, match=r"layers\.1\.norm.*: expected .* got one (that is offloaded|on the meta)"):
            act()
    assert state.enabled
    accelerate.hooks.remove_hook_from_submodules(model)
    with state.disabled():
        same(model, hosts.toy())
    state.detach()


def test_a_folded_update_stays_right_on_an_offloaded_host_and_is_not_taken_out(tmp_path):
    plain, _, model = pair("fold")
    state = hosts.wake(adapt(model, "fold"))
    dispatched(model, tmp_path)
    same(model, plain)
    with pytest.raises(SiteError, match="expected a weight to take an update out of, got one that is offloaded"):
        state.detach()
    same(model, plain)


# ---- accelerate's Accelerator


@pytest.fixture
def anew():
    """Let accelerate forget the settings of other tests, which it keeps for the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("first", [True, False], ids=["prepared first", "adapted first"])
def test_a_prepared_model_is_adapted_and_unwrapped(first, precision, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    plain, _, model = pair("lora")
    state = None if first else hosts.wake(adapt(model, "lora"))
    prepared = accelerator.prepare(model)
    state = state or hosts.wake(adapt(prepared, "lora"))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        wanted_output = plain(hosts.words()).float()
    hosts.close(prepared(hosts.words()), wanted_output)
    optimizer = accelerator.prepare(torch.optim.SGD(state.parameter_groups(lr=0.1)))
    accelerator.backward(prepared(hosts.words()).square().mean())
    optimizer.step()
    again = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert again.get_submodule("tnadapt_default") is state
    state.save(tmp_path / "a.safetensors")
    fresh = hosts.toy()
    load(fresh, tmp_path / "a.safetensors")
    hosts.close(again(hosts.words()), fresh(hosts.words()))


# ---- hosts without values


def test_to_empty_keeps_the_factors():
    plain, wanted, _ = pair("vera")
    with torch.device("meta"):
        model = hosts.Toy()
    state = hosts.wake(adapt(model, "vera"))
    model.to_empty(device="cpu")
    model.load_state_dict(hosts.toy().state_dict(), strict=False)
    for key, value in wanted.state_dict().items():
        assert torch.equal(state.state_dict()[key], value)
    same(model, plain)


def test_factors_have_values_on_a_host_that_is_made_and_loaded_under_the_meta_device(tmp_path):
    plain, wanted, _ = pair("vera")
    wanted.save(tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = hosts.Toy()
        state = load(model, tmp_path / "a.safetensors")
    model.to_empty(device="cpu")
    model.load_state_dict(hosts.toy().state_dict(), strict=False)
    same(model, plain)
    assert state.norms() == wanted.norms()


# ---- DeepSpeed


def test_a_partitioned_host_is_refused(tmp_path):
    adapt(hosts.toy(), "lora").save(tmp_path / "a.safetensors")
    model = hosts.toy()
    for parameter in model.parameters():
        partition(parameter)
    before = hosts.photo(model)
    for act in (lambda: adapt(model, "lora"), lambda: load(model, tmp_path / "a.safetensors")):
        with pytest.raises(SiteError, match=r"^layers.*expected a weight that this process holds.*DeepSpeed stage 3"):
            act()
        hosts.assert_same_photo(before, hosts.photo(model))


def test_a_host_with_one_partitioned_weight_is_refused():
    model = hosts.toy()
    partition(model.layers[1].mlp.down.weight)
    with pytest.raises(SiteError, match=r"^layers\.1\.mlp\.down: .*DeepSpeed stage 3"):
        adapt(model, "lora")


def test_a_folded_host_that_is_partitioned_is_refused():
    model = hosts.toy()
    adapt(model, "fold")
    for parameter in model.parameters():
        partition(parameter)
    with pytest.raises(SiteError, match=r"^layers.*DeepSpeed stage 3"):
        hosts.adapt(model, "lora", name="second", awake=False)


def test_factors_that_are_partitioned_later_are_refused_at_the_next_pass(tmp_path):
    model = hosts.toy()
    state = adapt(model, "lora")
    for parameter in state.parameters():
        partition(parameter)
    gone = r"expected values of shape \(2, 16\), got a part of shape \(0,\).*\n.*stage 2"
    for act in (
        lambda: model(hosts.words()),
        lambda: state.save(tmp_path / "a"),
        state.norms,
        state.merge,
        lambda: state.delta("layers.0.mlp.down"),
    ):
        with pytest.raises(SiteError, match=gone):
            act()


def test_weights_that_are_partitioned_later_are_not_merged_into():
    model = hosts.toy()
    state = hosts.wake(adapt(model, "lora"))
    partition(model.layers[0].mlp.down.weight)
    with pytest.raises(SiteError, match=r"^layers\.0\.mlp\.down: .*DeepSpeed stage 3"):
        state.merge()


def test_a_whole_factor_of_deepspeed_is_used():
    """Stage 3 leaves small parameters whole."""
    plain, _, model = pair("lora")
    state = hosts.wake(adapt(model, "lora"))
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_status, parameter.ds_shape = number, "AVAILABLE", parameter.shape
    same(model, plain)
    state.merge()
    same(model, plain)
