"""The weights that an adapter of PEFT updates: what PEFT's rules match, and parameters by name."""

from collections.abc import Callable, Collection, Iterable, Iterator

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tnadapt import SiteError
from tnadapt.binding import in_layers
from tnadapt_torch._host import (
    Weight,
    check_linear,
    find_parameters,
    is_linear,
    linear_weight,
    parameter_paths,
    plain_path,
    unwrapped,
)
from tnadapt_torch.peft._config import TnConfig
from tnadapt_torch.peft._layer import TnLayer, TnLinear, TnParameters

__all__: list[str] = []

ALL_LINEAR = "all-linear"
SAVED = "modules_to_save"  # PEFT's word in the paths of modules that are trained in full


def find_targets(model: nn.Module, config: TnConfig, matches: Callable[[TnConfig, str], object]) -> dict[str, Weight]:
    """Find the weights of the base layers that the rules of PEFT match, then the named parameters, by path.

    The paths are those of the plain model, without the names that a compiler puts in.

    Raises:
        SiteError: nothing matches, a module that matches is not a linear layer, or the model is data-parallel.
    """
    unwrapped(model)
    spell_out(model, config)
    found = base_modules(model)
    modules = {plain_path(path): module for path, module in found.items()}
    chosen: dict[str, nn.Module] = {}
    if config.target_modules is not None:
        chosen = {plain_path(path): module for path, module in found.items() if path and matches(config, path)}
    named = find_parameters(modules, config.target_parameters or {})
    if config.layers_to_transform is not None and named:
        kept = in_layers(named, config.layers_to_transform, among=parameter_paths(modules))
        named = {path: weight for path, weight in named.items() if path in kept}
    if not chosen and not named:
        raise SiteError(
            f"target_modules: expected a rule that matches a module and does not exclude it, "
            f"got {config.target_modules!r}."
        )
    check_linear(chosen)
    _check_nesting(model, chosen, named)
    return {path: linear_weight(module, path) for path, module in chosen.items()} | named


def _check_nesting(model: nn.Module, chosen: Collection[str], named: Collection[str]) -> None:
    """Raise SiteError for an adapted layer that is, or is inside, a module with adapted parameters: PEFT wraps one."""
    layers = [module for module in model.modules() if isinstance(module, TnLayer)]
    linear = [*chosen, *(layer.path for layer in layers if isinstance(layer, TnLinear))]
    owners = [path.rpartition(".")[0] for path in named]
    for owner in [*owners, *(layer.path for layer in layers if isinstance(layer, TnParameters))]:
        inside = [path for path in linear if f"{path}.".startswith(f"{owner}.")]
        if inside or not owner:
            given = f"{inside[0]} in {owner}" if owner else "one of the model itself"
            raise SiteError(
                "target_parameters: expected parameters of modules below the model, without adapted layers inside, "
                f"got {given}.\nUse tnadapt_torch.attach, or adapt one of the two."
            )


def spell_out(model: nn.Module, config: TnConfig) -> None:
    """Replace "all-linear" in a config by the paths that PEFT chooses for it, without layers that are never called.

    Those are the output projections of nn.MultiheadAttention, and copies of modules that are trained in full.
    """
    rule = config.target_modules
    if not isinstance(rule, str) or rule.lower() != ALL_LINEAR:
        return
    copies = [f"{path}." for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    found = _maybe_include_all_linear_layers(config, model).target_modules
    config.target_modules = {
        path for path in found if not path.startswith(tuple(copies)) and is_linear(_base_of(model.get_submodule(path)))
    }


def keys_in_full(model: nn.Module, configs: Iterable[TnConfig]) -> list[str]:
    """Return the keys of the modules that any of these configs trains in full, by PEFT's rule, without its copies."""
    names = tuple(name for config in configs for name in config.modules_to_save or ())
    paths = tuple(f"{path}." for path, _ in model.named_modules() if names and path.endswith(names))
    keys = [key for key in model.state_dict() if key.startswith(paths) and SAVED not in key.split(".")]
    return [f"base_model.model.{key}" for key in keys]


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by path as without our layers; the layers of other methods of PEFT stay closed."""
    return dict(_walk("", model, set()))


def _walk(path: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    base = _base_of(module)
    if id(base) in seen:
        return
    seen.add(id(base))
    yield path, base
    if not isinstance(base, BaseTunerLayer):
        for name, child in base.named_children():
            yield from _walk(f"{path}.{name}" if path else name, child, seen)


def _base_of(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, TnLayer) else module
