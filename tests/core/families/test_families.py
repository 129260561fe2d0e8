"""The update of each family equals the formula of its paper in numpy or tensorly, for the same factor values."""

from collections.abc import Callable, Mapping
from functools import reduce
from itertools import combinations, product

import numpy as np
import pytest
import tensorly
from tensorly.tt_tensor import tt_to_tensor

from tests.table import FAMILIES, places
from tnadapt import delta, families, grid, init

Params = Mapping[str, np.ndarray]
Formula = Callable[[Params, Mapping[str, int]], np.ndarray]

KINDS = {"q": (12, 8), "v": (12, 8)}
SHAPE = (12, 8)


def lora_fa(p, at):
    return 8 / 3 * p["B"][at["site"]] @ p["A"][at["site"]]


def lora_xs(p, at):
    return 16 / 2 * p["B"][at["site"]] @ p["R"][at["site"]] @ p["A"][at["site"]]


def mtlora_tasks(p, at):
    return 2 * p["s"][at["task"]] * p["B"][at["task"]] @ p["A"][at["task"]]


def randlora(p, at):
    """Add up the bases one by one, as in the paper."""
    terms = [p["B"][:, n] @ np.diag(p["l"][:, n]) @ p["A"] @ np.diag(p["g"][n]) for n in range(3)]
    return 640 / 2 * sum(terms)


def randlora_short_out(p, at):
    """Transpose the sum for a weight with out and in swapped."""
    return 3 / 3 * sum(p["B"][:, n] @ np.diag(p["l"][:, n]) @ p["A"] @ np.diag(p["g"][n]) for n in range(2)).T


def krona(p, at):
    return 2 * np.kron(p["A"], p["B"])


def kadaptation(p, at):
    u, v = p["u"][at["layer"]], p["v"][at["layer"]]
    return sum(np.kron(p["A"][n].T, np.outer(v[n], u[n])) for n in range(2))


def kadaptation_factorized(p, at):
    u, v = p["u"][at["layer"]], p["v"][at["layer"]]
    return sum(np.kron(np.outer(p["t"][n], p["s"][n]).T, np.outer(v[n], u[n])) for n in range(3))


def superlora(p, at):
    first = p["A1"] @ (p["C1"] @ p["S"][at["site"]]) @ p["B1"].T
    return np.kron(first, p["A2"] @ p["C2"] @ p["B2"].T)


def gralora(p, at):
    return 8 / 2 * np.block([[p["B"][o, i] @ p["A"][o, i] for i in range(2)] for o in range(2)])


def monarch(p, at, blocks=2):
    """Multiply two block-diagonal matrices and, in between, the permutation from i N + j to entry i of block j."""
    first, second = p["P1"], p["P2"]
    rank = blocks * first.shape[1]
    first, second = first.reshape(blocks, rank, -1), second.reshape(blocks, -1, rank)
    update = np.zeros(SHAPE)
    for column in range(SHAPE[1]):
        x = np.eye(SHAPE[1])[column].reshape(blocks, -1)
        hidden = np.concatenate([first[n] @ x[n] for n in range(blocks)])
        for j in range(blocks):
            update[j::blocks, column] = second[j] @ hidden[j::blocks]
    return update


def btt(p, at):
    """Multiply two batches of matrices with a reshape in between, as in the authors' code."""
    m1, m0, r, n0 = p["R"].shape
    x = np.eye(SHAPE[1]).reshape(-1, m1, m0)
    inner = np.stack([x[:, m] @ p["R"][m].reshape(m0, r * n0) for m in range(m1)]).reshape(m1, -1, r, n0)
    turned = inner.transpose(3, 1, 2, 0).reshape(n0, -1, r * m1)
    outer = np.stack([turned[n] @ p["L"][n].reshape(r * m1, -1) for n in range(n0)])
    return outer.transpose(1, 0, 2).reshape(SHAPE[1], SHAPE[0]).T


def mora(p, at):
    return np.array([[p["M"][o % 2, i % 2] for i in range(SHAPE[1])] for o in range(SHAPE[0])])


def mora_turned(p, at):
    """Turn each group of two entries of x by RoPE, multiply it by M, and join the results, as in the official code."""
    update = np.zeros(SHAPE)
    for o, i in product(range(6), range(4)):
        if o % 4 == i:
            cos, sin = np.float32(np.cos(i)), np.float32(np.sin(i))  # of the one pair of a group of two
            update[2 * o : 2 * o + 2, 2 * i : 2 * i + 2] = 2 * p["M"] @ np.array([[cos, -sin], [sin, cos]])
    return update


