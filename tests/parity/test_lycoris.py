"""Families that LyCORIS has agree with its layers holding the same values, convolutions too. Needs lycoris-lora."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of its imports
    modules = pytest.importorskip("lycoris.modules")

from tnadapt import AdapterSpec, Site, delta, families, init, over_rank, raw, trainable  # noqa: E402  (after importorskip)

BOUND = {torch.float64: 1e-10, torch.float32: 1e-6}
LINEAR, KERNEL = (32, 24), (8, 6, 3, 2)
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of LyCORIS and of its dependencies
in_both = pytest.mark.parametrize("dtype", BOUND, ids=str)


def lycoris_side(kind, shape, dtype, *, is_read=False, **words):
    """Return a layer of LyCORIS with random values in all its parameters, its update, and the weight of its host.

    The update is what the layer adds for each unit input. The host's weight is 0 unless the layer reads it, so that no
    digit is lost in a difference of two outputs.
    """
    torch.manual_seed(0)
    outer, inner, *kernel = shape
    host = torch.nn.Conv2d(inner, outer, kernel, bias=False) if kernel else torch.nn.Linear(inner, outer, bias=False)
    host = host.to(dtype)
    if not is_read:
        torch.nn.init.zeros_(host.weight)
    layer = kind("q", host, **words).to(dtype).eval()
    unit = torch.eye(inner * int(np.prod(kernel)), dtype=dtype).reshape(-1, *shape[1:])
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_()
        update = (layer(unit) - host(unit)).flatten(1).T.reshape(shape)
    return layer, update.double().numpy(), host.weight.detach().double().numpy()


def held(layer, *names):
    """Return arrays of a layer in float64, without the axes of length 1 of a convolution with one pixel."""
    for name in names:
        found = layer
        for word in name.split("."):
            found = getattr(found, word)
        value = found.detach().double().numpy()
        yield value.reshape(value.shape[:2]) if value.shape[2:] == (1, 1) else value


def compare(spec, params, update, dtype, *, weight=None, **words):
    site = Site("q", update.shape)
    adapter = spec.bind([site], overparametrized=True, **words)
    whole = init(adapter, {"q": weight}) if adapter.hosts else init(adapter)
    trained = {name for name, slot in adapter.slots.items() if slot.factor.trainable}
    assert {name: value.shape for name, value in params.items()} == {name: whole[name].shape for name in trained}
    assert abs(update).max() > 0.1
    np.testing.assert_allclose(
        delta(adapter, whole | params, site), update, rtol=0, atol=BOUND[dtype] * abs(update).max()
    )


@in_both
@pytest.mark.parametrize("stabilized", [False, True])
def test_lora_agrees_with_lycoris(stabilized, dtype):
    layer, update, _ = lycoris_side(modules.LoConModule, LINEAR, dtype, lora_dim=4, alpha=6, rs_lora=stabilized)
    params = dict(zip("AB", held(layer, "lora_down.weight", "lora_up.weight"), strict=True))
    compare(families.lora(alpha=6, rank_stabilized=stabilized), params, update, dtype, rank=4)


@in_both
def test_locon_with_a_tucker_core_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LoConModule, KERNEL, dtype, lora_dim=3, alpha=6, use_tucker=True)
    spec = AdapterSpec(
        name="locon",
        weight="out in kh kw",
        factors={"U": trainable("out p"), "T": trainable("p q kh kw"), "D": trainable("q in")},
        scale=over_rank("p", alpha=6),
        start="free",
    )
    values = held(layer, "lora_up.weight", "lora_mid.weight", "lora_down.weight")
    compare(spec, dict(zip("UTD", values, strict=True)), update, dtype, rank=3)


@in_both
def test_locon_with_a_kernel_in_the_first_factor_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LoConModule, KERNEL, dtype, lora_dim=3, alpha=6)
    spec = AdapterSpec(
        name="locon",
        weight="out in kh kw",
        factors={"B": trainable("out r"), "A": trainable("r in kh kw")},
        scale=over_rank("r", alpha=6),
        start="free",
    )
    compare(
        spec, dict(zip("BA", held(layer, "lora_up.weight", "lora_down.weight"), strict=True)), update, dtype, rank=3
    )


@in_both
def test_loha_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LohaModule, LINEAR, dtype, lora_dim=3, alpha=5)
    values = held(layer, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    params = dict(zip(("A1", "B1", "A2", "B2"), values, strict=True))
    compare(families.loha(alpha=5), params, update, dtype, rank=3)


@in_both
def test_loha_of_two_tucker_tensors_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LohaModule, KERNEL, dtype, lora_dim=3, alpha=5, use_tucker=True)
    factors = {
        f"{name}{n}": trainable(f"{modes} kh kw" if name == "T" else modes)
        for n, bonds in ((1, "pq"), (2, "st"))
        for name, modes in (("A", f"{bonds[0]} out"), ("T", " ".join(bonds)), ("B", f"{bonds[1]} in"))
    }
    spec = AdapterSpec(name="loha", weight="out in kh kw", factors=factors, scale=over_rank("p", alpha=5), start="free")
    values = held(layer, "hada_w1_a", "hada_t1", "hada_w1_b", "hada_w2_a", "hada_t2", "hada_w2_b")
    compare(spec, dict(zip(factors, values, strict=True)), update, dtype, rank=3)


@in_both
def test_lokr_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LokrModule, LINEAR, dtype, lora_dim=2, alpha=5)
    params = dict(zip("CAB", held(layer, "lokr_w1", "lokr_w2_a", "lokr_w2_b"), strict=True))
    compare(families.lokr(alpha=5), params, update, dtype, rank=2)


@in_both
def test_lokr_with_a_factor_of_its_own_agrees_with_lycoris(dtype):
    layer, update, _ = lycoris_side(modules.LokrModule, LINEAR, dtype, lora_dim=2, alpha=5, factor=2)
    params = dict(zip("CAB", held(layer, "lokr_w1", "lokr_w2_a", "lokr_w2_b"), strict=True))
    compare(families.lokr(alpha=5), params, update, dtype, rank=2, sizes={"o1": 2, "i1": 2})


@in_both
def test_lokr_with_two_full_factors_agrees_with_lycoris(dtype):
    """LyCORIS has no alpha then."""
    layer, update, _ = lycoris_side(modules.LokrModule, LINEAR, dtype, lora_dim=2, alpha=5, full_matrix=True)
    params = dict(zip("CA", held(layer, "lokr_w1", "lokr_w2"), strict=True))
    compare(families.lokr(alpha=1, low_rank=False), params, update, dtype)


@in_both
def test_lokr_with_a_tucker_core_agrees_with_lycoris(dtype):
    words = {"lora_dim": 1, "alpha": 2, "use_tucker": True}
    layer, update, _ = lycoris_side(modules.LokrModule, KERNEL, dtype, **words)
    spec = AdapterSpec(
        name="lokr",
        weight="(o1 o2) (i1 i2) kh kw",
        factors={
            "C": trainable("o1 i1"),
            "A": trainable("p o2"),
            "T": trainable("p q kh kw"),
            "B": trainable("q i2"),
        },
        scale=over_rank("p", alpha=2),
        start="free",
    )
    values = held(layer, "lokr_w1", "lokr_w2_a", "lokr_t2", "lokr_w2_b")
    compare(spec, dict(zip("CATB", values, strict=True)), update, dtype, rank=1)


def test_a_full_kernel_beside_the_small_factor_of_lokr_agrees_with_lycoris():
    layer, update, _ = lycoris_side(modules.LokrModule, KERNEL, torch.float64, full_matrix=True)
    factors = {"C": trainable("o1 i1"), "A": trainable("o2 i2 kh kw")}
    spec = AdapterSpec(name="lokr", weight="(o1 o2) (i1 i2) kh kw", factors=factors, scale=raw(), start="free")
    compare(spec, dict(zip("CA", held(layer, "lokr_w1", "lokr_w2"), strict=True)), update, torch.float64)


def test_oft_agrees_with_lycoris():
    """LyCORIS rotates the outputs, which is OFT of the transposed weight. It has no float64: its inverse is float32."""
    words = {"lora_dim": 4, "is_read": True}
    layer, update, weight = lycoris_side(modules.DiagOFTModule, LINEAR, torch.float32, **words)
    (blocks,) = held(layer, "oft_blocks")
    assert blocks.shape == (8, 4, 4)
    compare(families.oft(), {"X": blocks}, update.T, torch.float32, weight=weight.T, sizes={"i": 4})
