"""The PyTorch model under an adapter: its adapted weights, how they are served, merged and folded, and its flags."""

from tnadapt_torch._host.devices import place_params
from tnadapt_torch._host.encoders import slow_down, speed_up
from tnadapt_torch._host.find import (
    check_linear,
    check_model,
    check_rules,
    find_parameters,
    find_weights,
    name_class,
    parameter_paths,
)
from tnadapt_torch._host.flags import Flags
from tnadapt_torch._host.fold import check_foldable, check_folded, check_unfoldable, fold_in, unfold
from tnadapt_torch._host.hosted import Hosted, HostEntries, Merging, check_parts, host_parts, start_params
from tnadapt_torch._host.merge import Merged, check_weights, loss_of
from tnadapt_torch._host.parallel import flattened, managed, settle_weights
from tnadapt_torch._host.quantized import check_trainable, count_parameters, is_packed_linear
from tnadapt_torch._host.read import weights_to_fold
from tnadapt_torch._host.saved import SavedModules, find_tie
from tnadapt_torch._host.served import Removable, serve, updates_of
from tnadapt_torch._host.weight import HostWeights, Weight, is_linear, linear_weight
from tnadapt_torch._host.wrappers import module_at, modules_of, plain_path, unwrapped

__all__ = [
    "Flags",
    "HostEntries",
    "HostWeights",
    "Hosted",
    "Merged",
    "Merging",
    "Removable",
    "SavedModules",
    "Weight",
    "check_foldable",
    "check_folded",
    "check_linear",
    "check_model",
    "check_parts",
    "check_rules",
    "check_trainable",
    "check_unfoldable",
    "check_weights",
    "count_parameters",
    "find_parameters",
    "find_tie",
    "find_weights",
    "flattened",
    "fold_in",
    "host_parts",
    "is_linear",
    "is_packed_linear",
    "linear_weight",
    "loss_of",
    "managed",
    "module_at",
    "modules_of",
    "name_class",
    "parameter_paths",
    "place_params",
    "plain_path",
    "serve",
    "settle_weights",
    "slow_down",
    "speed_up",
    "start_params",
    "unfold",
    "unwrapped",
    "updates_of",
    "weights_to_fold",
]
