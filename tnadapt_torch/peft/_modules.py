"""Where a model holds its modules: PEFT replaces a module under one name, and here under all of them."""

from torch import nn

from tnadapt_torch.peft._layer import TnLayer, TnParameters

__all__: list[str] = []


def put_in_everywhere(model: nn.Module) -> None:
    """Put each of our layers in place of its base layer, wherever the model still holds that under another name."""
    layers = {id(module.base_layer): module for module in model.modules() if isinstance(module, TnLayer)}
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if (layer := layers.get(id(child))) is not None and layer is not owner:
                owner._modules[name] = layer


def take_out_everywhere(model: nn.Module) -> None:
    """Put the base layer in place of each of our layers that is left."""
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if isinstance(child, TnLayer):
                owner._modules[name] = child.get_base_layer()


def put_back(model: nn.Module, before: dict[str, nn.Module]) -> None:
    """Restore the modules of a model and remove new ones. In `before`, parents come before their children."""
    for path, module in before.items():
        parent, _, name = path.rpartition(".")
        if path and model.get_submodule(parent)._modules[name] is not module:
            model.get_submodule(parent)._modules[name] = module
    for path in dict(model.named_modules(remove_duplicate=False)).keys() - before.keys():
        parent, _, name = path.rpartition(".")
        if parent in before:
            del before[parent]._modules[name]


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the path of a module, or of the layer that holds its parameters."""
    paths: list[str] = [
        path
        for path, found in model.named_modules()
        if found is module or (isinstance(found, TnParameters) and found.base_layer is module)
    ]
    return paths[0]
