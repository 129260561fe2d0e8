"""Ways to quantize a host, with what each allows; and stand-ins for layers of libraries that need a GPU."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

WIDTH, INNER, LAYERS = 64, 256, 3
PATHS = [f"{layer}.{name}" for layer in range(LAYERS) for name in ("up", "down")]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def host(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Make the host, with the same numbers at every call."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(LAYERS))).to(dtype)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class PackedLinear(nn.Module):
    """A layer like those of GPTQ and AWQ: its own class, eight 4-bit codes in each int32, scales for groups of 32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().reshape(-1, 32)
        scales = weight.abs().amax(1, keepdim=True) / 7
        codes = (weight / scales).round().to(torch.int32) + 8
        shifts = 4 * torch.arange(8, dtype=torch.int32)
        qweight = (codes.reshape(-1, 8) << shifts).sum(1, dtype=torch.int32).reshape(self.out_features, -1)
        self.register_buffer("qweight", qweight)
        self.register_buffer("scales", scales.reshape(self.out_features, -1))
        self.bias = linear.bias

    def dense(self) -> Tensor:
        shifts = 4 * torch.arange(8, dtype=torch.int32)
        codes = (self.qweight[..., None] >> shifts & 15) - 8
        return (codes.reshape(-1, 32) * self.scales.reshape(-1, 1)).reshape(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)


