"""Tables of known hosts: the layouts of model types of transformers, and the configs of well-known models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model type of transformers has its linear layers, and under which keys its config stores their sizes.

    `base` is the class of the bare model, `prefix` its name inside the other classes. `kinds` gives (out, in) in the
    words of `tnadapt._hosts.sizes_of_config`. A key in `optional` may be missing or null; an empty key means that the
    size follows from the others.
    """

    base: str
    prefix: str
    blocks: str
    kinds: Mapping[str, tuple[str, str]]
    targets: tuple[str, ...]
    hidden: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    inner: str = "intermediate_size"
    key_heads: str = ""
    head_size: str = ""
    optional: tuple[str, ...] = ()


FEED = {"intermediate.dense": ("inner", "hidden"), "output.dense": ("hidden", "inner")}
BERT = Layout(
    base="BertModel",
    prefix="bert",
    blocks="encoder.layer",
    kinds={f"attention.self.{name}": ("hidden", "hidden") for name in ("query", "key", "value")}
    | {"attention.output.dense": ("hidden", "hidden")}
    | FEED,
    targets=("attention.self.query", "attention.self.value"),
)
ATTENTION = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
}
LLAMA = Layout(
    base="LlamaModel",
    prefix="model",
    blocks="layers",
    kinds=ATTENTION
    | {"mlp.gate_proj": ("inner", "hidden"), "mlp.up_proj": ("inner", "hidden"), "mlp.down_proj": ("hidden", "inner")},
    targets=("self_attn.q_proj", "self_attn.v_proj"),
    key_heads="num_key_value_heads",
    head_size="head_dim",
    optional=("num_key_value_heads", "head_dim"),
)
HEAD_ONLY = (
    "head_dim",
)  # for a missing number of key heads, these types use a default that says nothing about the model
LAYOUTS = {
    "bert": BERT,
    "roberta": replace(BERT, base="RobertaModel", prefix="roberta"),
    "xlm-roberta": replace(BERT, base="XLMRobertaModel", prefix="roberta"),
    "camembert": replace(BERT, base="CamembertModel", prefix="roberta"),
    "electra": replace(BERT, base="ElectraModel", prefix="electra"),
    "deberta-v2": replace(
        BERT,
        base="DebertaV2Model",
        prefix="deberta",
        kinds={f"attention.self.{name}_proj": ("query", "hidden") for name in ("query", "key", "value")}
        | {"attention.output.dense": ("hidden", "hidden")}
        | FEED,
        targets=("attention.self.query_proj", "attention.self.value_proj"),
        head_size="attention_head_size",
        optional=("attention_head_size",),
    ),
    "mpnet": replace(
        BERT,
        base="MPNetModel",
        prefix="mpnet",
        kinds={f"attention.attn.{name}": ("hidden", "hidden") for name in "qkvo"} | FEED,
        targets=("attention.attn.q", "attention.attn.v"),
    ),
    "distilbert": Layout(
        base="DistilBertModel",
        prefix="distilbert",
        blocks="transformer.layer",
        kinds={f"attention.{name}_lin": ("hidden", "hidden") for name in ("q", "k", "v", "out")}
        | {"ffn.lin1": ("inner", "hidden"), "ffn.lin2": ("hidden", "inner")},
        targets=("attention.q_lin", "attention.v_lin"),
        hidden="dim",
        layers="n_layers",
        heads="n_heads",
        inner="hidden_dim",
    ),
    "gpt2": Layout(
        base="GPT2Model",
        prefix="transformer",
        blocks="h",
        kinds={
            "attn.c_attn": ("fused", "hidden"),
            "attn.c_proj": ("hidden", "hidden"),
            "mlp.c_fc": ("inner", "hidden"),
            "mlp.c_proj": ("hidden", "inner"),
        },
        targets=("attn.c_attn",),
        hidden="n_embd",
        layers="n_layer",
        heads="n_head",
        inner="n_inner",
        optional=("n_inner",),
    ),
    "gpt_neox": Layout(
        base="GPTNeoXModel",
        prefix="gpt_neox",
        blocks="layers",
        kinds={
            "attention.query_key_value": ("fused", "hidden"),
            "attention.dense": ("hidden", "hidden"),
            "mlp.dense_h_to_4h": ("inner", "hidden"),
            "mlp.dense_4h_to_h": ("hidden", "inner"),
        },
        targets=("attention.query_key_value",),
    ),
    "opt": Layout(
        base="OPTModel",
        prefix="model",
        blocks="decoder.layers",
        kinds={f"self_attn.{name}_proj": ("hidden", "hidden") for name in ("k", "v", "q", "out")}
        | {"fc1": ("inner", "hidden"), "fc2": ("hidden", "inner")},
        targets=("self_attn.q_proj", "self_attn.v_proj"),
        inner="ffn_dim",
    ),
    "llama": LLAMA,
    "mistral": replace(LLAMA, base="MistralModel", optional=HEAD_ONLY),
    # The experts of Mixtral and their gate are stacked parameters in transformers 5, not linear layers.
    "mixtral": replace(LLAMA, base="MixtralModel", kinds=ATTENTION, optional=HEAD_ONLY),
    "qwen2": replace(LLAMA, base="Qwen2Model", optional=HEAD_ONLY),
    "qwen3": replace(LLAMA, base="Qwen3Model", optional=()),
    "gemma": replace(LLAMA, base="GemmaModel", optional=()),
    "gemma2": replace(LLAMA, base="Gemma2Model", optional=()),
    "phi3": replace(
        LLAMA,
        base="Phi3Model",
        kinds={
            "self_attn.o_proj": ("hidden", "query"),
            "self_attn.qkv_proj": ("fused", "hidden"),
            "mlp.gate_up_proj": ("gates", "hidden"),
            "mlp.down_proj": ("hidden", "inner"),
        },
        targets=("self_attn.qkv_proj",),
    ),
    "vit": Layout(
        base="ViTModel",
        prefix="vit",
        blocks="layers",
        kinds={f"attention.{name}_proj": ("query", "hidden") for name in "qkv"}
        | {"attention.o_proj": ("hidden", "query"), "mlp.fc1": ("inner", "hidden"), "mlp.fc2": ("hidden", "inner")},
        targets=("attention.q_proj", "attention.v_proj"),
        head_size="head_dim",
        optional=("head_dim",),
    ),
}


