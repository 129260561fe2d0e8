"""The reference: updates against formulas and tensorly; apply, centered updates, merge; invalid params or inputs."""

import itertools

import numpy as np
import pytest
import tensorly

from tests.table import REPRESENTATIVES
from tnadapt import (
    AdapterSpec,
    SiteError,
    apply,
    delta,
    families,
    frozen,
    grid,
    merge,
    normal,
    over_rank,
    raw,
    trainable,
    zeros,
)
from tnadapt.initializers import orthogonal
from tnadapt.testing import start_params

SITES = grid(layers=3, kinds={"q": (12, 8), "k": (12, 8)})
PLACES = [(layer, kind) for layer in range(3) for kind in range(2)]  # of each site, in the order of the grid
representative = pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
CONV = grid(layers=1, kinds={"conv": (6, 4, 3, 2)})
QUANTA = AdapterSpec(
    name="quanta",
    weight="out in",
    over="layer",
    factors={"A": trainable("out r", init=orthogonal()), "B": trainable("layer r in")},
    scale=raw(3.0),
    start="centered",
)


def close(found, wanted):
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "scale"), [({}, 8 / 3), ({"alpha": 6}, 2), ({"alpha": 6, "rank_stabilized": True}, 6 / 3**0.5)]
)
def test_lora_is_b_times_a(words, scale, moved):
    adapter = families.lora(**words).bind(SITES, rank=3)
    params = moved(adapter)
    for site in SITES:
        a, b = (params[f"{site.coordinates['layer']}.{site.coordinates['kind']}.{name}"] for name in "AB")
        assert (a.shape, b.shape) == ((3, 8), (12, 3))
        close(delta(adapter, params, site), scale * b @ a)


def test_lotr_is_a_core_between_two_shared_matrices(moved):
    adapter = families.lotr(alpha=6).bind(SITES, rank={"p": 3, "q": 4})
    params = moved(adapter)
    whole = tensorly.tucker_to_tensor((params["G"], [np.eye(6), params["A"], params["B"]]))
    for number, site in enumerate(SITES):
        found = delta(adapter, params, site)
        close(found, 6 / 3 * params["A"] @ params["G"][number] @ params["B"].T)
        close(found, 6 / 3 * whole[number])


def test_lotr_over_layers_has_one_network_per_kind(moved):
    adapter = families.lotr(over="layer").bind(SITES, rank=3)
    params = moved(adapter)
    for site, (layer, kind) in zip(SITES, PLACES, strict=True):
        a, core, b = (params[f"{'qk'[kind]}.{name}"] for name in "AGB")
        close(delta(adapter, params, site), a @ core[layer] @ b.T / 3)


@pytest.mark.parametrize(("words", "scale"), [({}, 8 / 5), ({"alpha": 2, "rank_stabilized": True}, 2 / 5**0.5)])
@pytest.mark.parametrize("heads", ["out", "in"])
def test_lorta_is_a_sum_of_products_of_five_vectors(heads, words, scale, moved):
    adapter = families.lorta(heads=heads, **words).bind(SITES, rank=5, sizes={"head": 4})
    params = moved(adapter)
    a, b, h, by_layer, by_kind = (params[name] for name in "ABHLM")
    width = len(b)
    whole = tensorly.cp_to_tensor((np.ones(5), [by_layer, by_kind, h, b, a]))  # layer kind head dim other
    for site, (layer, kind) in zip(SITES, PLACES, strict=True):
        wanted = np.zeros(site.shape)
        for out, inner in np.ndindex(*site.shape):
            split, other = (out, inner) if heads == "out" else (inner, out)
            head, dim = divmod(split, width)  # head by head, as torch lays them out
            wanted[out, inner] = scale * sum(
                a[other, r] * b[dim, r] * h[head, r] * by_layer[layer, r] * by_kind[kind, r] for r in range(5)
            )
        found = delta(adapter, params, site)
        close(found, wanted)
        matrix = whole[layer, kind].reshape(4 * width, len(a))
        close(found, scale * (matrix if heads == "out" else matrix.T))