class ScaledFloat8Linear(nn.Linear):
    """A layer like transformers' FP8Linear, whose own code needs a GPU: a float8 weight and a scale beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        scale = linear.weight.detach().float().abs().max() / 448
        stored = (linear.weight.detach().float() / scale).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.weight.float() * self.weight_scale_inv).to(x.dtype), self.bias)


class Float8Linear(nn.Linear):
    """A layer that stores its weight as float8 numbers, without a scale, and casts it at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def replace(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Put another layer in the place of each linear layer."""
    for path in PATHS:
        model.set_submodule(path, make(model.get_submodule(path)))
    return model


def cast_weights(model: nn.Module) -> nn.Module:
    """Store weights as float8 and cast them for the time of a call, by hooks, as tools for large image models do."""

    def before(layer: nn.Linear, args: tuple[Tensor, ...]) -> None:
        layer.weight.data = layer.weight.data.to(args[0].dtype)

    def after(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)

    for path in PATHS:
        layer = model.get_submodule(path)
        layer.weight.requires_grad_(False)
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    return model


def bnb_4bit(model: nn.Module, **options: object) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    def make(linear: nn.Linear) -> nn.Module:
        dtype = linear.weight.dtype
        made = Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, dtype, **options)
        made.load_state_dict(linear.state_dict())
        return made.to(dtype).to("cpu")

    return replace(model, make)


def bnb_8bit(model: nn.Module, **options: object) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    def make(linear: nn.Linear) -> nn.Module:
        made = Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, **options
        )
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    return replace(model, make)


def bnb_4bit_dense(layer: nn.Module) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def bnb_8bit_dense(layer: nn.Module) -> Tensor:
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.float() * (scale / 127)[:, None]  # the formula of the paper


def torchao(name: str, module: str = "torchao.quantization", **options: object) -> Callable[[nn.Module], nn.Module]:
    """Return a function that quantizes a host by a config of torchao."""

    def quantize(model: nn.Module) -> nn.Module:
        from torchao.quantization import quantize_

        quantize_(model, getattr(importlib.import_module(module), name)(**options))
        return model

    return quantize


def torchao_nf4(model: nn.Module) -> nn.Module:
    from torchao.quantization import to_nf4

    def make(linear: nn.Linear) -> nn.Module:
        linear.weight = nn.Parameter(to_nf4(linear.weight.detach()), requires_grad=False)
        return linear

    return replace(model, make)


def int4_of_groups() -> dict[str, object]:
    from torchao.quantization import PerGroup

    return {"weight_dtype": torch.int4, "granularity": PerGroup(32)}


def torchao_int4(model: nn.Module) -> nn.Module:
    return torchao("IntxWeightOnlyConfig", **int4_of_groups())(model)


def torchao_int4_dynamic(model: nn.Module) -> nn.Module:
    options = int4_of_groups()
    return torchao(
        "Int8DynamicActivationIntxWeightConfig",
        weight_dtype=options["weight_dtype"],
        weight_granularity=options["granularity"],
    )(model)


def hqq(bits: int) -> Callable[[nn.Module], nn.Module]:
    """Return a function that quantizes a host by HQQ."""

    def quantize(model: nn.Module) -> nn.Module:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=bits, group_size=64)
        with torch.no_grad():  # else its bias, a copy, is no leaf
            return replace(
                model, lambda linear: HQQLinear(linear, config, compute_dtype=linear.weight.dtype, device="cpu")
            )

    return quantize


def quanto(name: str, **options: str) -> Callable[[nn.Module], nn.Module]:
    """Return a function that quantizes a host by quanto."""

    def quantize(model: nn.Module) -> nn.Module:
        import optimum.quanto as library

        kinds = {key: getattr(library, value) for key, value in options.items()}
        library.quantize(model, weights=getattr(library, name), **kinds)
        library.freeze(model)
        return model

    return quantize


def dynamic(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    """Return a function that quantizes a host by the dynamic quantization of torch.ao."""

    def quantize(model: nn.Module) -> nn.Module:
        model.requires_grad_(False)  # float16 keeps its bias where no switch of the model reaches it
        return torch.ao.quantization.quantize_dynamic(model, dtype=dtype)

    return quantize


def dequantized(layer: nn.Module) -> Tensor:
    return layer.weight.dequantize()


@dataclass(frozen=True)
class Way:
    """A way to quantize.

    `row` is its row in the table of docs/guides/torch.md; `dense` returns the weight of a layer, by the library or by a
    formula; `reads` says whether starting values can be read from it, `passes` whether gradients reach the input.
    """

    row: str
    quantize: Callable[[nn.Module], nn.Module]
    dense: Callable[[nn.Module], Tensor] | None
    package: str = ""
    reads: bool = True
    passes: bool = True


def compressed_float8(model: nn.Module) -> nn.Module:
    """Use the layer of transformers for models of compressed-tensors; of its float8 layers, this one runs on a CPU."""
    from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear

    def make(linear: nn.Linear) -> nn.Module:
        made = CompressedTensorsFP8Linear(linear.in_features, linear.out_features)
        scale = linear.weight.detach().float().abs().amax(1) / 448
        stored = (linear.weight.detach().float() / scale[:, None]).to(torch.float8_e4m3fn)
        made.weight = nn.Parameter(stored, requires_grad=False)
        made.weight_scale = nn.Parameter(scale[None], requires_grad=False)
        made.bias = linear.bias
        return made

    return replace(model, make)


INT4_CPU = "torchao.prototype.quantization.int4"
WAYS = {
    "fp4": Way("bitsandbytes, 4 bit", bnb_4bit, bnb_4bit_dense, "bitsandbytes"),
    "nf4": Way(
        "bitsandbytes, 4 bit",
        lambda model: bnb_4bit(model, quant_type="nf4", compress_statistics=True),
        bnb_4bit_dense,
        "bitsandbytes",
    ),
    "nf4 in bfloat16": Way(  # the storage that FSDP needs: packed codes that pass for floating-point numbers
        "bitsandbytes, 4 bit",
        lambda model: bnb_4bit(model, quant_type="nf4", quant_storage=torch.bfloat16),
        bnb_4bit_dense,
        "bitsandbytes",
    ),
    "int8": Way("bitsandbytes, 8 bit", bnb_8bit, bnb_8bit_dense, "bitsandbytes"),
    "torchao int8": Way("torchao, weights only", torchao("Int8WeightOnlyConfig"), dequantized, "torchao"),
    "torchao int4": Way("torchao, weights only", torchao_int4, dequantized, "torchao"),
    "torchao float8": Way("torchao, weights only", torchao("Float8WeightOnlyConfig"), dequantized, "torchao"),
    "torchao nf4": Way(
        "torchao, weights only", torchao_nf4, lambda layer: layer.weight.get_original_weight(), "torchao"
    ),
    "torchao int4 for CPUs": Way(
        "torchao, int4 for CPUs",
        torchao("PrototypeInt4WeightOnlyConfig", INT4_CPU, group_size=32),
        None,
        "torchao",
        reads=False,
        passes=False,
    ),
    "torchao int8 dynamic": Way(
        "torchao, activations too",
        torchao("Int8DynamicActivationInt8WeightConfig"),
        dequantized,
        "torchao",
        passes=False,
    ),
    "torchao int4 dynamic": Way("torchao, activations too", torchao_int4_dynamic, dequantized, "torchao", passes=False),
    "hqq 4 bit": Way("HQQ", hqq(4), lambda layer: layer.dequantize(), "hqq"),
    "hqq 3 bit": Way("HQQ", hqq(3), lambda layer: layer.dequantize(), "hqq"),
    # not quanto's int4: it compiles C++ at the first call
    "quanto int8": Way("quanto", quanto("qint8"), dequantized, "optimum.quanto"),
    "quanto float8": Way("quanto", quanto("qfloat8"), dequantized, "optimum.quanto"),
    "dynamic int8": Way(
        "torch.ao, dynamic", dynamic(torch.qint8), lambda layer: layer.weight().dequantize(), passes=False
    ),
    "dynamic float16": Way(
        "torch.ao, dynamic", dynamic(torch.float16), lambda layer: layer.weight().dequantize(), passes=False
    ),
    "packed": Way(
        "other layers with packed weights (GPTQ, AWQ, ...)",
        lambda model: replace(model, PackedLinear),
        PackedLinear.dense,
        reads=False,
    ),
    "scaled float8": Way(
        "float8 with a scale (FP8Linear, ...)",
        lambda model: replace(model, ScaledFloat8Linear),
        lambda layer: layer.weight.float() * layer.weight_scale_inv,
        reads=False,
    ),
    "scaled float8 of activations too": Way(
        "float8 with a scale and for activations too (CompressedTensorsFP8Linear, ...)",
        compressed_float8,
        lambda layer: layer.weight.float() * layer.weight_scale.T,
        "transformers",
        reads=False,
        passes=False,
    ),
    "float8": Way("float8", lambda model: replace(model, Float8Linear), lambda layer: layer.weight.float()),
    "float8 by hooks": Way("float8", cast_weights, lambda layer: layer.weight.float()),
}


def quantized(way: Way, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Make the host and quantize it. Skip the test if the package is missing."""
    if way.package:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the import, for kernels that this machine cannot load
            pytest.importorskip(way.package, reason=f"{way.package} is not installed; `make quantized` installs it")
    return way.quantize(host(dtype))


def dense_host(way: Way, model: nn.Module) -> nn.Module:
    """Make the host in full precision with the weights that the quantized one stands for."""
    made = host()
    for path in PATHS:
        made.get_submodule(path).weight.data = way.dense(model.get_submodule(path)).detach().float().clone()
    return made
