"""Small transformers models made from configs, and the specs on which the tests of this folder run."""

import torch
import transformers
from torch import Tensor, nn

from tnadapt import AdapterSpec, families, frozen, normal, over_rank, trainable, zeros
from tnadapt_torch import attach
from tnadapt_torch.peft import TnConfig

OWN = AdapterSpec(  # one bond joins a frozen factor, a shared factor and one factor per layer
    name="own",
    weight="out in",
    over="layer",
    factors={
        "U": trainable("out p", init=normal()),
        "c": trainable("layer p", init=zeros()),
        "V": frozen("p in", init=normal()),
    },
    scale=over_rank("p", alpha=2.0),
)
SPECS: dict[str, tuple[AdapterSpec, dict]] = {
    "lora": (families.lora(), {"rank": 2, "alpha": 4.0}),
    "lotr": (families.lotr(), {"rank": {"p": 2, "q": 3}}),
    "lorta": (families.lorta(), {"rank": 3, "sizes": {"head": 4}}),
    "vera": (families.vera(), {"rank": 5}),
    "tera": (families.tera(out_order=2, in_order=2), {"rank": 3}),
    "own": (OWN, {"rank": 3}),
}
TARGETS = ["q_proj", "v_proj", "down_proj"]
WORDS = 32


def llama(**more) -> transformers.LlamaForCausalLM:
    """Make a small Llama, with the same numbers at every call."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | heads | more)).eval()


def mixtral() -> transformers.MixtralForCausalLM:
    """Make a small mixture of experts, whose keys transformers changes when it saves."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes | heads | experts)).eval()


def gpt2() -> transformers.GPT2LMHeadModel:
    """Make a small model whose linear layers are Conv1D."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=4, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


def bert() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes | heads)).eval()


def bart() -> transformers.BartForConditionalGeneration:
    """Make a small encoder-decoder model."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": WORDS,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 32,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    words = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes | heads | words)).eval()


def config(name: str, **more) -> TnConfig:
    spec, sizes = SPECS[name]
    return TnConfig(spec=spec, **{"target_modules": TARGETS, "seed": 3} | sizes | more)


def attached(model: nn.Module, name: str, **more) -> nn.Module:
    """Adapt a model by the plain binding, with random values in its factors."""
    spec, sizes = SPECS[name]
    wake(attach(model, spec, **{"target_modules": TARGETS, "seed": 3} | sizes | more))
    return model


def wake(state: nn.Module, seed: int = 7) -> None:
    """Give every trainable factor random values, so that the update is not 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=random))


def words(batch: int = 2, length: int = 5) -> Tensor:
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    model.eval()
    return model(input_ids=words()).logits


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs().max().item()
    assert error <= tolerance * wanted.double().abs().max().item(), f"off by {error:.3g}"


def differs(found: Tensor, other: Tensor) -> None:
    """Assert a difference larger than rounding."""
    assert (found - other).abs().max().item() > 1e-4
