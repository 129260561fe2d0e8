"""Maps on factors: their values, their pull-backs, zero vectors, and invalid sizes."""

import numpy as np
import pytest

from tnadapt import (
    AdapterSpec,
    PlanError,
    Site,
    SiteError,
    SpecError,
    count,
    degrees_of_freedom,
    delta,
    families,
    from_json,
    init,
    load,
    plan,
    raw,
    report,
    save,
    to_json,
    trainable,
    zeros,
)
from tnadapt.binding import map_factor, pull_back
from tnadapt.initializers import orthogonal
from tnadapt.policies import bonds, grow
from tnadapt.sizes import like
from tnadapt.testing import check, random_params

SHAPES = {"rotation": (3,), "householder": (3, 4), "cayley": (3, 4, 4), "": (3, 4)}
QUBITS = families.quantum_peft(qubits=2)


@pytest.mark.parametrize("name", ["rotation", "householder", "cayley"])
def test_every_node_is_orthogonal(name):
    node = map_factor(name, np.random.default_rng(0).standard_normal(SHAPES[name]))
    size = node.shape[-1]
    assert node.shape == (3, size, size)
    np.testing.assert_allclose(node @ node.swapaxes(1, 2), np.broadcast_to(np.eye(size), node.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(node), -1 if name == "householder" else 1, rtol=1e-12)


def test_the_nodes_equal_their_formulas():
    t, v, x = 0.7, np.array([1.0, 2.0, -2.0]), np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(map_factor("rotation", np.array(t)) @ [1, 0], [np.cos(t / 2), np.sin(t / 2)])
    np.testing.assert_allclose(map_factor("householder", v) @ v, -v)
    np.testing.assert_allclose(map_factor("householder", v) @ [2, -1, 0], [2, -1, 0])
    skew = x - x.T
    wanted = (np.eye(3) - skew) @ np.linalg.inv(np.eye(3) + skew)
    np.testing.assert_allclose(map_factor("cayley", x), wanted, atol=1e-12)
    assert map_factor("", v) is v


@pytest.mark.parametrize("name", SHAPES)
def test_a_pull_back_is_the_transposed_derivative(name):
    random = np.random.default_rng(0)
    held, way = random.standard_normal(SHAPES[name]), random.standard_normal(SHAPES[name])
    gradient = random.standard_normal(map_factor(name, held).shape)
    step = 1e-6
    ahead, behind = (float(np.sum(map_factor(name, held + sign * step * way) * gradient)) for sign in (1, -1))
    found = pull_back(name, held, gradient)
    assert found.shape == held.shape
    assert np.sum(found * way) == pytest.approx((ahead - behind) / (2 * step), rel=1e-7)


def test_a_zero_vector_reflects_nothing_and_has_no_gradient():
    assert (map_factor("householder", np.zeros((2, 3))) == np.eye(3)).all()
    assert not pull_back("householder", np.zeros((2, 3)), np.ones((2, 3, 3))).any()


def test_zero_vectors_have_zero_gradients_in_the_frameworks():
    torch = pytest.importorskip("torch")
    from tnadapt_torch._run.maps import map_factor as by_torch

    held = torch.zeros(2, 3, requires_grad=True)
    by_torch("householder", held).sum().backward()
    assert (held.grad == 0).all()
    jax = pytest.importorskip("jax")
    from tnadapt_jax._maps import map_factor as by_jax

    assert (jax.grad(lambda v: by_jax("householder", v).sum())(jax.numpy.zeros((2, 3))) == 0).all()


@pytest.mark.parametrize("qubits", [2, 4, 6])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_circuits_are_orthogonal_and_have_as_many_angles_as_in_the_paper(qubits, layers):
    """Each of the two circuits has (2 L + 1) q - 2 L angles (arXiv:2503.05431, according to a summary of the paper)."""
    size = 2**qubits
    adapter = families.quantum_peft(qubits=qubits, layers=layers).bind([Site("w", (size, size))])
    assert count(adapter).trainable == 2 * ((2 * layers + 1) * qubits - 2 * layers) + size
    params = random_params(adapter, np.random.default_rng(0))
    values = np.linalg.svd(delta(adapter, params, "w"), compute_uv=False)
    np.testing.assert_allclose(values, np.sort(np.abs(params["s"].ravel()))[::-1], atol=1e-12)
    assert not delta(adapter, init(adapter), "w").any()


def test_a_circuit_of_many_qubits_is_planned():
    made = plan(families.quantum_peft(qubits=10).bind([Site("w", (1024, 1024))]).networks[0])
    assert not made.exact


def test_files_store_the_parameters_of_a_map_and_not_its_node(tmp_path):
    adapter = families.householder().bind([Site("w", (6, 4))], rank=3)
    assert from_json(to_json(adapter)) == adapter
    params = random_params(adapter, np.random.default_rng(0))
    assert params["u"].shape == (6,)
    save(adapter, params, tmp_path / "a")
    again, loaded = load(tmp_path / "a")
    assert (delta(again, loaded, "w") == delta(adapter, params, "w")).all()
    assert "householder of normal" in str(adapter.spec)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (
            {"A": trainable("out r", map="turn"), "B": trainable("r in", init=zeros())},
            "'A': expected one of the maps rotation, householder, cayley, got 'turn'",
        ),
        (
            {"A": trainable("layer out", map="cayley"), "B": trainable("in", init=zeros())},
            "'A': map cayley: makes its last",
        ),
        (
            {"A": trainable("out", map="cayley"), "B": trainable("in", init=zeros())},
            "'A': map cayley: makes its last two",
        ),
        (
            {"A": trainable("out r", map="cayley", init=orthogonal()), "B": trainable("r in", init=zeros())},
            "'A': map cayley: expected one of the initializers constant, normal, uniform",
        ),
        (
            {"A": trainable("out r", map="cayley", init=zeros()), "B": trainable("r in")},
            "the update does not start at 0",
        ),
    ],
)
def test_an_invalid_map_is_refused(factors, message):
    with pytest.raises(SpecError, match=message):
        AdapterSpec(name="own", weight="out in", over="layer", factors=factors, scale=raw())


