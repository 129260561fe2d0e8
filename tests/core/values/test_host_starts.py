"""Starts that are read from the host's weights, compared with other ways to compute them; and how files store them."""

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import tensor_train
from tensorly.tenalg import mode_dot

from tnadapt import (
    AdapterSpec,
    Site,
    SiteError,
    SpecError,
    count,
    delta,
    families,
    frozen,
    grid,
    init,
    load,
    raw,
    save,
    split_sites,
    trainable,
    zeros,
)
from tnadapt.binding import HOST_PARTS, HostReader, host_entry, read_hosts
from tnadapt.initializers import host, svd
from tnadapt.testing import random_params

SITES = grid(layers=3, kinds={"q": (12, 8)})
CLOSE = {"rtol": 0, "atol": 1e-6}  # starting values are float32 numbers


@pytest.fixture
def weights():
    random = np.random.default_rng(0)
    return {site.path: random.standard_normal(site.shape) for site in SITES}


def stack(weights):
    return np.stack([weights[site.path] for site in SITES])


def truncated(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]


def moved(adapter, params):
    random = np.random.default_rng(1)
    return {
        name: random.standard_normal(value.shape) if adapter.slots[name].factor.trainable else value
        for name, value in params.items()
    }


@pytest.mark.parametrize("alpha", [6, 3, -1])
def test_pissa_starts_at_the_principal_part_of_the_weight(alpha, weights):
    """The scale is in the factors, as in PEFT: scale B A is the principal part for every alpha."""
    adapter = families.pissa(alpha=alpha).bind(SITES, rank=3)
    start = init(adapter, weights)
    for layer, site in enumerate(SITES):
        a, b = start[f"{layer}.q.A"], start[f"{layer}.q.B"]
        np.testing.assert_allclose(alpha / 3 * b @ a, truncated(weights[site.path], 3), **CLOSE)
        np.testing.assert_allclose(
            np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1), **CLOSE
        )  # each factor takes the square root of the singular values
        now = moved(adapter, start)
        wanted = alpha / 3 * (now[f"{layer}.q.B"] @ now[f"{layer}.q.A"] - b @ a)
        np.testing.assert_allclose(delta(adapter, now, site), wanted, rtol=0, atol=1e-10)
        assert not delta(adapter, start, site).any()
        assert not np.shares_memory(a, start[f"{layer}.q.A:start"])


def test_the_partial_svd_of_a_large_weight_equals_the_leading_part_of_the_full_one():
    weight = np.random.default_rng(0).standard_normal((300, 280))
    adapter = families.pissa().bind([Site("w", weight.shape)], rank=5)
    one, two = (init(adapter, {"w": weight}) for _ in range(2))
    scale = adapter.networks[0].scale
    np.testing.assert_allclose(scale * one["B"] @ one["A"], truncated(weight, 5), **CLOSE)
    assert all((one[name] == two[name]).all() for name in one)


def test_the_frozen_factors_of_lora_xs_come_from_the_svd(weights):
    adapter = families.lora_xs(start="svd").bind(SITES, rank={"p": 2, "q": 2})
    start = init(adapter, weights)
    for row, site in enumerate(SITES):
        np.testing.assert_allclose(start["B"][row].T @ start["B"][row], np.eye(2), **CLOSE)
        np.testing.assert_allclose(start["B"][row] @ start["A"][row], truncated(weights[site.path], 2), **CLOSE)


@pytest.mark.parametrize("rank", [{"p": 2, "q": 3}, {"p": 3, "q": 2}], ids=str)
def test_factors_of_two_ranks_may_be_read_from_one_weight(rank, weights):
    adapter = families.lora_xs(start="svd").bind(SITES, rank=rank)
    start = init(adapter, weights)
    for row, site in enumerate(SITES):
        u, s, vt = np.linalg.svd(weights[site.path], full_matrices=False)
        p, q = rank["p"], rank["q"]
        np.testing.assert_allclose(np.abs(start["B"][row]), np.abs(u[:, :p]), **CLOSE)  # the signs are arbitrary
        np.testing.assert_allclose(np.abs(start["A"][row]), np.abs(s[:q, None] * vt[:q]), **CLOSE)