def _encoder(kind: str, model: str, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """Return a config whose feed-forward layer is four times as wide as the model."""
    return {
        "model_type": kind,
        "architectures": [model],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Return a config of GPT-2. Its file omits the width of the feed-forward layer, which is four times `width`."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
    }


def _decoder(kind: str, model: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Return a config of a LLaMA-like model. `sizes`: width, layers, heads, key and value heads, feed-forward width."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return {"model_type": kind, "architectures": [model]} | dict(zip(keys, sizes, strict=True))


# Source: config.json of the huggingface.co repository that is named at the end of each row. The tests check that the
# sizes of each row add up to the number of parameters published for the model.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "roberta-base": _encoder("roberta", "RobertaForMaskedLM", 768, 12, 12),  # FacebookAI/roberta-base
    "roberta-large": _encoder("roberta", "RobertaForMaskedLM", 1024, 24, 16),  # FacebookAI/roberta-large
    "bert-base-uncased": _encoder("bert", "BertForMaskedLM", 768, 12, 12),  # google-bert/bert-base-uncased
    "bert-large-uncased": _encoder("bert", "BertForMaskedLM", 1024, 24, 16),  # google-bert/bert-large-uncased
    "deberta-v3-base": {  # microsoft/deberta-v3-base: its file does not name an architecture
        "model_type": "deberta-v2",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
    },
    "all-minilm-l6-v2": _encoder("bert", "BertModel", 384, 6, 12),  # sentence-transformers/all-MiniLM-L6-v2
    "gpt2": _gpt2(768, 12, 12),  # openai-community/gpt2
    "gpt2-medium": _gpt2(1024, 24, 16),  # openai-community/gpt2-medium
    "gpt2-large": _gpt2(1280, 36, 20),  # openai-community/gpt2-large
    "gpt2-xl": _gpt2(1600, 48, 25),  # openai-community/gpt2-xl
    "llama-2-7b": _decoder("llama", "LlamaForCausalLM", (4096, 32, 32, 32, 11008)),  # meta-llama/Llama-2-7b-hf
    "llama-2-13b": _decoder("llama", "LlamaForCausalLM", (5120, 40, 40, 40, 13824)),  # meta-llama/Llama-2-13b-hf
    "llama-2-70b": _decoder("llama", "LlamaForCausalLM", (8192, 80, 64, 8, 28672)),  # meta-llama/Llama-2-70b-hf
    "llama-3-8b": _decoder("llama", "LlamaForCausalLM", (4096, 32, 32, 8, 14336)),  # meta-llama/Meta-Llama-3-8B
    "llama-3-70b": _decoder("llama", "LlamaForCausalLM", (8192, 80, 64, 8, 28672)),  # meta-llama/Meta-Llama-3-70B
    "llama-3.2-1b": _decoder("llama", "LlamaForCausalLM", (2048, 16, 32, 8, 8192))  # meta-llama/Llama-3.2-1B
    | {"head_dim": 64},
    "mistral-7b": _decoder("mistral", "MistralForCausalLM", (4096, 32, 32, 8, 14336)),  # mistralai/Mistral-7B-v0.1
    "qwen2.5-7b": _decoder("qwen2", "Qwen2ForCausalLM", (3584, 28, 28, 4, 18944)),  # Qwen/Qwen2.5-7B
    "gemma-2-9b": _decoder("gemma2", "Gemma2ForCausalLM", (3584, 42, 16, 8, 14336))  # google/gemma-2-9b
    | {"head_dim": 256},
    "vit-base-patch16": _encoder("vit", "ViTForImageClassification", 768, 12, 12),  # google/vit-base-patch16-224
    "vit-large-patch16": _encoder("vit", "ViTForImageClassification", 1024, 24, 16),  # google/vit-large-patch16-224
}
