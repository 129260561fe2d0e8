"""Modules of a host that are trained whole beside the factors, and the values that they had before."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

__all__: list[str] = []


class SavedModules:
    """Modules that an adapter trains in place: either their trained values or their original ones are in the host."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Args: the modules by path; the values that they have now are the original ones."""
        self.modules = dict(modules)
        self.is_trained = True
        self._away = {key: value.detach().clone() for key, value in self._here().items()}

    def values(self) -> dict[str, Tensor]:
        """The trained floating-point tensors by their names in the host, wherever they are now."""
        return self._here() if self.is_trained else dict(self._away)

    def swap(self) -> None:
        """Exchange trained and original values. Storages change places, so a graph that holds either stays right."""
        for key, value in self._here().items():
            here = value.data
            value.data = self._away[key].to(device=here.device, dtype=here.dtype)
            self._away[key] = here
        self.is_trained = not self.is_trained

    def _here(self) -> dict[str, Tensor]:
        return {
            f"{path}.{key}" if path else key: value
            for path, module in self.modules.items()
            for key, value in module.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        }


def find_tie(model: nn.Module, keys: Collection[str]) -> tuple[str, str] | None:
    """The first of these parameters that has a further name in the model, which is none of them; and that name."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    for tied in names.values():
        inside, outside = ([name for name in tied if (name in keys) == wanted] for wanted in (True, False))
        if inside and outside:
            return inside[0], outside[0]
    return None
