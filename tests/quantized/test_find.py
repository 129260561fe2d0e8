"""Which quantized layers can be adapted, which are refused by name, and which are no linear layers at all."""

import warnings

import pytest
import torch
from torch import nn

from tests.quantized.ways import INNER, WIDTH, PackedLinear, host, normal
from tnadapt import SiteError, families
from tnadapt_torch import attach

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of torch.ao


def with_first(layer):
    """Make a host whose first `up` is another layer."""
    model = host()
    model[0].up = layer
    return model


class TransposedLinear(nn.Module):
    """A packed layer that does not say its sizes, like EetqLinear of transformers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, INNER, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ self.weight.to(x.dtype)


class LinearPositions(nn.Module):
    """No linear layer, whatever its name says."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = WIDTH
        self.register_buffer("positions", torch.arange(2 * WIDTH).reshape(2, WIDTH))
        self.register_buffer("mask", torch.ones(WIDTH, WIDTH, dtype=torch.bool))


def static():
    """Make a layer of torch.ao whose input and output are quantized."""
    from torch.ao.nn.quantized import Linear

    return Linear(WIDTH, INNER)


def relu_dynamic():
    """Make a layer of torch.ao that ends in a ReLU."""
    from torch.ao.nn.intrinsic.quantized.dynamic import LinearReLU

    return LinearReLU(WIDTH, INNER)


def relu_qat():
    """Make a layer of torch.ao for training aware of quantization that ends in a ReLU; it is an nn.Linear."""
    from torch.ao.nn.intrinsic.qat import LinearReLU
    from torch.ao.quantization import get_default_qat_qconfig

    return LinearReLU(WIDTH, INNER, qconfig=get_default_qat_qconfig())


UNKNOWN = {"static": static, "relu dynamic": relu_dynamic, "relu qat": relu_qat, "no sizes": TransposedLinear}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_a_layer_that_cannot_be_adapted_is_named_and_not_passed_over(make):
    layer = make()
    for targets in ("all-linear", ["up"]):
        with pytest.raises(
            SiteError, match=rf"^0\.up: expected nn\.Linear .*, got \S*{type(layer).__name__}(.|\n)*exclude"
        ):
            attach(with_first(layer), families.lora(), target_modules=targets, rank=2, seed=0)
    state = attach(
        with_first(layer), families.lora(), target_modules="all-linear", exclude_modules=["0.up"], rank=2, seed=0
    )
    assert len(state.weights) == 5


def test_a_module_that_is_named_linear_but_packs_no_weight_is_passed_over():
    model = host()
    model[0].positions = LinearPositions()
    assert len(attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0).weights) == 6


def test_a_packed_output_head_is_left_out():
    model = host()
    model.head = PackedLinear(nn.Linear(WIDTH, WIDTH))
    model.get_output_embeddings = lambda: model.head
    assert "head" not in attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0).weights


def test_a_packed_parameter_has_no_layout():
    model = with_first(PackedLinear(nn.Linear(WIDTH, INNER)))
    for name, packed in (("packed", torch.ones(8, 8, dtype=torch.uint8)), ("short", torch.ones(8, 8).to(torch.int8))):
        model.register_parameter(name, nn.Parameter(packed, requires_grad=False))
        with pytest.raises(
            SiteError, match=rf"^{name}: expected a plain float32 or float64 weight .*, got torch\.u?int8"
        ):
            attach(model, families.lora(), target_parameters={name: "out in"}, rank=2, seed=0)


def qat():
    from torch.ao.nn.qat import Linear
    from torch.ao.quantization import get_default_qat_qconfig

    return Linear(WIDTH, INNER, qconfig=get_default_qat_qconfig())


def reference():
    from torch.ao.nn.quantized.reference import Linear

    return Linear(WIDTH, INNER)


class ScaledLinear(nn.Linear):
    """A layer whose weight holds codes in a float dtype, like AutoBitLinear of transformers."""

    def __init__(self):
        super().__init__(WIDTH, INNER)
        self.register_buffer("weight_scale", torch.tensor([0.5]))

    def forward(self, x):
        return super().forward(x) * self.weight_scale


def torchao(build):
    """Return a function that makes one layer by torchao, which keeps its weight in float32."""

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the import, for kernels that this machine cannot load
            pytest.importorskip("torchao", reason="torchao is not installed; `make quantized` installs it")
        return build(nn.Sequential(nn.Linear(WIDTH, INNER)))[0]

    return make


def torchao_qat(model):
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.qat import QATConfig

    quantize_(model, QATConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4), step="prepare"))
    return model


def torchao_float8(model):
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    return convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))


def quanto():
    """Make a layer of quanto before its weight is frozen."""
    optimum = pytest.importorskip("optimum.quanto", reason="quanto is not installed; `make quantized` installs it")
    model = nn.Sequential(nn.Linear(WIDTH, INNER))
    optimum.quantize(model, weights=optimum.qint8)
    return model[0]