def test_abba_starts_at_zero_beside_the_principal_part(weights):
    adapter = families.abba(alpha=2).bind(SITES, rank={"p": 2, "q": 3})
    start = init(adapter, weights)
    np.testing.assert_allclose(start["1.q.B1"] @ start["1.q.A1"], truncated(weights[SITES[1].path], 2), **CLOSE)
    assert not delta(adapter, start, SITES[1]).any()
    now = {name.removeprefix("1.q."): value for name, value in moved(adapter, start).items()}
    wanted = 2 * (now["B1"] @ now["A1"]) * (now["B2"] @ now["A2"])
    np.testing.assert_allclose(delta(adapter, moved(adapter, start), SITES[1]), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [2, 5, 40])
def test_dota_starts_at_the_tensor_train_of_tensorly(weights, rank):
    """The weight is a tensor train of (o_k, i_k) pairs, contracted in a loop over the cores."""
    adapter = families.dota(order=2).bind(SITES, rank=rank, overparametrized=True)
    start, sizes = init(adapter, weights), adapter.networks[0].sizes
    shape = [sizes[mode] for mode in ("o1", "o2", "i1", "i2")]
    paired = weights[SITES[0].path].reshape(shape).transpose(0, 2, 1, 3)
    first, second = tensor_train(paired.reshape(shape[0] * shape[2], -1), rank=[1, min(rank, shape[0] * shape[2]), 1])
    wanted = np.einsum("xar,ryz->ay", first, second).reshape(paired.shape).transpose(0, 2, 1, 3).reshape(12, 8)
    made = np.einsum("oir,rpj->opij", start["0.q.T1"], start["0.q.T2"]).reshape(12, 8)
    np.testing.assert_allclose(made, wanted, **CLOSE)
    if rank == 40:
        np.testing.assert_allclose(made, weights[SITES[0].path], **CLOSE)
    now = moved(adapter, start)
    moved_now = np.einsum("oir,rpj->opij", now["0.q.T1"], now["0.q.T2"]).reshape(12, 8)
    np.testing.assert_allclose(delta(adapter, now, SITES[0]), moved_now - made, rtol=0, atol=1e-10)


def convolved(*parts):
    """Return the t-product of stacks of matrices, computed tube by tube."""
    found = parts[0]
    for other in parts[1:]:
        found = np.stack(
            [sum(found[g] @ other[(k - g) % len(other)] for g in range(len(found))) for k in range(len(found))]
        )
    return found


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lora_pt_starts_at_the_principal_part_at_every_frequency(weights, layers):
    sites = SITES[:layers]
    adapter = families.lora_pt().bind(sites, rank=3)
    start = init(adapter, weights)
    whole = stack(weights)[:layers]
    wanted = np.fft.ifft(truncated(np.fft.fft(whole, axis=0), 3), axis=0).real
    u, s, v = (start[name] for name in "USV")
    middle = s.transpose(0, 1, 2)
    made = convolved(u.transpose(0, 1, 2), middle, v)
    np.testing.assert_allclose(made, wanted, **CLOSE)
    now = moved(adapter, start)
    update = convolved(now["U"], now["S"], now["V"]) - made
    for layer, site in enumerate(sites):
        np.testing.assert_allclose(delta(adapter, now, site), update[layer], rtol=0, atol=1e-9)
    assert count(adapter).trainable == layers * (3 * 12 + 9 + 3 * 8)


