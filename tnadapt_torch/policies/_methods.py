"""The published chains, one short function each."""

import torch

from tnadapt import SiteError
from tnadapt.binding import answers
from tnadapt_torch._state import AdapterState
from tnadapt_torch.policies._restarts import Restarts

__all__ = ["cola", "rac_lora", "relora", "xgblora"]


@answers(SiteError)
def cola(state: AdapterState, optimizer: torch.optim.Optimizer, every: int, *, warmup_steps: int = 0) -> Restarts:
    """Chain links of any spec, all factors trained: merge, begin anew, drop the optimizer's state.

    Source: COLA (arXiv:2401.04151), the abstract.
    """
    return Restarts(state, optimizer, every=every, warmup_steps=warmup_steps)


@answers(SiteError)
def relora(
    state: AdapterState,
    optimizer: torch.optim.Optimizer,
    every: int,
    *,
    warmup_steps: int = 0,
    prune: float | None = 0.999,
) -> Restarts:
    """Chain LoRAs, or links of any spec; a random 99.9 % of each moment of the optimizer is set to zero at a restart.

    Source: ReLoRA (arXiv:2307.05695) and its code, whose random pruning has this ratio. Its learning rate rises again
    after each restart: pass `warmup_steps`, and multiply `warmup` with the schedule of the training.
    """
    return Restarts(state, optimizer, every=every, warmup_steps=warmup_steps, prune=prune)


@answers(SiteError)
def rac_lora(state: AdapterState, optimizer: torch.optim.Optimizer, every: int, *, warmup_steps: int = 0) -> Restarts:
    """Chain links of one trained factor that starts at zero, beside frozen factors that are drawn anew.

    Source: RAC-LoRA (arXiv:2410.08305), as two reviews quote it: W <- W + (alpha / r) B A, one of them frozen. Raises
    SiteError for a spec with other factors: use families.lora(frozen_a=True).
    """
    if isinstance(state, AdapterState):
        trained = {name: one for name, one in state.spec.arrays.items() if one.trainable}
        drawn = [one for one in state.spec.arrays.values() if not (one.trainable or one.init.is_pattern)]
        if len(trained) != 1 or not all(one.init.is_zero for one in trained.values()) or not drawn:
            raise SiteError(
                f"rac_lora: expected a spec with one trained factor, which starts at zero, and a frozen one that is "
                f"drawn, got {state.spec.name} that trains {', '.join(trained)}.\nUse families.lora(frozen_a=True)."
            )
    return Restarts(state, optimizer, every=every, warmup_steps=warmup_steps)


@answers(SiteError)
def xgblora(
    state: AdapterState, optimizer: torch.optim.Optimizer, every: int, *, sites: int, warmup_steps: int = 0
) -> Restarts:
    """Chain links of rank 1, each on a random subset of the weights, as boosters of step weight 1.

    Source: XGBLoRA (arXiv:2410.19694), as reviews quote it; the L2 term on A and B is the optimizer's weight decay.
    Our reading: the subset is one of weights, not of layers. Raises SiteError for a higher rank and for a spec whose
    factors are shared.
    """
    ranks = (
        {net.sizes[bond] for net in state.adapter.networks for bond in state.spec.bonds} if _is_state(state) else set()
    )
    if ranks - {1}:
        raise SiteError(f"xgblora: expected an adapter of rank 1, got rank {max(ranks)}.\nAttach it with rank=1.")
    return Restarts(state, optimizer, every=every, warmup_steps=warmup_steps, sites=sites)


def _is_state(state: object) -> bool:
    return isinstance(state, AdapterState)
