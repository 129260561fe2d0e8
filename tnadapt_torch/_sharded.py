"""Tensors whose values lie on several processes: gathered, laid out like a weight, kept equal, written once.

Every function here may communicate, so all processes that share a tensor must call it. `torch.distributed.tensor` takes
a second to import; as long as nothing has imported it, there is no such tensor.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__: list[str] = []

T = TypeVar("T")


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a DTensor: each process holds a part of it, or a copy."""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def mesh_of(tensors: Iterable[Tensor]) -> "DeviceMesh | None":
    """Return the largest group of processes that share one of these tensors, or None."""
    found = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]
    return max(found, key=lambda mesh: mesh.size(), default=None)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its values. Its gradient is the mean over the processes, as in data parallelism."""
    if not is_sharded(tensor):
        return tensor
    full = tensor.full_tensor()
    return _Mean.apply(full, tensor.device_mesh) if full.requires_grad else full  # type: ignore[no-untyped-call]


def laid_like(values: Tensor, like: Tensor) -> Tensor:
    """Return whole values in the layout of another tensor, of which each process holds its part."""
    if not is_sharded(like):
        return whole(values)
    if is_sharded(values) and (values.device_mesh, values.placements) == (like.device_mesh, like.placements):
        return values
    (copies,) = beside([whole(values).to(like.device)], like)
    return cast("DTensor", copies).redistribute(placements=like.placements)


def beside(parts: Sequence[Tensor], like: Tensor) -> Sequence[Tensor]:
    """Return tensors that every process holds as they can be multiplied with another one: copies, if it is sharded."""
    if not is_sharded(like):
        return parts
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415  (imported by now, since `like` is one)

    copy = [Replicate()] * like.device_mesh.ndim
    return [DTensor.from_local(part, like.device_mesh, copy, run_check=False) for part in parts]


class _Mean(torch.autograd.Function):
    """The identity, whose gradient is averaged over the processes of a mesh."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mesh: "DeviceMesh") -> Tensor:
        ctx.mesh = mesh
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        average(grad, ctx.mesh)
        return grad, None


def average(values: Tensor, mesh: "DeviceMesh") -> None:
    """Replace values by their mean over the processes of a mesh."""
    for dim in range(mesh.ndim):
        dist.all_reduce(values, group=mesh.get_group(dim))
    values.div_(mesh.size())


def sharding(modules: Collection[nn.Module]) -> "list[FSDPModule]":
    """Return the modules that `fully_shard` was called on and that share a module with one of these.

    They may lie above a model, which does not know what it is a part of, so they are found among all of this process.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    from torch.distributed._composable_state import _module_state_mapping  # noqa: PLC0415  (as `is_sharded`)

    marked = list(_module_state_mapping)
    wanted = {id(inner) for module in modules for inner in module.modules()} if marked else set()
    known = [module for module in marked if any(id(inner) in wanted for inner in module.modules())]
    return [cast("FSDPModule", module) for module in known if isinstance(module, fsdp.FSDPModule)]


def reshard(modules: Collection[nn.Module]) -> None:
    """Let the modules that fully_shard sharded hold their shards again: values gathered for a forward pass are copies.

    What is written to such a copy is lost, and a copy can have a lower precision. Compiled code leaves it as it is.
    """
    if torch.compiler.is_compiling():
        return
    for module in sharding(modules):
        module.reshard()


def trained_by(modules: "Collection[FSDPModule]") -> "tuple[set[tuple[int, str]], DeviceMesh | None]":
    """Return the parameters whose gradients these modules average, each by module and name, and over which processes.

    The lists are private to torch. In a forward pass nothing else tells such a parameter from one that is ignored.
    """
    places, mesh = set(), None
    for module in modules:
        state: Any = module._get_fsdp_state()
        groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
        for group in groups:
            if group is not None:  # a module without parameters of its own
                mesh = mesh or group.mesh_info.mesh
                infos = [parameter._module_info for parameter in group.fsdp_params]
                places |= {(id(info.module), info.param_name) for info in infos}
    return places, mesh


def is_partitioned(tensor: Tensor) -> bool:
    """Return whether DeepSpeed's stage 3 or FullyShardedDataParallel holds this weight elsewhere, in flat parts."""
    is_flat = getattr(tensor, "_fsdp_flattened", False) and tensor.ndim <= 1
    return is_flat or (hasattr(tensor, "ds_id") and tensor.numel() == 0)


def once(mesh: "DeviceMesh | None", act: Callable[[], T]) -> T:
    """Act on the first process of a mesh; return what it returned, or raise what it raised, on all of them.

    Without a mesh, act here.
    """
    if mesh is None:
        return act()
    found: list[Any] = [None, None]
    if not any(mesh.get_coordinate() or ()):
        try:
            found = [act(), None]
        except Exception as error:
            found = [None, error]
    for dim in range(mesh.ndim):
        dist.broadcast_object_list(found, group=mesh.get_group(dim), group_src=0)
    result, failure = found
    if failure is not None:
        raise failure
    return cast("T", result)
