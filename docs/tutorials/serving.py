# %% [markdown]
# # Serving: export, merge, and many adapters on one model
#
# You have a trained adapter. This tutorial shows the ways to use it: as a folder that PEFT and LoRA servers read,
# merged into the weights, many adapters on one model, one adapter for each row of a batch, and the fast way to
# generate.
#
# You need `pip install ".[peft]"` in a clone. The model is a small Llama with random weights, so nothing is downloaded.

# %%
import torch
import transformers

import tnadapt_torch
from tnadapt import families

transformers.utils.logging.disable_progress_bar()
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def new_model():
    """Return the base model, with the same weights each time."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, **SIZES)
    ).eval()


def answer(model, **options):
    """Return the logits of the model for three fixed texts."""
    with torch.no_grad():
        return model(input_ids=torch.arange(15).reshape(3, 5), **options).logits


# %% [markdown]
# ## A trained adapter
#
# We make one with LoTR. To keep this page short it is not trained: we fill its zero factor with random numbers, so
# that it changes the answers as a trained one would.


# %%
def fill(state, seed):
    """Give the factor G, which is 0 at the start, random values."""
    torch.manual_seed(seed)
    for group in state.parameter_groups(lr=1.0):
        if group["name"] == "G":
            for factor in group["params"]:
                torch.nn.init.normal_(factor, std=0.05)


def make_adapter(seed):
    """Return a model with an adapter that is not 0."""
    model = new_model()
    state = tnadapt_torch.attach(
        model,
        families.lotr(),
        target_modules=["q_proj", "v_proj"],
        rank=4,
        seed=seed,
    )
    fill(state, seed)
    return model, state


model, state = make_adapter(seed=1)
wanted = answer(model)
state.save("chat.safetensors")
print(
    "largest change of a logit:",
    round((wanted - answer(new_model())).abs().max().item(), 3),
)

# %% [markdown]
# ## Export as a LoRA
#
# A low-rank update is a LoRA, whatever family it comes from. `save_as_lora` writes the two files that PEFT writes.
# It returns the rank and the error of each weight. The error is 0, since the network is split exactly and not
# approximated.
#
# **Trap:** an update of full rank, as that of KronA or QuanTA, is no LoRA, and `save_as_lora` says so. With
# `rank=16` you get the best LoRA of that rank, with its error.

# %%
from pathlib import Path

written = state.save_as_lora("chat_lora")
for path, (rank, error) in list(written.items())[:2]:
    print(path, "rank", rank, "error", error)
print(sorted(file.name for file in Path("chat_lora").iterdir()))

# %% [markdown]
# ## Load it in PEFT
#
# The folder opens without tnadapt.

# %%
from peft import PeftModel

in_peft = PeftModel.from_pretrained(new_model(), "chat_lora")
difference_peft = (answer(in_peft) - wanted).abs().max().item()
print(f"difference to our own adapter: {difference_peft:.1e}")

# %% [markdown]
# ## Load it in vLLM
#
# vLLM reads the same folder. On a machine that has it:
#
# ```
# vllm serve BASE_MODEL --enable-lora --max-lora-rank 16 --lora-modules chat=chat_lora
# ```
#
# **Trap:** vLLM has limits of its own. It refuses a rank above `--max-lora-rank`, and it serves only the modules
# that its version of the model has, and no module that was trained in full (`modules_to_save`). It takes the scale
# from `r` and `lora_alpha`, which is why `save_as_lora` gives all weights one scale. Look into the config before you
# serve. vLLM was not run for this page.

# %%
import json

config = json.loads(Path("chat_lora/adapter_config.json").read_text())
print(
    {
        name: config[name]
        for name in (
            "peft_type",
            "task_type",
            "r",
            "lora_alpha",
            "target_modules",
            "rank_pattern",
        )
    }
)

# %% [markdown]
# ## Merge
#
# One adapter for everybody: add it to the weights. The model is then as fast as the base model, and any program can
# load it.
#
# **Trap:** a model in bfloat16 rounds the sum to bfloat16, and a small update may be lost in part. Quantized
# weights refuse a merge. Both are reasons to keep the adapter beside the weights.

# %%
state.merge()
difference_merged = (answer(model) - wanted).abs().max().item()
print(f"difference after merging: {difference_merged:.1e}")
state.unmerge()  # restores the weights bit for bit

# %% [markdown]
# ## Many adapters on one model
#
# Each adapter gets a name. Several on one model are **added**.
#
# **Trap:** that is rarely what a server wants. To use one at a time, disable the others, or use PEFT's
# `set_adapter` as below.

# %%
_, other = make_adapter(seed=2)
other.save("code.safetensors")

server = new_model()
chat = tnadapt_torch.load(server, "chat.safetensors", adapter_name="chat")
code = tnadapt_torch.load(server, "code.safetensors", adapter_name="code")
with code.disabled():
    difference_chat = (answer(server) - wanted).abs().max().item()
print(f"only chat, difference: {difference_chat:.1e}")
code.detach()

# %% [markdown]
# ## One adapter for each row of a batch
#
# PEFT can use another adapter for each row of a batch, and does it for every spec of this library. The base model
# runs once for all rows. `"__base__"` is no adapter.
#
# **Trap:** this works in eval mode only.

# %%
from peft import get_peft_model

from tnadapt_torch.peft import TnConfig

config = TnConfig(spec=families.lotr(), rank=4, target_modules=["q_proj", "v_proj"])
routed = get_peft_model(new_model(), config, adapter_name="first")
routed.add_adapter("second", config)
for number, state in enumerate(routed.base_model.states().values()):
    fill(state, seed=number)
routed.eval()
mixed = answer(routed, adapter_names=["second", "__base__", "first"])
routed.set_adapter("first")
difference_row = (mixed[2] - answer(routed)[2]).abs().max().item()
print(f"third row against the adapter 'first' alone: {difference_row:.1e}")
print(
    f"second row against the base model: {(mixed[1] - answer(new_model())[1]).abs().max().item():.1e}"
)

# %% [markdown]
# ## Generate
#
# When a model writes one token at a time, most of the adapter's time goes into small operations. Inside `fixed()`,
# products of factors alone are made once and kept.
#
# **Trap:** end the block before you train on.

# %%
prompt = torch.tensor([[1, 2, 3]])
ask = {
    "max_new_tokens": 8,
    "do_sample": False,
    "pad_token_id": 0,
    "attention_mask": torch.ones_like(prompt),
}
plain = server.generate(prompt, **ask)
with torch.no_grad(), chat.fixed():
    fixed = server.generate(prompt, **ask)
assert torch.equal(plain, fixed)
print(fixed[0].tolist())

# %% [markdown]
# ## Which way should I take?
#
# | you want | use |
# |---|---|
# | a LoRA server, or a user who has PEFT | `state.save_as_lora(folder)` |
# | one model, one task, the highest speed | `state.merge()`, then save the model |
# | several tasks, one at a time | files, `load` and `detach`; or PEFT's `set_adapter` |
# | several tasks in one batch | `TnConfig` in PEFT with `adapter_names=` |
# | a quantized model | the adapter beside the weights, with `fixed()` to generate |
#
# More: [PyTorch](../guides/torch.md#generating), [PEFT](../guides/peft.md#export-exact-lora).
