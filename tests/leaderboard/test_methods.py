"""The methods of the leaderboard: another kappa changes the rates of the factors that do not move first, alone."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("modules")
pytest.importorskip("peft")


def rates(method):
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    groups = method(model, ["0", "1"], 0).groups(0.5)
    return sorted(group["lr"] for group in groups)


def test_another_kappa_multiplies_the_rates_of_what_does_not_move_first():
    from methods import KAPPA, KAPPAS, METHODS

    from tnadapt._structure import KAPPA as own

    assert own == KAPPA
    for name in ("LoRA r8 unit", "LoTR r16 unit", "MetaTT r16 unit"):
        usual = rates(METHODS[name])
        assert len({*usual}) > 1
        for kappa in (1.5, 3.0, 12.0, 24.0):
            wanted = sorted(rate if rate == 0.5 else rate * kappa / 6 for rate in usual)
            assert rates(KAPPAS[f"{name} kappa {kappa:g}"]) == pytest.approx(wanted)
