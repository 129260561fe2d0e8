"""Keep the factors of an adapter equal on all processes that train it: each gradient is the mean over them."""

import hashlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tnadapt import SiteError
from tnadapt_torch._host import flattened, managed
from tnadapt_torch._sharded import average, is_partitioned, is_sharded, mesh_of, reshard, sharding, trained_by, whole
from tnadapt_torch._state.factors import Factors, leaf_of, plant, to_numpy
from tnadapt_torch._state.updates import make_updates

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tnadapt_torch._state.state import AdapterState

__all__: list[str] = []


class Replicas:
    """A hook before each forward pass of the host.

    DistributedDataParallel and fully_shard average the gradients of the parameters that they found when they were
    called. Factors that fully_shard does not have, since they came later or are ignored, are averaged here. At attach
    nobody knows what will be wrapped later, so each training pass looks whether something changed.
    """

    def __init__(self, state: "AdapterState", host: nn.Module) -> None:
        """Store the state and register the hook."""
        self.state = state
        self._seen: tuple[Any, ...] = ()
        self._handles: list[Any] = []  # of the hooks on factors
        self._handle: Any = host.register_forward_pre_hook(self)

    def __call__(self, host: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise SiteError if the factors are not here, or if each process would train its own adapter."""
        if torch.compiler.is_compiling():
            return
        saved = self.state.saved.parameters()
        _, first = next(self.state.named_parameters(), ("", None))
        if hasattr(first, "ds_id") or any(parameter.is_meta for parameter in saved):
            check_factors(self.state)
        if self.state.active and torch.is_grad_enabled():
            self.look()

    def look(self) -> None:
        """See to it that the gradient of each factor is averaged, unless nothing changed since the last time."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        state = self.state
        places = list(_places(state))
        found = [owner._parameters.get(name) for owner, name in places]
        wrapper = DistributedDataParallel._active_ddp_module
        flags = ((id(each), each is not None and each.requires_grad) for each in found)
        seen = (id(wrapper), len(managed(state.weights)), *flags)
        if seen == self._seen:
            return
        if wrapper is not None:
            averaged = _averaged_by(wrapper)
            trained = [each for each in found if each is not None and each.requires_grad]
            _refuse(state, [each for each in trained if id(each) not in averaged], wrapper)
        elif flattened(state.model, state.weights):
            # In a pass, a factor that it averages is no parameter but a view of one.
            _refuse(state, [each for each in found if each is None or isinstance(each, nn.Parameter)], wrapper)
        else:
            self._average(places)
        self._seen = seen

    def _average(self, places: Collection[tuple[nn.Module, str]]) -> None:
        """Average the gradients of the factors that fully_shard does not average."""
        self._stop()
        averaged, mesh = trained_by(sharding([self.state.model]))
        alone = [getattr(owner, name) for owner, name in places if (id(owner), name) not in averaged]
        for each in (mesh, mesh_of(stored_weights(self.state))):
            if each is not None:
                _check_equal(self.state, alone, each)
        if mesh is not None:
            hook = partial(_average_gradient, mesh=mesh)
            trained = dict.fromkeys(factor for factor in alone if factor.requires_grad)
            self._handles = [factor.register_post_accumulate_grad_hook(hook) for factor in trained]

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def remove(self) -> None:
        """Remove all hooks."""
        self._stop()
        self._handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what was seen, since a copy has parameters of its own."""
        return self.__dict__ | {"_seen": (), "_handles": []}


def _average_gradient(factor: Tensor, *, mesh: "DeviceMesh") -> None:
    grad = factor.grad
    if grad is not None:
        average(grad.to_local() if is_sharded(grad) else grad, mesh)


def _places(state: "AdapterState") -> Iterator[tuple[nn.Module, str]]:
    """Yield the module and the name of each parameter that the adapter trains, its modules_to_save included."""
    for key, slot in state.adapter.slots.items():
        if slot.factor.trainable:
            yield leaf_of(state.factors, key)
    for saved in state.saved.modules.values():
        for module in saved.modules():
            yield from ((module, name) for name, value in module._parameters.items() if value is not None)


def _averaged_by(wrapper: DistributedDataParallel) -> set[int]:
    """Return the parameters that DistributedDataParallel averages: those that required a gradient when it was made.

    The list of its parameters has the frozen ones too, of which it never averages a gradient.
    """
    buckets = wrapper.reducer._get_zeros_like_grad_buckets()
    return {id(parameter) for bucket in buckets for parameter in bucket.parameters()}


def _refuse(state: "AdapterState", alone: Collection[object], wrapper: object) -> None:
    if not alone:
        return
    name = "FullyShardedDataParallel" if wrapper is None else type(wrapper).__name__
    raise SiteError(
        f"adapter {state.name!r}: expected parameters whose gradients {name} averages over the processes, "
        f"got {len(alone)} that it does not know.\nEach process would train an adapter of its own. Attach to the plain "
        f"model, then wrap the whole of it{', with use_orig_params=True' if wrapper is None else ''}. A policy that "
        "trains some factors at a time, as with sites=, is made after that."
    )


def _check_equal(state: "AdapterState", factors: Collection[Tensor], mesh: "DeviceMesh") -> None:
    """Raise SiteError on all processes if the values of these factors, or of frozen ones, differ between them."""
    digest = hashlib.sha256()
    for value in (*factors, *state.buffers()):
        digest.update(to_numpy(value).tobytes())
    found = {digest.digest()}
    for dim in range(mesh.ndim):
        others: list[Any] = [None] * mesh.size(dim)
        dist.all_gather_object(others, found, group=mesh.get_group(dim))
        found = set().union(*others)
    if len(found) > 1:
        raise SiteError(
            f"adapter {state.name!r}: expected the same values on every process, got {len(found)} different sets.\n"
            "Attach with the same seed to the same weights on every process, or load the same file."
        )


def shared_by(state: "AdapterState") -> "DeviceMesh | None":
    """Return the processes that share the host or the factors of an adapter, or None."""
    tensors = [*state.params().values(), *state.saved.values().values(), *stored_weights(state)]
    return mesh_of(tensors) or trained_by(sharding(state.host))[1]


def stored_weights(state: "AdapterState") -> list[Tensor]:
    """Return the adapted weights that are stored as parameters, with or without folded updates."""
    return [weight.parameter for weight in state.weights.values() if weight.is_stored]


def settle(state: "AdapterState") -> None:
    """Let sharded modules hold their shards before values are read: what was gathered for a pass is a copy.

    Raises:
        SiteError: values are not on this process, or not outside a pass.
    """
    reshard([state, *state.host])
    check_factors(state)


def check_factors(state: "AdapterState") -> None:
    """Raise SiteError for a factor whose values are not on this process, or not outside a pass.

    A vector looks alike in a flat part and outside one; the weights of the host tell which of the two it is.
    """
    is_flat = any(is_partitioned(weight) for weight in stored_weights(state))
    for key, value in (state.params() | state.saved.values()).items():
        slot = state.adapter.slots.get(key)
        wanted = slot.shape if slot else tuple(value.shape)
        if value.is_meta:
            got = "one on the meta device: it was offloaded with its model"
            how = "Bring the model back first, with accelerate.hooks.remove_hook_from_submodules(model)."
        elif tuple(value.shape) != wanted or (is_flat and is_partitioned(value)):
            got = f"a part of shape {tuple(value.shape)}: the library that wraps the model holds the rest"
            how = "Call this inside `with FullyShardedDataParallel.summon_full_params(model):`, on every process."
            how = "Use stage 2 of DeepSpeed." if hasattr(value, "ds_id") else how
        else:
            continue
        raise SiteError(f"{key}: expected values of shape {wanted}, got {got}.\n{how}")


def own_factors(state: "AdapterState") -> None:
    """Let a detached state hold whole factors in modules of its own: fully_shard goes on with those that it took over.

    It would gather them at each pass of the host, in the precision of its policy.
    """
    params = state.params()
    if any(is_sharded(value) for value in params.values()):
        state.factors, state.stacks = Factors(), {}
        for key, slot in state.adapter.slots.items():
            plant(state.factors, key, whole(params[key].detach()), trainable=slot.factor.trainable)
        state.updates = make_updates(state)
