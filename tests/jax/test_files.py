"""Files: each of the JAX and PyTorch bindings reads what the other wrote, with the same values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import AdapterSpec, FormatError, families, frozen, normal, raw, trainable
from tnadapt.binding import read_checkpoint
from tnadapt.initializers import orthogonal

KINDS = {"q": (6, 4), "up": (4, 6)}
SITES = tnadapt.grid(layers=2, kinds=KINDS)
FAMILIES = ["lotr", "vera", "tlora"]


def moved(adapter, dtype=jnp.float32):
    params = tnadapt_jax.init(adapter, dtype=dtype)
    keys = jax.random.split(jax.random.key(0), len(params["trainable"]))
    named = zip(params["trainable"].items(), keys, strict=True)
    return params | {"trainable": {name: jax.random.normal(key, value.shape, dtype) for (name, value), key in named}}


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture
def host():
    """A torch model with layers at the paths of the sites."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # tests run side by side
    layers = [
        torch.nn.ModuleDict({kind: torch.nn.Linear(inner, outer) for kind, (outer, inner) in KINDS.items()})
        for _ in range(2)
    ]
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers)})


@pytest.mark.parametrize("family", FAMILIES)
def test_jax_reads_what_torch_wrote(family, host, tmp_path):
    torch = pytest.importorskip("torch")
    tnadapt_torch = pytest.importorskip("tnadapt_torch")
    state = tnadapt_torch.attach(host, getattr(families, family)(), target_modules=["q", "up"], rank=2, seed=7)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.normal_()
    state.save(tmp_path / "a.safetensors")
    adapter, params = tnadapt_jax.load(tmp_path / "a.safetensors")
    assert adapter == state.adapter
    for name, value in state.params().items():
        tree = "trainable" if adapter.slots[name].factor.trainable else "frozen"
        np.testing.assert_array_equal(params[tree][name], value.detach().numpy())
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    with state.disabled():
        base = host["layers"][1]["q"](torch.from_numpy(x))
    wanted = (host["layers"][1]["q"](torch.from_numpy(x)) - base).detach().numpy()
    np.testing.assert_allclose(tnadapt_jax.apply(adapter, params, "layers.1.q", jnp.array(x)), wanted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_reads_what_jax_wrote(family, host, tmp_path):
    tnadapt_torch = pytest.importorskip("tnadapt_torch")
    weights = {f"{name}": np.asarray(value.detach()) for name, value in host.named_parameters()}
    leaves = tnadapt_jax.find_sites(weights, target=["q", "up"], layout="hf-torch")
    adapter = getattr(families, family)().bind(leaves.sites, rank=2, seed=7)
    params = moved(adapter)
    tnadapt_jax.save(adapter, params, tmp_path / "a.safetensors")
    state = tnadapt_torch.load(host, tmp_path / "a.safetensors")
    assert state.adapter == adapter
    found = tnadapt_jax.delta(adapter, params, "layers.1.q")
    np.testing.assert_allclose(found, state.delta("layers.1.q").detach().numpy(), atol=1e-6)


def test_both_bindings_write_the_same_bytes(host, tmp_path):
    tnadapt_torch = pytest.importorskip("tnadapt_torch")
    state = tnadapt_torch.attach(host, families.vera(), target_modules=["q", "up"], rank=2, seed=7)
    state.save(tmp_path / "torch.safetensors")
    adapter = state.adapter
    tnadapt_jax.save(adapter, tnadapt_jax.init(adapter), tmp_path / "jax.safetensors")
    assert (tmp_path / "torch.safetensors").read_bytes() == (tmp_path / "jax.safetensors").read_bytes()


def test_bfloat16_is_stored_as_float32_and_frozen_factors_are_regenerated_from_the_seed(tmp_path):
    adapter = families.vera().bind(SITES, rank=2, seed=3)
    params = moved(adapter, jnp.bfloat16)
    tnadapt_jax.save(adapter, params, tmp_path / "a.safetensors")
    stored = read_checkpoint(tmp_path / "a.safetensors").params
    assert {value.dtype for name, value in stored.items() if name.endswith(".b")} == {np.dtype(np.float32)}
    again, narrow = tnadapt_jax.load(tmp_path / "a.safetensors", dtype=jnp.bfloat16)
    assert again == adapter
    assert_equal(narrow, params)
    _, wide = tnadapt_jax.load(tmp_path / "a.safetensors")
    assert_equal(wide["frozen"], tnadapt_jax.init(adapter)["frozen"])


def test_float64_is_kept_if_jax_enables_it(tmp_path):
    adapter = families.lotr().bind(SITES, rank=2, seed=3)
    with jax.enable_x64(True):
        params = moved(adapter, jnp.float64)
        tnadapt_jax.save(adapter, params, tmp_path / "a.safetensors")
        assert_equal(tnadapt_jax.load(tmp_path / "a.safetensors")[1], params)
    with pytest.raises(FormatError, match=r"(?s)expected float32, since .*, got float64\.\n.*pass dtype=jnp\.float32"):
        tnadapt_jax.load(tmp_path / "a.safetensors")
    assert tnadapt_jax.load(tmp_path / "a.safetensors", dtype=jnp.float32)[1]["trainable"]["6x4.A"].dtype == jnp.float32


def test_changed_or_orthogonal_frozen_factors_and_extra_arrays_are_stored(tmp_path):
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("out r"), "Q": frozen("r q", init=orthogonal()), "F": frozen("q in")},
        scale=raw(1.0),
        start="free",
    )
    adapter = spec.bind(SITES[:1], rank=2)
    params = tnadapt_jax.init(adapter)
    params = params | {"frozen": params["frozen"] | {"F": jnp.ones((2, 4))}}
    tnadapt_jax.save(adapter, params, tmp_path / "a.safetensors", extra={"head.weight": jnp.ones((2, 3), jnp.bfloat16)})
    assert_equal(tnadapt_jax.load(tmp_path / "a.safetensors")[1], params)
    assert (read_checkpoint(tmp_path / "a.safetensors").extra["head.weight"] == np.ones((2, 3))).all()


def test_the_starts_of_a_centered_spec_are_not_stored_and_must_match_the_seed(tmp_path):
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("out r", init=normal()), "B": trainable("in r", init=normal())},
        scale=raw(1.0),
        start="centered",
    )
    adapter = spec.bind(SITES[:1], rank=2, seed=2)
    params = moved(adapter)
    tnadapt_jax.save(adapter, params, tmp_path / "a.safetensors")
    assert_equal(tnadapt_jax.load(tmp_path / "a.safetensors")[1], params)
    changed = params | {"frozen": params["frozen"] | {"A:start": jnp.zeros((6, 2))}}
    with pytest.raises(FormatError, match=re.compile(r"'A:start'.*expected the starting value.*Nothing", re.DOTALL)):
        tnadapt_jax.save(adapter, changed, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
