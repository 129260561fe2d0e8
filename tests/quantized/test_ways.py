"""An adapter on a quantized host does what it does on the host with the dequantized weights, or is refused."""

import copy
import io

import numpy as np
import pytest
import torch

import tnadapt
from tests.quantized.ways import INNER, PATHS, WAYS, WIDTH, dense_host, host, normal, quantized
from tnadapt import SiteError, families
from tnadapt_torch import attach, load, load_peft

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the libraries

every_way = pytest.mark.parametrize("name", WAYS)
ARGUMENTS = {"target_modules": ["up", "down"], "rank": 2, "seed": 3}
READ = {
    "pissa": families.pissa(),
    "lora_xs": families.lora_xs(start="svd"),
    "dota": families.dota(order=2),
    "lora_pt": families.lora_pt(),
    "tcurlora": families.tcurlora(),
    "lotr": families.lotr(start="svd"),
    "abba": families.abba(),
}


def wake(state, seed=7):
    """Give every trainable factor random values, so that the update is not 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return state


def close(found, wanted, tolerance=1e-5):
    """Assert equality relative to the largest wanted entry, which must not be 0."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert wanted.any()


def photo(model):
    """Record what attach or detach could change on a host."""
    tensors = {key: value.detach().clone() for key, value in model.state_dict().items() if torch.is_tensor(value)}
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    idents = {key: id(parameter) for key, parameter in model.named_parameters()}
    kinds = {key: type(module) for key, module in model.named_modules()}
    return tensors, (flags, idents, kinds)


def assert_same_photo(before, after):
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        assert same(value, after[0][key]), key


def pickled(model):
    """Return a copy of a model by way of a file."""
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def can(way, model):
    """Return whether a host without an adapter can be copied in this way; not every library allows it."""
    try:
        way(model)
    except Exception:
        return False
    return True


def same(one, other):
    """Compare tensors of any kind bit for bit, by the values they stand for."""
    bits = io.BytesIO(), io.BytesIO()
    for tensor, stream in zip((one, other), bits, strict=True):
        torch.save(tensor, stream)
    return bits[0].getvalue() == bits[1].getvalue()


def assert_adds(model, other, deltas):
    """Assert that each layer of a host returns what it returns on another host, plus x dW^T.

    Layers are compared one by one: where x is rounded, a difference in its last bit can be one of a whole step.
    """
    with torch.no_grad():
        for path, delta in deltas.items():
            layer, bare = model.get_submodule(path), other.get_submodule(path)
            x = normal(5, delta.shape[1])
            close(layer(x), bare(x) + x @ delta.T)


@every_way
def test_attach_finds_the_layers_and_changes_nothing(name):
    model = quantized(WAYS[name]).eval()
    with torch.no_grad():
        before = model(normal(5, WIDTH))
    shot = photo(model)
    state = attach(model, families.lora(), target_modules="all-linear", rank=2, seed=0)
    assert {site.path: site.shape for site in state.adapter.sites} == {
        path: (INNER, WIDTH) if path.endswith("up") else (WIDTH, INNER) for path in PATHS
    }
    with torch.no_grad():
        assert torch.equal(model(normal(5, WIDTH)), before)
    state.detach()
    assert_same_photo(shot, photo(model))


@every_way
@pytest.mark.parametrize("spec", [families.lora(), families.lorta(), families.vera()], ids=lambda spec: spec.name)
def test_the_outputs_gain_the_update(name, spec):
    way = WAYS[name]
    sizes = {"sizes": {"head": 4}} if spec.name == "lorta" else {}
    model, other = quantized(way).eval(), quantized(way).eval()
    state = wake(attach(model, spec, **ARGUMENTS, **sizes))
    deltas = {path: state.delta(path).detach() for path in PATHS}
    assert all(delta.dtype == torch.float32 and delta.any() for delta in deltas.values())
    assert_adds(model, other, deltas)
    with state.disabled():
        assert_adds(model, other, {path: torch.zeros_like(delta) for path, delta in deltas.items()})


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.passes])
@pytest.mark.parametrize("family", ["lora", "lotr", "vera"])
def test_training_is_that_of_the_dequantized_host(name, family):
    way = WAYS[name]
    models = [quantized(way), dense_host(way, quantized(way))]
    states = [attach(model, family, **ARGUMENTS).train() for model in models]
    for state in states:
        wake(state)
    for step in range(2):
        losses = [(model(normal(5, WIDTH, seed=step)) ** 2).mean() for model in models]
        close(*losses)
        for loss in losses:
            loss.backward()
        for found, wanted in zip(*(state.parameters() for state in states), strict=True):
            close(found.grad, wanted.grad, 1e-4)
            for factor in (found, wanted):
                factor.data -= 0.1 * factor.grad / wanted.grad.norm()
                factor.grad = None
    for found, wanted in zip(*(state.parameters() for state in states), strict=True):
        close(found, wanted, 1e-4)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.passes])
