"""Ways to spread a host over processes and devices, and what adapters can do: the table of docs/guides/torch.md."""

import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.torch import hosts
from tests.torch.parallel.life import full, split
from tnadapt import SiteError
from tnadapt_torch import load

PAGE = (Path(__file__).parents[3] / "docs" / "guides" / "torch.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| (.*) \|$", PAGE.split("## Several processes and devices\n")[1].split("\n## ")[0], re.MULTILINE)
HEAD, *ROWS = [[cell.strip() for cell in line.split("|")] for line in LINES if "---" not in line]
TABLE = {name: cells for name, *cells in ROWS}
INSIDE = "works inside what this error names: "
ORDERS = ("attach, then wrap", "wrap, then attach")


def own(words: Tensor) -> Tensor:
    """Return the part of a batch that this process sees under data parallelism."""
    return words.chunk(dist.get_world_size())[dist.get_rank()]


def whole(words: Tensor) -> Tensor:
    return words


@dataclass(frozen=True)
class Way:
    """A way to spread a host.

    `row` is its row in the table; `wrap` takes a host and a folder to use, and returns the host as one calls it; `own`
    is the part of a batch that a process sees; inside `gathered`, parameters have their values.
    """

    row: str
    wrap: Callable[[nn.Module, Path], nn.Module]
    own: Callable[[Tensor], Tensor] = own
    gathered: Callable[[nn.Module], AbstractContextManager[object]] | None = None


class Host:
    """A host that is spread, with an adapter that was attached in one of two orders."""

    def __init__(self, way: Way, order: str, folder: Path) -> None:
        """Attach and wrap, and let a training pass say whether it is refused."""
        self.way, self.folder, model = way, folder, hosts.toy()
        state = hosts.adapt(model) if order == ORDERS[0] else None
        self.wrapped = way.wrap(model, folder / "weights")
        self.state = state or hosts.adapt(self.wrapped)
        self.plain = hosts.toy()
        self.wanted = hosts.adapt(self.plain)
        self.wrapped(way.own(hosts.words(4))).square().mean().backward()
        self.same(self.plain)

    def same(self, plain: nn.Module) -> None:
        with torch.no_grad():
            hosts.close(full(self.wrapped(hosts.words())), plain(hosts.words()))

    def gathered(self) -> AbstractContextManager[object]:
        return self.way.gathered(self.wrapped) if self.way.gathered else nullcontext()

    def train(self, _: AbstractContextManager[object]) -> None:
        for model, state, part in ((self.wrapped, self.state, self.way.own), (self.plain, self.wanted, whole)):
            optimizer = torch.optim.SGD(state.parameters(), lr=0.02)
            for seed in range(2):
                optimizer.zero_grad()
                model(part(hosts.words(4, seed=seed))).square().mean().backward()
                optimizer.step()
        with self.gathered():
            self.state.parameter_groups(lr=1.0)  # lets fully_shard hold its shards
            for key, value in self.wanted.params().items():
                hosts.close(full(self.state.params()[key]), value)
        self.same(self.plain)

    def save(self, inside: AbstractContextManager[object]) -> None:
        file = self.folder / "a.safetensors"
        with inside:
            self.state.save(file)
        if dist.is_initialized():
            dist.barrier()
        model = hosts.toy()
        load(model, file)
        self.same(model)

    def merge(self, inside: AbstractContextManager[object]) -> None:
        with inside:
            self.state.merge()
            path, weight = next(iter(self.state.weights.items()))
            hosts.close(full(weight.parameter) - hosts.toy().get_parameter(f"{path}.weight"), self.wanted.delta(path))
        self.same(self.plain)
        with self.gathered():
            self.state.unmerge()
        self.same(self.plain)

    def detach(self, inside: AbstractContextManager[object]) -> None:
        with inside:
            self.state.detach()
        self.same(hosts.toy())
        assert all(parameter.requires_grad for parameter in self.wrapped.parameters())


