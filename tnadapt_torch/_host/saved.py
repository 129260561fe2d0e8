"""Modules of the model that are trained in full along with the factors, and their original values."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt_torch._host.wrappers import module_at, plain_path
from tnadapt_torch._sharded import is_partitioned, is_sharded, laid_like, reshard, sharding

__all__: list[str] = []


class SavedModules:
    """Modules that an adapter trains in full. The host holds either their trained or their original values.

    Modules may share a tensor, such as a tied embedding and head. It has a value under each of its names, and it is
    swapped once.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Store the modules by path and copy their present values as the original ones.

        Raises:
            SiteError: a module is offloaded, or has no values yet.
        """
        check_loaded(modules)
        self.modules = dict(modules)
        self.is_trained = True
        self._away: dict[str, Tensor] = {}
        for names, value in self._tensors():
            self._away |= dict.fromkeys(names, value.detach().clone())

    def values(self) -> dict[str, Tensor]:
        """Return the trained floating-point tensors by name, whether or not the host holds them now."""
        return self._here() if self.is_trained else dict(self._away)

    def swap(self) -> None:
        """Swap trained and original values. Storages are swapped, so autograd graphs that hold them stay valid.

        Only where `is_copied` says so, values are copied instead.
        """
        reshard(list(self.modules.values()))
        is_copied = self.is_copied
        for names, value in self._tensors():
            kept = self._away.get(names[0])
            if kept is None or kept.shape != value.shape:  # `check` tells of it; a detach leaves it as it is now
                continue
            away = laid_like(kept.to(device=value.device, dtype=value.dtype), value)
            here = value.detach()
            if is_copied and is_sharded(value):
                here = here.clone()
                with torch.no_grad():
                    value.copy_(away)
            elif is_sharded(value) and is_sharded(away):
                value._local_tensor.data = away._local_tensor
            else:
                value.data = away
            self._away |= dict.fromkeys(names, here)
        self.is_trained = not self.is_trained

    @property
    def is_copied(self) -> bool:
        """Whether fully_shard holds the modules. Then its storages stay, and a backward pass gathers them again."""
        return bool(self.modules and sharding(list(self.modules.values())))

    def check(self, host: nn.Module) -> None:
        """Raise SiteError unless the host still has these modules in their places, with the tensors of their attach."""
        for path, module in self.modules.items():
            found = module_at(host, path)
            if found is not module:
                self._refuse(path, "none" if found is None else f"another {type(found).__name__}")
        here = self._here()
        for key in self._away.keys() | here.keys():
            if key not in here or key not in self._away:
                self._refuse(key, "none" if key in self._away else "a new one")
            if self._away[key].shape != here[key].shape and not is_partitioned(here[key]):
                self._refuse(key, f"one of shape {tuple(here[key].shape)}")

    @staticmethod
    def _refuse(name: str, got: str) -> None:
        raise SiteError(
            f"{name}: expected what modules_to_save named when the adapter was attached, got {got}.\n"
            "The model changed after the adapter was attached. Put it back, or detach the adapter, and attach or load "
            "it again."
        )

    def check_swap(self, *, gradients: bool) -> None:
        """Raise SiteError for offloaded values, and where a backward pass would gather the values of after the swap."""
        if gradients and self.is_copied:
            raise SiteError(
                "disabled: expected gradients to be off, since fully_shard holds modules_to_save, got them enabled.\n"
                "Write `with torch.no_grad(), state.disabled():`."
            )
        check_present(self.modules)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the modules have now, each once."""
        return list(dict.fromkeys(each for module in self.modules.values() for each in module.parameters()))

    def _tensors(self) -> Iterator[tuple[list[str], Tensor]]:
        """Yield each tensor once, with all its names."""
        names: dict[int, list[str]] = {}
        here = self._here()
        for key, value in here.items():
            names.setdefault(id(value), []).append(key)
        for keys in names.values():
            yield keys, here[keys[0]]

    def _here(self) -> dict[str, Tensor]:
        return {
            f"{path}.{plain_path(key)}" if path else plain_path(key): value
            for path, module in self.modules.items()
            for key, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor) and value.is_floating_point()  # a module may store more than tensors
        }


def check_present(modules: Mapping[str, nn.Module]) -> None:
    """Raise SiteError for a module that accelerate offloaded: its values are elsewhere, and it is not trained."""
    for path, module in modules.items():
        if _is_meta(module) and is_offloaded(module):
            raise SiteError(
                f"{path}: expected a module of modules_to_save with its values, got one that is offloaded.\n"
                "Keep it on a device, or call accelerate.hooks.remove_hook_from_submodules(model) first."
            )


def check_loaded(modules: Mapping[str, nn.Module]) -> None:
    """Raise SiteError for a module on the meta device: there is nothing to keep, and what is loaded later is lost."""
    check_present(modules)
    for path, module in modules.items():
        if _is_meta(module):
            raise SiteError(
                f"{path}: expected a module of modules_to_save with its values, got one on the meta device.\n"
                "Load the weights of the model, then attach or load the adapter."
            )


def _is_meta(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate brings the values of a module only when it is called."""
    return any("_hf_hook" in vars(inner) for inner in module.modules())


def find_tie(model: nn.Module, keys: Collection[str]) -> tuple[str, str] | None:
    """Find the first of these parameters that the model also holds under a name outside them; return both names."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(plain_path(name))
    for tied in names.values():
        inside, outside = ([name for name in tied if (name in keys) == wanted] for wanted in (True, False))
        if inside and outside:
            return inside[0], outside[0]
    return None
