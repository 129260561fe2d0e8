"""Weights that other libraries spread over processes: what an adapter can use, and what it refuses."""

from collections.abc import Mapping
from typing import cast

from torch import nn

from tnadapt import SiteError
from tnadapt_torch._host.weight import Weight
from tnadapt_torch._sharded import is_partitioned, reshard, sharding

__all__: list[str] = []


def settle_weights(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Let a host that fully_shard sharded hold its shards, as between two steps of training.

    Raises:
        SiteError: FullyShardedDataParallel or DeepSpeed's stage 3 holds the weights in flat parts.
    """
    reshard([model])
    flat = flattened(model, weights)
    for path, weight in weights.items():
        if path in flat or (weight.is_stored and is_partitioned(weight.parameter)):
            raise SiteError(
                f"{path}: expected a weight that this process holds, or that fully_shard holds in shards, "
                f"got one that {'FullyShardedDataParallel' if path in flat else 'DeepSpeed stage 3'} holds in flat "
                "parts.\nAttach or load the adapter first, then wrap the model."
            )


def managed(weights: Mapping[str, Weight]) -> list[str]:
    """Return the paths of the weights whose modules FullyShardedDataParallel or fully_shard have marked as theirs."""
    return [path for path, weight in weights.items() if "_is_fsdp_managed_module" in vars(weight.module)]


def flattened(model: nn.Module, weights: Mapping[str, Weight]) -> list[str]:
    """Return the paths of the weights that FullyShardedDataParallel flattened."""
    marked = managed(weights)
    if not marked:
        return []
    known = {id(inner) for module in sharding([model]) for inner in cast("nn.Module", module).modules()}
    return [path for path in marked if id(weights[path].module) not in known]