def c3a(p, at):
    """Convolve each block of the input with its kernel by FFT, as in the official code."""
    x = np.eye(8).reshape(8, 4, 2)
    y = np.fft.fft(np.einsum("xnb,mnb->xmb", np.fft.ifft(x), np.fft.fft(p["c"]))).real
    return 2 / 8 * y.reshape(8, 12).T


def c3a_rectangular(p, at):
    """Blocks of 4 x 4: o2 = 4, i2 = 4 in two columns, three rows."""
    rows, columns = 4, 4
    return np.block(
        [
            [np.array([[c[(i - o) % columns] for i in range(columns)] for o in range(rows)]) / 8 for c in row]
            for row in p["c"]
        ]
    )


def miss(p, at):
    """Sum the groups of x, and multiply once."""
    return 2 * (np.eye(8).reshape(8, 4, 2).sum(axis=1) @ p["D"]).T


def miss_mini(p, at):
    return (np.eye(8).reshape(8, 4, 2).sum(axis=1) @ np.tile(p["D"], 6)).T


def miss_bat(p, at):
    blocks = p["W"].reshape(6, 2, 4, 2).transpose(2, 0, 1, 3)
    return (blocks @ p["B"] + p["B"]).transpose(1, 2, 0, 3).reshape(SHAPE)


def bora(p, at):
    return 8 / 2 * np.block([[p["B"][g] @ np.diag(p["S"][g, h]) @ p["A"][:, h] for h in range(2)] for g in range(2)])


def tinylora(p, at):
    s = at["site"]
    return p["B"][s] @ sum(v * matrix for v, matrix in zip(p["v"][s], p["P"][s], strict=True)) @ p["A"][s]


def tinylora_tied(p, at):
    s = at["site"]
    return 2 * p["B"][s] @ sum(v * matrix for v, matrix in zip(p["v"], p["P"][s], strict=True)) @ p["A"][s]


def sharelora(p, at):
    return 8 / 3 * p["B"] @ p["A"]


def sharelora_b(p, at):
    return 2 / 2 * p["B"] @ p["A"]


def sharelora_both(p, at):
    return 8 / 2 * p["B"] @ p["A"]


def kradapter(p, at):
    """Column i is the Kronecker product of columns of V and U."""
    return 2 * np.stack([np.kron(p["V"][:, i], p["U"][:, i]) for i in range(8)], axis=1)


def kradapter_short_out(p, at):
    return np.stack([np.kron(p["V"][:, o], p["U"][:, o]) for o in range(12)])


def cp(p, at):
    return tensorly.cp_to_tensor((p["w"], [p["A_o1"], p["A_o2"], p["A_i1"], p["A_i2"]])).reshape(SHAPE)


def cp_1_2(p, at):
    return 2 * tensorly.cp_to_tensor((p["w"], [p["A_o1"], p["A_i1"], p["A_i2"]])).reshape(SHAPE)


def craft(p, at):
    """Multiply each factor of a Tucker tensor of all layers by its trained matrix."""
    factors = [p["L"], p["U"] @ p["P"], p["V"] @ p["Q"]]
    return 2 * tensorly.tucker_to_tensor((p["G"], factors))[at["layer"]]


def adaring(p, at):
    whole = tensorly.tr_to_tensor([p["U"], p["V"], p["G"].transpose(1, 0, 2)])
    return 2 * whole[:, :, at["layer"]]


def cayley(x):
    turn, one = x - x.T, np.eye(len(x))
    return (one - turn) @ np.linalg.inv(one + turn)


def oft(p, at):
    """Turn each pair of inputs, then apply W."""
    turned = np.zeros((8, 8))
    for g in range(4):
        turned[2 * g : 2 * g + 2, 2 * g : 2 * g + 2] = cayley(p["X"][g])
    return p["W"] @ turned.T - p["W"]


def oft_shared(p, at):
    return p["W"] @ np.kron(np.eye(4), cayley(p["X"])).T - p["W"]


def hra(p, at):
    """Each reflection is followed by its start."""
    turned = reduce(np.matmul, (reflection(p[name]) for name in ("u1", "u1:start", "u2", "u2:start")))
    return p["W"] @ turned