def bitnet():
    transformers = pytest.importorskip("transformers.integrations.bitnet", reason="transformers is not installed")
    return transformers.AutoBitLinear(WIDTH, INNER, online_quant=True)


ROUNDING = {
    "qat": qat,
    "reference": reference,
    "scaled": ScaledLinear,
    "torchao qat": torchao(torchao_qat),
    "torchao float8": torchao(torchao_float8),
    "quanto": quanto,
    "bitnet": bitnet,
}


@pytest.mark.parametrize("make", ROUNDING.values(), ids=ROUNDING)
def test_a_layer_that_changes_its_float_weight_at_each_call_is_not_merged_into(make):
    model = with_first(make())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # the layer of transformers compiles itself
        before = model[0].up(normal(2, WIDTH))
        state = attach(model, families.lora(), target_modules=["0.up"], rank=2, seed=0)
        for factor in state.parameters():
            factor.fill_(0.1)
        found, wanted = model[0].up(normal(2, WIDTH)), before + normal(2, WIDTH) @ state.delta("0.up").T
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    with pytest.raises(
        SiteError, match=r"^0\.up: expected a plain floating-point matrix to merge into, got torch\.float"
    ):
        state.merge()


def test_codes_beside_a_scale_are_not_taken_for_the_weight():
    with pytest.raises(
        SiteError, match=r"^0\.up: expected a floating-point weight .*, got torch\.float32 beside weight_"
    ):
        attach(with_first(ScaledLinear()), families.pissa(), target_modules=["0.up"], rank=2, seed=0)


@pytest.mark.parametrize("kind", [kind for kind in ROUNDING if kind not in ("reference", "scaled")])
def test_a_float_weight_that_is_rounded_at_each_call_is_read_as_it_is(kind):
    layer = ROUNDING[kind]()
    state = attach(with_first(layer), families.pissa(), target_modules=["0.up"], rank=2, seed=0)
    plain = nn.Linear(WIDTH, INNER)
    plain.weight.data = layer.weight.data.clone()
    wanted = attach(with_first(plain), families.pissa(), target_modules=["0.up"], rank=2, seed=0)
    for key, value in wanted.params().items():
        assert torch.equal(state.params()[key], value)


LAYERS = {  # transformers' own, by the module that has them: most run on a GPU only
    "finegrained_fp8.FP8Linear": (WIDTH, INNER, (32, 32)),
    "fbgemm_fp8.FbgemmFp8Linear": (WIDTH, INNER, True),
    "bitnet.BitLinear": (WIDTH, INNER, True),
    "bitnet.AutoBitLinear": (WIDTH, INNER),
    "metal_quantization.MetalLinear": (WIDTH, INNER),
    "compressed_tensors.CompressedTensorsFP8Linear": (WIDTH, INNER),
    "gguf.utils.GgufLinear": (WIDTH, INNER, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_quantized_layers_of_transformers_are_adapted_but_neither_read_nor_merged_into(name):
    place, kind = name.rsplit(".", 1)
    library = pytest.importorskip(f"transformers.integrations.{place}", reason="transformers is not installed")
    model = with_first(getattr(library, kind)(*LAYERS[name]))
    with pytest.raises(SiteError, match=r"^0\.up: expected a floating-point weight or one with a known dequantization"):
        attach(model, families.pissa(), target_modules="all-linear", rank=2, seed=0)
    state = attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0)
    assert state.delta("0.up").shape == (INNER, WIDTH)
    with pytest.raises(SiteError, match=r"^0\.up: expected a plain floating-point matrix to merge into, got "):
        state.merge()


def test_a_layer_of_transformers_without_sizes_is_named():
    library = pytest.importorskip("transformers.integrations.eetq", reason="transformers is not installed")
    model = with_first(library.EetqLinear(WIDTH, INNER))
    with pytest.raises(SiteError, match=r"^0\.up: expected nn\.Linear .*, got EetqLinear"):
        attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0)


def test_the_update_sees_the_input_that_quanto_rounded():
    optimum = pytest.importorskip("optimum.quanto", reason="quanto is not installed; `make quantized` installs it")
    model = nn.Sequential(nn.Linear(WIDTH, INNER))
    optimum.quantize(model, weights=optimum.qint8, activations=optimum.qint8)
    with torch.no_grad(), optimum.Calibration():
        model(normal(5, WIDTH))
    optimum.freeze(model)
    bare = model(normal(5, WIDTH)).detach()
    seen = []
    handle = model[0].register_forward_hook(lambda layer, args, output: seen.append(args[0].dequantize()))
    state = attach(model, families.lora(), target_modules=["0"], rank=2, seed=0)
    for factor in state.parameters():
        factor.data.fill_(0.1)
    found = model(normal(5, WIDTH))
    handle.remove()
    assert (seen[0] - normal(5, WIDTH)).abs().max() > 1e-4
    wanted = bare + seen[0] @ state.delta("0").T
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    found.square().mean().backward()
    assert all(factor.grad.any() for factor in state.parameters())
