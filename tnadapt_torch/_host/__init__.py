"""The PyTorch model under an adapter: its adapted weights, modules trained in full, merging and folding."""

from tnadapt_torch._host.encoders import slow_down, speed_up
from tnadapt_torch._host.find import (
    check_linear,
    check_model,
    check_rules,
    find_parameters,
    find_weights,
    parameter_paths,
)
from tnadapt_torch._host.fold import check_foldable, fold_in, unfold
from tnadapt_torch._host.merge import Merged, check_weights
from tnadapt_torch._host.saved import SavedModules, find_tie
from tnadapt_torch._host.weight import HostWeights, Weight, is_linear, linear_weight

__all__ = [
    "HostWeights",
    "Merged",
    "SavedModules",
    "Weight",
    "check_foldable",
    "check_linear",
    "check_model",
    "check_rules",
    "check_weights",
    "find_parameters",
    "find_tie",
    "find_weights",
    "fold_in",
    "is_linear",
    "linear_weight",
    "parameter_paths",
    "slow_down",
    "speed_up",
    "unfold",
]
