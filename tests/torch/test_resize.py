"""Bonds that change in training: the model, its optimizer, its file and its compiled code follow."""

import copy

import numpy as np
import pytest
import torch

import tnadapt
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tests.torch.alone import run_alone
from tnadapt import AdapterSpec, SiteError, families, over_rank, trainable, zeros
from tnadapt.initializers import ones
from tnadapt.policies import bonds, cut, grow, importance, sweep
from tnadapt_torch import attach, load
from tnadapt_torch.optim import Preconditioned, Rite

OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=1e-2, amsgrad=True),
    "foreach": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=True),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-2, momentum=0.9),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
}
each_family = pytest.mark.parametrize("family", hosts.FAMILIES if IS_THOROUGH else hosts.PLANNED_AT_ONCE)


def grown(state, by=2):
    name = next(name for name, reason in bonds(state.adapter, "grow").items() if reason == "ok")
    return grow(state.adapter, state.arrays(), name, by)


def train(model, optimizer, steps=2, seed=3):
    """Take some steps. The last loss lives on, with its graph, as in a user's loop."""
    for step in range(steps):
        loss = model(hosts.words(seed=seed + step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


def adapted(family="lora", optimizer="adamw", **more):
    model = hosts.toy().double()
    state = hosts.wake(hosts.adapt(model, family, **more)).double()
    return model, state, OPTIMIZERS[optimizer](state.parameters())


@each_family
def test_growing_changes_no_output_and_training_goes_on(family):
    model, state, optimizer = adapted(family)
    loss = train(model, optimizer)
    before, held = model(hosts.words()).detach(), dict(state.named_parameters())
    change = grown(state)
    state.resize(change, optimizer)
    hosts.close(model(hosts.words()), before, 1e-10)
    assert all(parameter is held[name] for name, parameter in state.named_parameters())
    assert all(parameter.grad is None for parameter in state.parameters())
    assert {name: tuple(value.shape) for name, value in state.params().items()} == {
        name: slot.shape for name, slot in change.adapter.slots.items()
    }
    train(model, optimizer)
    assert (model(hosts.words()) - before).abs().max() > 1e-6
    assert loss.isfinite()


@each_family
def test_outputs_are_those_of_a_new_model_with_the_file(family, tmp_path):
    model, state, optimizer = adapted(family)
    train(model, optimizer)
    for change in (grow, cut):
        name = next(name for name, reason in bonds(state.adapter, change.__name__).items() if reason == "ok")
        state.resize(change(state.adapter, state.arrays(), name, 1), optimizer)
        train(model, optimizer)
        state.save(tmp_path / "a.safetensors")
        fresh = hosts.toy().double()
        other = load(fresh, tmp_path / "a.safetensors").double()
        assert other.adapter == state.adapter
        hosts.close(fresh(hosts.words()), model(hosts.words()), 1e-6)  # the frozen factors of a file are float32
        adapter, params = tnadapt.load(tmp_path / "a.safetensors")
        assert adapter == state.adapter
        assert params.keys() == state.arrays().keys()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_steps_after_growing_are_those_without_it_if_new_slices_stay(optimizer):
    """A bond that has grown and is cut at once leaves the optimizer and all later steps as they were."""
    model, state, steps = adapted("lotr", optimizer)
    train(model, steps)
    twin = copy.deepcopy((model, state, steps))
    change = grow(state.adapter, state.arrays(), next(iter(bonds(state.adapter))), 2)
    state.resize(change, steps)
    state.resize(cut(state.adapter, state.arrays(), next(iter(bonds(state.adapter))), 2), steps)
    train(model, steps, 3)
    other = OPTIMIZERS[optimizer](twin[1].parameters())
    other.load_state_dict(twin[2].state_dict())
    train(twin[0], other, 3)
    hosts.close(model(hosts.words()), twin[0](hosts.words()), 1e-9)


def test_gradients_and_moments_follow_a_sweep():
    """With plain momentum the change of basis is exact: the carried momentum is that of the new basis."""
    model, state, _ = adapted("lotr")
    optimizer = torch.optim.SGD(state.parameters(), lr=0.0, momentum=0.9)
    train(model, optimizer, 1)
    state.resize(sweep(state.adapter, state.arrays()), optimizer)
    carried = {name: optimizer.state[value]["momentum_buffer"].clone() for name, value in state.params().items()}
    optimizer = torch.optim.SGD(state.parameters(), lr=0.0, momentum=0.9)
    train(model, optimizer, 1)
    for name, value in state.params().items():
        hosts.close(carried[name], optimizer.state[value]["momentum_buffer"], 1e-9)


def test_importance_from_the_gradients_of_a_model():
    model, state, _ = adapted("lorta")
    model(hosts.words()).square().mean().backward()
    found = importance(state.adapter, state.arrays(), state.gradients())
    name, slices = next(iter(found.items()))
    kept = np.argsort(-np.abs(slices))[:2]
    state.resize(cut(state.adapter, state.arrays(), name, kept), None)
    assert tuple(state.adapter.groups[0].network.sizes[b] for b in ("r",)) == (2,)
    model(hosts.words()).sum().backward()


def test_the_number_of_steps_is_kept_and_squares_are_divided_by_squares():
    model, state, optimizer = adapted("lora")
    train(model, optimizer, 3)
    group = state.adapter.groups[0].name
    factor = state.params()[f"{group}.B"]
    first, second = (optimizer.state[factor][word].clone() for word in ("exp_avg", "exp_avg_sq"))
    state.resize(grow(state.adapter, state.arrays(), f"{group}.r", 2), optimizer)
    kept = optimizer.state[state.params()[f"{group}.B"]]
    assert kept["step"] == 3
    hosts.close(kept["exp_avg"][:, :2], first / 2, 1e-12)  # the rank doubled, and so did the values
    hosts.close(kept["exp_avg_sq"][:, :2], second / 4, 1e-12)
    assert not kept["exp_avg"][:, 2:].any()


def test_compiled_code_follows():
    torch.compiler.reset()
    model, state, optimizer = adapted("lotr")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if IS_THOROUGH else "eager")
    hosts.close(compiled(hosts.words()), model(hosts.words()), 1e-10)
    for change in (grown(state), None):
        state.resize(change or sweep(state.adapter, state.arrays(), rank=1), optimizer)
        hosts.close(compiled(hosts.words()), model(hosts.words()), 1e-10)
        compiled(hosts.words()).square().sum().backward()
        wanted = hosts.grads(model)
        model.zero_grad()
        model(hosts.words()).square().sum().backward()
        for name, gradient in hosts.grads(model).items():
            hosts.close(wanted[name], gradient, 1e-9)
        model.zero_grad()
    torch.compiler.reset()


@pytest.mark.parametrize("more", [{"blocks": {"q_proj": (2, 1)}}, {"fold": True}], ids=["blocks", "fold"])
def test_blocks_and_folded_updates_follow(more):
    model = hosts.toy().double()
    state = hosts.wake(attach(model, families.lora(), target_modules=["q_proj"], rank=2, **more)).double()
    before = model(hosts.words()).detach()
    state.resize(grown(state), None)
    hosts.close(model(hosts.words()), before, 1e-10)
    model(hosts.words()).sum().backward()
    state.merge()
    hosts.close(model(hosts.words()), before, 1e-9)


def test_starts_and_parts_of_the_host_follow():
    for spec, wanted in (
        (families.pissa(), [f"{n}.self_attn.q_proj.r" for n in (0, 1)]),
        (families.lora_xs(start="svd"), ["p", "q"]),
    ):
        model = hosts.toy().double()
        state = attach(model, spec, target_modules=["q_proj"], rank=2).double()
        hosts.wake(state)
        able = [name for name, reason in bonds(state.adapter, "grow").items() if reason == "ok"]
        assert sorted(able) == wanted
        for name in able:
            before = model(hosts.words()).detach()
            state.resize(grow(state.adapter, state.arrays(), name, 1), None)
            hosts.close(model(hosts.words()), before, 1e-9)


def test_a_resized_state_is_copied_and_cast():
    model, state, optimizer = adapted("lotr")
    state.resize(grown(state), optimizer)
    twin = copy.deepcopy(model)
    hosts.close(twin(hosts.words()), model(hosts.words()), 1e-12)
    twin.to(torch.float32)
    hosts.close(twin(hosts.words()).double(), model(hosts.words()), 1e-4)
    fresh = hosts.toy().double()
    told = {"rank": state.adapter.rank, "sizes": state.adapter.sizes, "seed": state.adapter.seed}
    other = attach(fresh, state.spec, target_modules=hosts.TARGETS, **told).double()
    fresh.load_state_dict(model.state_dict())
    assert other.adapter == state.adapter
    hosts.close(fresh(hosts.words()), model(hosts.words()), 1e-12)


def expect_nothing_changed(state, act, match):
    adapter, values = state.adapter, {name: value.clone() for name, value in state.params().items()}
    with pytest.raises(SiteError, match=match):
        act()
    assert state.adapter is adapter
    for name, value in state.params().items():
        assert torch.equal(value, values[name])


def test_what_cannot_be_resized_is_left_as_it_was(monkeypatch):
    model, state, optimizer = adapted("lotr")
    change, other = grown(state), grown(state, by=1)
    expect_nothing_changed(state, lambda: state.resize(3, None), r"resize: expected a change, got 3")
    expect_nothing_changed(state, lambda: state.resize(change, 3), r"resize: expected an optimizer of torch, got 3")
    state.merge()
    expect_nothing_changed(
        state, lambda: state.resize(change, None), r"expected an adapter that is not merged, got a merged"
    )
    state.unmerge()
    state.resize(other, optimizer)
    expect_nothing_changed(state, lambda: state.resize(change, None), r"expected a change of this adapter as it is now")
    again = grown(state)
    with monkeypatch.context() as sharded:
        sharded.setattr("tnadapt_torch._state.resize.is_sharded", lambda value: True)
        expect_nothing_changed(
            state, lambda: state.resize(again, None), r"expected factors that this process holds to change"
        )
    state.detach()
    expect_nothing_changed(state, lambda: state.resize(again, None), r"expected an adapter that is attached to a model")
    assert model(hosts.words()).isfinite().all()


def resize_under_data_parallelism():
    model, state, _ = adapted("lotr")
    change = grown(state)
    wrapper = torch.nn.parallel.DistributedDataParallel(model)
    expect_nothing_changed(
        state, lambda: state.resize(change, None), r"that DistributedDataParallel has put in buckets"
    )
    del wrapper
    state.resize(change, None)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    wrapped(hosts.words()).sum().backward()


def resize_shards():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, state, _ = adapted("lotr")
    change = grown(state)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(SiteError, match=r"expected factors that this process holds to change their shapes, got .*DTe"):
        state.resize(change, None)


def test_the_buckets_of_data_parallelism_are_not_broken_and_shards_not_resized():
    run_alone(resize_under_data_parallelism, resize_shards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(dtype):
    model = hosts.toy(dtype=dtype)
    state = hosts.wake(hosts.adapt(model, "lotr")).to(dtype)
    optimizer = torch.optim.AdamW(state.parameters(), lr=1e-2)
    train(model, optimizer)
    state.resize(grown(state), optimizer)
    for value in state.parameters():
        assert value.dtype == optimizer.state[value]["exp_avg"].dtype == dtype
        assert value.shape == optimizer.state[value]["exp_avg_sq"].shape
    train(model, optimizer)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["rite", "adafactor"])
def test_an_optimizer_whose_state_has_other_shapes_is_refused(kind, rank):
    """At rank 1 the parts of Adafactor have the shapes of factors."""
    model, state, _ = adapted("lora", rank=rank)
    optimizer = Rite(state) if kind == "rite" else torch.optim.Adafactor(state.parameters(), lr=1e-2)
    train(model, optimizer)
    change = grow(state.adapter, state.arrays(), "r", 1)
    match = r"resize: expected means of gradients of shape \(.*\) as the optimizer's state of '.*', got '.*' of shape"
    expect_nothing_changed(state, lambda: state.resize(change, optimizer), match)
    state.resize(change, None)
    if kind == "rite":
        with pytest.raises(SiteError, match="Rite: expected the factors it was made for, got others"):
            train(model, optimizer)
        train(model, Rite(state))


def test_squares_of_steps_stay_with_new_slices_and_are_refused_in_another_basis():
    """Transported as gradients they would become negative, and the loss NaN."""
    model, state, _ = adapted("lora")
    optimizer = torch.optim.Adadelta(state.parameters(), lr=1.0)
    train(model, optimizer)
    match = r"resize: expected means of gradients of shape .* got 'acc_delta' of shape"
    change = sweep(state.adapter, state.arrays())
    expect_nothing_changed(state, lambda: state.resize(change, optimizer), match)
    before = {name: optimizer.state[value]["acc_delta"] for name, value in state.params().items()}
    change = grow(state.adapter, state.arrays(), "r", 1)
    state.resize(change, optimizer)
    for name, old in before.items():
        new = optimizer.state[state.params()[name]]["acc_delta"]
        hosts.close(new[tuple(map(slice, old.shape))], old * change.factors.get(name, 1.0) ** 2, 1e-12)
        hosts.close(new.sum(), old.sum() * change.factors.get(name, 1.0) ** 2, 1e-12)
    train(model, optimizer)


def test_the_numbers_of_nadam_stay_beside_a_factor_that_is_a_number():
    factors = {"A": trainable("r in"), "B": trainable("out r", init=zeros()), "g": trainable("", init=ones())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=over_rank("r"))
    model = hosts.toy()
    state = attach(model, spec, rank=2, target_modules=hosts.TARGETS)
    optimizer = torch.optim.NAdam(state.parameters(), lr=1e-2)
    train(model, optimizer)
    products = {name: optimizer.state[value]["mu_product"].clone() for name, value in state.params().items()}
    state.resize(grow(state.adapter, state.arrays(), "r", 2), optimizer)
    assert all(optimizer.state[value]["mu_product"] == products[name] for name, value in state.params().items())


def test_preconditioned_gradients_follow_the_bonds():
    model, state, inner = adapted("lotr")
    optimizer = Preconditioned(state, inner)
    train(model, optimizer)
    state.resize(grow(state.adapter, state.arrays(), "p", 1), optimizer)
    other = Preconditioned(state, torch.optim.SGD(state.parameters(), lr=1e-2))
    train(model, optimizer, 1)
    model(torch.arange(10).reshape(2, 5)).square().mean().backward()
    other.step()
    assert optimizer.environments == other.environments
    state.resize(cut(state.adapter, state.arrays(), "p", 2), optimizer)
    train(model, optimizer)


def test_an_optimizer_cannot_be_forgotten():
    """Left out, Adam would fail at its next step, and after a sweep go on with moments of another basis."""
    model, state, optimizer = adapted("lora")
    train(model, optimizer)
    match = r"^resize: expected the argument 'optimizer', got none\.\nWrite resize\(change, optimizer\)\.$"
    expect_nothing_changed(state, lambda: state.resize(grown(state)), match)
    other = torch.optim.AdamW(model.parameters(), lr=1e-2)
    others = torch.optim.AdamW([value for name, value in state.params().items() if name.endswith("A")])
    match = r"^resize: expected the optimizer of the factors that change, got one without '.*B'\.\nPass the optimizer"
    expect_nothing_changed(state, lambda: state.resize(grown(state), others), match)
    state.resize(grown(state), other)
    state.resize(grown(state), None)
    train(model, torch.optim.AdamW(state.parameters(), lr=1e-2))
