"""One process of a run with fully_shard: the life of each kind of adapter, compared with that of an unsharded one.

Run `shards.py FOLDER RANK WORLD PLAN ...`; each plan is a comma-separated list of words, see `Plan`.
"""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.torch import hosts  # needs the line above
from tnadapt import families
from tnadapt_torch import AdapterState, attach, load

TARGETS = ["q_proj", "v_proj", "o_proj", "down"]
KINDS: dict[str, dict] = {
    "lora": {"spec": families.lora(), "rank": 2},
    "lotr": {"spec": families.lotr(), "rank": {"p": 2, "q": 3}},  # stacked over sites
    "lorta": {"spec": families.lorta(), "rank": 3, "sizes": {"head": 4}},  # shared by all
    "vera": {"spec": families.vera(), "rank": 5},  # frozen factors
    "pissa": {"spec": families.pissa(), "rank": 2},  # centered, at a start that is read from the weights
    "quanta": {"spec": families.quanta(order=2), "target_modules": ["q_proj"]},  # centered, at a start that is drawn
    "householder": {"spec": families.householder(), "rank": 2},  # mapped factors
    "blocks": {"spec": families.lora(), "rank": 2, "blocks": {"down": (2, 2)}},
    "tasks": {"spec": families.lora(), "rank": 2, "tasks": ["chat", "code"]},
    "fold": {"spec": families.lora(), "rank": 2, "fold": True},
    "saved": {"spec": families.lora(), "rank": 2, "modules_to_save": ["score", "layers.1.norm"]},
}


