"""What a run logs of an adapter, and what its repr and its line of parameters say."""

import re

import pytest
import torch

from tests.torch import hosts
from tnadapt import SiteError, families, step_size, unit
from tnadapt.policies import Budget
from tnadapt_torch import attach
from tnadapt_torch.policies import BudgetSchedule


def trained(family="lora", **more):
    """An adapter after a backward pass and a step, with its optimizer."""
    model = hosts.toy()
    state = hosts.adapt(model, family, **more)
    optimizer = torch.optim.AdamW(
        state.parameter_groups(lr=1e-2, ratio=4.0) if family == "lora" else state.parameters()
    )
    model(hosts.words()).square().mean().backward()
    optimizer.step()
    return state, optimizer


@pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
def test_the_numbers_are_those_of_the_values_and_gradients(family):
    state, optimizer = trained(family)
    found = state.log(optimizer)
    assert all(type(value) is float for value in found.values())
    for name, norm in state.norms().items():
        assert found[f"tnadapt_default/norm/{name}"] == norm
    grads = {key: value.grad for key, value in state.params().items() if value.grad is not None}
    whole = torch.cat([grad.flatten() for grad in grads.values()]).double().norm().item()
    assert found["tnadapt_default/grad_norm/all"] == pytest.approx(whole, rel=1e-6)
    name = next(iter(grads)).rpartition(".")[2]
    own = torch.cat([grad.flatten() for key, grad in grads.items() if key.rpartition(".")[2] == name])
    assert found[f"tnadapt_default/grad_norm/{name}"] == pytest.approx(own.double().norm().item(), rel=1e-6)
    assert found["tnadapt_default/scale"] == pytest.approx(state.adapter.groups[0].network.scale)


def test_the_norms_of_groups_add_up():
    state, _ = trained()
    found = state.log(by_group=True)
    for word, whole in (("norm_dW", "norm/dW"), ("grad_norm", "grad_norm/all")):
        parts = [value for name, value in found.items() if name.endswith(f"/{word}")]
        assert len(parts) == len(state.adapter.groups)
        assert sum(part**2 for part in parts) == pytest.approx(found[f"tnadapt_default/{whole}"] ** 2, rel=1e-6)


def test_the_step_is_that_of_the_table_and_of_the_optimizer():
    state = attach(hosts.toy(), families.lora(), target_modules=["q_proj"], rank=2, scale=unit(1.6))
    (size, *_) = step_size(state.adapter).values()
    optimizer = torch.optim.AdamW(state.parameters(), lr=1e-3)
    assert state.log()["tnadapt_default/step/of_lora"] == pytest.approx(size.of_lora)
    assert "tnadapt_default/step/lora_rate" not in state.log()
    assert state.log(optimizer)["tnadapt_default/step/lora_rate"] == pytest.approx(1e-3 * size.of_lora)
    optimizer.param_groups[0]["lr"] = 5e-4
    assert state.log(optimizer)["tnadapt_default/step/lora_rate"] == pytest.approx(5e-4 * size.of_lora)
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert "tnadapt_default/step/lora_rate" not in state.log(other)


def test_a_start_that_is_read_from_the_host_has_no_step():
    state = attach(hosts.toy(), families.pissa(), target_modules=["q_proj"], rank=2)
    assert not any("/step/" in name for name in state.log())


def test_a_rank_that_a_policy_changes_is_logged():
    state, optimizer = trained()
    schedule = BudgetSchedule(state, optimizer, Budget(target=6, steps=1))
    before = state.log()["tnadapt_default/rank/r"]
    schedule.step()
    sizes = [group.network.sizes["r"] for group in state.adapter.groups]
    after = state.log()["tnadapt_default/rank/r"]
    steps = [size.of_lora for size in step_size(state.adapter).values()]
    assert state.log()["tnadapt_default/step/of_lora"] == pytest.approx(max(steps))
    assert after == pytest.approx(sum(sizes) / len(sizes))
    assert after < before


def test_trackers_take_the_names():
    """MLflow allows few characters, and keeps a metric a in a file and a/b in a folder."""
    model = torch.nn.ModuleDict({"a+b": torch.nn.Linear(4, 4), "c": torch.nn.Linear(4, 3)})
    state = attach(model, families.lora(), target_modules=["a+b", "c"], rank=1)
    model["a+b"](torch.ones(2, 4)).sum().backward()
    names = state.log(by_group=True)
    assert "tnadapt_default/groups/0.a_b/norm_dW" in names
    assert all(re.fullmatch(r"[\w\-./ ]+", name) for name in names)
    assert not any(other.startswith(f"{name}/") for name in names for other in names)


@pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
def test_the_device_is_read_once(family, monkeypatch):
    state, optimizer = trained(family)
    calls = []
    for word in ("item", "tolist", "__float__", "__bool__", "numpy", "cpu"):
        plain = getattr(torch.Tensor, word)
        monkeypatch.setattr(torch.Tensor, word, lambda *args, w=word, p=plain: calls.append(w) or p(*args))
    state.log(optimizer, by_group=True)
    assert calls == ["tolist"]


def test_adapters_that_are_merged_disabled_or_detached_are_logged():
    state, _ = trained()
    before = state.log()
    state.merge()
    assert state.log() == before
    state.unmerge()
    with state.disabled():
        assert state.log() == before
    state.detach()
    assert state.log() == before


def test_a_changed_host_is_an_error():
    model = hosts.toy()
    state = hosts.adapt(model)
    model.layers[0].self_attn.q_proj = torch.nn.Linear(16, 16)
    with pytest.raises(SiteError, match="q_proj: expected the weight of shape"):
        state.log()


# ---------------------------------------------------------------- repr, and the line of parameters


def test_the_repr_is_a_line_that_tells_the_adapter():
    model = hosts.toy()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    line = "AdapterState(lora 'default', 6 sites in 6 groups, r=2, scale=4, {}, modules_to_save: score, {})"
    trained = f"{sum(value.numel() for value in state.parameters()):,} trained"
    assert repr(state) == line.format(trained, "active")
    assert repr(state) in repr(model)
    with state.disabled():
        assert repr(state) == line.format(trained, "disabled")
    state.merge()
    assert repr(state) == line.format(trained, "merged")
    state.detach()
    assert repr(state) == line.format(trained, "detached")


def test_the_repr_has_frozen_factors_tasks_and_ranges_of_ranks():
    state = attach(
        hosts.toy(), families.vera(), target_modules=["q_proj"], rank=5, tasks=["a", "b"], adapter_name="second"
    )
    frozen = r"\d+ trained and \d+ frozen, task 'a', active"
    assert re.fullmatch(rf"AdapterState\(vera 'second', 4 sites in \d groups?, r=5, scale=\S+, {frozen}\)", repr(state))
    state = attach(hosts.toy(), families.lora(), target_modules=["q_proj", "down"], rank={"r": 1, "down": 3})
    assert ", r=1..3, " in repr(state)


def test_adapters_of_a_model_and_of_a_part_print_one_line(capsys):
    model = hosts.toy()
    first = hosts.adapt(model, "lora", target_modules=["q_proj"])
    part = attach(model.layers, families.vera(), target_modules=["v_proj"], rank=2, adapter_name="part")
    first.print_trainable_parameters()
    part.print_trainable_parameters()
    one, other = capsys.readouterr().out.splitlines()
    assert one == other
    first.detach()
    part.print_trainable_parameters()
    assert capsys.readouterr().out.splitlines() != [one]