@pytest.mark.parametrize(
    ("over", "prefix", "used"), [("layer", "{1}.", "L"), ("kind", "{0}.", "M"), ("", "{0}.{1}.", "")]
)
def test_lorta_without_a_site_mode_has_one_tensor_per_value_of_it(over, prefix, used, moved):
    adapter = families.lorta(over=over).bind(SITES, rank=5, sizes={"head": 4})
    params = moved(adapter)
    for site, (layer, kind) in zip(SITES, PLACES, strict=True):
        name = prefix.format(layer, "qk"[kind])
        a, b, h = (params[name + factor] for factor in "ABH")
        weights = {"L": lambda n=name, i=layer: params[f"{n}L"][i], "M": lambda n=name, i=kind: params[f"{n}M"][i]}
        diagonal = weights[used]() if used else np.ones(5)
        wanted = np.concatenate([b @ np.diag(h[head] * diagonal) @ a.T for head in range(4)])
        close(delta(adapter, params, site), 8 / 5 * wanted)


def test_tlora_is_a_scaled_product_of_three_transposed(moved):
    adapter = families.tlora(alpha=2).bind(SITES, rank={"p": 3, "q": 4})
    params = moved(adapter)
    for n, site in enumerate(SITES):
        a, b, c = (params[name][n] for name in "ABC")
        assert (a.shape, b.shape, c.shape) == ((8, 3), (3, 4), (4, 12))
        close(delta(adapter, params, site), 2 * params["a"][n] * (a @ b @ c).T)


def test_vera_reads_the_leading_slice_of_shared_matrices(moved):
    sites = grid(layers=2, kinds={"q": (12, 8), "up": (20, 5), "down": (5, 20)})
    adapter = families.vera().bind(sites, rank=3)
    params = moved(adapter)
    assert (params["A"].shape, params["B"].shape) == ((3, 20), (20, 3))
    for site in sites:
        b, d = (params[f"{site.coordinates['layer']}.{site.coordinates['kind']}.{name}"] for name in "bd")
        out, inner = site.shape
        close(delta(adapter, params, site), np.diag(b) @ params["B"][:out] @ np.diag(d) @ params["A"][:, :inner])


@pytest.mark.parametrize("orders", [(2, 2), (3, 3), (1, 2), (2, 1), (1, 1)])
def test_tera_is_a_tucker_network_with_diagonals(orders, moved):
    adapter = families.tera(out_order=orders[0], in_order=orders[1], alpha=3).bind(SITES, rank=2)
    params = moved(adapter)
    modes = [f"o{n + 1}" for n in range(orders[0])] + [f"i{n + 1}" for n in range(orders[1])]
    for number, site in enumerate(SITES):
        matrices = [params[f"U_{mode}"] @ np.diag(params[f"d_{mode}"][number]) for mode in modes]
        whole = tensorly.tucker_to_tensor((params["G"], matrices))
        close(delta(adapter, params, site), 3 * whole.reshape(site.shape))


def test_tera_reads_slices_if_shapes_differ(moved):
    sites = grid(layers=2, kinds={"q": (12, 8), "up": (20, 5)})
    spec = families.tera(out_order=2, in_order=1)
    adapter = spec.bind(sites, rank={"r_o1": 4, "r_o2": 4, "r_i1": 6})
    params = moved(adapter)
    assert params["G"].shape == (4, 4, 6)  # the groups read (3, 4, 6) and (4, 4, 5) of it
    for site in sites:
        group, _ = adapter.find(site)
        number, sizes = group.sites.index(site), group.network.sizes
        matrices, ranks = [], []
        for mode in ("o1", "o2", "i1"):
            rank = sizes[f"r_{mode}"]
            matrix = params[f"U_{mode}"][: sizes[mode], :rank]
            matrices.append(matrix * params[f"{group.name}.d_{mode}"][number])
            ranks.append(slice(rank))
        whole = tensorly.tucker_to_tensor((params["G"][tuple(ranks)], matrices))
        close(delta(adapter, params, site), whole.reshape(site.shape))