@pytest.mark.parametrize(
    ("map", "rank", "message"),
    [
        (
            "rotation",
            3,
            r"factor 'A': expected 2 and 2 as the sizes of 'p' and 'q', which the map rotation makes, got 3 and 3\.\n",
        ),
        (
            "cayley",
            {"p": 3, "q": 2},
            r"expected equal numbers as .*, which the map cayley makes, got 3 and 2\.\n.*as in rank=\{'p': 3, 'q': 3\}",
        ),
        ("householder", {"p": 3, "q": 2}, r"expected equal numbers as .*, which the map householder makes"),
    ],
)
def test_sizes_that_a_map_does_not_allow_are_reported(map, rank, message):
    factors = {"O": trainable("out p", init=zeros()), "A": trainable("p q", map=map), "B": trainable("q in")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw())
    with pytest.raises(SiteError, match=message):
        spec.bind([Site("w", (6, 4))], rank=rank)


def test_the_size_of_a_mode_of_the_weight_is_told_to_the_other_mode_of_its_map():
    factors = {"A": trainable("out p", map="cayley"), "B": trainable("p in", init=zeros())}
    with pytest.raises(SiteError, match=r"write sizes=\{'p': like\('out'\)\} in the spec"):
        AdapterSpec(name="own", weight="out in", factors=factors, scale=raw()).bind([Site("w", (6, 4))], rank=2)
    sizes = {"p": like("out")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw(), sizes=sizes)
    assert spec.bind([Site("w", (6, 4))], overparametrized=True).networks[0].sizes["p"] == 6


def test_specs_with_maps_between_bonds_can_be_checked_and_do_not_grow():
    """The bonds of a map have one size, which is drawn once."""
    factors = {"A": trainable("out p"), "C": trainable("p q", map="cayley"), "D": trainable("q s", map="householder")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors | {"B": trainable("s in", init=zeros())})
    assert all(held.examples == 2 for held in check(spec, examples=2))
    adapter = spec.bind(Site("w", (6, 5)), rank=2)
    reasons = bonds(adapter, "grow")
    assert reasons.keys() == {"p", "q", "s"}
    assert all("makes it, as long as another" in reason for reason in reasons.values())
    with pytest.raises(SiteError, match="makes it, as long as another"):
        grow(adapter, init(adapter), "p", 1)


def test_axes_that_are_not_a_power_of_two_are_refused():
    with pytest.raises(
        SiteError, match=r"expected 2 and 2 as .*, which the map rotation makes, got .*\n.* a power of 2\."
    ):
        QUBITS.bind([Site("w", (12, 12))])
    with pytest.raises(
        SpecError, match=r"qubits: expected an even number of at least 2, for gates on pairs, got 3; write 4"
    ):
        families.quantum_peft(qubits=3)


def test_degrees_of_freedom_refuses_maps_and_the_report_omits_them():
    adapter = families.householder().bind([Site("w", (6, 4))], rank=3)
    with pytest.raises(PlanError, match=r"expected an update that is a polynomial .*, got one whose factor u has a m"):
        degrees_of_freedom(adapter)
    assert report(adapter).networks[0].freedom is None