def test_a_layer_that_stops_the_gradient_is_refused_when_it_is_needed(name):
    model = quantized(WAYS[name])
    state = wake(attach(model, families.lora(), **ARGUMENTS))
    with pytest.raises(
        SiteError, match=r"^0\.down: expected a layer that passes the gradient on to its input, got one"
    ):
        model(normal(5, WIDTH))
    with torch.no_grad():
        assert torch.isfinite(model(normal(5, WIDTH))).all()
    state.detach()
    state = wake(attach(model, families.lora(), target_modules=["2.down"], rank=2, seed=3))
    model(normal(5, WIDTH)).square().mean().backward()  # no earlier layer is trained: nothing is missing
    assert all(factor.grad is not None for factor in state.parameters())


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.passes])
def test_a_trained_bias_does_not_hide_that_a_layer_stops_the_gradient(name):
    model = quantized(WAYS[name])
    wake(attach(model, families.lora(), target_modules=["up"], rank=2, seed=3))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    with pytest.raises(SiteError, match=r"^0\.up: expected a layer that passes the gradient on to its input, got one"):
        model(normal(5, WIDTH).requires_grad_())


@every_way
def test_save_and_load(name, tmp_path):
    way = WAYS[name]
    model = quantized(way).eval()
    state = wake(attach(model, families.lotr(), **ARGUMENTS))
    state.save(tmp_path / "a")
    deltas = {path: state.delta(path).detach() for path in PATHS}
    again, whole = quantized(way).eval(), host()
    back = load(again, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again(normal(5, WIDTH)), model(normal(5, WIDTH)))
    assert back.norms() == state.norms()
    there = load(whole, tmp_path / "a")  # the way out of a refused merge
    before = {path: whole.get_submodule(path).weight.detach().clone() for path in PATHS}
    there.merge()
    for path, delta in deltas.items():
        assert torch.equal(back.delta(path), delta)
        assert torch.equal(whole.get_submodule(path).weight, before[path] + delta)


@every_way
def test_a_lora_checkpoint(name, tmp_path):
    way = WAYS[name]
    model, again = quantized(way).eval(), quantized(way).eval()
    state = wake(attach(model, families.lotr(), **ARGUMENTS))
    written = state.save_as_lora(tmp_path / "lora")
    assert written.keys() == set(PATHS)
    back = load_peft(again, tmp_path / "lora")
    for path in PATHS:
        close(back.delta(path), state.delta(path))
    with torch.no_grad():
        close(again(normal(5, WIDTH)), model(normal(5, WIDTH)))


@every_way
def test_merge_is_refused_and_changes_nothing(name):
    model = quantized(WAYS[name]).eval()
    state = wake(attach(model, families.lora(), **ARGUMENTS))
    with torch.no_grad():
        before = model(normal(5, WIDTH))
    shot = photo(model)
    with pytest.raises(SiteError, match=r"^0\.up: expected a plain floating-point matrix to merge into, got \w(.|\n)+"):
        state.merge()
    assert state.merged is None
    assert_same_photo(shot, photo(model))
    with torch.no_grad():
        assert torch.equal(model(normal(5, WIDTH)), before)


@every_way
@pytest.mark.parametrize("family", READ)
def test_starting_values_are_those_of_the_dequantized_weights(name, family):
    way = WAYS[name]
    model = quantized(way)
    if way.passes:
        model(normal(5, WIDTH))  # bitsandbytes moves its statistics at the first call
    if not way.reads:
        shot = photo(model)
        with pytest.raises(SiteError, match=r"^0\.up: expected a floating-point weight or one with a known dequant"):
            attach(model, READ[family], target_modules=["up"], rank=2, seed=0)
        assert_same_photo(shot, photo(model))
        return
    weights = {path: way.dense(model.get_submodule(path)).detach().float().numpy() for path in PATHS}
    state = attach(model.eval(), READ[family], target_modules=["up"], rank=2, seed=0)
    for key, value in tnadapt.init(state.adapter, weights).items():
        np.testing.assert_allclose(state.params()[key].detach(), value, rtol=1e-5, atol=1e-6 * np.abs(value).max())
    assert_adds(model, quantized(way).eval(), {path: torch.zeros(INNER, WIDTH) for path in PATHS if path[2:] == "up"})


