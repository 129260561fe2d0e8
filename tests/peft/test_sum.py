"""Weighted sums of adapters: exactly the sum of the updates, for every family that has one, else a clear error."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import PeftModel, get_peft_model

from tests.peft.models import close, config, gpt2, llama, logits, wake
from tnadapt import AdapterSpec, SiteError, families, frozen, normal, over_rank, raw, trainable, unit, zeros
from tnadapt.initializers import cyclic
from tnadapt_torch.peft import TnConfig, TnLinear

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SUMMED = [
    "cara",
    "fact_tk",
    "fact_tt",
    "flora",
    "kadaptation",
    "lora",
    "lora_xs",
    "loretta",
    "lorta",
    "lotr",
    "lotr_tt",
]
SUMMED += ["metatt", "monarch", "btt", "gralora", "randlora", "tenslora", "tera", "tt_lora"]
NOT_SUMMED = {
    "loha": "one whose factors are not all linked by bonds",
    "lokr": "one whose factor C has no bond that could become longer",
    "vera": "one whose factor b has no bond that could become longer",
    "quanta": "one of several terms",
    "householder": "one with a householder of the factor u",
    "hira": "one with the host's weight",
}
WEIGHTS = [0.5, -2.0]


def told(name, **more):
    spec = getattr(families, name)()
    words = {"rank": 2} if spec.bonds else {}
    words |= {"sizes": {"head": 4}} if "head" in spec.sizes else {}
    return TnConfig(overparametrized=True, **{"spec": spec, "target_modules": ["q_proj", "v_proj"]} | words | more)


def two(name, make=llama, first=None, second=None):
    """Make a model with two awake adapters on different layers, with different ranks and alphas."""
    spec = getattr(families, name)()
    other = {"target_modules": ["q_proj", "down_proj"], "alpha": 3.0} | ({"rank": 3} if spec.bonds else {})
    model = get_peft_model(make(), told(name, **first or {}), adapter_name="one")
    model.add_adapter("two", told(name, **other | (second or {})))
    for seed, state in enumerate(model.base_model.states().values()):
        wake(state, seed=seed)
    return model


def layers(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, TnLinear)}


def check_sum(model, weights=WEIGHTS, names=("one", "two"), total="sum"):
    for layer in layers(model).values():
        summands = [
            weight * layer.get_delta_weight(name)
            for name, weight in zip(names, weights, strict=True)
            if name in layer.tnadapt_updates
        ]
        close(layer.get_delta_weight(total), sum(summands), 1e-5)


@pytest.mark.parametrize("name", SUMMED)
def test_the_update_of_a_sum_is_the_sum_of_the_updates(name, tmp_path):
    model = two(name)
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    check_sum(model)
    model.set_adapter("sum")
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path / "sum")
    close(logits(back), logits(model), 0.0)


@pytest.mark.parametrize("name", NOT_SUMMED)
def test_a_spec_without_a_sum_raises_and_nothing_changes(name):
    model = two(name)
    wanted, modules = logits(model), list(model.named_modules())
    with pytest.raises(
        SiteError, match=f"^{name}: expected a spec whose networks can be summed, got {NOT_SUMMED[name]}"
    ):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    assert list(model.named_modules()) == modules
    assert list(model.peft_config) == ["one", "two"]
    assert torch.equal(logits(model), wanted)


LAYERS = {"first": {"target_modules": r".*(0\..*q_proj|1\..*o_proj)"}, "second": {"target_modules": r".*0\..*o_proj"}}


@pytest.mark.parametrize("name", ["fact_tk", "lora", "lotr", "tera", "tt_lora"])
def test_targets_that_are_no_grid_are_summed(name):
    model = two(name, **LAYERS)
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    check_sum(model)


@pytest.mark.parametrize("name", ["lorta", "metatt", "tenslora"])
def test_a_summand_that_would_be_read_where_it_has_no_site_raises_and_nothing_changes(name):
    """Its layers and kinds have factors of their own: the pair is told apart by neither."""
    model = two(name, **LAYERS)
    wanted, modules = logits(model), list(model.named_modules())
    with pytest.raises(SiteError, match=r"expected a sum of adapters that all have this site.*'one' without it"):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    assert list(model.named_modules()) == modules
    assert list(model.peft_config) == ["one", "two"]
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (None, 2), (None, 1)])
def test_a_bond_with_a_number_in_the_spec_has_one_size_in_all_summands(sizes):
    factors = {"A": trainable("r s in", init=normal()), "B": trainable("out r s", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw(), sizes={"s": 2})
    first, second = ({"sizes": {"s": size}} if size else {} for size in sizes)
    model = two("lora", first=first | {"spec": spec}, second=second | {"spec": spec})
    if sizes == (None, 1):
        with pytest.raises(SiteError, match=r"expected the same sizes in all of them, got \{'s': 2\} and others"):
            model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
        assert list(model.peft_config) == ["one", "two"]
        return
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    check_sum(model)


def test_a_pattern_that_would_become_longer_has_no_sum():
    factors = {"A": trainable("a in", init=normal()), "B": trainable("out b", init=zeros())}
    factors |= {"C": trainable("c", init=normal()), "T": frozen("a b c", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=raw())
    words = {"spec": spec, "rank": 4, "target_modules": ["q_proj"]}
    model = get_peft_model(llama(), TnConfig(**words), adapter_name="one")
    model.add_adapter("two", TnConfig(**words))
    with pytest.raises(SiteError, match=r"got one with a fixed pattern, T, that would become longer"):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")


def test_a_sum_is_not_active_and_leaves_the_others_as_they_are():
    model = two("lotr")
    wanted, flags = logits(model), [parameter.requires_grad for parameter in model.parameters()]
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    assert torch.equal(logits(model), wanted)
    assert model.active_adapters == ["one"]
    assert [p.requires_grad for n, p in model.named_parameters() if ".sum." not in n] == flags
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".sum." in n)


def test_sums_of_one_of_three_and_of_a_sum_are_right():
    model = two("lorta")
    model.add_adapter("three", told("lorta", rank=1, target_modules=["o_proj"]))
    wake(model.base_model.states()["three"], seed=5)
    model.add_weighted_adapter(["two"], [3.0], "scaled")
    for layer in layers(model).values():
        if "scaled" in layer.tnadapt_updates:
            close(layer.get_delta_weight("scaled"), 3.0 * layer.get_delta_weight("two"), 1e-5)
    model.add_weighted_adapter(["one", "two", "three"], [1.0, 0.0, 2.5], "all")
    check_sum(model, [1.0, 0.0, 2.5], ["one", "two", "three"], "all")
    model.add_weighted_adapter(["all", "one"], [1.0, -0.5], "again")
    check_sum(model, [1.0, -0.5], ["all", "one"], "again")


@pytest.mark.parametrize(
    "words",
    [
        {"blocks": {"c_attn": (3, 1)}},
        {"fused": {"c_attn": ["q", "k", "v"]}},
        {"fold": True},
        {"alpha": 7.0, "target_modules": ["c_attn"]},
    ],
    ids=str,
)
def test_parts_of_weights_and_conv1d_are_summed(words):
    shared = {"target_modules": ["c_attn", "c_proj"]} | words
    model = two("lora", gpt2, shared, shared)
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    check_sum(model)


REFUSED = {
    "an approximation": ((["one", "two"], WEIGHTS, "sum", "svd"), {}, r"^combination_type: expected 'cat'"),
    "an unknown adapter": ((["one", "three"], WEIGHTS, "sum"), {}, r"^adapters: .*\(one, two\), got 'three'"),
    "no adapters": (([], [], "sum"), {}, r"^adapters: expected a list of names, got \[\]"),
    "one name": (("one", [1.0], "sum"), {}, r"^adapters: expected a list of names, got 'one'"),
    "a weight too few": ((["one", "two"], [1.0], "sum"), {}, r"^weights: expected 2 finite numbers"),
    "no number": ((["one", "two"], [1.0, "2"], "sum"), {}, r"^weights: expected 2 finite numbers"),
    "infinity": ((["one", "two"], [1.0, float("inf")], "sum"), {}, r"^weights: expected 2 finite numbers"),
    "a name in use": ((["one", "two"], WEIGHTS, "two"), {}, r"^adapter_name: expected a name that is not in use"),
    "a bad name": ((["one", "two"], WEIGHTS, "a.b"), {}, r"^adapter_name: expected a name without dots"),
    "an argument of LoRA": ((["one", "two"], WEIGHTS, "sum", "cat", 4), {}, r"^add_weighted_adapter: expected at most"),
    "another spec": (
        (["one", "two"], WEIGHTS, "sum"),
        {"spec": families.lotr()},
        r"^adapters: .*got several \(lora, lotr\)",
    ),
    "other blocks": (
        (["one", "two"], WEIGHTS, "sum"),
        {"blocks": {"q_proj": (2, 1)}},
        r"^adapters: expected the same blocks",
    ),
    "a module in full": (
        (["one", "two"], WEIGHTS, "sum"),
        {"modules_to_save": ["lm_head"]},
        r"without modules_to_save",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sum_that_cannot_be_exact_raises_and_nothing_changes(case):
    arguments, second, message = REFUSED[case]
    model = two("lora", second=second)
    wanted, modules = logits(model), list(model.named_modules())
    with pytest.raises(SiteError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.named_modules()) == modules
    assert list(model.peft_config) == ["one", "two"]
    assert torch.equal(logits(model), wanted)


def test_other_sizes_raise():
    model = get_peft_model(llama(), config("lorta"), adapter_name="one")
    model.add_adapter("two", config("lorta", sizes={"head": 2}))
    with pytest.raises(
        SiteError, match=r"^adapters: expected the same sizes in all of them, got \{'head': 4\} and others"
    ):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")


@pytest.mark.parametrize("scale", [None, unit(2.0)])
def test_a_factor_that_groups_of_other_ranks_share_leaves_their_scales_to_another(scale):
    """The scales of groups move by different ratios: a factor that is one array for all of them cannot make up."""
    more = {"first": {"scale": scale, "rank_pattern": {"v_proj": 5}}, "second": {"scale": scale, "rank": 3}}
    model = two("sharelora", **more)
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    check_sum(model)


def test_groups_of_several_scales_that_share_every_trained_factor_have_no_sum():
    spec = AdapterSpec(
        name="common",
        weight="out in",
        over="layer",
        factors={
            "A": frozen("r in", init=normal()),
            "G": trainable("s r", init=normal(), shared=True),
            "B": frozen("out s", init=normal()),
            "L": trainable("r t", init=zeros(), shared=True),
            "C": frozen("t layer", init=normal()),
        },
        scale=over_rank("r"),
    )
    model = get_peft_model(llama(), told("lora", spec=spec, rank_pattern={"v_proj": 5}), adapter_name="one")
    with pytest.raises(SiteError, match="expected one scale for all weights, since they share every trained factor"):
        model.add_weighted_adapter(["one"], [2.0], "sum")
