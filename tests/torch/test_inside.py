"""Layers that are called with the update in their weight, and updates that read the layer's own product."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import AdapterSpec, families, frozen, magnitude, masked, plan, same, trainable
from tnadapt.initializers import host, normal, zeros
from tnadapt_torch import attach

WIDTH, TOKENS = 32, 256
# Code from inductor takes ten seconds for each graph. One test takes it in every run; the others look at the graphs.
BACKEND = "inductor" if IS_THOROUGH else "aot_eager"
FULL = {
    "hira": (families.hira(), {"rank": 4}),
    "losa": (families.losa(), {"rank": 4}),
    "monarch": (families.monarch(), {"rank": 2}),
    "ssb": (families.ssb(), {}),
    "oft": (families.oft(), {"sizes": {"i": 4}}),
    "kradapter": (families.kradapter(), {}),
}
TURNED = AdapterSpec(  # the product of the layer, turned: nothing else of the host is read
    name="turned",
    weight="out in",
    factors={
        "R": trainable("out a", init=zeros(), map="cayley"),
        "W2": same("W", "a in"),
        "W": frozen("out in", init=host()),
    },
    terms=["R W2", "- W"],
)
SCALED = AdapterSpec(
    name="scaled", weight="out in", factors={"s": trainable("out", init=zeros()), "W": frozen("out in", init=host())}
)
every_product = pytest.mark.parametrize("spec", [TURNED, SCALED, families.oft()], ids=lambda spec: spec.name)


def layer_with(spec, *, bias=True, kind=nn.Linear, **words):
    """Return a layer with a woken adapter in float64, an input, and the weight and the bias of the layer."""
    torch.manual_seed(0)
    layer = kind(WIDTH, WIDTH, bias=bias)
    model = nn.Sequential(layer).double()
    kept = [p.detach().clone() for p in layer.parameters()]
    state = hosts.wake(attach(model, spec, target_modules="all-linear", seed=0, **words)).double()
    return model, state, torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True), kept


def oracle(state, x, weight, bias=None):
    """Return the output, and the gradients of its cubes for x and the factors, by the dense update."""
    update = state.updates["0"].delta(weight)
    output = nn.functional.linear(x, weight + update, bias)
    return output, torch.autograd.grad(output.pow(3).sum(), [x, *state.parameters()])


def found(model, state, x):
    output = model(x)
    return output, torch.autograd.grad(output.pow(3).sum(), [x, *state.parameters()])


def agree(one, other):
    for mine, wanted in zip([one[0], *one[1]], [other[0], *other[1]], strict=True):
        hosts.close(mine, wanted, 1e-10)


def products(model, x):
    """Count the products with a matrix of the weight's size."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / (2 * x.shape[0] * WIDTH * WIDTH)


@pytest.mark.parametrize("family", FULL)
def test_a_layer_with_a_full_rank_update_is_called_with_the_update_in_its_weight(family):
    spec, words = FULL[family]
    model, state, x, kept = layer_with(spec, **words)
    assert state.updates["0"].may_fold
    agree(found(model, state, x), oracle(state, x, *kept))
    many = torch.randn(8192, WIDTH, dtype=torch.float64)
    assert products(model, many) < 1.5
    state.updates["0"].may_fold = False
    assert products(model, many) >= 2


def test_an_update_of_low_rank_is_added_to_the_output():
    model, state, x, _ = layer_with(families.lora(), rank=1)
    assert not plan(state.adapter.networks[0], tokens=TOKENS).pays_to_fold
    state.updates["0"].may_fold = True
    assert state.updates["0"].call_inside(model[0], (x,), {}) is None