def measure(way: Way) -> list[set[str]]:
    """Return what is found for each cell of a row, "yes" or the error, in each order of attach that is allowed."""
    allowed: list[Host] = []
    attached = [_refusal(lambda order=order: allowed.append(Host(way, order, _folder()))) or "yes" for order in ORDERS]
    columns = (Host.train, Host.save, Host.merge, Host.detach)
    return [{each} for each in attached] + [{_outcome(host, act) for host in allowed} or {"-"} for act in columns]


def _folder() -> Path:
    folder: list[str | None] = [tempfile.mkdtemp(dir=Path.cwd())]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    return Path(str(folder[0]))


def _outcome(host: Host, act: Callable[[Host, AbstractContextManager[object]], None]) -> str:
    if (message := _refusal(lambda: act(host, nullcontext()))) is None:
        return "yes"
    host.same(host.plain)  # what is refused changes nothing
    if host.way.gathered is None:
        return message
    act(host, host.gathered())
    return f"{INSIDE}{message}"


def _refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except SiteError as error:
        return str(error)
    return None


def differences(way: Way) -> list[str]:
    """Return the cells of the table that are not what is measured.

    A cell is "yes", or "refused: `words of the error`", or "inside `...`", which names what the error asks for, or "-"
    if no adapter can be attached.
    """
    measured = zip(HEAD[1:], TABLE[way.row], measure(way), strict=True)
    return [
        f"{column}: {cell!r} is said, {found} measured" for column, cell, found in measured if not _fits(cell, found)
    ]


def _fits(cell: str, found: set[str]) -> bool:
    kind, *words = [part.strip() for part in cell.split("`")]
    if len(found) > 1 or not words:
        return found == {cell}
    (message,) = found
    return words[0] in message and kind == ("inside" if message.startswith(INSIDE) else "refused:")


# ---- several processes


def sharded(model: nn.Module, _: Path) -> nn.Module:
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def flat(model: nn.Module, **more: object) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **more)


def prepared(model: nn.Module, _: Path) -> nn.Module:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(model)


SHARED = {
    "fully_shard": Way("`fully_shard` (FSDP2)", sharded),
    "ddp": Way("`DistributedDataParallel`", lambda model, _: DistributedDataParallel(model)),
    "tensor": Way("`parallelize_module`, by columns and rows", lambda model, _: split(model, sequence=False), whole),
    "fsdp": Way(
        "`FullyShardedDataParallel` (FSDP1)",
        lambda model, _: flat(model, use_orig_params=True),
        gathered=FullyShardedDataParallel.summon_full_params,
    ),
}
LAUNCHED = {"accelerate": Way("`accelerate launch`, `Accelerator().prepare`", prepared)}

# ---- one process


def offloaded(model: nn.Module, _: Path) -> nn.Module:
    import accelerate

    return accelerate.cpu_offload(model, execution_device="cpu")


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    import accelerate

    return accelerate.disk_offload(model, str(folder), execution_device="cpu")


def dispatched(model: nn.Module, folder: Path) -> nn.Module:
    """Dispatch a toy model: one layer to the disk. The factors stay."""
    import accelerate

    places = {name: "cpu" for name, _ in model.named_children() if name != "layers"}
    places |= {"layers.0": "cpu", "layers.1": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


def partition(parameter: nn.Parameter) -> None:
    """Leave a parameter as DeepSpeed's stage 3 does: its marks, and no values."""
    parameter.ds_id, parameter.ds_status, parameter.ds_shape = 0, "NOT_AVAILABLE", parameter.shape
    parameter.data = torch.empty(0)


def partitioned(model: nn.Module, _: Path) -> nn.Module:
    for parameter in model.parameters():
        partition(parameter)
    return model


OFFLOADED = {
    "cpu_offload": Way("accelerate's `cpu_offload`, `disk_offload`", offloaded, whole),
    "disk_offload": Way("accelerate's `cpu_offload`, `disk_offload`", on_disk, whole),
    "dispatch_model": Way("accelerate's `dispatch_model`", dispatched, whole),
}
STAND_INS = {"deepspeed": Way("DeepSpeed, stage 3", partitioned, whole)}