def hra_free(p, at):
    return p["W"] @ reflection(p["u1"]) @ reflection(p["u2"]) @ reflection(p["u3"]) - p["W"]


def svdiff(p, at):
    u, s, vt = np.linalg.svd(p["W"], full_matrices=False)
    return u @ np.diag(s + 2 * p["d"]) @ vt - p["W"]


def soda(p, at):
    u, s, vt = np.linalg.svd(p["W"], full_matrices=False)
    turned = reduce(np.kron, (cayley(p[name]) for name in ("R1", "R2") if name in p))
    return u @ np.diag(s + p["d"]) @ vt @ turned.T - p["W"]


def train(cores):
    """Return the tensor of a train whose end cores have no outer bond."""
    return tt_to_tensor([cores[0][None], *cores[1:-1], cores[-1][..., None]])


def lotr_tt(p, at):
    whole = train([p["A1"], p["A2"], p["G"], p["B1"], p["B2"]])
    return 1 / 2 * whole[:, :, at["site"]].reshape(SHAPE)


def fact_tt(p, at):
    return p["V"] @ p["S"][at["site"]] @ p["U"].T


def fact_tk(p, at):
    return tensorly.tucker_to_tensor((p["C"], [p["V"], p["U"], p["P"]]))[:, :, at["site"]]


def metatt(p, at):
    whole = train([p["G_in"], p["G_layer"], p["G_kind"], p["G_out"]])
    return whole[:, at["layer"], at["kind"]].T


def metatt_heads(p, at):
    whole = train([p["G_in"], p["G_layer"], p["G_kind"], p["G_head"], p["G_dim"]])
    return 2 * whole[:, at["layer"], at["kind"]].reshape(SHAPE[1], SHAPE[0]).T


def tt_lora(p, at):
    return train([p["G1"], p["G2"], p["G3"], p["G4"]]).reshape(SHAPE)


def tt_lora_centered(p, at):
    return train([p["G1"], p["G2"], p["G3"]]).reshape(SHAPE)


def loretta(p, at):
    down = train([p["A1"], p["A2"]]).reshape(SHAPE[1], -1)
    return 16 / 2 * (down @ train([p["B1"], p["B2"], p["B3"]]).reshape(-1, SHAPE[0])).T


def cara(p, at):
    whole = tensorly.cp_to_tensor((p["w"], [p["S"], p["H"], p["D"], p["A"]]))
    return whole[at["site"]].reshape(SHAPE)


def tenslora(p, at):
    factors = [p["U_in"], p["U_out"], p["U_layer"], p["U_kind"]]
    return tensorly.tucker_to_tensor((p["G"], factors))[:, :, at["layer"], at["kind"]].T


def tenslora_heads(p, at):
    factors = [p["U_in"], p["U_head"], p["U_dim"], p["U_layer"]]
    return tensorly.tucker_to_tensor((p["G"], factors))[..., at["layer"]].reshape(SHAPE[1], SHAPE[0]).T


def tenslora_interleaved(p, at):
    """Unfold (in, dim, head) as the official code does: column j H + h."""
    whole = tensorly.tucker_to_tensor((p["G"], [p["U_in"], p["U_dim"], p["U_head"]]))
    update = np.zeros(SHAPE)
    for j, h in product(range(6), range(2)):
        update[j * 2 + h] = whole[:, j, h]
    return update


def tenslora_cp(p, at):
    whole = tensorly.cp_to_tensor((None, [p["U_out"], p["U_in"], p["U_kind"]]))
    return 2 * whole[:, :, at["kind"]]


def flora(p, at):
    return p["P_out"] @ p["G"] @ p["P_in"].T


def flora_kernel(p, at):
    return tensorly.tucker_to_tensor((p["G"], [p["P_out"], p["P_in"], p["P_k1"], p["P_k2"]]))


def flora_gaussian(p, at):
    return 4 * tensorly.tucker_to_tensor((p["G"], [p["P_out"], p["P_in"], p["P_k1"]]))


def quanta(p, at):
    """Apply the gates one after another to every unit vector of the input: axes 3 and 2, 3 and 1, 2 and 1."""
    x = np.eye(SHAPE[1]).reshape(SHAPE[1], 2, 2, 2)
    for second, first in combinations((3, 2, 1), 2):
        x = np.tensordot(x, p[f"T{first}_{second}"], axes=((first, second), (2, 3)))
        x = np.moveaxis(x, (-2, -1), (first, second))
    return x.reshape(SHAPE[1], SHAPE[0]).T


