"""The life of an adapter on a host that several processes share, compared with that of a plain adapter beside it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tests.torch import hosts
from tnadapt import TnadaptError, families, magnitude
from tnadapt_torch import AdapterState, attach, load

TARGETS = ["q_proj", "v_proj", "o_proj", "down"]
KINDS: dict[str, dict] = {
    "lora": {"spec": families.lora(), "rank": 2},
    "lotr": {"spec": families.lotr(), "rank": {"p": 2, "q": 3}},  # stacked over sites
    "lorta": {"spec": families.lorta(), "rank": 3, "sizes": {"head": 4}},  # shared by all, a hyperedge
    "vera": {"spec": families.vera(), "rank": 5},  # frozen factors
    "pissa": {"spec": families.pissa(), "rank": 2},  # centered, at a start that is read from the weights
    "quanta": {"spec": families.quanta(order=2), "target_modules": ["q_proj"]},  # centered, at a start that is drawn
    "householder": {"spec": families.householder(), "rank": 2},  # mapped factors
    "dora": {"spec": magnitude(families.lora()), "rank": 2},  # the host's weight is read at the start and in each call
    "blocks": {"spec": families.lora(), "rank": 2, "blocks": {"down": (2, 2)}},
    "tasks": {"spec": families.lora(), "rank": 2, "tasks": ["chat", "code"]},
    "fold": {"spec": families.lora(), "rank": 2, "fold": True},
    "saved": {"spec": families.lora(), "rank": 2, "modules_to_save": ["score", "layers.1.norm"]},
}
EXACT = 1e-6  # the same numbers, gathered in another way
NEAR = 1e-5
HALF = 0.1  # a policy of bfloat16 rounds every weight, factor and activation of the model


def adapt(model: nn.Module, kind: str) -> AdapterState:
    arguments = {"target_modules": TARGETS, "seed": 3} | KINDS[kind]
    return attach(model, arguments.pop("spec"), **arguments)


def wake(state: AdapterState) -> None:
    """Move every trained factor from its start, by the same numbers on every process.

    Updates are about as large as the weights. Larger ones saturate the softmax, and gradients in half
    precision are noise.
    """
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, slot in state.adapter.slots.items():
            if slot.factor.trainable:
                value = state.params()[key]
                value.add_(0.1 * torch.randn(value.shape, generator=random))


def train(model: nn.Module, state: AdapterState, batches: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(state.parameter_groups(lr=0.02))
    for words in batches:
        optimizer.zero_grad()
        model(words).float().square().mean().backward()
        optimizer.step()


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def split(model: nn.Module, *, sequence: bool, mesh: DeviceMesh | None = None) -> nn.Module:
    """Split the layers by tensor parallelism, as one does for Llama; with `sequence`, also the activations between."""
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    out = {"output_layouts": Shard(1) if sequence else Replicate(), "use_local_output": not sequence}
    layer = {f"self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    layer |= {"self_attn.o_proj": RowwiseParallel(**out)}
    layer |= {"mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel(**out)}
    top = {"score": ColwiseParallel(output_layouts=Replicate())}
    if sequence:
        gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
        layer |= {"norm": SequenceParallel(), "self_attn": gathered, "mlp": gathered}
        top = {"score": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()), "norm": SequenceParallel()}
        top |= {"embed": RowwiseParallel(input_layouts=Replicate(), **out)}
    for each in model.layers:
        parallelize_module(each, mesh, dict(layer))
    return parallelize_module(model, mesh, top)


@dataclass(frozen=True)
class Plan:
    """How processes share the host, in words.

    first: before the attach; tensor (and sequence): split by tensor parallelism, otherwise by fully_shard; layers: each
    layer and the whole, otherwise the whole alone; only: the layers alone; kept, freed: whether gathered weights stay
    after a forward pass; half: in bfloat16; ignored: without the factors; grid: both kinds of parallelism; hybrid:
    copies of shards.
    """

    words: tuple[str, ...]

    @property
    def is_first(self) -> bool:
        return "first" in self.words

    def own(self, batch: Tensor) -> Tensor:
        """Return the part of a batch that this process sees."""
        rank, world = dist.get_rank(), dist.get_world_size()
        alike = 2 if "grid" in self.words else world if "tensor" in self.words else 1  # neighbours see the same
        return batch.chunk(world // alike)[rank // alike]

    def share(self, model: nn.Module, state: AdapterState | None = None) -> nn.Module:
        if "tensor" in self.words:
            return split(model, sequence="sequence" in self.words)
        more: dict = {"mesh": init_device_mesh("cpu", (dist.get_world_size(),))}
        if "grid" in self.words:
            mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
            split(model, sequence=False, mesh=mesh["tensor"])
            more["mesh"] = mesh["data"]
        if "hybrid" in self.words:
            more["mesh"] = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copy", "shard"))
        if "half" in self.words:
            more["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if "kept" in self.words or "freed" in self.words:
            more["reshard_after_forward"] = "freed" in self.words
        if "ignored" in self.words and state is not None:
            more["ignored_params"] = set(state.parameters())
        if "layers" in self.words or "only" in self.words:
            for layer in model.layers:
                fully_shard(layer, **more)
        return model if "only" in self.words else fully_shard(model, **more)


class Life:
    """The life of one kind under one plan. What goes wrong is collected, so that all processes go on together."""

    def __init__(self, kind: str, plan: Plan, folder: Path) -> None:
        """Train a plain adapter, and make the shared one, which is to become equal to it."""
        self.kind, self.plan, self.folder = kind, plan, folder
        self.rank, self.failed = dist.get_rank(), []
        self.near = HALF if "half" in plan.words else NEAR
        self.batches, self.words = [hosts.words(4, seed=5), hosts.words(4, seed=6)], hosts.words(8)
        self.base, self.plain, self.model = hosts.toy(), hosts.toy(), hosts.toy()
        self.wanted = adapt(self.plain, kind)
        wake(self.wanted)
        train(self.plain, self.wanted, self.batches)
        if plan.is_first:
            plan.share(self.model)
            with torch.no_grad():
                self.model(self.words)  # now weights are gathered
        self.state = adapt(self.model, kind)
        wake(self.state)
        if not plan.is_first:
            plan.share(self.model, self.state)

    def run(self) -> list[str]:
        """Return what went wrong."""
        steps: list[Callable[[], None]] = [
            self.train, self.save, self.save_as_lora, self.load, self.delta, self.norms,
            self.reference_pass, self.disable, self.merge, self.detach,
        ]  # fmt: skip
        for step in steps:
            try:
                step()
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.failed.append(
                    f"{step.__name__}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
                )
        return self.failed

    def check(self, name: str, found: Tensor, wanted: Tensor, near: float = 0.0) -> None:
        """Compare two tensors, relative to the largest wanted entry."""
        found, wanted = full(found).detach().double(), full(wanted).detach().double()
        error, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
        if not error <= near * max(largest, 1e-3):
            self.failed.append(f"{name}: off by {error:.3g} of {largest:.3g}")

    def check_files(self, name: str, folder: Path, found: str, wanted: str) -> None:
        """Compare two files byte by byte."""
        if (folder / found).read_bytes() != (folder / wanted).read_bytes():
            self.failed.append(f"{name}: another file")

    def trained(self, state: AdapterState) -> dict[str, Tensor]:
        """Return what is trained, as an optimizer gets it, by name."""
        state.parameter_groups(lr=1.0)
        return state.params() | state.saved.values()

    def train(self) -> None:
        train(self.model, self.state, [self.plan.own(words) for words in self.batches])
        mine = {key: full(value).detach() for key, value in self.trained(self.state).items()}
        others: list[dict[str, Tensor]] = [{}] * dist.get_world_size()
        dist.all_gather_object(others, mine)
        for key, wanted in self.trained(self.wanted).items():
            self.check(f"{key} after training", mine[key], wanted, self.near)
            for other in others:
                self.check(f"{key} on all processes", other[key], mine[key])
            with torch.no_grad():  # from here on both adapters hold the same bits
                wanted.copy_(mine[key])
        self.check("outputs after training", self.model(self.words), self.plain(self.words), self.near)

    def save(self) -> None:
        self.model(self.words)
        self.state.save(self.folder / "shared.safetensors")
        self.wanted.save(self.folder / f"{self.rank}.safetensors")
        self.check_files("save", self.folder, "shared.safetensors", f"{self.rank}.safetensors")

    def save_as_lora(self) -> None:
        told: list[object] = []
        for state, name in ((self.wanted, f"lora{self.rank}"), (self.state, "lora")):
            try:
                told.append(state.save_as_lora(self.folder / name))
            except TnadaptError as error:  # some kinds are no LoRA
                told.append(str(error))
        if told[0] != told[1]:
            self.failed.append(f"save_as_lora: {told}")
        elif not isinstance(told[0], str):
            for path in (self.folder / "lora").iterdir():
                self.check_files("save_as_lora", self.folder, f"lora/{path.name}", f"lora{self.rank}/{path.name}")

    def load(self) -> None:
        model = self.plan.share(hosts.toy())
        state = load(model, self.folder / "shared.safetensors")
        self.check("load", model(self.words), self.plain(self.words), self.near)
        state.detach()

    def delta(self) -> None:
        self.model(self.words)
        for path in self.state.updates:
            self.check(f"delta of {path}", self.state.delta(path), self.wanted.delta(path))

    def norms(self) -> None:
        self.model(self.words)
        wanted = self.wanted.norms()
        for name, norm in self.state.norms().items():
            self.check(f"norm of {name}", torch.tensor(norm), torch.tensor(wanted[name]), EXACT)

    def reference_pass(self) -> None:
        """Between a forward pass and its backward pass the base model computes, as in preference tuning."""
        gradients = []
        for model, state, words in (
            (self.model, self.state, self.plan.own(self.batches[0])),
            (self.plain, self.wanted, self.batches[0]),
        ):
            state.zero_grad()
            loss = model(words).float().square().mean()
            with torch.no_grad(), state.disabled():
                model(words)
            loss.backward()
            trained = self.trained(state)
            gradients.append({key: trained[key].grad for key in state.params() if trained[key].grad is not None})
        found, wanted = gradients
        if not wanted or found.keys() != wanted.keys():
            self.failed.append(f"gradients of {list(found)} for those of {list(wanted)}")
        for key, gradient in wanted.items():
            self.check(f"gradient of {key}", found[key], gradient, self.near)

    def disable(self) -> None:
        before = self.model(self.words).detach().clone()
        with torch.no_grad(), self.state.disabled():
            self.check("outputs while disabled", self.model(self.words), self.base(self.words), self.near)
        self.check("outputs when enabled again", self.model(self.words), before, EXACT)

    def merge(self) -> None:
        before = self.model(self.words).detach().clone()
        self.trained(self.state)
        weights = {path: full(weight.parameter).clone() for path, weight in self.state.weights.items()}
        found, wanted = self.state.merge_loss(), self.wanted.merge_loss()
        for path, loss in wanted.items():
            if not loss / 4 <= found[path] <= 4 * loss:  # of roundings, which differ
                self.failed.append(f"loss of a merge {found[path]} for {loss} of {path}")
        self.state.merge()
        self.wanted.merge()
        for path, weight in self.state.weights.items():
            self.check(f"merged {path}", weight.parameter, self.wanted.weights[path].parameter)
        self.check("outputs when merged", self.model(self.words), before, self.near)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        self.check("outputs when merged and resharded", self.model(self.words), before, self.near)
        self.state.unmerge()
        for path, weight in self.state.weights.items():
            self.check(f"unmerged {path}", weight.parameter, weights[path])
        self.check("outputs when unmerged", self.model(self.words), before, EXACT)

    def detach(self) -> None:
        if self.kind == "fold" and "tensor" not in self.plan.words:
            return  # refused, in a scene
        self.model(self.words)
        self.state.detach()
        host, base = dict(self.model.named_parameters()), dict(self.base.named_parameters())
        if host.keys() != base.keys() or not all(host[name].requires_grad for name in base):
            self.failed.append("detach: other parameters, or other flags")
        for name, wanted in base.items():
            self.check(f"detached {name}", host[name], wanted)
        self.check("outputs when detached", self.model(self.words), self.base(self.words), self.near)
        self.state.save(self.folder / "detached.safetensors")
        self.check_files("save when detached", self.folder, "detached.safetensors", "shared.safetensors")