def test_tera_starts_with_the_stated_variance(moved):
    adapter = families.tera().bind(grid(layers=2, kinds={"q": (64, 27)}), rank=4)
    squares = []
    for seed in range(60):
        again = adapter.spec.bind(adapter.sites, rank=4, seed=seed)
        params = {name: np.ones_like(v) if "d_" in name else v for name, v in moved(again).items()}
        squares.append((delta(again, params, adapter.sites[0]) ** 2).mean())
    error = np.std(squares) / len(squares) ** 0.5
    assert error < 0.2 / 27
    assert np.mean(squares) == pytest.approx(1 / 27, abs=4 * error)


OWN = {
    "loha": ({"A": "out r", "B": "r in", "C": "out q", "D": "q in"}, "out in"),
    "lokr": ({"A": "a c", "B": "b r", "C": "r d"}, "(a b) (c d)"),
    "conv": ({"A": "r in kh kw", "B": "out r"}, "out in kh kw"),
    "hyper": ({"A": "out r", "B": "in r", "c": "r", "s": "", "D": "out in r"}, "out in"),
}


def by_hand(name, p):
    match name:
        case "loha":
            return (p["A"] @ p["B"]) * (p["C"] @ p["D"])
        case "lokr":
            return np.kron(p["A"], p["B"] @ p["C"])
        case "conv":
            return np.tensordot(p["B"], p["A"], 1)
    wanted = np.zeros((6, 4))
    for out, inner, r in itertools.product(range(6), range(4), range(3)):
        wanted[out, inner] += p["A"][out, r] * p["B"][inner, r] * p["c"][r] * p["s"] * p["D"][out, inner, r]
    return wanted


@pytest.mark.parametrize("name", OWN)
def test_a_custom_spec_equals_its_formula(name, moved):
    modes, weight = OWN[name]
    factors = {key: trainable(text, **({"init": zeros()} if key == "B" else {})) for key, text in modes.items()}
    spec = AdapterSpec(name=name, weight=weight, factors=factors, scale=raw(0.5))
    shape = (6, 4, 3, 2) if name == "conv" else (6, 4)
    sites = grid(layers=1, kinds={"w": shape})
    adapter = spec.bind(sites, rank=3)
    params = moved(adapter)
    close(delta(adapter, params, sites[0]), 0.5 * by_hand(name, params))


def test_sites_with_gaps_read_their_own_rows(moved):
    sites = [SITES[4], SITES[1], SITES[2]]  # layers 2, 0, 1 of q, k, q
    adapter = families.lorta().bind(sites, rank=2, sizes={"head": 3})
    params = moved(adapter)
    for site, (layer, kind) in zip(sites, [(2, 0), (0, 1), (1, 0)], strict=True):
        diagonal = params["L"][layer] * params["M"][kind] * 8 / 2
        wanted = np.concatenate([params["B"] @ np.diag(params["H"][h] * diagonal) @ params["A"].T for h in range(3)])
        close(delta(adapter, params, site), wanted)


