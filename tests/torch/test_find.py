"""Find the modules to adapt: what a rule matches, the layer and kind of each match, and the errors."""

import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt_torch import attach

QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


def found(model, target_modules, **more):
    """Return the sites that a rule matches; the adapter is detached again."""
    state = attach(model, families.lora(), target_modules=target_modules, rank=2, seed=0, **more)
    state.detach()
    return state.adapter.sites


def paths(model, target_modules, **more):
    return [site.path for site in found(model, target_modules, **more)]


def places(model, target_modules, **more):
    sites = found(model, target_modules, **more)
    return {site.path: (site.coordinates["layer"], site.coordinates["kind"]) for site in sites}


def in_layers(*kinds, layers=(0, 1)):
    return [f"layers.{layer}.{kind}" for layer in layers for kind in kinds]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (["q_proj"], in_layers("self_attn.q_proj")),
        (["self_attn.q_proj", "up"], in_layers("self_attn.q_proj", "mlp.up")),
        (["up", "up"], in_layers("mlp.up")),
        (["layers.1.mlp.down"], in_layers("mlp.down", layers=[1])),
        (("score",), ["score"]),
        ({"score"}, ["score"]),
        (r".*\.[qk]_proj", in_layers(*QKV[:2])),
        (r"layers\.1\..*proj", in_layers(*QKV, "self_attn.o_proj", layers=[1])),
        ("score", ["score"]),
        ("all-linear", [*in_layers(*QKV, "self_attn.o_proj", "mlp.up", "mlp.down"), "score"]),
    ],
)
def test_a_rule_matches_these_paths(rule, wanted):
    assert paths(hosts.toy(), rule) == wanted


@pytest.mark.parametrize("rule", [["proj"], ["attn.q_proj"], "q_proj", "scor", r"layers\.0\.mlp\.u", r".*\.mlp\.u"])
def test_part_of_a_name_or_a_path_does_not_match(rule):
    with pytest.raises(SiteError, match=r"which matches none"):
        found(hosts.toy(), rule)


def test_all_linear_leaves_out_the_head_of_a_language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, **sizes))
    chosen = paths(model, "all-linear")
    assert "lm_head" not in chosen
    assert len(chosen) == 2 * 7
    assert paths(model, ["lm_head"]) == ["lm_head"]


def test_all_linear_finds_conv1d_and_its_shape_is_out_first():
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=16))
    sites = {site.path: site.shape for site in found(model, "all-linear")}
    assert len(sites) == 2 * 4
    assert sites["h.1.attn.c_attn"] == (96, 32)
    assert sites["h.0.mlp.c_proj"] == (32, 128)


@pytest.mark.parametrize("rule", [["v_proj", "layers.1.self_attn.k_proj"], r".*v_proj|layers\.1\..*k_proj"])
def test_exclude_modules_takes_the_same_forms_as_target_modules(rule):
    chosen = paths(hosts.toy(), QKV, exclude_modules=rule)
    assert chosen == ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.1.self_attn.q_proj"]


def test_exclude_modules_drops_modules_that_cannot_be_adapted():
    assert paths(hosts.toy(), r"embed|score", exclude_modules=["embed"]) == ["score"]


@pytest.mark.parametrize(("layers", "wanted"), [(1, [1]), (0, [0]), ([2, 0], [0, 2]), ({1, 2}, [1, 2])])
def test_layers_to_transform_selects_layers(layers, wanted):
    chosen = paths(hosts.toy(3), ["q_proj", "score"], layers_to_transform=layers)
    assert chosen == in_layers("self_attn.q_proj", layers=wanted)


def test_layers_and_kinds_inside_and_outside_one_stack():
    assert places(hosts.toy(), ["down", "score"]) == {
        "layers.0.mlp.down": (0, "mlp.down"),
        "layers.1.mlp.down": (1, "mlp.down"),
        "score": (0, "score"),
    }


def test_layers_and_kinds_in_two_stacks():
    assert places(hosts.Pair(), ["up"]) == {
        f"{stack}.layers.{layer}.mlp.up": (layer, f"{stack}.layers.mlp.up")
        for stack in ("encoder", "decoder")
        for layer in (0, 1)
    }


def test_one_matched_stack_of_two_keeps_short_kinds():
    assert places(hosts.Pair(), r"encoder.*up") == {
        "encoder.layers.0.mlp.up": (0, "mlp.up"),
        "encoder.layers.1.mlp.up": (1, "mlp.up"),
    }


def test_layers_and_kinds_in_a_list_of_linear_layers():
    host = nn.Module()
    host.experts = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
    assert places(host, "all-linear") == {"experts.0": (0, "experts"), "experts.1": (1, "experts")}


def test_layers_and_kinds_in_a_sequential():
    chosen = places(hosts.sequential(), ["0", "2"])
    assert [layer for layer, _ in chosen.values()] == [0, 2]
    assert len({kind for _, kind in chosen.values()}) == 1


def test_the_first_number_of_a_path_is_the_layer():
    host = nn.Module()
    host.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]) for _ in range(2)])
    chosen = places(host, "all-linear")
    assert chosen["blocks.1.0"] == (1, "0")
    assert len(set(chosen.values())) == 4


