"""Quantized layers: how a weight is stored, and its dense values by the dequantization of the library that packed it.

A library is told by the names of its classes and imported only to read a weight of its own. None has to be installed.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tnadapt import SiteError

__all__: list[str] = []

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NEVER_PACKED = (*FLOATS, torch.int64, torch.bool, torch.complex64, torch.complex128)
LIBRARIES = ("bitsandbytes", "torchao", "hqq", "optimum.quanto", "torch.ao", "transformers.integrations")
DYNAMIC = "torch.ao.nn.quantized.dynamic.modules.linear"
SCALES = ("scale", "zero", "packed")  # in the names of tensors that a layer combines its weight with


def storage_of(module: nn.Module, name: str, stored: Tensor | None) -> str:
    """Say how a layer stores a weight, such as "Params4bit"; "" for plain floating-point numbers.

    Numbers that the layer scales or rounds at each call are not plain in this sense: the output does not gain what is
    added to them.
    """
    if stored is None:
        return type(module).__name__ if is_packed_linear(module) else f"{type(module).__name__} without {name}"
    if packed := _packing_of(stored):
        return packed
    if _library_of(type(module)):
        return f"{stored.dtype} in {type(module).__name__}"
    if scale := _scale_of(module, name):
        return f"{stored.dtype} beside {scale}"
    return ""


def read_dense(path: str, module: nn.Module, name: str, stored: Tensor | None) -> Tensor:
    """Return a weight as a dense tensor in float32 or better, in the layout of an unpacked weight.

    Raises:
        SiteError: the weight is packed in a way that has no known dequantization, or it has no values here.
    """
    if stored is not None and stored.is_meta:
        raise SiteError(
            f"{path}: expected a weight with values to compute starting values from, "
            "got one on the meta device, as offloaded weights are.\nAttach before the model is offloaded."
        )
    storage = storage_of(module, name, stored)
    dense = _dequantize(module, name, stored) if storage else stored
    if dense is None or not dense.is_floating_point():
        raise SiteError(
            f"{path}: expected a floating-point weight or one with a known dequantization to compute starting values "
            f"from, got {storage}.\nTake a spec with drawn starting values. Or attach this one to the model without "
            "quantization, and load its file onto this model."
        )
    return dense.detach().to(wide_dtype(dense.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute the update of a weight in: float32, or float64 for a float64 weight."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def device_of(module: nn.Module, stored: Tensor | None) -> torch.device:
    """Return the device of a weight."""
    if stored is not None:
        return stored.device
    return next((tensor.device for _, tensor in _own_tensors(module)), torch.device("cpu"))


def is_packed_linear(module: nn.Module) -> bool:
    """Return whether a module that is not an nn.Linear is a quantized linear layer.

    No base class covers them. They share "Linear" in the name, the sizes `in_features` and `out_features`, and a packed
    matrix of their own. Of the layers of torch.ao, those with a quantized input or a fused activation are left out.
    """
    if isinstance(module, nn.Linear) or "Linear" not in type(module).__name__:
        return False
    if not all(isinstance(getattr(module, size, None), int) for size in ("in_features", "out_features")):
        return False
    return _is_dynamic(module) or (_library_of(type(module)) != "torch.ao" and _holds_packed(module))


def is_unknown_linear(module: nn.Module) -> bool:
    """Return whether a module seems to be a quantized linear layer but is not one that can be adapted."""
    if is_fused(module):
        return True
    if isinstance(module, nn.Linear) or "Linear" not in type(module).__name__ or is_packed_linear(module):
        return False
    return _holds_packed(module) or "_packed_params" in module._modules


def is_fused(module: nn.Module) -> bool:
    """Return whether a module is an nn.Linear of torch.ao that ends in another operation, such as LinearReLU."""
    return isinstance(module, nn.Linear) and any(base.__name__ == "_FusedModule" for base in type(module).__mro__)


def check_trainable(saved: Mapping[str, nn.Module]) -> None:
    """Raise SiteError for a module that is to be trained in full but holds a quantized weight."""
    for path, module in saved.items():
        for below, part in module.named_modules():
            named = [_packing_of(tensor) for tensor in part._parameters.values() if tensor is not None]
            named += [type(part).__name__] if is_packed_linear(part) or is_unknown_linear(part) else []
            if storage := next(filter(None, named), ""):
                where = f"{path}.{below}" if below else path
                raise SiteError(
                    f"modules_to_save: expected modules that can be trained in full, got {where}, which is stored as "
                    f"{storage}.\nAdapt it instead, or keep it out of the quantization."
                )


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, each once. A packed weight counts as the matrix that it stands for."""
    seen: dict[int, int] = {}
    for module in model.modules():
        own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
        if isinstance(module, nn.Linear) or is_packed_linear(module):
            size = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
            if own["weight"].numel() != size if "weight" in own else _holds_packed(module) or _is_dynamic(module):
                seen[id(module)] = size
                own = {name: tensor for name, tensor in own.items() if name == "bias"}
            own = {name: tensor for name, tensor in own.items() if not any(part in name for part in SCALES)}
        seen |= {id(tensor): tensor.numel() for tensor in own.values()}
    return sum(seen.values())