def test_tcurlora_starts_at_columns_and_rows_of_the_weights(weights):
    adapter = families.tcurlora().bind(SITES, rank={"p": 3, "q": 4})
    start, whole = init(adapter, weights), stack(weights)
    spectrum = np.fft.fft(whole, axis=0)
    columns = sorted(np.argsort(-np.linalg.norm(spectrum, axis=1).sum(axis=0))[:3])
    rows = sorted(np.argsort(-np.linalg.norm(spectrum[:, :, columns], axis=2).sum(axis=0))[:4])
    np.testing.assert_allclose(start["C"], whole[:, :, columns], **CLOSE)
    np.testing.assert_allclose(start["R"], whole[:, rows], **CLOSE)
    crossing = np.fft.fft(start["U"], axis=0)
    for frequency in range(3):
        np.testing.assert_allclose(
            crossing[frequency], np.linalg.pinv(spectrum[frequency][np.ix_(rows, columns)]), rtol=0, atol=1e-5
        )
    now = moved(adapter, start)
    update = convolved(start["C"], now["U"] - start["U"], start["R"])
    for layer, site in enumerate(SITES):
        np.testing.assert_allclose(delta(adapter, now, site), update[layer], rtol=0, atol=1e-9)


def test_a_tensor_cur_of_full_rank_is_exact(weights):
    adapter = families.tcurlora().bind(SITES, rank=8)
    start = init(adapter, weights)
    np.testing.assert_allclose(convolved(start["C"], start["U"], start["R"]), stack(weights), rtol=0, atol=1e-4)


def test_lotr_starts_at_the_hosvd(weights):
    adapter = families.lotr(start="svd").bind(SITES, rank={"p": 4, "q": 3})
    start, whole = init(adapter, weights), stack(weights)
    left = np.linalg.svd(tensorly.unfold(whole, 1), full_matrices=False)[0][:, :4]
    right = np.linalg.svd(tensorly.unfold(whole, 2), full_matrices=False)[0][:, :3]
    wanted = mode_dot(mode_dot(whole, left @ left.T, 1), right @ right.T, 2)
    made = np.einsum("op,spq,iq->soi", start["A"], start["G"], start["B"])
    np.testing.assert_allclose(made, wanted, **CLOSE)
    assert not any(delta(adapter, start, site).any() for site in SITES)


def test_the_neutral_start_of_lotr_has_no_update(weights):
    start = init(families.lotr(start="neutral").bind(SITES, rank=3), weights)
    assert not start["A"].any()
    assert all((core == np.eye(3)).all() for core in start["G"])
    np.testing.assert_allclose(start["B"].T @ start["B"], np.eye(3), **CLOSE)


READ = {family: {} for family in ("pissa", "abba", "dota", "lora_pt", "tcurlora")}
READ |= {family: {"start": "svd"} for family in ("lora_xs", "lotr")}


@pytest.mark.parametrize("family", READ)
def test_a_file_stores_the_starts_that_cannot_be_drawn_again(family, weights, tmp_path):
    adapter = getattr(families, family)(**READ[family]).bind(SITES, rank=2)
    params = moved(adapter, init(adapter, weights))
    save(adapter, params, tmp_path / "a")
    again, loaded = load(tmp_path / "a")
    assert again == adapter
    assert loaded.keys() == adapter.slots.keys()
    for site in SITES:
        assert (delta(again, loaded, site) == delta(adapter, params, site)).all()
    starts = [name for name in adapter.slots if name.endswith(":start")]
    trained = [name for name, slot in adapter.slots.items() if slot.factor.trainable]
    assert starts == ([f"{name}:start" for name in trained] if adapter.spec.start == "centered" else [])


def test_the_start_of_a_block_is_read_from_its_part_of_the_weight(weights):
    whole = np.random.default_rng(2).standard_normal((12, 8))
    sites = split_sites([Site("w", (12, 8))], blocks={"w": (1, 2)})
    adapter = families.pissa().bind(sites, rank=4)
    start = init(adapter, {"w": whole})
    scale = adapter.networks[0].scale
    np.testing.assert_allclose(scale * start["0.w.1.B"] @ start["0.w.1.A"], truncated(whole[:, 4:], 4), **CLOSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: None,
            r"pissa: expected the host's weights to read the start of 0\.q\.A from, got none\.\nPass init\(adapter, w",
        ),
        (lambda found: {}, r"layers\.0\.q: expected the host's weight layers\.0\.q to read its start from, got none"),
        (
            lambda found: found | {"layers.1.q": np.ones((8, 12))},
            r"layers\.1\.q: expected shape \(12, 8\), got \(8, 12\)",
        ),
        (
            lambda found: found | {"layers.0.q": {"kernel": np.ones((8, 12))}},
            r"layers\.0\.q: expected the weight as an array \(out, in\), got a dict of 'kernel'\.\nIn JAX, pass",
        ),
        (
            lambda found: found | {"layers.0.q": np.full((12, 8), np.nan)},
            "A: expected finite host weights to read its start from, got NaN or infinity",
        ),
    ],
)
def test_missing_and_invalid_weights_are_reported(change, message, weights):
    with pytest.raises(SiteError, match=message):
        init(families.pissa().bind(SITES, rank=2), change(weights))


