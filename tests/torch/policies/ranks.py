"""One process of two that train a chain: `main(folder, rank, world, pairs)` writes what it holds in the end."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from tests.torch import hosts
from tnadapt_torch.policies import Restarts, load_chain

CASES = {
    "weights": {},
    "beside": {"beside": True},
    "pruned": {"prune": 0.9},
    "subset": {"sites": 2},
}
KINDS = ("replicas", "shards", "replicas after", "shards after")  # after: the policy is made before, as by the Trainer
STEPS, EVERY = 5, 2
PAIRS = [(kind, case) for kind in KINDS for case in CASES]
# Every kind and every case, and those where a kind is a matter of the case.
SOME = [
    ("replicas", "weights"),
    ("replicas", "pruned"),
    ("shards", "beside"),
    ("shards", "subset"),
    ("replicas after", "subset"),
    ("shards after", "weights"),
]


def wrapped(kind: str, model: torch.nn.Module, options: dict) -> torch.nn.Module:
    if kind.startswith("replicas"):
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters="sites" in options)
    if kind.startswith("shards"):
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer)
        return fully_shard(model)
    return model


def begin(kind: str, options: dict):
    """Make a model, its adapter and its policy; the policy last, or before the model is wrapped."""
    model = hosts.toy()
    state = hosts.adapt(model, "lora", awake=False)
    optimizer = torch.optim.SGD(state.parameters(), lr=0.5, momentum=0.5)
    restarts = Restarts(state, optimizer, every=EVERY, **options) if kind.endswith("after") else None
    whole = wrapped(kind, model, options)
    optimizer.param_groups[0]["params"] = list(state.parameters())  # as accelerate does, where they were exchanged
    return model, state, optimizer, whole, restarts or Restarts(state, optimizer, every=EVERY, **options)


def train(kind: str, options: dict, rank: int, world: int, file: Path) -> dict[str, torch.Tensor]:
    model, state, optimizer, whole, restarts = begin(kind, options)
    for number in range(STEPS):
        optimizer.zero_grad()
        whole(hosts.words(4, seed=number).chunk(world)[rank]).square().mean().backward()
        optimizer.step()
        restarts.step()
    chain = restarts.links
    restarts.save(file)
    found = {f"{path} {place}": link for path in state.weights for place, link in enumerate(_deltas(chain, path))}
    fresh = hosts.toy()
    whole = wrapped("shards", fresh, {}) if kind.startswith("shards") else fresh
    load_chain(whole, file, beside=options.get("beside"))
    found["loaded"] = whole(hosts.words()).detach()
    if not kind.startswith("shards"):
        found["output"] = model(hosts.words()).detach()
    resume(kind, options, model, restarts)
    return found


def resume(kind: str, options: dict, model: torch.nn.Module, restarts: Restarts) -> None:
    """Load the weights with their links into a new model, then the policy: it has the state and the bits of the old."""
    everything = StateDictOptions(full_state_dict=True, strict=False)
    weights = get_model_state_dict(model, options=everything)
    again, _, _, _, policy = begin(kind, options)
    kept = {key: value for key, value in weights.items() if "_link_" not in key}
    set_model_state_dict(again, kept, options=everything)
    policy.load_state_dict(restarts.state_dict())
    found = get_model_state_dict(again, options=everything)
    assert found.keys() == weights.keys()
    assert [key for key, value in weights.items() if not torch.equal(found[key], value)] == []
    assert str(policy.state_dict()) == str(restarts.state_dict())


def _deltas(chain, path: str) -> list[torch.Tensor]:
    import tnadapt

    return [torch.from_numpy(tnadapt.delta(*link, path)) for link in chain.links]


def main(folder: Path, rank: int, world: int, pairs: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for kind, name in pairs:
        file = folder / f"{kind} {name} {rank if kind.startswith('replicas') else ''}"
        try:
            found[kind, name] = train(kind, CASES[name], rank, world, file)
        except Exception as error:
            found[kind, name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