def _dequantize(module: nn.Module, name: str, stored: Tensor | None) -> Tensor | None:
    """Return the dense weight by the library that stores it, or None if there is no way."""
    if stored is None:
        return _unpack(module)
    library = _library_of(type(stored)) or _library_of(type(module))
    if library == "bitsandbytes":
        return _read_bitsandbytes(module, stored)
    if _library_of(type(stored)) or _defines_dequantize(stored):
        return _read_subclass(stored)
    others = [other for other, _ in _own_tensors(module) if other not in {name, "bias"}]
    if stored.dtype not in FLOATS:  # float8 is its own value if the layer holds nothing to scale it by
        return None if others else stored
    return stored if library == "optimum.quanto" or not _scale_of(module, name) else None  # its scales are of x and y


def _unpack(module: nn.Module) -> Tensor | None:
    """Return the dense weight of a module that packs it under another name, or None if there is no way."""
    if _is_dynamic(module):
        return module.weight().dequantize()  # type: ignore[operator, no-any-return]
    return module.dequantize() if _library_of(type(module)) == "hqq" else None  # type: ignore[operator]


def _read_subclass(stored: Tensor) -> Tensor | None:
    """Return the dense values of a tensor of torchao or of a like library, or None if it has no way."""
    if getattr(stored, "act_pre_scale", None) is not None:  # the layer scales its input by this, too
        return None
    try:
        if hasattr(stored, "get_original_weight"):  # NF4Tensor, whose `dequantize` looks up single values
            dense: Tensor = stored.get_original_weight()
            return dense
        return stored.dequantize()
    except NotImplementedError:  # how torchao says that this layout has none
        return None


def _read_bitsandbytes(module: nn.Module, stored: Tensor) -> Tensor | None:
    """Return the dense weight of a layer of bitsandbytes, or None for a layout that only its inference reads.

    The statistics of 4 bits are in the layer if FSDP has made the parameter anew, those of 8 bits after the first call.
    """
    from bitsandbytes import functional  # noqa: PLC0415  (only a model that uses it needs it)

    packed = stored.detach().as_subclass(Tensor)
    state = getattr(stored, "quant_state", None)
    state = getattr(module, "quant_state", None) if state is None else state
    if state is not None:
        is_usual = not getattr(state, "packing_format_for_cpu", False)
        dense: Tensor | None = functional.dequantize_4bit(packed, state) if is_usual else None
        return dense
    scale = getattr(stored, "SCB", None)
    scale = getattr(getattr(module, "state", None), "SCB", None) if scale is None else scale
    if packed.dtype == torch.int8 and scale is not None:
        dense = functional.int8_vectorwise_dequant(packed, scale)
    else:
        dense = packed if packed.dtype in FLOATS else None
    return dense


def _packing_of(stored: Tensor) -> str:
    """Return the tensor's class if it packs or quantizes its numbers, or its dtype; "" for plain numbers."""
    library = _library_of(type(stored))
    if library == "bitsandbytes" and stored.dtype in FLOATS and getattr(stored, "quant_state", None) is None:
        return ""  # not quantized before it is moved to a device
    if library or _defines_dequantize(stored):
        return type(stored).__name__
    return "" if stored.dtype in FLOATS else str(stored.dtype)


def _scale_of(module: nn.Module, name: str) -> str:
    """Return the name of a tensor that the layer combines this weight with; "" if it has none."""
    others = [other for other, _ in _own_tensors(module) if any(part in other for part in SCALES)]
    return next((other for other in others if name == "weight" or other.startswith(name)), "")


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module itself, by name."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _library_of(kind: type) -> str:
    """Return which of the libraries a class or one of its bases comes from; "" for none of them."""
    names = [f"{base.__module__}." for base in kind.__mro__]
    return next((library for library in LIBRARIES if any(name.startswith(f"{library}.") for name in names)), "")


def _defines_dequantize(stored: Tensor) -> bool:
    return type(stored).dequantize is not Tensor.dequantize


def _is_dynamic(module: nn.Module) -> bool:
    """Return whether a module is the dynamically quantized linear layer of torch.ao, without a fused activation."""
    return (type(module).__module__, type(module).__name__) == (DYNAMIC, "Linear")


def _holds_packed(module: nn.Module) -> bool:
    """Return whether a module has a matrix of its own that is stored as small integers or float8."""
    return any(tensor.dtype not in NEVER_PACKED and tensor.ndim > 1 for _, tensor in _own_tensors(module))