def test_a_grid_with_holes_is_refused(weights):
    sites = [Site(f"{layer}.{kind}", (4, 4), {"layer": layer, "kind": kind}) for layer, kind in ((0, "q"), (1, "k"))]
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind",
        factors={"A": trainable("out r"), "B": trainable("layer kind r in", init=zeros())},
        scale=raw(),
        start=svd("A", start="zero"),
    )
    with pytest.raises(SiteError, match=r"0\.q: expected a site for every combination of \(layer kind\), got a grid"):
        init(spec.bind(sites, rank=2), {site.path: np.ones((4, 4)) for site in sites})


def test_a_power_that_is_none_is_refused():
    with pytest.raises(SpecError, match=r"expected a power of the singular values of 0, 0\.5 or 1, got 2"):
        AdapterSpec(
            name="own",
            weight="out in",
            factors={"A": trainable("r in"), "B": trainable("out r")},
            scale=raw(),
            start=svd("B", "A", powers=(0, 2)),
        )


def test_tied_bonds_take_the_size_of_another_bond():
    adapter = families.lora_pt().bind(SITES, rank={"r": 2, "q": 3})
    assert [adapter.networks[0].sizes[bond] for bond in "ghk"] == [3, 3, 3]
    with pytest.raises(SiteError, match=r"rank: expected bonds of lora_pt, got 'g'\.\nIts bonds are r, q"):
        families.lora_pt().bind(SITES, rank={"r": 2, "q": 3, "g": 2})
    with pytest.raises(SiteError, match=r"rank: expected bonds of lora_pt, got 'g'"):
        families.lora_pt().bind(SITES, rank=2, sizes={"g": 2})


def test_random_params_draws_weights_for_a_spec_that_reads_them():
    adapter = families.pissa().bind(SITES, rank=2, seed=3)
    one, two = (random_params(adapter, np.random.default_rng(0)) for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


WHOLE = AdapterSpec(
    name="whole",
    weight="out in",
    factors={
        "U": frozen("out k", init=host("left")),
        "S": frozen("k", init=host("values")),
        "V": frozen("k in", init=host("right")),
        "M": frozen("out in", init=host("mask")),
        "g": trainable("", init=zeros()),
    },
    terms=["g U S V M"],
)


def test_entries_of_the_host_are_the_same_read_together_or_one_by_one(weights, monkeypatch):
    """Reading one by one decomposes each weight once, not once for each part."""
    decompose, seen = np.linalg.svd, []
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **k: seen.append(a) or decompose(*a, **k))
    weights[SITES[1].path][0] = 0
    adapter = WHOLE.bind(SITES)
    together, reader = read_hosts(adapter, weights), HostReader(adapter, weights)
    assert together.keys() == adapter.hosts.keys()
    assert len(together) == 5 * len(SITES)
    for name, value in together.items():
        np.testing.assert_array_equal(reader.read(name), value)
    assert len(seen) == 2 * len(SITES)
    for site in SITES:
        u, s, vt = (reader.read(host_entry(site, kind)) for kind in HOST_PARTS)
        np.testing.assert_allclose((u * s) @ vt, weights[site.path], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(reader.read(host_entry(site)), weights[site.path])
        np.testing.assert_array_equal(reader.read(host_entry(site, "host_mask")), weights[site.path] != 0)
    with pytest.raises(SiteError, match=r"layers\.0\.q: expected the host's weight layers\.0\.q to read its start"):
        HostReader(adapter, {}).read(host_entry(SITES[0], "host_left"))