@dataclass(frozen=True)
class Plan:
    """How a model is sharded: before or after the attach, in layers or as a whole, and with which policy."""

    words: tuple[str, ...]

    mesh = None

    @property
    def is_split(self) -> bool:
        return "tensor" in self.words  # every process sees the whole batch

    @property
    def is_first(self) -> bool:
        return "first" in self.words  # sharded first, then adapted

    def shard(self, model: nn.Module, state: AdapterState | None = None) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if "tensor" in self.words:
            return split(model, sequence="sequence" in self.words)
        more: dict = {}
        if "grid" in self.words:
            mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
            split(model, sequence=False, mesh=mesh["tensor"])
            more["mesh"] = mesh["data"]
        if "hybrid" in self.words:
            more["mesh"] = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copy", "shard"))
        if "half" in self.words:
            more["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if "kept" in self.words:
            more["reshard_after_forward"] = False
        if "freed" in self.words:
            more["reshard_after_forward"] = True
        if "ignored" in self.words and state is not None:
            more["ignored_params"] = set(state.parameters())
        if "layers" in self.words or "only" in self.words:
            for layer in model.layers:
                fully_shard(layer, **more)
        return model if "only" in self.words else fully_shard(model, **more)


def split(model: nn.Module, *, sequence: bool, mesh=None) -> nn.Module:
    """Split the layers by tensor parallelism, as for Llama."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    attention = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    where = Shard(1) if sequence else Replicate()
    plan = {f"self_attn.{name}": style for name, style in attention.items()}
    plan |= {"self_attn.o_proj": RowwiseParallel(output_layouts=where, use_local_output=not sequence)}
    plan |= {
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=where, use_local_output=not sequence),
    }
    if sequence:
        plan |= {
            "norm": SequenceParallel(),
            "self_attn": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
            "mlp": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
        }
    for layer in model.layers:
        parallelize_module(layer, mesh, dict(plan))
    whole = {"score": ColwiseParallel(output_layouts=Replicate())}
    if sequence:
        whole = {
            "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
            "norm": SequenceParallel(),
            "score": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
    return parallelize_module(model, mesh, whole)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def adapt(model: nn.Module, kind: str) -> AdapterState:
    spec, *_ = (more := {"target_modules": TARGETS, "seed": 3} | KINDS[kind]).pop("spec"), None
    return attach(model, spec, **more)


def wake(state: AdapterState) -> None:
    """Move every trainable factor from its start, by the same numbers on every process."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, slot in state.adapter.slots.items():
            if slot.factor.trainable:
                value = state.params()[key]
                step = 0.3 * torch.randn(value.shape, generator=random)
                value.add_(like(step, value))


def like(values: Tensor, tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(tensor, DTensor):
        return values
    return distribute_tensor(values, tensor.device_mesh, tensor.placements)


def train(model: nn.Module, state: AdapterState, parts: list[Tensor]) -> None:
    groups = state.parameter_groups(lr=0.02)
    optimizer = torch.optim.SGD(groups)
    for words in parts:
        optimizer.zero_grad()
        model(words).float().square().mean().backward()
        optimizer.step()


class Life:
    """The checks of one kind under one plan; what failed is collected."""

    def __init__(self, kind: str, plan: Plan, rank: int, world: int, folder: Path) -> None:
        self.kind, self.plan, self.rank, self.world, self.folder = kind, plan, rank, world, folder
        self.failed: list[str] = []
        self.near = 2e-2 if "half" in plan.words else 1e-5

    def check(self, name: str, found: Tensor, wanted: Tensor, near: float = 0.0) -> None:
        found, wanted = full(found).detach().double(), full(wanted).detach().double()
        largest = wanted.abs().max().item()
        error = (found - wanted).abs().max().item()
        if found.shape != wanted.shape or not error <= near * max(largest, 1e-3):
            self.failed.append(f"{name}: off by {error:.3g} of {largest:.3g}")

    def step(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})")

    def run(self) -> list[str]:
        words = hosts.words(8)
        steps = [hosts.words(4, seed=5), hosts.words(4, seed=6)]
        step = 2 if "grid" in self.plan.words else self.world if self.plan.is_split else 1
        own = [words.chunk(self.world // step)[self.rank // step] for words in steps]
        self.plain, self.model = hosts.toy(), hosts.toy()
        self.base = hosts.toy()
        flags = {name: p.requires_grad for name, p in self.base.named_parameters()}
        self.wanted = adapt(self.plain, self.kind)
        wake(self.wanted)
        train(self.plain, self.wanted, steps)
        if self.plan.is_first:
            self.plan.shard(self.model)
            with torch.no_grad():
                self.model(words)
        self.state = state = adapt(self.model, self.kind)
        wake(state)
        if not self.plan.is_first:
            self.plan.shard(self.model, state)
        model = self.model
        base = {name: full(p).clone() for name, p in hosts.toy().named_parameters()}
        self.step("train", lambda: train(model, state, own))
        self.step("equal on all", self.equal_on_all)
        for key, value in state.params().items():
            self.step(
                f"trained {key}",
                lambda key=key, value=value: self.check(f"trained {key}", value, self.wanted.params()[key], self.near),
            )
        for key, value in state.saved.values().items():
            self.step(
                f"saved {key}",
                lambda key=key, value=value: self.check(
                    f"saved {key}", value, self.wanted.saved.values()[key], self.near
                ),
            )
        self.step("copy", self.copy_to_plain)
        self.step("outputs", lambda: self.check("outputs", model(words), self.plain(words), self.near))
        self.step("save", self.save)
        self.step("lora", self.save_as_lora)
        self.step("load", lambda: self.load(words))
        self.step("delta", self.delta)
        self.step("reference", lambda: self.reference(own))
        self.step("norms", self.norms)
        self.step("disabled", lambda: self.disabled(words))
        self.step("merge", lambda: self.merge(words))
        self.step("detach", lambda: self.detach(words, base, flags))
        return self.failed

    def equal_on_all(self) -> None:
        self.state.parameter_groups(lr=1.0)
        mine = {key: full(value).detach() for key, value in self.state.params().items()}
        every = [None] * self.world
        dist.all_gather_object(every, mine)
        for other in every:
            for key, value in mine.items():
                self.check(f"{key} on all", other[key], value)

    def copy_to_plain(self) -> None:
        with torch.no_grad():
            self.state.parameter_groups(lr=1.0)
            for key, value in self.state.params().items():
                self.wanted.params()[key].copy_(full(value))
            for key, value in self.state.saved.values().items():
                self.wanted.saved.values()[key].copy_(full(value))

    def save(self) -> None:
        self.model(hosts.words(1))  # now the root holds gathered copies
        self.state.save(self.folder / "sharded.safetensors")
        self.wanted.save(self.folder / f"plain{self.rank}.safetensors")
        if (self.folder / "sharded.safetensors").read_bytes() != (
            self.folder / f"plain{self.rank}.safetensors"
        ).read_bytes():
            self.failed.append("save: another file")

    def save_as_lora(self) -> None:
        try:
            wanted = self.wanted.save_as_lora(self.folder / f"plain{self.rank}")
        except Exception as error:
            wanted = type(error)
        try:
            found = self.state.save_as_lora(self.folder / "sharded")
        except Exception as error:
            found = type(error)
        if found != wanted:
            self.failed.append(f"lora: {found} for {wanted}")
        if isinstance(wanted, type):
            return
        for path in sorted((self.folder / f"plain{self.rank}").iterdir()):
            if path.read_bytes() != (self.folder / "sharded" / path.name).read_bytes():
                self.failed.append(f"lora: another {path.name}")

    def load(self, words: Tensor) -> None:
        model = self.plan.shard(hosts.toy())
        state = load(model, self.folder / "sharded.safetensors")
        self.check("loaded", model(words), self.model(words), max(self.near, 1e-6))
        state.detach()

    def delta(self) -> None:
        self.model(hosts.words(1))
        for path in self.state.hooks:
            self.check(f"delta {path}", self.state.delta(path), self.wanted.delta(path))

    def reference(self, own: list[Tensor]) -> None:
        """A forward pass of the base model lies between the forward and the backward pass, as in preference tuning."""
        gradients = []
        for model, state, words in (
            (self.model, self.state, own[0]),
            (self.plain, self.wanted, hosts.words(4, seed=5)),
        ):
            state.zero_grad()
            loss = model(words).float().square().mean()
            with torch.no_grad(), state.disabled():
                model(words)
            loss.backward()
            state.parameter_groups(lr=1.0)
            gradients.append({key: value.grad for key, value in state.params().items() if value.grad is not None})
        if not gradients[1]:
            self.failed.append("no gradient")
        for key, wanted in gradients[1].items():
            self.check(f"gradient of {key}", gradients[0][key], wanted, self.near)

    def norms(self) -> None:
        wanted = self.wanted.norms()
        for name, norm in self.state.norms().items():
            self.check(f"norm {name}", torch.tensor(norm), torch.tensor(wanted[name]), 1e-9)

    def disabled(self, words: Tensor) -> None:
        before = self.model(words).detach().clone()
        with torch.no_grad(), self.state.disabled():
            self.check("disabled", self.model(words), self.base(words), self.near)
        self.check("enabled again", self.model(words), before, 1e-6)

    def merge(self, words: Tensor) -> None:
        before = self.model(words).detach().clone()
        self.state.parameter_groups(lr=1.0)
        weights = {path: full(weight.parameter).clone() for path, weight in self.state.weights.items()}
        self.state.merge()
        self.wanted.merge()
        for path, weight in self.state.weights.items():
            self.check(f"merged {path}", weight.parameter, self.wanted.weights[path].parameter)
        self.check("merged", self.model(words), before, max(self.near, 1e-5))
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        self.check("merged and resharded", self.model(words), before, max(self.near, 1e-5))
        self.state.unmerge()
        self.wanted.unmerge()
        for path, weight in self.state.weights.items():
            self.check(f"unmerged {path}", weight.parameter, weights[path])
        self.check("unmerged", self.model(words), before, 1e-6)

    def detach(self, words: Tensor, base: dict[str, Tensor], flags: dict[str, bool]) -> None:
        self.state.detach()
        for name, parameter in self.model.named_parameters():
            self.check(f"detached {name}", parameter, base[name])
            if parameter.requires_grad != flags[name]:
                self.failed.append(f"flag of {name}")
        self.check("detached", self.model(words), self.base(words), self.near)
        self.state.save(self.folder / "detached.safetensors")
        if (self.folder / "detached.safetensors").read_bytes() != (self.folder / "sharded.safetensors").read_bytes():
            self.failed.append("save after detach: another file")