def test_sites_share_an_update_along_a_site_mode_that_no_factor_carries(moved):
    factors = {"A": frozen("out r"), "B": trainable("layer r in", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", over="layer kind", factors=factors, scale=over_rank("r"))
    adapter = spec.bind(SITES, rank=2)
    params = moved(adapter)
    for q, k in zip(SITES[::2], SITES[1::2], strict=True):
        np.testing.assert_array_equal(delta(adapter, params, q), delta(adapter, params, k))
    assert abs(delta(adapter, params, SITES[0]) - delta(adapter, params, SITES[2])).max() > 0.01


@representative
@pytest.mark.parametrize("lead", [(3, 0, 2), (2, 1, 2, 2)])
def test_apply_takes_any_number_of_leading_axes(adapter, lead, moved):
    params = moved(adapter)
    for site in adapter.sites:
        x = np.random.default_rng(1).standard_normal((*lead, *site.shape[1:]))
        found = apply(adapter, params, site, x)
        assert found.shape == (*lead, site.shape[0])
        inner = range(1, len(site.shape))
        close(
            found,
            np.tensordot(x, delta(adapter, params, site), axes=([axis - len(inner) - 1 for axis in inner], inner)),
        )


@representative
def test_apply_gives_exact_zeros_at_the_start(adapter):
    params = start_params(adapter)
    for site in adapter.sites:
        x = np.ones((2, *site.shape[1:]))
        np.testing.assert_array_equal(apply(adapter, params, site, x), np.zeros((2, site.shape[0])))


def conv(moved):
    spec = AdapterSpec(
        name="conv",
        weight="out in kh kw",
        factors={"A": trainable("r in kh kw"), "B": trainable("out r", init=normal(0))},
        scale=raw(),
    )
    adapter = spec.bind(CONV, rank=2)
    return adapter, moved(adapter)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_apply_takes_all_in_axes_of_a_kernel(lead, moved):
    adapter, params = conv(moved)
    x = np.random.default_rng(1).standard_normal((*lead, 4, 3, 2))
    close(apply(adapter, params, CONV[0], x), np.einsum("...ihw,oihw->...o", x, delta(adapter, params, CONV[0])))


@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (5, 4, 3, 1), (24,), (4, 3, 2, 1)])
def test_x_of_another_shape_is_refused(shape, moved):
    adapter, params = conv(moved)
    message = r"layers.0.conv: expected an x that ends in the in axes \(4, 3, 2\), got shape "
    with pytest.raises(SiteError, match=message):
        apply(adapter, params, CONV[0], np.zeros(shape))


@pytest.mark.parametrize("call", [delta, lambda *words: apply(*words, np.zeros(8))])
def test_params_and_sites_of_another_adapter_are_refused(call, moved):
    adapter = families.lotr().bind(grid(layers=2, kinds={"q": (12, 8)}), rank=3)
    params = moved(adapter)
    with pytest.raises(SiteError, match=r"params: expected an array 'G', got none.\nThis adapter has A, G, B"):
        call(adapter, {name: value for name, value in params.items() if name != "G"}, "layers.0.q")
    for wrong in (params["G"][:1], params["G"].swapaxes(0, 1), params["G"][..., None], np.float64(0)):
        with pytest.raises(SiteError, match=r"params\['G'\]: expected shape \(2, 3, 3\), got "):
            call(adapter, params | {"G": wrong}, "layers.0.q")
    with pytest.raises(SiteError, match=r"expected a site of this adapter, got 'layers.2.q'"):
        call(adapter, params, "layers.2.q")


def test_params_of_any_float_dtype_are_read_as_float64(moved):
    adapter = families.lotr().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3)
    params = {name: value.astype(np.float32) for name, value in moved(adapter).items()}
    found = delta(adapter, params, "layers.0.q")
    close(
        found, params["A"].astype(np.float64) @ params["G"][0].astype(np.float64) @ params["B"].astype(np.float64).T / 3
    )
    assert found.dtype == np.float64
    lists = {name: value.tolist() for name, value in params.items()}
    np.testing.assert_array_equal(delta(adapter, lists, "layers.0.q"), found)


@representative
def test_delta_leaves_the_params_unchanged(adapter, moved):
    params = moved(adapter)
    before = {name: value.copy() for name, value in params.items()}
    for value in params.values():
        value.flags.writeable = False
    delta(adapter, params, adapter.sites[0])[:] = 7
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[name])


def test_a_centered_update_is_the_difference_from_the_start(moved):
    sites = grid(layers=3, kinds={"q": (6, 8), "up": (9, 8)})
    adapter = QUANTA.bind(sites, rank=4, seed=3)
    start, params = start_params(adapter), moved(adapter)
    for site in sites:
        kind, layer = site.coordinates["kind"], site.coordinates["layer"]
        now, then = (some[f"{kind}.A"] @ some[f"{kind}.B"][layer] for some in (params, start))
        assert abs(then).max() > 0.1
        close(delta(adapter, params, site), 3 * (now - then))
        np.testing.assert_array_equal(delta(adapter, start, site), 0 * now)


