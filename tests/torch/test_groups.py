"""Parameter groups for an optimizer, one per factor."""

import math

import numpy as np
import pytest
import torch

from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt_torch import attach


def rates(groups):
    return {group["name"]: group["lr"] for group in groups}


@pytest.mark.parametrize("family", hosts.FAMILIES)
def test_every_trained_parameter_is_in_exactly_one_group(family):
    state = hosts.adapt(hosts.toy(), family)
    groups = state.parameter_groups(lr=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, state.parameters()))
    assert set(rates(groups).values()) == {0.5}
    torch.optim.AdamW(groups)


def test_the_ratio_multiplies_the_rate_of_factors_that_start_at_zero():
    state = hosts.adapt(hosts.toy(), "lora")
    assert rates(state.parameter_groups(lr=0.5, ratio=16.0)) == {"A": 0.5, "B": 8.0}
    assert rates(hosts.adapt(hosts.toy(), "lotr").parameter_groups(lr=0.5, ratio=2)) == {"A": 0.5, "G": 1.0, "B": 0.5}


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_rates_and_ratios_of_numpy_are_python_numbers(number):
    state = hosts.adapt(hosts.toy(), "lora")
    for groups in (state.parameter_groups(lr={"A": number(1), "B": 2}), state.parameter_groups(lr=1, ratio=number(2))):
        assert rates(groups) == {"A": 1, "B": 2}
        assert {type(group["lr"]) for group in groups} <= {int, float}


def test_each_factor_can_have_its_own_rate():
    state = hosts.adapt(hosts.toy(), "vera")
    assert rates(state.parameter_groups(lr={"b": 0.1, "d": 1})) == {"d": 1, "b": 0.1}


def test_modules_to_save_form_a_group_at_the_plain_rate():
    model = hosts.toy()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    groups = state.parameter_groups(lr=0.5, ratio=2.0)
    assert rates(groups) == {"A": 0.5, "B": 1.0, "modules_to_save": 0.5}
    assert [id(value) for value in groups[-1]["params"]] == [id(value) for value in model.score.parameters()]
    with pytest.raises(SiteError, match="modules_to_save is missing or unknown"):
        state.parameter_groups(lr={"A": 0.5, "B": 1.0})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"lr": {"A": 1.0}}, "B is missing or unknown"),
        ({"lr": {"A": 1.0, "B": 1.0, "C": 1.0, "D": 1.0}}, "C, D are missing or unknown"),
        ({"lr": {"A": 1.0, "B": -1.0}}, "lr of 'B': expected a positive number, got -1.0"),
        (
            {"lr": {"A": 1.0, "B": 1.0}, "ratio": 2.0},
            r"expected no ratio beside a rate for every factor, got 2\.0\.\nLeave ratio out",
        ),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": math.nan}, "lr: expected a positive number, got nan"),
        ({"lr": 1.0, "ratio": math.inf}, "ratio: expected a positive number, got inf"),
    ],
)
def test_invalid_rates_raise(asked, told):
    state = hosts.adapt(hosts.toy(), "lora")
    with pytest.raises(SiteError, match=told):
        state.parameter_groups(**asked)


def test_a_ratio_without_effect_raises():
    state = attach(hosts.toy(), families.quanta(order=2), target_modules=["q_proj"], seed=0)
    with pytest.raises(SiteError, match="ratio: expected a factor that starts at zero, got"):
        state.parameter_groups(lr=1.0, ratio=2.0)
