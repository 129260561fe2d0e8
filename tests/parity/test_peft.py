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
            if "base_layer" not in name and value.is_floating_point():
                value.normal_()
        x = torch.eye(width, dtype=torch.float64)
        update = (layer(x) - layer.base_layer(x)).T.numpy()
    return layer, update


def held(layer, name):
    """Return one array of a PEFT layer, in float64."""
    value = getattr(layer, name)["default"]
    return (value.weight if isinstance(value, torch.nn.Module) else value).detach().double().numpy()


def is_fixed(factor):
    """Return whether a factor is a pattern or ones, which PEFT has no array for."""
    return not factor.trainable and (factor.init.is_pattern or factor.init.kind == "constant")


def compare(spec, params, update, weight=None, *, bound=1e-10, **words):
    """Compare an update with that of a layer. `weight` is the layer's own weight, if it is a factor of the spec."""
    (site,) = grid(layers=1, kinds={"q": update.shape})
    adapter = spec.bind([site], **words)
    begin = init(adapter, None if weight is None else {site.weight: weight})
    fixed = {name for name in begin if name not in adapter.slots or is_fixed(adapter.slots[name].factor)}
    assert {name: value.shape for name, value in params.items()} == {
        name: value.shape for name, value in begin.items() if name not in fixed
    }
    whole = params | {name: begin[name] for name in fixed}
    np.testing.assert_allclose(delta(adapter, whole, site), update, rtol=0, atol=bound * abs(update).max())


def host_of(layer):
    """Return the weight of the layer that PEFT adapts."""
    return layer.base_layer.weight.detach().numpy()


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


@pytest.mark.parametrize("shared", [False, True])
def test_oft_agrees_with_peft(shared):
    """PEFT stores what is above the diagonal. Its default replaces the Cayley transform by a series."""
    config = peft.OFTConfig(
        oft_block_size=4, r=0, block_share=shared, use_cayley_neumann=False, bias="none", target_modules=["q"]
    )
    layer, update = peft_side(config)
    stored = layer.oft_R["default"].weight.detach().numpy()
    x = np.zeros((len(stored), 4, 4))
    x[:, *np.triu_indices(4, 1)] = stored
    params = {"X": x[0] if shared else x}
    compare(families.oft(shared_blocks=shared), params, update, weight=host_of(layer), sizes={"i": 4})


@pytest.mark.parametrize("reflections", [1, 4])
def test_hra_agrees_with_peft(reflections):
    layer, update = peft_side(peft.HRAConfig(r=reflections, target_modules=["q"]))
    stored = layer.hra_u["default"].detach().numpy()
    params = {f"u{n}": stored[:, n - 1] for n in range(1, reflections + 1)}
    spec = families.hra(reflections=reflections, start="free")
    compare(spec, params, update, weight=host_of(layer), bound=1e-6)  # PEFT begins with a float32 identity


def test_c3a_agrees_with_peft():
    layer, update = peft_side(peft.C3AConfig(block_size=4, target_modules=["q"]))
    params = {"c": layer.c3a_kernel["default"].detach().numpy()}
    compare(families.c3a(), params, update, sizes={"o2": 4, "i2": 4}, bound=1e-6)  # PEFT computes in float32


@pytest.mark.parametrize(
    ("variant", "words", "name", "sizes"),
    [
        ("", {"init_weights": True}, "D", {"i2": 4}),
        ("mini", {"init_weights": "mini", "mini_r": 8}, "D", {"i2": 4, "o2": 8}),
        ("bat", {"init_weights": "bat"}, "B", {"i2": 4, "o2": 4}),
    ],
)
def test_miss_agrees_with_peft(variant, words, name, sizes):
    layer, update = peft_side(peft.MissConfig(r=4, target_modules=["q"], **words))
    params = {name: layer.miss_block["default"].detach().numpy()}
    weight = host_of(layer) if variant == "bat" else None
    compare(families.miss(variant=variant), params, update, weight, sizes=sizes)


def test_tinylora_agrees_with_peft():
    """Its four arrays are random here, also the frozen ones."""
    layer, update = peft_side(peft.TinyLoraConfig(r=3, u=5, target_modules=["q"]))
    params = {
        "A": layer.tinylora_A["default"][None],
        "B": layer.tinylora_B["default"][None],
        "P": layer.tinylora_P["default"][None],
        "v": layer.tinylora_v["default"]["0"][None],
    }
    params = {key: value.detach().double().numpy() for key, value in params.items()}
    compare(families.tinylora(), params, update, weight=host_of(layer), rank={"p": 3, "q": 3, "k": 5})


def test_tinylora_starts_at_the_frozen_pair_of_peft():
    """PEFT takes the SVD in float32, so the three values that it keeps are far above the others here."""
    torch.manual_seed(0)
    host = torch.nn.ModuleDict({"q": torch.nn.Linear(IN, OUT, bias=False)})
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(host["q"].weight.double(), full_matrices=False)
        host["q"].weight.copy_(u[:, :3] * torch.tensor([4.0, 2.0, 1.0]) @ vt[:3] + u[:, 3:] * s[3:] / 100 @ vt[3:])
    layer = peft.get_peft_model(host, peft.TinyLoraConfig(r=3, u=5, target_modules=["q"])).base_model.model["q"]
    theirs = (layer.tinylora_B["default"] @ layer.tinylora_A["default"]).numpy()
    (site,) = grid(layers=1, kinds={"q": (OUT, IN)})
    ours = init(families.tinylora().bind([site], rank={"p": 3, "q": 3, "k": 5}), {site.weight: host_of(layer)})
    np.testing.assert_allclose(ours["B"][0] @ ours["A"][0], theirs, rtol=0, atol=1e-6)


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
    compare(families.hira(), params, update, host_of(layer), rank=4)


def test_ssl_agrees_with_a_feed_forward_layer_of_ia3_in_peft():
    config = peft.IA3Config(target_modules=["q"], feedforward_modules=["q"])
    layer, update = peft_side(config)
    compare(families.ssl(), {"l": held(layer, "ia3_l")[0]}, update, host_of(layer))