def test_a_centered_update_depends_on_the_seed(moved):
    sites = grid(layers=1, kinds={"q": (6, 8)})
    one, two = (QUANTA.bind(sites, rank=4, seed=seed) for seed in (0, 1))
    params = moved(one)
    assert abs(delta(one, params, sites[0]) - delta(two, params, sites[0])).max() > 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_merge_gives_a_new_weight_of_the_same_dtype(dtype):
    weight, update = np.arange(6, dtype=dtype).reshape(2, 3), np.full((2, 3), 0.5)
    before = weight.copy()
    merged = merge(weight, update)
    assert merged.dtype == dtype
    np.testing.assert_array_equal(merged, before + dtype(0.5))
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(update, 0.5)
    assert not np.shares_memory(merged, weight)


@pytest.mark.parametrize("update_dtype", [np.float32, np.float64])
def test_merge_rounds_once(update_dtype):
    # half a step of float16 at 1 is 2^-11; slightly more must round up, but is lost if the update is rounded first
    update = np.array([2.0**-11 + 2.0**-22], dtype=update_dtype)
    assert merge(np.ones(1, np.float16), update)[0] == 1 + 2**-10
    assert np.float16(1) + update.astype(np.float16)[0] == 1


def test_merge_adds_in_float64_if_the_update_is_float64():
    update = np.array([2.0**-24 + 2.0**-40])  # just above half a step of float32 at 1
    assert merge(np.ones(1, np.float32), update)[0] == 1 + 2**-23
    assert merge(np.ones(1, np.float64), np.full(1, 1e-12))[0] == 1 + 1e-12


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (3,), (1, 3), ()])
def test_merge_refuses_an_update_of_another_shape(shape):
    message = r"merge: expected a weight and an update of the same shape, got \(2, 3\) and "
    with pytest.raises(SiteError, match=message):
        merge(np.ones((2, 3)), np.ones(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_merge_refuses_an_update_that_is_not_finite(bad):
    weight, update = np.ones((2, 3), np.float32), np.zeros((2, 3))
    update[1, 2] = bad
    with pytest.raises(SiteError, match=r"merge: expected a finite update, got NaN or infinity.\nNothing was merged."):
        merge(weight, update)
    np.testing.assert_array_equal(weight, 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("update_dtype", [None, np.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_merge_refuses_a_sum_that_the_dtype_cannot_hold(dtype, update_dtype, sign):
    weight = np.array([0, sign * np.finfo(dtype).max], dtype)
    before, update = weight.copy(), weight.astype(update_dtype or dtype)
    message = f"^merge: expected weight plus update to be finite in {np.dtype(dtype)}, got NaN.*\nNothing was merged.$"
    with pytest.raises(SiteError, match=message):  # without a warning, which pytest would turn into an error
        merge(weight, update)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(merge(weight, -update), 0)
    np.testing.assert_array_equal(merge(weight, 0 * update), before)


def test_merge_refuses_an_update_that_the_dtype_cannot_hold():
    with pytest.raises(SiteError, match="expected weight plus update to be finite in float32, got NaN or infinity"):
        merge(np.ones(2, np.float32), np.array([0.0, 1e300]))


@representative
def test_a_merged_weight_gives_the_output_of_apply(adapter, moved):
    params = moved(adapter)
    for site in adapter.sites:
        random = np.random.default_rng(2)
        weight, x = random.standard_normal(site.shape), random.standard_normal((5, *site.shape[1:]))
        merged = merge(weight, delta(adapter, params, site))
        by, rows = x.reshape(5, -1), len(weight)
        close(by @ merged.reshape(rows, -1).T, by @ weight.reshape(rows, -1).T + apply(adapter, params, site, x))