def test_narrow_keys_and_values_form_their_own_group():
    state = attach(hosts.toy(), families.lotr(), target_modules=QKV, rank=2, seed=0)
    shapes = {group.network.weight_shape: len(group.sites) for group in state.adapter.groups}
    assert shapes == {(16, 16): 2, (8, 16): 4}


def test_the_table_shows_every_match():
    state = attach(hosts.toy(), families.lora(), target_modules=["v_proj", "score"], rank=2, seed=0)
    lines = state.table().splitlines()
    assert lines[0].split() == ["path", "layer", "kind", "weight", "module"]
    assert lines[2].split() == ["layers.1.self_attn.v_proj", "1", "self_attn.v_proj", "8", "x", "16", "Linear"]
    assert len(lines) == 4


def test_the_table_has_one_line_per_site():
    state = attach(hosts.toy(3), families.lora(), target_modules="all-linear", rank=2, seed=0)
    assert len(state.table().splitlines()) == 1 + len(state.adapter.sites) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"'q_prj'(.|\n)*nearest names are q_proj, \w+, \w+\.$"),
        ({"target_modules": ["q_proj", "dwn"]}, r"'dwn'(.|\n)*nearest names are down, "),
        ({"target_modules": r".*q_prj"}, r"got '.*q_prj', which matches none(.|\n)*nearest names are .*q_proj"),
        ({"target_modules": r"(q_proj"}, r"expected a regular expression, got"),
        ({"target_modules": []}, r"expected names of modules, got \(\)"),
        ({"target_modules": ["embed"]}, r"^embed: (.|\n)*, got Embedding\.\n"),
        ({"target_modules": ["mlp"]}, r"layers.0.mlp: (.|\n)*, got Mlp\.\n"),
        ({"target_modules": r".*"}, r"expected nn.Linear or transformers' Conv1D"),
        ({"target_modules": ["up"], "exclude_modules": ["up"]}, r"expected a rule that leaves something"),
        ({"target_modules": ["up"], "exclude_modules": ["dwn"]}, r"got 'dwn', which matches none"),
        ({"target_modules": ["up"], "exclude_modules": "["}, r"expected a regular expression, got"),
        (
            {"target_modules": ["up"], "layers_to_transform": 2},
            r"hold a target, got \[2\](.|\n)*in layers \[0, 1\]",
        ),
        (
            {"target_modules": ["up"], "layers_to_transform": [0, 9, -1]},
            r"hold a target, got \[-1, 9\]",
        ),
        ({"target_modules": ["up"], "layers_to_transform": []}, r"expected a rule that leaves something"),
        ({"target_modules": ["score"], "layers_to_transform": 0}, r"hold a target, got \[0\]"),
    ],
)
def test_a_rule_that_does_not_fit_leaves_the_model_unchanged(arguments, message):
    model = hosts.toy()
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=message):
        attach(model, families.lora(), rank=2, seed=0, **arguments)
    hosts.assert_same_photo(before, hosts.photo(model))


def test_an_error_names_the_three_nearest_names():
    with pytest.raises(SiteError, match=r"which matches none") as caught:
        found(hosts.toy(), ["q_prj"])
    assert len(str(caught.value).rsplit("names are ", 1)[1].split(", ")) == 3


def test_a_class_of_another_library_that_is_called_linear_is_named_in_full():
    kind = type("Linear", (nn.Module,), {"__module__": "peft.tuners.lora.layer"})
    with pytest.raises(SiteError, match=r"^0: expected nn\.Linear .*, got peft\.tuners\.lora\.layer\.Linear\.\nRemove"):
        attach(nn.Sequential(kind()), families.lora(), target_modules=["0"], rank=2, seed=0)


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 1), nn.Conv1d(3, 4, 1), nn.Embedding(3, 4), nn.Bilinear(3, 3, 4)])
def test_a_module_that_is_not_linear_raises(module):
    model = nn.Sequential(module, nn.Linear(4, 4))
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=rf", got {type(module).__name__}\.\n"):
        attach(model, families.lora(), target_modules=["0"], rank=2, seed=0)
    hosts.assert_same_photo(before, hosts.photo(model))
    assert paths(model, "all-linear") == ["1"]


def test_a_projection_that_is_never_called_raises_or_is_skipped():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    before = hosts.photo(model)
    with pytest.raises(SiteError, match="out_proj"):
        attach(model, families.lora(), target_modules=["out_proj"], rank=2, seed=0)
    hosts.assert_same_photo(before, hosts.photo(model))
    assert paths(model, "all-linear") == [f"layers.{layer}.linear{n}" for layer in (0, 1) for n in (1, 2)]


def test_a_model_without_linear_layers_raises():
    with pytest.raises(SiteError, match=r"which matches none\.\nThere is no name"):
        attach(nn.Sequential(nn.Tanh()), families.lora(), target_modules=["q"], rank=2, seed=0)


def test_the_fast_path_of_an_encoder_layer_does_not_skip_the_adapter():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x = hosts.normal(2, 3, 8)
    with torch.no_grad():
        before = model(x)
    state = hosts.wake(attach(model, families.lora(), target_modules=["linear1"], rank=2, seed=0))
    with torch.no_grad():
        unmerged = model(x)
        state.merge()
        merged = model(x)
    assert not torch.allclose(before, unmerged)
    hosts.close(merged, unmerged)
