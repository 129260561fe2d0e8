"""Families that PEFT has too agree with PEFT's layers holding the same values. Needs peft."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of its imports
    peft = pytest.importorskip("peft")

from tnadapt import delta, families, grid, init  # noqa: E402  (after importorskip)

IN, OUT = 24, 32
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of PEFT and of its dependencies


def peft_side(config, width=IN, height=OUT):
    """Return a PEFT layer with random values in all of its arrays, and its update."""
    torch.manual_seed(0)
    host = torch.nn.ModuleDict({"q": torch.nn.Linear(width, height, bias=False)})
    host.forward = host["q"].forward
    layer = peft.get_peft_model(host, config).base_model.model["q"].double().eval()
    with torch.no_grad():
        for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
            if "base_layer" not in name:
                value.normal_()
        x = torch.eye(width, dtype=torch.float64)
        update = (layer(x) - layer.base_layer(x)).T.numpy()
    return layer, update


def held(layer, name):
    """Return one array of a PEFT layer, in float64."""
    value = getattr(layer, name)["default"]
    return (value.weight if isinstance(value, torch.nn.Module) else value).detach().double().numpy()


def compare(spec, params, update, weight=None, **words):
    """Compare an update with that of a layer. `weight` is the layer's own weight, if it is a factor of the spec."""
    (site,) = grid(layers=1, kinds={"q": update.shape})
    adapter = spec.bind([site], **words)
    start = init(adapter, None if weight is None else {site.path: weight})
    assert {name: value.shape for name, value in params.items()} == {name: start[name].shape for name in adapter.slots}
    np.testing.assert_allclose(delta(adapter, start | params, site), update, rtol=0, atol=1e-10 * abs(update).max())


@pytest.mark.parametrize("stabilized", [False, True])
def test_lora_agrees_with_peft(stabilized):
    layer, update = peft_side(peft.LoraConfig(r=4, lora_alpha=6, use_rslora=stabilized, target_modules=["q"]))
    params = {"A": held(layer, "lora_A"), "B": held(layer, "lora_B")}
    compare(families.lora(alpha=6, rank_stabilized=stabilized), params, update, rank=4)


def test_vera_agrees_with_peft():
    layer, update = peft_side(peft.VeraConfig(r=5, target_modules=["q"]))
    names = {"A": "vera_A", "B": "vera_B", "d": "vera_lambda_d", "b": "vera_lambda_b"}
    compare(families.vera(), {ours: held(layer, theirs) for ours, theirs in names.items()}, update, rank=5)


def test_loha_agrees_with_peft():
    """Alpha is a multiple of r, since PEFT stores this scale in float32."""
    layer, update = peft_side(peft.LoHaConfig(r=3, alpha=6, target_modules=["q"]))
    names = {"A1": "hada_w1_a", "B1": "hada_w1_b", "A2": "hada_w2_a", "B2": "hada_w2_b"}
    compare(families.loha(alpha=6), {ours: held(layer, theirs) for ours, theirs in names.items()}, update, rank=3)


def test_lokr_agrees_with_peft():
    layer, update = peft_side(peft.LoKrConfig(r=2, alpha=5, target_modules=["q"]))
    names = {"C": "lokr_w1", "A": "lokr_w2_a", "B": "lokr_w2_b"}
    compare(families.lokr(alpha=5), {ours: held(layer, theirs) for ours, theirs in names.items()}, update, rank=2)


def test_lokr_with_a_full_second_factor_agrees_with_peft():
    """The scale is alpha / r in PEFT even in this case, and alpha in tnadapt."""
    layer, update = peft_side(peft.LoKrConfig(r=4, alpha=8, target_modules=["q"]))
    compare(families.lokr(alpha=2, low_rank=False), {"C": held(layer, "lokr_w1"), "A": held(layer, "lokr_w2")}, update)


@pytest.mark.parametrize(("width", "height", "short"), [(IN, OUT, "in"), (OUT, IN, "out")])
def test_randlora_agrees_with_peft(width, height, short):
    """PEFT flattens one basis as (rank, basis) and the other as (basis, rank); B is reordered here to match."""
    config = peft.RandLoraConfig(r=4, randlora_alpha=6, target_modules=["q"])
    layer, update = peft_side(config, width, height)
    bases = 6  # 24 / 4
    theirs = held(layer, "randlora_B")
    params = {
        "A": held(layer, "randlora_A")[:, 0],
        "B": theirs.reshape(OUT, 4, bases).transpose(0, 2, 1),
        "l": held(layer, "randlora_lambda"),
        "g": held(layer, "randlora_gamma"),
    }
    compare(families.randlora(alpha=6, short=short), params, update, rank={"r": 4, "n": bases})


def test_gralora_agrees_with_peft():
    """In PEFT rank and alpha belong to a row of blocks, and are k times those of one block."""
    k, r = 2, 6
    layer, update = peft_side(peft.GraloraConfig(r=r, alpha=8, gralora_k=k, target_modules=["q"]))
    down = held(layer, "gralora_A").reshape(k, IN // k, k, r // k)  # in block, within, out block, rank
    up = held(layer, "gralora_B").reshape(k, k, r // k, OUT // k)  # out block, in block, rank, within
    params = {"A": down.transpose(2, 0, 3, 1), "B": up.transpose(0, 1, 3, 2)}
    compare(families.gralora(alpha=8 / k), params, update, rank=r // k, sizes={"o1": k, "i1": k})


def test_gralora_with_a_lora_agrees_with_peft():
    """PEFT divides both parts by r + h, with r for a row of blocks; here by the rank of a block."""
    k, r, h = 2, 6, 3
    config = peft.GraloraConfig(r=r, alpha=8, gralora_k=k, hybrid_r=h, target_modules=["q"])
    layer, update = peft_side(config)
    down = held(layer, "gralora_A").reshape(k, IN // k, k, r // k)
    up = held(layer, "gralora_B").reshape(k, k, r // k, OUT // k)
    params = {"A": down.transpose(2, 0, 3, 1), "B": up.transpose(0, 1, 3, 2)}
    params["A_all"] = held(layer, "gralora_A_general").reshape(h, k, IN // k)
    params["B_all"] = held(layer, "gralora_B_general").reshape(k, OUT // k, h)
    spec = families.gralora(alpha=8 * (r / k) / (r + h), hybrid=True)
    compare(spec, params, update, rank={"r": r // k, "h": h}, sizes={"o1": k, "i1": k})


def test_hira_agrees_with_peft():
    layer, update = peft_side(peft.HiraConfig(r=4, target_modules=["q"]))
    params = {"A": held(layer, "hira_A"), "B": held(layer, "hira_B")}
    compare(families.hira(), params, update, layer.base_layer.weight.detach().numpy(), rank=4)


def test_ssl_agrees_with_a_feed_forward_layer_of_ia3_in_peft():
    config = peft.IA3Config(target_modules=["q"], feedforward_modules=["q"])
    layer, update = peft_side(config)
    compare(families.ssl(), {"l": held(layer, "ia3_l")[0]}, update, layer.base_layer.weight.detach().numpy())
