"""A host that is quantized after attach, or after a merge: right, or noticed by an error that names the layer."""

import pytest
import torch
from torch import nn

from tests.quantized.ways import INNER, PATHS, WAYS, WIDTH, host, normal, quantized, replace
from tnadapt import SiteError, families
from tnadapt_torch import attach

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the libraries

IN_PLACE = ["torchao int8", "torchao int4", "torchao float8", "torchao nf4"]  # torchao changes parameters
REPLACING = ["nf4", "int8", "hqq 4 bit", "quanto int8", "packed"]  # the others put a new layer in the place of the old
ARGUMENTS = {"target_modules": ["up", "down"], "rank": 2, "seed": 3}


def attached(model):
    state = attach(model, families.lora(), **ARGUMENTS)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return state


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_adapter_works_on_when_parameters_are_quantized(name, tmp_path):
    quantized(WAYS[name])  # skips
    model = host()
    state = attached(model)
    deltas = {path: state.delta(path).detach() for path in PATHS}
    WAYS[name].quantize(model)
    other = quantized(WAYS[name])
    assert type(model[0].up.weight) is type(other[0].up.weight) is not nn.Parameter
    with torch.no_grad():
        for path, delta in deltas.items():
            assert torch.equal(state.delta(path), delta)
            x = normal(5, delta.shape[1])
            found, wanted = model.get_submodule(path)(x), other.get_submodule(path)(x) + x @ delta.T
            assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    model(normal(5, WIDTH)).square().mean().backward()
    assert all(factor.grad is not None and factor.grad.any() for factor in state.parameters())
    state.save(tmp_path / "a")
    state.save_as_lora(tmp_path / "lora")
    with pytest.raises(SiteError, match=r"^0\.up: expected a plain floating-point matrix to merge into, got "):
        state.merge()
    state.detach()
    with torch.no_grad():
        assert torch.equal(model(normal(5, WIDTH)), other(normal(5, WIDTH)))


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_weight_that_is_a_factor_is_read_as_it_is_stored_after_it_is_quantized(name):
    quantized(WAYS[name])  # skips
    model = host()
    state = attach(model, families.hira(), **ARGUMENTS)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.fill_(0.5)
    WAYS[name].quantize(model)
    x, layer = normal(5, WIDTH), model[0].up
    with torch.no_grad():
        wanted = WAYS[name].dense(layer) * state.spec.scale.at(2) * 0.5  # B A is 0.5 everywhere
        torch.testing.assert_close(state.delta("0.up"), wanted, rtol=1e-5, atol=1e-6)
        found = layer(x)
        with state.disabled():
            torch.testing.assert_close(found - layer(x), x @ wanted.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REPLACING)
@pytest.mark.parametrize("deed", ["save", "save_as_lora", "delta", "norms", "merge"])
def test_a_layer_replaced_by_a_quantized_one_is_noticed(name, deed, tmp_path):
    quantized(WAYS[name])  # skips
    model = host()
    state = attached(model)
    WAYS[name].quantize(model)
    deeds = {
        "save": lambda: state.save(tmp_path / "a"),
        "save_as_lora": lambda: state.save_as_lora(tmp_path / "a"),
        "delta": lambda: state.delta("0.up"),
        "norms": state.norms,
        "merge": state.merge,
    }
    with pytest.raises(
        SiteError, match=r"^0\.up: expected the weight of shape .* that the adapter was attached to, got "
    ):
        deeds[deed]()
    assert not list(tmp_path.iterdir())
    assert state.merged is None
    state.detach()
    assert not any(key.startswith("tnadapt_") for key in model.state_dict())


def test_only_the_replaced_layer_is_named():
    model = host()
    state = attached(model)
    model[1].up = nn.Linear(WIDTH, INNER)
    assert state.delta("0.up").any()
    with pytest.raises(SiteError, match=r"^1\.up: expected the weight of .* that the adapter was attached to, got "):
        state.norms()


