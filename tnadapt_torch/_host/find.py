"""Find the modules and parameters of a host that an adapter is to update."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import nn
from torch.nn.parameter import UninitializedParameter

from tnadapt import SiteError
from tnadapt.binding import Rule, expect_names, in_layers, match, mistake, nearest, told
from tnadapt_torch._host.quantized import is_unknown_linear
from tnadapt_torch._host.weight import Weight, is_linear, linear_weight, named_weight

__all__: list[str] = []

ALL_LINEAR = "all-linear"


def check_model(given: object, where: str) -> None:
    """Raise SiteError unless the argument is a torch module without lazy layers; `where` is what it was passed to."""
    if not isinstance(given, nn.Module):
        todo = f"The model comes first: {where}(model, ...)."
        raise mistake(SiteError, where, "a torch module as its first argument", told(given), todo)
    lazy = [path for path, tensor in given.named_parameters() if isinstance(tensor, UninitializedParameter)]
    if lazy:
        raise SiteError(
            f"{lazy[0].rpartition('.')[0]}: expected a layer whose weight has a shape, got a lazy one.\n"
            f"Call the model once, then {where}."
        )


def check_rules(
    rules: Mapping[str, object], layers: object, target_parameters: object, saved: object, where: str = "attach"
) -> None:
    """Raise SiteError unless each rule is a string or a list of names and each other argument has its expected type."""
    for word, rule in rules.items():
        if rule is not None and not isinstance(rule, str):
            expect_names(rule, where, word, SiteError)
    if saved is not None:
        expect_names(saved, where, "modules_to_save", SiteError)
    indices = layers if isinstance(layers, Collection) and not isinstance(layers, str) else [layers]
    if layers is not None and not all(hasattr(index, "__index__") for index in indices):
        todo = "Write layers_to_transform=[0, 1]."
        raise mistake(SiteError, where, "indices as layers_to_transform", told(layers), todo)
    if not isinstance(target_parameters, Mapping | None):
        todo = 'Write target_parameters={"experts.gate_up_proj": "expert in out"}.'
        raise mistake(SiteError, where, "layouts by name as target_parameters", told(target_parameters), todo)


def find_weights(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    target_modules: Rule | None,
    exclude_modules: Rule | None,
    layers_to_transform: int | Collection[int] | None,
    *,
    target_parameters: Mapping[str, str] | None = None,
) -> dict[str, Weight]:
    """Find the weights to adapt, by path: those of the matched modules in model order, then the named parameters.

    A list matches exact paths and suffixes after a dot. A string is a regular expression for the whole path.
    "all-linear" matches every linear layer except the output head. `target_parameters` maps parameter names, matched
    like a list, to their layouts.

    Raises:
        SiteError: a rule, or one name of a list, matches nothing (the message gives the nearest names); or a matched
            module is not a linear layer.
    """
    linear = [path for path, module in modules.items() if path and is_linear(module)]
    named = find_parameters(modules, target_parameters or {})
    if target_modules is None and not named:
        todo = 'Write target_modules="all-linear", or a list of names.'
        raise mistake(SiteError, "attach", "target_modules", "none", todo)
    if target_modules is None and named:
        chosen: list[str] = []
    elif target_modules == ALL_LINEAR:
        unknown = [path for path, module in modules.items() if path and is_unknown_linear(module)]
        chosen = _without_head(model, [*linear, *unknown])  # unknown ones raise below, unless they are excluded
    else:
        chosen = match(modules, target_modules or (), what="target_modules", things="modules", known=linear)
    if exclude_modules is not None:
        refused = set(match(modules, exclude_modules, what="exclude_modules", things="modules", known=linear))
        chosen = [path for path in chosen if path not in refused]
    if layers_to_transform is not None:
        kept = in_layers([*chosen, *named], layers_to_transform, among=parameter_paths(modules))
        chosen, named = [path for path in chosen if path in kept], {p: w for p, w in named.items() if p in kept}
    check_linear({path: modules[path] for path in chosen})
    if not chosen and not named:
        hint = (
            nearest("", linear)
            if linear
            else "\nThe model has no linear layer inside it: wrap a single layer in a module."
        )
        raise SiteError(
            f"target_modules: expected a rule that leaves something to adapt, got {target_modules!r}.{hint}"
        )
    return {path: linear_weight(modules[path], path) for path in chosen} | named


def find_parameters(modules: Mapping[str, nn.Module], layouts: Mapping[str, str]) -> dict[str, Weight]:
    """Find parameters by name. Raise SiteError for a name that matches none and for a layout that does not fit."""
    owners = {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in modules.items()
        for name, _ in module.named_parameters(recurse=False)
    }
    return {
        path: named_weight(path, *owners[path], layout)
        for name, layout in layouts.items()
        for path in match(owners, [name], what="target_parameters", things="parameters")
    }


def parameter_paths(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield the path of every parameter; these paths show which numbers in a path count layers."""
    for path, module in modules.items():
        for name in module._parameters:
            yield f"{path}.{name}" if path else name


def check_linear(modules: Mapping[str, nn.Module]) -> None:
    """Raise SiteError unless every module is a linear layer with a weight of known shape."""
    for path, module in modules.items():
        if isinstance(module._parameters.get("weight"), UninitializedParameter):
            raise SiteError(
                f"{path}: expected a layer whose weight has a shape, got a lazy one.\nCall the model once, then attach."
            )
        if not is_linear(module):
            raise SiteError(
                f"{path}: expected nn.Linear or transformers' Conv1D, called as a module, "
                f"got {name_class(module)}.\nRemove it from target_modules, or name it in exclude_modules."
            )


def name_class(module: nn.Module) -> str:
    """Return the name of a module's class, in full if its last word is the name of a layer that can be adapted."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__name__ in ("Linear", "Conv1D") else kind.__name__


def _without_head(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Drop the path of the output head, if the model can name it, as the models of transformers can."""
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return [path for path in paths if head is None or model.get_submodule(path) is not head]