def reflection(v):
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


def householder(p, at):
    """Use the first four columns; here the frozen identities in between have random values, too."""
    return reflection(p["u"]) @ p["I"] @ np.diag(p["s"]) @ p["J"].T @ reflection(p["v"]).T


def quantum_peft(p, at):
    """Apply a rotation of each of two qubits, CZ, and a rotation of each, on both sides; CZ has random values here."""

    def turn(angle):
        return np.array([[np.cos(angle / 2), -np.sin(angle / 2)], [np.sin(angle / 2), np.cos(angle / 2)]])

    def circuit(side):
        first = np.kron(turn(p[f"R_{side}0_1"]), turn(p[f"R_{side}0_2"]))
        second = np.kron(turn(p[f"R_{side}1_1"]), turn(p[f"R_{side}1_2"]))
        return second @ np.diag(p[f"Z_{side}1_1"].ravel()) @ first

    return circuit("o") @ np.diag(p["s"].ravel()) @ circuit("i").T


FORMULAS: dict[str, Formula] = {
    "lora frozen a": lora_fa,
    "lora_xs": lora_xs,
    "mtlora_tasks learned": mtlora_tasks,
    "randlora": randlora,
    "randlora short out": randlora_short_out,
    "krona": krona,
    "kadaptation": kadaptation,
    "kadaptation factorized": kadaptation_factorized,
    "superlora": superlora,
    "gralora": gralora,
    "monarch": monarch,
    "btt": btt,
    "mora": mora,
    "mora 6": mora_turned,
    "c3a": c3a,
    "c3a rectangular": c3a_rectangular,
    "miss": miss,
    "miss mini": miss_mini,
    "miss bat": miss_bat,
    "bora": bora,
    "tinylora": tinylora,
    "tinylora tied": tinylora_tied,
    "sharelora": sharelora,
    "sharelora b": sharelora_b,
    "sharelora both": sharelora_both,
    "kradapter": kradapter,
    "kradapter short out": kradapter_short_out,
    "cp": cp,
    "cp 1 2": cp_1_2,
    "craft": craft,
    "adaring": adaring,
    "oft": oft,
    "oft shared": oft_shared,
    "hra": hra,
    "hra free": hra_free,
    "svdiff": svdiff,
    "soda": soda,
    "soda delta": soda,
    "lotr_tt": lotr_tt,
    "fact_tt": fact_tt,
    "fact_tk": fact_tk,
    "metatt": metatt,
    "metatt heads": metatt_heads,
    "tt_lora": tt_lora,
    "tt_lora centered": tt_lora_centered,
    "loretta": loretta,
    "cara": cara,
    "tenslora": tenslora,
    "tenslora heads": tenslora_heads,
    "tenslora interleaved": tenslora_interleaved,
    "tenslora cp": tenslora_cp,
    "flora": flora,
    "flora kernel": flora_kernel,
    "flora gaussian": flora_gaussian,
    "quanta": quanta,
    "householder": householder,
    "quantum_peft": quantum_peft,
}
ELSEWHERE = {"loha", "lokr", "lora", "lorta", "lotr", "tera", "tlora", "vera"}  # test_products.py and test_apply.py
ELSEWHERE |= {"abba", "dota", "lora_pt", "pissa", "tcurlora"}  # test_starts.py
ELSEWHERE |= {"bslora", "hira", "losa", "mtlora", "nola", "rasa", "ssb", "ssl", "triadaptlora"}  # test_sums.py


def is_fixed(adapter, key):
    """Return whether an entry is the host's weight, or a frozen factor whose values belong to the formula."""
    slot = adapter.slots.get(key)
    return slot is None or (not slot.factor.trainable and adapter.spec.name in {"mora", "c3a", "miss"})