@pytest.mark.parametrize("name", IN_PLACE)
def test_unmerge_from_parameters_quantized_after_the_merge_is_refused(name):
    quantized(WAYS[name])  # skips
    model = host()
    state = attached(model)
    state.merge()
    WAYS[name].quantize(model)
    with torch.no_grad():
        before = model(normal(5, WIDTH))
    with pytest.raises(SiteError, match=r"^0\.up: expected the plain floating-point matrix that was merged into, got "):
        state.unmerge()
    with torch.no_grad():
        assert torch.equal(model(normal(5, WIDTH)), before)
        state.detach()
        assert torch.equal(model(normal(5, WIDTH)), before)


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_bitsandbytes_quantizes_only_when_a_layer_is_moved(kind):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="`make quantized` installs it")

    def make(linear):
        made = getattr(bitsandbytes.nn, kind)(WIDTH, linear.out_features, linear.bias is not None)
        made = type(made)(linear.in_features, linear.out_features, linear.bias is not None)
        made.load_state_dict(linear.state_dict())
        return made

    model = replace(host(), make)
    weight = model[0].up.weight.detach().clone()
    assert weight.is_floating_point()
    state = attach(model, families.pissa(), target_modules=["up"], rank=2, seed=0)  # reads the weight as it is now
    wanted = attach(host(), families.pissa(), target_modules=["up"], rank=2, seed=0)
    for key, value in wanted.params().items():
        assert torch.equal(state.params()[key], value)
    with pytest.raises(SiteError, match=rf"^0\.up: expected a plain .* to merge into, got torch\.float32 in {kind}\."):
        state.merge()
    assert torch.equal(model[0].up.weight, weight)


def test_the_layout_of_bitsandbytes_for_inference_on_cpus_is_not_read():
    functional = pytest.importorskip("bitsandbytes.functional", reason="`make quantized` installs it")
    model = quantized(WAYS["nf4"])
    for path in PATHS:  # what the first call in eval mode does on a CPU with AVX512-BF16
        weight = model.get_submodule(path).weight
        weight.data, weight.quant_state = functional._convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    with pytest.raises(SiteError, match=r"^0\.up: expected .* known dequantization .*, got Params4bit\."):
        attach(model, families.pissa(), target_modules=["up"], rank=2, seed=0)
    state = attach(model, families.lora(), target_modules=["up"], rank=2, seed=0)
    assert state.delta("0.up").shape == (INNER, WIDTH)


def test_statistics_that_only_the_layer_holds_are_found():
    pytest.importorskip("bitsandbytes", reason="`make quantized` installs it")
    models = [quantized(WAYS["nf4"]) for _ in range(2)]
    for path in PATHS:  # what is left of the parameter under FSDP
        layer = models[0].get_submodule(path)
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(torch.Tensor), requires_grad=False)
    states = [attach(model, families.pissa(), target_modules=["up"], rank=2, seed=0) for model in models]
    for key, value in states[1].params().items():
        assert torch.equal(states[0].params()[key], value)


def test_a_weight_on_the_meta_device_has_no_values_to_start_from():
    model = quantized(WAYS["float8"])
    model[1].up.to("meta")
    with pytest.raises(SiteError, match=r"^1\.up: expected a weight with values .*, got one on the meta device"):
        attach(model, families.pissa(), target_modules=["up"], rank=2, seed=0)


def test_a_weight_that_bitsandbytes_parametrizes_is_read_but_not_merged_into():
    library = pytest.importorskip("bitsandbytes.nn.parametrize", reason="`make quantized` installs it")
    model = host()
    library.replace_parameter_4bit(model[0].up, "weight")
    plain = host()
    plain[0].up.weight.data = model[0].up.weight.detach().clone()
    state, wanted = (attach(each, families.pissa(), target_modules=["0.up"], rank=2, seed=0) for each in (model, plain))
    for key, value in wanted.params().items():
        assert torch.equal(state.params()[key], value)
    with pytest.raises(
        SiteError, match=r"^0\.up: expected a weight that is stored as a parameter, got one that is comp"
    ):
        state.merge()


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_parameter_with_a_layout_is_not_folded_into_if_it_is_quantized(name):
    model = host()
    model.register_parameter("expert", quantized(WAYS[name])[0].up.weight)
    with pytest.raises(
        SiteError, match=r"^expert: expected a plain float32 or float64 weight to fold an .*, got \w+Te"
    ):
        attach(model, families.lora(), target_parameters={"expert": "out in"}, rank=2, seed=0)


def test_a_folded_weight_is_counted_once(capsys):
    for fold in (False, True):
        attach(host(), families.lora(), **ARGUMENTS, fold=fold).print_trainable_parameters()
    found, wanted = capsys.readouterr().out.splitlines()
    assert found == wanted
