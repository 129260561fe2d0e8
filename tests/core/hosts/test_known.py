"""Hosts: the known models have their published sizes, valid configs are read exactly, and all others are rejected."""

import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import FormatError, SiteError, families
from tnadapt._hosts.configs import CONFIGS, LAYOUTS
from tnadapt._hosts.known import Host, find_host

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 20,
}
HERE = {
    "name": "own",
    "layers": 2,
    "heads": 2,
    "key_heads": 1,
    "head_size": 2,
    "prefix": "",
    "blocks": "layers",
    "kinds": {"q": (4, 6), "mlp.up": (8, 6)},
    "targets": ("q",),
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Return the path to which a test writes its config."""
    return tmp_path_factory.mktemp("tiny") / "config.json"


def written(place, content):
    """Write the content to the file, bytes as they are and anything else as JSON, and return its path."""
    place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return place


def host_of(place, **changes):
    return find_host(written(place, TINY | changes))


def shapes(host):
    return {kind.split(".")[-1]: shape for kind, shape in host.kinds.items()}


def weights(host):
    return sum(math.prod(site.shape) for site in host.sites("all-linear"))


# The number of parameters that huggingface.co (safetensors) or, for ViT, timm publishes, and the number outside the
# linear layers of the blocks: embeddings, norms, biases, pooler or head. H: width, L: layers.
TOTALS = {
    "llama-2-7b": (6_738_415_616, lambda H, L: 2 * 32_000 * H + (2 * L + 1) * H),
    "llama-2-13b": (13_015_864_320, lambda H, L: 2 * 32_000 * H + (2 * L + 1) * H),
    "llama-2-70b": (68_976_648_192, lambda H, L: 2 * 32_000 * H + (2 * L + 1) * H),
    "llama-3-8b": (8_030_261_248, lambda H, L: 2 * 128_256 * H + (2 * L + 1) * H),
    "llama-3-70b": (70_553_706_496, lambda H, L: 2 * 128_256 * H + (2 * L + 1) * H),
    "llama-3.2-1b": (1_235_814_400, lambda H, L: 128_256 * H + (2 * L + 1) * H),
    "mistral-7b": (7_241_732_096, lambda H, L: 2 * 32_000 * H + (2 * L + 1) * H),
    "qwen2.5-7b": (7_615_616_512, lambda H, L: 2 * 152_064 * H + (2 * L + 1) * H + L * (H + 2 * 4 * 128)),
    "gemma-2-9b": (9_241_705_984, lambda H, L: 256_000 * H + (4 * L + 1) * H),
    "gpt2": (124_439_808, lambda H, L: (50_257 + 1024) * H + 13 * L * H + 2 * H),
    "gpt2-medium": (354_823_168, lambda H, L: (50_257 + 1024) * H + 13 * L * H + 2 * H),
    "gpt2-large": (774_030_080, lambda H, L: (50_257 + 1024) * H + 13 * L * H + 2 * H),
    "gpt2-xl": (1_557_611_200, lambda H, L: (50_257 + 1024) * H + 13 * L * H + 2 * H),
    "bert-base-uncased": (109_482_240, lambda H, L: (30_522 + 512 + 4) * H + 13 * L * H + (H + 1) * H),
    "bert-large-uncased": (335_141_888, lambda H, L: (30_522 + 512 + 4) * H + 13 * L * H + (H + 1) * H),
    "all-minilm-l6-v2": (22_713_216, lambda H, L: (30_522 + 512 + 4) * H + 13 * L * H + (H + 1) * H),
    "roberta-base": (124_645_632, lambda H, L: (50_265 + 514 + 3) * H + 13 * L * H + (H + 1) * H),
    "roberta-large": (355_359_744, lambda H, L: (50_265 + 514 + 3) * H + 13 * L * H + (H + 1) * H),
    "deberta-v3-base": (183_831_552, lambda H, L: (128_100 + 512 + 4) * H + 13 * L * H),
    "vit-base-patch16": (86_567_656, lambda H, L: (198 + 769 + 2) * H + 13 * L * H + 1000 * (H + 1)),
    "vit-large-patch16": (304_326_632, lambda H, L: (198 + 769 + 2) * H + 13 * L * H + 1000 * (H + 1)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_a_known_model_add_up_to_the_published_total(name):
    host = find_host(name)
    published, rest = TOTALS[name]
    width = host.sites()[0].shape[1]
    assert weights(host) + rest(width, host.layers) == published


@pytest.mark.parametrize(
    ("name", "layers", "kind", "shape"),
    [
        ("llama-2-7b", 32, "self_attn.q_proj", (4096, 4096)),
        ("llama-2-7b", 32, "mlp.down_proj", (4096, 11008)),
        ("llama-2-70b", 80, "self_attn.k_proj", (1024, 8192)),
        ("llama-3.2-1b", 16, "self_attn.v_proj", (512, 2048)),
        ("gemma-2-9b", 42, "self_attn.o_proj", (3584, 4096)),
        ("gpt2", 12, "attn.c_attn", (2304, 768)),
        ("roberta-large", 24, "output.dense", (1024, 4096)),
    ],
)
def test_the_shape_of_a_known_weight(name, layers, kind, shape):
    host = find_host(name)
    assert (host.name, host.layers, host.kinds[kind]) == (name, layers, shape)


def test_names_are_case_insensitive():
    assert find_host("LLaMA-2-7B") == find_host("llama-2-7b")


def test_hosts_are_hashable_and_compare_by_value(place):
    hosts = {find_host(name) for name in CONFIGS} | {find_host("gpt2")}
    assert len(hosts) == len(CONFIGS)
    assert host_of(place) == host_of(place, use_cache=False)


@pytest.mark.parametrize(
    ("target_modules", "kinds"),
    [
        (None, ["self_attn.q_proj", "self_attn.v_proj"]),
        (["o_proj", "self_attn.k_proj"], ["self_attn.k_proj", "self_attn.o_proj"]),
        ({"mlp.up_proj"}, ["mlp.up_proj"]),
        ("all-linear", list(find_host("llama-2-7b").kinds)),
    ],
)
def test_sites_are_ordered_by_layer_and_then_as_in_the_model(place, target_modules, kinds):
    places = [(layer, kind) for layer in range(2) for kind in kinds]
    sites = host_of(place).sites(target_modules)
    assert [(site.coordinates["layer"], site.coordinates["kind"]) for site in sites] == places
    assert [site.path for site in sites] == [f"model.layers.{layer}.{kind}" for layer, kind in places]


def test_a_whole_path_selects_one_site(place):
    (site,) = host_of(place).sites(["model.layers.1.mlp.up_proj"])
    assert site.shape == (20, 12)


FUSED = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}
APART = [["query", "value"], ["query_proj", "value_proj"], ["q_proj", "v_proj"], ["q_lin", "v_lin"], ["q", "v"]]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_query_and_value_are_adapted_by_default(kind):
    layout = LAYOUTS[kind]
    words = [target.split(".")[-1] for target in layout.targets]
    assert set(layout.targets) <= set(layout.kinds)
    assert words in ([[FUSED[kind]]] if kind in FUSED else APART)


def test_a_spec_binds_to_the_sites_of_a_host():
    adapter = families.lotr().bind(find_host("roberta-base").sites(), rank=8)
    assert len(adapter.sites) == 24


def test_a_host_prints_itself(place):
    assert str(host_of(place)).splitlines()[:3] == [
        f"{place.parent.name}: 2 blocks model.layers.{{layer}}, 6 heads, 3 of keys",
        "  self_attn.q_proj  12 x 12",
        "  self_attn.k_proj  6 x 12",
    ]


# ---------------------------------------------------------------- sizes and paths from a config


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"q_proj": (12, 12), "k_proj": (6, 12), "o_proj": (12, 12), "down_proj": (12, 20)}),
        ({"num_key_value_heads": None}, {"k_proj": (12, 12)}),
        ({"head_dim": None}, {"q_proj": (12, 12)}),
        ({"head_dim": 5}, {"q_proj": (30, 12), "v_proj": (15, 12), "o_proj": (12, 30)}),
        ({"hidden_size": 13, "head_dim": 4}, {"q_proj": (24, 13)}),
        ({"model_type": "phi3"}, {"qkv_proj": (24, 12), "gate_up_proj": (40, 12), "down_proj": (12, 20)}),
        ({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1}, {"c_attn": (12, 4), "c_fc": (16, 4)}),
        ({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "n_inner": 5}, {"c_fc": (5, 4)}),
        ({"model_type": "deberta-v2", "attention_head_size": 3}, {"query_proj": (18, 12)}),
    ],
)
def test_sizes_are_read_from_the_config(place, changes, wanted):
    assert wanted.items() <= shapes(host_of(place, **changes)).items()


@pytest.mark.parametrize(
    ("architectures", "block"),
    [
        (["LlamaForCausalLM"], "model.layers.{layer}"),
        (["LlamaModel"], "layers.{layer}"),
        ([], "layers.{layer}"),
        (None, "layers.{layer}"),
    ],
)
def test_paths_are_those_of_the_model_class_in_the_config(place, architectures, block):
    host = host_of(place, architectures=architectures)
    assert host.block == block
    assert replace(host, prefix="model").block == "model.layers.{layer}"


def test_a_class_whose_name_ends_in_model_can_still_wrap_the_bare_model(place):
    gpt2 = {"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1}
    assert host_of(place, **gpt2, architectures=["GPT2LMHeadModel"]).block == "transformer.h.{layer}"


def test_a_folder_can_be_passed_instead_of_its_config(place):
    assert host_of(place) == find_host(place.parent) == find_host(str(place))


@given(sizes=st.tuples(*[st.integers(1, 6)] * 5))
def test_shapes_follow_from_the_sizes_of_the_config(place, sizes):
    layers, key_heads, share, head, inner = sizes
    heads, hidden = key_heads * share, key_heads * share * head
    changes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    host = host_of(place, **changes, num_key_value_heads=key_heads, intermediate_size=inner)
    attention = 2 * hidden * hidden + 2 * hidden * key_heads * head
    assert weights(host) == layers * (attention + 3 * hidden * inner)
    assert (host.heads, host.key_heads, host.head_size) == (heads, key_heads, head)


# ---------------------------------------------------------------- validation errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected JSON in a config.json, got text that is not JSON \(Expecting value"),
        (b"\xff\xfe\xfa", r"expected JSON in a config.json, got text that is not JSON"),
        pytest.param(b"[" * 100_000, r"expected JSON in a config.json, got text that is not JSON", id="deep"),
        (b"[1]", r"expected one JSON object in a config.json, got \[1\].\nGive the config.json that"),
        pytest.param(b" " * (2**24 + 1), r"of at most 16,777,216 bytes, got a larger file.", id="huge"),
        ({}, r"expected a 'model_type' that this release reads, got none.\nThe nearest names are"),
        (
            TINY | {"model_type": "lama"},
            r"this release reads, got 'lama'.\nThe nearest names are llama, .*make each site by hand",
        ),
        (TINY | {"model_type": ["llama"]}, r"this release reads, got \['llama'\]"),
        (TINY | {"model_type": "gemma"}, r"expected the key 'head_dim' in a config of type 'gemma', got none.\n"),
        (TINY | {"hidden_size": None}, r"expected an integer from 1 to .* as 'hidden_size', got None."),
        (TINY | {"hidden_size": 0}, "expected an integer from 1 to 2,147,483,647 as 'hidden_size', got 0."),
        (TINY | {"hidden_size": 2**31}, "as 'hidden_size', got 2147483648."),
        (TINY | {"hidden_size": 12.0}, "as 'hidden_size', got 12.0."),
        (TINY | {"num_attention_heads": True}, "as 'num_attention_heads', got True."),
        (TINY | {"intermediate_size": "x" * 10_000}, r"as 'intermediate_size', got 'xxx.{0,20}\.\.\..{0,20}'\.\n"),
        (
            TINY | {"hidden_size": 13},
            r"expected a 'num_attention_heads' that divides 'hidden_size', got 6, which does not divide 13.",
        ),
        (TINY | {"hidden_size": 3}, r"got 6, which does not divide 3."),
        (
            TINY | {"num_key_value_heads": 4},
            r"config.json: .* key heads that divides the 6 attention heads, got 4.\nGive the config.json",
        ),
        (
            TINY | {"num_hidden_layers": 10_001},
            r"at most 10,000 layers, got 10,001.\nGive the config",
        ),
        (TINY | {"head_dim": 2**30}, r"an axis of self_attn.q_proj: expected at most 2,147,483,647"),
        (TINY | {"architectures": "LlamaModel"}, r"expected a list of names as 'architectures', got 'LlamaM"),
        (TINY | {"architectures": [1]}, r"expected a list of names as 'architectures', got \[1\]"),
        (
            TINY | {"add_cross_attention": True},
            r"expected blocks without cross-attention, got 'add_cross_attention'.\nMake",
        ),
        (
            TINY | {"model_type": "deberta-v2", "relative_attention": True},
            r"expected 'share_att_key' .*, got a config that does not set it.\nMake",
        ),
    ],
)
def test_an_invalid_config_is_rejected(place, content, message):
    with pytest.raises(FormatError, match=message) as caught:
        find_host(written(place, content))
    assert str(caught.value).startswith(str(place))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_missing_key_is_rejected_unless_it_is_optional(place, kind):
    layout = LAYOUTS[kind]
    asked = {layout.hidden, layout.layers, layout.heads, layout.inner, layout.key_heads, layout.head_size} - {""}
    whole = {"model_type": kind} | dict.fromkeys(asked, 12)
    for key in asked - set(layout.optional):
        with pytest.raises(FormatError, match=f"expected the key '{key}' in a config of type '{kind}', got none."):
            find_host(written(place, {name: value for name, value in whole.items() if name != key}))
    for key in layout.optional:
        assert find_host(written(place, {name: value for name, value in whole.items() if name != key})).layers == 12


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*TINY, "head_dim", "n_inner", "add_cross_attention"])


@given(changes=st.dictionaries(KEYS, JSON | st.sampled_from([*LAYOUTS, 1, 2, 6, 12]), max_size=4))
def test_an_arbitrary_config_is_read_or_rejected_with_a_format_error(place, changes):
    try:
        host = host_of(place, **changes)
    except FormatError:
        return
    assert {type(size) for shape in host.kinds.values() for size in shape} == {int}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lama-2-7b",
            r"find_host: expected a known .* got 'lama-2-7b'.\nThe nearest names are llama-2-7b, .*\n.*path of the co",
        ),
        ("", "find_host: expected a known model, a config.json or a folder that contains one, got ''"),
        ("\0", "find_host: expected a known model, "),
        pytest.param("a" * 10_000, "find_host: expected a known model, ", id="long"),
        ("no/such/config.json", "find_host: expected a known model, "),
    ],
)
def test_an_unknown_host_gets_the_nearest_names(text, message):
    with pytest.raises(SiteError, match=message):
        find_host(text)


def test_a_folder_without_a_config_is_rejected(tmp_path):
    with pytest.raises(SiteError, match=r"expected a known model, a config\.json or a folder that contains one, got"):
        find_host(tmp_path)


@given(text=st.text(max_size=12))
def test_an_arbitrary_text_is_found_or_rejected(text):
    with contextlib.suppress(SiteError, FormatError):  # hypothesis also draws names that it finds in the source
        assert find_host(text).name == text.lower()


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        (
            ["q_pro"],
            r"in the blocks of .*, got 'q_pro', which matches none.\nThe nearest names are q_proj, ",
        ),
        (["q_proj", "lm_head"], "got 'lm_head', which matches none"),
        (["proj"], "got 'proj', which matches none"),
        (["self_attn"], "got 'self_attn', which matches none"),
        (
            "q_proj",
            r"expected a regular expression .* got 'q_proj', which matches none.\n.*\nPass a list",
        ),
        ([], r"expected names of .* got \[\]"),
    ],
)
def test_a_target_that_matches_nothing_gets_the_nearest_names(place, target_modules, message):
    with pytest.raises(SiteError, match=message):
        host_of(place).sites(target_modules)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "own: layers: expected an integer of at least 1, got 0"),
        ({"heads": 2.0}, "own: heads: expected an integer"),
        ({"key_heads": 0}, "own: key_heads: expected an integer"),
        ({"heads": 3, "key_heads": 2}, "key heads that divides the 3 attention heads, got 2."),
        ({"kinds": {"q": (4, 0)}}, "own: an axis of q: expected an integer"),
        ({"kinds": {}}, "expected at least one linear layer in a block, got no `kinds`."),
        ({"layers": 10_001}, "at most 10,000 layers, got 10,001."),
        (
            {"prefix": "0.auto_model"},
            "expected a path to the blocks without a number, got prefix='0.auto_model'",
        ),
    ],
)
def test_an_invalid_host_is_rejected(changes, message):
    with pytest.raises(SiteError, match=message):
        Host(**(HERE | changes))


def test_heads_of_keys_are_told_only_where_they_are_fewer():
    assert str(find_host("gpt2")).splitlines()[0].endswith(", 12 heads")