class Doubled(nn.Linear):
    """A layer that is more than the product with its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("spec", [families.hira(), TURNED], ids=lambda spec: spec.name)
def test_a_layer_of_another_class_is_called_as_it_is(spec):
    words = {"rank": 4} if spec.name == "hira" else {}
    model, state, x, (weight, bias) = layer_with(spec, kind=Doubled, **words)
    assert not state.updates["0"].may_fold
    assert not state.updates["0"].reads_product
    hosts.close(model(x), 2 * (x @ weight.T + bias) + x @ state.updates["0"].delta(weight).T, 1e-10)


@pytest.mark.parametrize("spec", [families.hira(), TURNED], ids=lambda spec: spec.name)
@pytest.mark.parametrize("change", ["dropout", "autocast", "another adapter", "another fold", "keyword", "half"])
def test_what_a_weight_cannot_hold_is_added_to_the_output(spec, change):
    words = {"rank": 4} if spec.name == "hira" else {}
    model, state, x, (weight, bias) = layer_with(spec, **words)
    update = state.updates["0"].delta(weight)
    wanted, tolerance = x @ (weight + update).T + bias, 1e-10
    if change == "dropout":
        state.dropout = 0.5
        torch.manual_seed(3)
        dropped = nn.functional.dropout(x, 0.5)
        torch.manual_seed(3)
        hosts.close(model(x), x @ weight.T + bias + dropped @ update.T, 1e-10)
        model.eval()
    if change == "autocast":
        model, x = model.float(), x.detach().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hosts.close(model(x).double(), wanted, 2e-2)
        return
    if change == "another adapter":
        other = hosts.wake(attach(model, families.lora(), target_modules=["0"], rank=2, seed=1, adapter_name="b"))
        wanted = wanted + x @ other.double().updates["0"].delta(weight).T
    if change == "another fold":
        folding = attach(model, families.lora(), target_modules=["0"], rank=2, seed=1, adapter_name="b", fold=True)
        other = hosts.wake(folding).double()
        wanted = wanted + x @ other.updates["0"].delta(weight).T
    if change == "keyword":
        hosts.close(model[0](input=x), wanted, 1e-10)
    if change == "half":
        model, x, tolerance = model.bfloat16(), x.detach().bfloat16(), 3e-2
    hosts.close(model(x).double(), wanted, tolerance)


@every_product
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_of_the_layer_is_read_instead_of_the_weight(spec, bias):
    model, state, x, kept = layer_with(spec, bias=bias)
    state.updates["0"].may_fold = False
    assert state.updates["0"].reads_product
    agree(found(model, state, x), oracle(state, x, *kept))


@pytest.mark.parametrize("spec", [TURNED, SCALED], ids=lambda spec: spec.name)
def test_a_host_whose_product_is_at_hand_is_not_read(spec, monkeypatch):
    model, state, x, _ = layer_with(spec)
    state.updates["0"].may_fold = False
    wanted = model(x)
    monkeypatch.setattr("tnadapt_torch._host.hosted.Hosted.read", None)
    assert torch.equal(model(x), wanted)
    assert torch.equal(model(x.reshape(2, -1, WIDTH)), wanted.reshape(2, -1, WIDTH))
    state.updates["0"].reads_product = False
    with pytest.raises(TypeError, match="not callable"):
        model(x)


def test_blocks_read_their_rows_of_the_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12)).double()
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    state = hosts.wake(attach(model, SCALED, target_modules=["0"], blocks={"0": (3, 1)})).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    hosts.close(model(x), x @ (weight + state.delta("0").double()).T + bias, 1e-6)
    assert state.updates["0"].reads_product


@pytest.mark.parametrize(
    ("spec", "backend"),
    [(families.hira(), "inductor" if IS_THOROUGH else BACKEND), (TURNED, BACKEND)],
    ids=["hira", "turned"],
)
def test_copies_and_compiled_code_agree(spec, backend):
    model, state, x, _ = layer_with(spec, **({"rank": 4} if spec.name == "hira" else {}))
    wanted = found(model, state, x)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), wanted[0])
    torch._dynamo.reset()
    agree(found(torch.compile(model, fullgraph=True, backend=backend), state, x), wanted)


def test_an_update_in_the_weight_follows_training_and_the_end_of_the_adapter():
    model, state, x, (weight, bias) = layer_with(families.hira(), rank=4)
    before = model(x)
    with torch.no_grad():
        next(state.parameters()).add_(1.0)
    hosts.close(model(x), oracle(state, x, weight, bias)[0], 1e-10)
    assert not torch.allclose(model(x), before)
    with state.disabled():
        assert torch.equal(model(x), nn.functional.linear(x, weight, bias))
    state.detach()
    assert torch.equal(model(x), nn.functional.linear(x, weight, bias))


def test_a_site_that_is_only_called_inside_is_not_idle():
    spec = AdapterSpec(name="dense", weight="out in", factors={"D": trainable("out in", init=normal())}, start="free")
    model, state, x, _ = layer_with(spec)
    assert state.updates["0"].is_idle
    model(x)
    assert not state.updates["0"].is_idle
    assert not any(state.updates["0"]._code[:15])


class Shifted(nn.Module):
    """A parametrization that adds 1."""

    def forward(self, value):
        return value + 1


@pytest.mark.parametrize("spec", [families.lora(), families.hira(), magnitude(families.lora())], ids=lambda s: s.name)
@pytest.mark.parametrize("change", ["pruned", "parametrized"])
@pytest.mark.parametrize("tokens", [3, 4096])
def test_a_bias_that_is_computed_is_added(spec, change, tokens):
    model, state, *_ = layer_with(spec, rank=4)
    if change == "pruned":
        prune.l1_unstructured(model[0], "bias", 0.3)
    else:
        parametrize.register_parametrization(model[0], "bias", Shifted())
    x, weight = torch.randn(tokens, WIDTH, dtype=torch.float64), model[0].weight.detach()
    hosts.close(model(x), nn.functional.linear(x, weight + state.updates["0"].delta(weight), model[0].bias), 1e-10)


TRAINED = {
    "hira": (families.hira(), {"rank": 4}),
    "oft": (families.oft(), {"sizes": {"i": 4}}),
    "turned": (TURNED, {}),
    "masked": (masked(families.lora()), {"rank": 4}),
    "dora": (magnitude(families.lora()), {"rank": 4}),
    "magnitude of oft": (magnitude(families.oft()), {"sizes": {"i": 4}}),
}


WAYS = [(way, tokens) for way in ("called", "added", "without the product", "folded") for tokens in (3, 4096)]
COMPILED = [("compiled", 3), ("compiled", 4096)]
# To compile takes a second for each: in the weight, beside it, and with a magnitude.
SOME = [(name, *way) for name in TRAINED for way in WAYS] + [
    (name, *COMPILED[0]) for name in ("hira", "turned", "dora")
]
EVERY = [(name, *way) for name in TRAINED for way in WAYS + COMPILED]


@pytest.mark.parametrize(("name", "way", "tokens"), EVERY if IS_THOROUGH else SOME)
def test_a_weight_that_is_trained_gets_one_gradient_whatever_the_way(name, tokens, way):
    spec, words = TRAINED[name]
    model, state, _, (weight, bias) = layer_with(spec, **words, fold=way == "folded")
    update, x = state.updates["0"], torch.randn(tokens, WIDTH, dtype=torch.float64)
    below = getattr(update, "below", update)
    if way != "called":
        below.may_fold = False
    if way == "without the product":
        update.reads_product = below.reads_product = False
    stored = update.weight.weight.parameter if hasattr(update, "weight") else state.weights["0"].parameter
    stored.requires_grad_()
    torch._dynamo.reset()
    called = torch.compile(model, fullgraph=True, backend=BACKEND) if way == "compiled" else model
    (found,) = torch.autograd.grad(called(x).pow(3).sum(), stored)
    trained, lengths = weight.clone().requires_grad_(), None
    parts = [ref.read().detach() if not hasattr(ref, "weight") else None for ref in below.refs]
    whole = trained + dense(below, [trained if part is None else part for part in parts], spec)
    if hasattr(update, "lengths"):
        lengths = update.lengths.read().detach().reshape(-1, 1)
        whole = whole * (lengths / whole.detach().norm(dim=1, keepdim=True))
    (wanted,) = torch.autograd.grad(nn.functional.linear(x, whole, bias).pow(3).sum(), trained)
    hosts.close(found, wanted, 1e-10)


def dense(below, parts, spec):
    """Return the dense update of factors, one of which may be the weight, or its pattern."""
    shapes = [[below.network.sizes[mode] for mode in node.modes] for node in below.network.nodes.values()]
    values = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    values = [
        (value != 0).to(value.dtype) if getattr(ref, "is_mask", False) else value
        for value, ref in zip(values, below.refs, strict=True)
    ]
    return below._dense(*values) if below._dense else below.write_dense()(*values)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("tokens", [3, 4096])
def test_autocast_gives_the_dtype_of_the_layer(name, tokens):
    spec, words = TRAINED[name]
    model, state, *_ = layer_with(spec, **words)
    model.float()
    x = torch.randn(tokens, WIDTH)
    wanted = nn.functional.linear(x, model[0].weight + state.updates["0"].delta(model[0].weight), model[0].bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, x[None]):
            output = model(given)
            assert output.dtype == torch.bfloat16
            hosts.close(output.reshape(wanted.shape).double(), wanted.double(), 3e-2)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("tokens", [3, 4096])
def test_a_bias_that_is_infinite_masks_its_rows_alone(name, tokens):
    spec, words = TRAINED[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).double()
    with torch.no_grad():
        model[0].bias[1] = -float("inf")
    state = hosts.wake(attach(model, spec, target_modules=["0"], seed=0, **words)).double()
    x, weight = torch.randn(tokens, WIDTH, dtype=torch.float64), model[0].weight.detach()
    wanted, found = nn.functional.linear(x, weight + state.updates["0"].delta(weight), model[0].bias), model(x)
    assert (found[:, 1] == -float("inf")).all()
    seen = [at for at in range(WIDTH) if at != 1]
    hosts.close(found[:, seen], wanted[:, seen], 1e-10)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("tokens", [3, 4096])
def test_a_bias_that_becomes_infinite_later_gives_nan_and_no_wrong_number(name, tokens):
    """Nothing looks at the values of a bias in a call. Attached again, the adapter knows of it."""
    spec, words = TRAINED[name]
    model, state, x, (weight, bias) = layer_with(spec, **words)
    update = state.updates["0"].delta(weight)
    with torch.no_grad():
        model[0].bias[1] = bias[1] = -float("inf")
    wanted = nn.functional.linear(x, weight + update, bias)
    for found in (model(x), attach_again(model, state)(x)):
        is_number = ~found.isnan()
        hosts.close(found[is_number].exp(), wanted[is_number].exp(), 1e-10)
    assert is_number.all()


def attach_again(model, state):
    params = {name: value.detach().clone() for name, value in state.params().items()}
    state.detach()
    words = {"rank": state.adapter.rank, "sizes": state.adapter.sizes}
    again = attach(model, state.spec, target_modules=["0"], seed=0, **words).double()
    with torch.no_grad():
        for name, value in again.params().items():
            value.copy_(params[name])
    return model