@pytest.mark.parametrize("name", FORMULAS)
def test_the_update_equals_the_formula_of_the_paper(name):
    case, random = FAMILIES[name], np.random.default_rng(0)
    adapter = case.bind(layers=2, kinds=KINDS, seed=3)
    weights = {site.weight: random.standard_normal(site.weight_shape) for site in adapter.sites}
    start = init(adapter, weights)
    moved = {
        key: value if is_fixed(adapter, key) else random.standard_normal(value.shape) for key, value in start.items()
    }  # random values for all factors, also frozen ones, unless they are patterns, ones or the host's weights
    for group in adapter.groups:
        p = {key: moved[adapter.slot_name(group, key)] for key in case.spec.arrays}
        began = {key: start[adapter.slot_name(group, key)] for key, one in case.spec.arrays.items() if one.trainable}
        p |= {f"{key}:start": value for key, value in began.items()}
        before = p | began
        for site in group.sites:
            p |= {"W": weights[site.weight]} if case.spec.hosts else {}
            wanted = FORMULAS[name](p, group.index(site))
            if case.spec.start == "centered":
                wanted = wanted - FORMULAS[name](before | {"W": p.get("W")}, group.index(site))
            np.testing.assert_allclose(delta(adapter, moved, site), wanted, rtol=0, atol=1e-10 * abs(wanted).max())


def test_every_family_has_a_formula():
    assert {FAMILIES[name].spec.name for name in FORMULAS} | ELSEWHERE == set(families.__all__)


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if case.spec.start == "free"])
def test_the_update_starts_nonzero_only_on_request(name):
    assert name in {"lora_xs sigma", "tt_lora random", "loretta random", "hra free", "soda delta"}
    adapter = FAMILIES[name].bind(layers=1, kinds=KINDS)
    weights = {site.weight: np.random.default_rng(0).standard_normal(site.weight_shape) for site in adapter.sites}
    assert all(delta(adapter, init(adapter, weights), site).any() for site in adapter.sites)


def test_superlora_with_one_part_is_a_tucker_tensor_of_the_group():
    adapter = FAMILIES["superlora 1"].bind(layers=2, kinds=KINDS)
    p = {key: np.random.default_rng(1).standard_normal(value.shape) for key, value in init(adapter).items()}
    whole = 2 * tensorly.tucker_to_tensor((p["C1"], [p["A1"], p["B1"], p["S"]]))
    for place, site in enumerate(adapter.sites):
        np.testing.assert_allclose(delta(adapter, p, site), whole[..., place], rtol=1e-10, atol=1e-12)


def test_btt_and_gralora_are_the_same_network():
    """The same values, with the modes in another order, give the same update."""
    sites = places(families.btt(), layers=1, kinds={"q": SHAPE})
    one = families.btt().bind(sites, rank=2)
    two = families.gralora(alpha=2).bind(sites, rank=2)
    p = {key: np.random.default_rng(1).standard_normal(value.shape) for key, value in init(one).items()}
    q = {"A": p["R"].transpose(3, 0, 2, 1), "B": p["L"].transpose(0, 2, 3, 1)}
    np.testing.assert_allclose(delta(two, q, sites[0]), delta(one, p, sites[0]), rtol=1e-10, atol=1e-12)


def test_the_wires_of_quanta_have_the_sizes_of_their_modes():
    sites = places(families.quanta(), layers=1, kinds={"q": (96, 96)})
    sizes = {f"{side}{axis}": size for side in "io" for axis, size in enumerate((2, 3, 4, 4), start=1)}
    network = families.quanta().bind(sites, rank=100, sizes=sizes).networks[0]
    for axis, size in enumerate((2, 3, 4, 4), start=1):
        assert {network.sizes[f"w{axis}_{n}"] for n in (1, 2)} == {size}
    assert network.shape("T3_4") == (4, 4, 4, 4)
    assert network.shape("T1_2") == (2, 3, 2, 3)


def test_craft_starts_at_the_truncated_hosvd_of_the_weights():
    """L joins layer and t as an identity, so that slice t of the core is that of layer t."""
    sites = grid(layers=3, kinds={"q": (5, 4)})
    adapter = families.craft().bind(sites, rank={"p": 5, "a": 5, "q": 4, "b": 4}, overparametrized=True)
    random = np.random.default_rng(0)
    weights = {site.path: random.standard_normal((5, 4)) for site in sites}
    p = init(adapter, weights)
    assert np.array_equal(p["L"], np.eye(3))
    whole = np.einsum("lt,op,pa,tab,qb,iq->loi", p["L"], p["U"], p["P"], p["G"], p["Q"], p["V"])
    for layer, site in enumerate(sites):
        assert np.allclose(whole[layer], weights[site.path], atol=1e-5)