@every_way
def test_folding_is_refused(name):
    model = quantized(WAYS[name])
    shot = photo(model)
    with pytest.raises(
        SiteError, match=r"^0\.up: expected a plain float32 or float64 weight to fold an update into, g"
    ):
        attach(model, families.lora(), **ARGUMENTS, fold=True)
    assert_same_photo(shot, photo(model))


@every_way
def test_training_a_quantized_module_in_full_is_refused(name):
    model = quantized(WAYS[name])
    shot = photo(model)
    with pytest.raises(
        SiteError, match=r"^modules_to_save: expected modules that can be trained in full, got 2\.down, w"
    ):
        attach(model, families.lora(), target_modules=["up"], rank=2, seed=0, modules_to_save=["2.down"])
    assert_same_photo(shot, photo(model))


@every_way
def test_the_factors_stay_float32_beside_half_precision(name):
    if WAYS[name].row == "torch.ao, dynamic":
        pytest.skip("it takes float32 inputs only")
    model = quantized(WAYS[name], torch.bfloat16).eval()
    state = wake(attach(model, families.lora(), **ARGUMENTS))
    assert {factor.dtype for factor in state.parameters()} == {torch.float32}
    with torch.no_grad():
        output = model(normal(5, WIDTH, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()
    assert state.delta("0.up").dtype == torch.float32


@every_way
def test_a_copy_and_a_pickled_host_keep_the_adapter(name):
    model = quantized(WAYS[name]).eval()
    ways = [way for way in (copy.deepcopy, pickled) if can(way, model)]
    state = wake(attach(model, families.lora(), **ARGUMENTS))
    with torch.no_grad():
        before = model(normal(5, WIDTH))
        for way in ways:
            twin = way(model)
            assert torch.equal(twin(normal(5, WIDTH)), before)
            assert torch.equal(twin.tnadapt_default.delta("0.up"), state.delta("0.up"))
            wake(twin.tnadapt_default, seed=8)
            assert not torch.equal(twin(normal(5, WIDTH)), before)
        assert torch.equal(model(normal(5, WIDTH)), before)
    if not ways:
        pytest.skip("this host can neither be copied nor pickled, adapted or not")


@every_way
def test_parameters_are_counted_as_those_of_the_unpacked_host(name, capsys):
    for model in (quantized(WAYS[name]), host()):
        attach(model, families.lora(), **ARGUMENTS).print_trainable_parameters()
    found, wanted = capsys.readouterr().out.splitlines()
    bias = "bias" not in dict(quantized(WAYS[name])[0].up.named_parameters())
    assert found == wanted or bias


@pytest.mark.parametrize("name", ["int8", "nf4", "torchao int8", "hqq 4 bit", "packed"])
def test_blocks_of_a_quantized_weight(name):
    way = WAYS[name]
    model, other = quantized(way).eval(), quantized(way).eval()
    state = wake(attach(model, families.lora(), target_modules=["up"], blocks={"up": (2, 2)}, rank=2, seed=0))
    deltas = {path: state.delta(path).detach() for path in PATHS if path.endswith("up")}
    assert_adds(model, other, deltas)


COMPILED = ("nf4", "int8", "torchao int8", "torchao int8 dynamic", "quanto int8", "packed", "scaled float8")


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_host(name):
    way = WAYS[name]
    torch.compiler.reset()
    model = quantized(way).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        compiled(normal(5, WIDTH))
    state = wake(attach(model, families.lora(), **ARGUMENTS))
    with torch.no_grad():
        close(compiled(normal(5, WIDTH)), model(normal(5, WIDTH)))
    if not way.passes:
        with pytest.raises(SiteError, match=r"^0\.down: expected a layer that passes the gradient on to its input"):
            torch.compile(model, backend="aot_eager")(normal(5, WIDTH))
        return
    grads = []
    for one in (compiled, model):
        one(normal(5, WIDTH)).square().mean().backward()
        grads.append([factor.grad for factor in state.parameters()])
        state.zero_grad()
    for found, wanted in zip(*grads, strict=True):
        close(found, wanted, 1e-4)
