"""Linear layers of known models whose weights are read without a call, so that no update of their output is seen.

An update of such a weight is folded into it: then whoever reads the weight has the update.
"""

from collections.abc import Mapping

from torch import nn

from tnadapt import SiteError
from tnadapt_torch._host.fold import FULL_PRECISION
from tnadapt_torch._host.weight import Weight
from tnadapt_torch._host.wrappers import module_at

__all__: list[str] = []

_MAMBA = {"MambaMixer", "FalconMambaMixer"}
_MAMBA2 = {
    "Mamba2Mixer",
    "BambaMixer",
    "FalconH1Mixer",
    "GraniteMoeHybridMambaLayer",
    "NemotronHMamba2Mixer",
    "Zamba2MambaMixer",
}
# By the name of the layer: the classes of transformers 5 in which it lies. In the first table the weight is read on
# every way through the module; in the second only by a fused kernel, where one is installed.
READ = {
    "dt_proj": _MAMBA | {"JambaMambaMixer"},
    **{name: {"WavLMAttention"} for name in ("q_proj", "v_proj", "out_proj")},
    "k_proj": {"WavLMAttention", "DetrMHAttentionMap", "ConditionalDetrMHAttentionMap", "MaskFormerDetrMHAttentionMap"},
    **{name: {"MobileBertLMPredictionHead"} for name in ("dense", "decoder")},
}
FUSED = {"x_proj": _MAMBA, "out_proj": _MAMBA | _MAMBA2}


def weights_to_fold(
    model: nn.Module, weights: Mapping[str, Weight], dropout: float, *, all_of_them: bool
) -> dict[str, Weight]:
    """Select the weights that take the update themselves: those that no module calls, or all if the user says so.

    Raises:
        SiteError: a weight that is read without a call is not in full precision, or dropout is asked for.
    """
    found = {}
    for path, weight in weights.items():
        is_foldable = not dropout and not weight.is_parametrized and weight.tensor.dtype in FULL_PRECISION
        is_read = weight.is_called and _is_in(model, weight, READ)
        if is_read and not is_foldable and not all_of_them:
            raise SiteError(
                f"{path}: expected a layer that the model calls, got one whose weight it only reads. "
                "Its update must be folded into the weight, in float32 and without dropout.\n"
                "Name it in exclude_modules, or load the model in float32."
            )
        if all_of_them or not weight.is_called or is_read or (is_foldable and _is_in(model, weight, FUSED)):
            found[path] = weight
    return found


def _is_in(model: nn.Module, weight: Weight, table: Mapping[str, set[str]]) -> bool:
    above, _, name = weight.owner.rpartition(".")
    if name not in table:
        return False
    parent = module_at(model, above)
    return parent is not None and any(base.__name__ in table[name] for base in type(parent).__mro__)
