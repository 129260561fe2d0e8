"""Arguments of a wrong type give an error that says what to write, in all public functions of the JAX binding."""

import jax.numpy as jnp
import pytest

import tnadapt
import tnadapt_jax as tj
from tnadapt import FormatError, SiteError, SpecError, families
from tnadapt_jax._maps import map_factor

LORA = families.lora()
WEIGHTS = {"layers": {"0": {"q": {"kernel": jnp.ones((8, 8))}}}}
LEAVES = tj.find_sites(WEIGHTS, target=["q"], layout="nnx")
ADAPTER = LORA.bind(LEAVES.sites, rank=2)
PARAMS = tj.init(ADAPTER)
FLAT = tnadapt.init(ADAPTER)
PATH = "layers.0.q"
X = jnp.ones((3, 8))

ASKING = {
    "init": tj.init,
    "apply": lambda adapter, params=PARAMS: tj.apply(adapter, params, PATH, X),
    "delta": lambda adapter, params=PARAMS: tj.delta(adapter, params, PATH),
    "merge": lambda adapter, params=PARAMS: tj.merge(adapter, params, WEIGHTS, LEAVES),
    "adapt": lambda adapter, params=PARAMS: tj.adapt(lambda weights: weights, adapter, LEAVES)(params, WEIGHTS),
    "scan_split": lambda adapter, params=PARAMS: tj.scan_split(adapter, params),
    "apply_in_layer": lambda adapter: tj.apply_in_layer(adapter, {}, {}, "q", X),
    "save": lambda adapter, params=PARAMS: tj.save(adapter, params, "never_written"),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_spec_is_rejected_where_an_adapter_is_expected(name):
    error = FormatError if name == "save" else SiteError
    with pytest.raises(error, match=f"^{name}: expected an Adapter, got the AdapterSpec 'lora'.\nBind it first: spec"):
        ASKING[name](LORA)


@pytest.mark.parametrize("name", sorted(ASKING.keys() - {"init", "apply_in_layer"}))
def test_flat_numpy_params_are_rejected(name):
    with pytest.raises(
        SiteError, match=r"^params: .*'trainable' and 'frozen', got a dict of 'A', 'B'.\nPass the result"
    ):
        ASKING[name](ADAPTER, FLAT)


@pytest.mark.parametrize(
    ("params", "words"),
    [(None, "^params: .*got None."), ({"trainable": 3, "frozen": {}}, r"^params\['trainable'\]: .*got 3.")],
)
def test_params_of_another_type_are_rejected(params, words):
    with pytest.raises(SiteError, match=words):
        tj.apply(ADAPTER, params, PATH, X)


def found(weights=WEIGHTS, **changes):
    return lambda: tj.find_sites(weights, **({"target": ["q"], "layout": "nnx"} | changes))


MISTAKES = {  # description -> the call, its error and the message
    "a spec for weights": (found(LORA), SiteError, r"expected a pytree of arrays, got the AdapterSpec 'lora'."),
    "an adapter for weights": (found(ADAPTER), SiteError, r"expected a pytree of arrays, got the Adapter 'lora'."),
    "no layout": (lambda: tj.find_sites(WEIGHTS, target=["q"]), SiteError, r"'layout', got none.\nWrite find_sites\("),
    "the word of torch": (found(target_modules=["q"]), SiteError, r"PEFT's target_modules is called target here."),
    "a target of 3": (found(target=3), SiteError, r"a list of names as target, got 3."),
    "a layout of roles": (
        found(layout=("in", "out")),
        SiteError,
        r"expected a layout as a string, got \('in', 'out'\).",
    ),
    "adapt swapped": (
        lambda: tj.adapt(ADAPTER, found, LEAVES),
        SiteError,
        r"the Adapter 'lora'.\nThe model's function",
    ),
    "sites for leaves": (
        lambda: tj.merge(ADAPTER, PARAMS, WEIGHTS, LEAVES.sites),
        SiteError,
        r"^merge: expected Leaves, got .*\nPass the whole result of find_sites\(weights, ...\).",
    ),
    "a list for x": (lambda: tj.apply(ADAPTER, PARAMS, PATH, [1.0] * 8), SiteError, r"an array as x, .*jnp.asarray\(x"),
    "a file of 3": (lambda: tj.load(3), FormatError, r"^load: expected the path of a file, got 3."),
    "an unknown map": (lambda: map_factor("no_such_map", jnp.eye(2)), SpecError, r"expected one of .*'no_such_map'"),
}


@pytest.mark.parametrize(("act", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_argument_gives_a_helpful_error(act, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        act()


@pytest.mark.parametrize("name", ["adapt", "find_sites", "init", "load", "merge", "save"])
def test_a_word_that_a_function_does_not_have_is_answered(name):
    error = FormatError if name in ("load", "save") else SiteError
    with pytest.raises(error, match=f"^{name}: expected .*, got 'rang'.\n"):
        getattr(tj, name)(rang=2)


def nnx_model():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            self.q = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

    return Model()


@pytest.mark.parametrize("spec", ["lotr", families.lotr, families.lotr()], ids=["name", "family", "spec"])
def test_attach_accepts_a_family_or_its_name_and_uses_seed_0(spec):
    host = nnx_model()
    from tnadapt_jax.nnx import attach

    found = attach(host, spec, target=["q"], rank=2)
    assert (found.adapter.spec, found.adapter.seed) == (families.lotr(), 0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((None, "lotrr"), SpecError, r"^attach: .*got 'lotrr'.\nThe nearest names are lotr"),
        ((None, ADAPTER), SiteError, r"^attach: expected an adapter without rank, got both.\nLeave out rank, or what"),
        ((LORA, None), SiteError, r"expected an nnx.Module .*\nThe model comes first: attach\(model, spec"),
    ],
    ids=["a slip", "an adapter", "swapped"],
)
def test_attach_rejects_invalid_arguments(arguments, error, words):
    host = nnx_model()
    from tnadapt_jax.nnx import attach

    with pytest.raises(error, match=words):
        attach(*(host if one is None else one for one in arguments), target=["q"], rank=2)


def test_attach_explains_the_argument_names_of_peft():
    host = nnx_model()
    from tnadapt_jax.nnx import attach

    with pytest.raises(SiteError, match=r"\nPEFT's target_modules is called target here."):
        attach(host, "lotr", target_modules=["q"])
    with pytest.raises(SiteError, match=r"^bind: expected sites, got .*\nTo adapt an nnx module"):
        LORA.bind(host)
