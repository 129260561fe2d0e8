# %% [markdown]
# # From PEFT, call by call
#
# You know [PEFT](https://huggingface.co/docs/peft). This tutorial goes through its calls and shows what to write
# here, with the places where a habit from PEFT goes wrong. At the end you use the two together.
#
# You need `pip install ".[peft]"` in a clone. The model is a small Llama with random weights, so nothing is downloaded.

# %%
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import tnadapt_torch
from tnadapt import LORA_STEP, families, step_size, unit

transformers.utils.logging.disable_progress_bar()
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
texts = torch.arange(40).reshape(4, 10)


def new_model():
    """Return the base model, with the same weights each time."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, **SIZES)
    ).eval()


def answer(model):
    """Return the logits of the model for the texts."""
    with torch.no_grad():
        return model(input_ids=texts).logits


def train(model, parameters, steps=5):
    """Train on the texts; return the losses."""
    optimizer, losses = torch.optim.AdamW(parameters), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=texts, labels=texts).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# ## LoRA in PEFT
#
# First the way that you know. We train for a few steps and save.

# %%
torch.manual_seed(1)
config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
peft_model = get_peft_model(new_model(), config)
train(
    peft_model,
    [
        {
            "params": [p for p in peft_model.parameters() if p.requires_grad],
            "lr": 1e-2,
        }
    ],
)
peft_model.print_trainable_parameters()
peft_model.save_pretrained("peft_lora")
peft_answer = answer(peft_model.eval())

# %% [markdown]
# ## The same here
#
# | PEFT | here |
# |---|---|
# | `LoraConfig(r=4)` | `rank=4` |
# | `lora_alpha=8` | `alpha=8` |
# | `lora_dropout=0.1` | `dropout=0.1` |
# | `target_modules`, `exclude_modules`, `layers_to_transform`, `modules_to_save` | the same words |
# | `rank_pattern={"q_proj": 16}` | `rank={"r": 4, "q_proj": 16}` |
# | `use_rslora=True` | `families.lora(rank_stabilized=True)` |
# | `use_dora=True` | `magnitude(families.lora())` |
# | `init_lora_weights="pissa"` | `families.pissa()` |
# | `get_peft_model(model, config)` | `attach(model, families.lora(), ...)` |
#
# **Trap:** `get_peft_model` returns a new object that wraps the model. `attach` returns the *adapter*, and the
# model stays what it is: you go on calling `model`, and you ask the adapter for all that concerns it.
#
# **Trap:** PEFT knows default targets for many models. Here you name them.

# %%
model = new_model()
state = tnadapt_torch.attach(
    model,
    families.lora(),
    target_modules=["q_proj", "v_proj"],
    rank=4,
    alpha=8,
    seed=0,
)
state.print_trainable_parameters()
losses = train(model, state.parameter_groups(lr=1e-2))
print([round(loss, 3) for loss in losses])

# %% [markdown]
# ## target_modules
#
# A list holds suffixes, as in PEFT: `"q_proj"` matches `model.layers.0.self_attn.q_proj`. A string is a regular
# expression for the whole path, as in PEFT. `"all-linear"` is all linear layers but the output head.
#
# **Trap:** a name that matches nothing is an error here, even if other names in the list match.

# %%
from tnadapt import SiteError

try:
    tnadapt_torch.attach(
        new_model(), families.lora(), target_modules=["q_proj", "value"], rank=4
    )
except SiteError as error:
    mistake = str(error)
print(mistake)

# %% [markdown]
# ## alpha and scale
#
# In PEFT every LoRA has the scale alpha / r, and one learning rate suits most of them. Other families have the
# scales of their papers.
#
# **Trap:** do not carry `alpha=16` from LoRA over to another family. The first step then moves the weights by quite
# another amount. `step_size` says by how much, as a multiple of LoRA's. `scale=unit(LORA_STEP)` makes it 1.

# %%
for spec in (families.lora(), families.lotr(), families.vera()):
    plain = spec.bind(state.adapter.sites, rank=4, alpha=16)
    balanced = spec.bind(state.adapter.sites, rank=4, scale=unit(LORA_STEP))
    steps = [
        next(iter(step_size(adapter).values())).of_lora
        for adapter in (plain, balanced)
    ]
    print(
        f"{spec.name:<5} first step with alpha=16: {steps[0]:5.2f}   with unit(LORA_STEP): {steps[1]:5.2f}"
    )

# %% [markdown]
# ## Save and load
#
# | PEFT | here |
# |---|---|
# | `model.save_pretrained(folder)` | `state.save(file)` |
# | `PeftModel.from_pretrained(model, folder)` | `tnadapt_torch.load(model, file)` |
# | `model.load_adapter(folder, "second")` | `tnadapt_torch.load(model, file, adapter_name="second")` |
#
# **Trap:** after `attach`, `model` is still a transformers model, so its `save_pretrained` writes the whole model, with
# the adapter in a file beside it. `state.save` writes the adapter alone.

# %%
trained = answer(model)
state.save("ours.safetensors")
again = new_model()
loaded = tnadapt_torch.load(again, "ours.safetensors")
difference_loaded = (answer(again) - trained).abs().max().item()
print("difference after loading:", difference_loaded)

# %% [markdown]
# ## Merge, unmerge, unload
#
# | PEFT | here |
# |---|---|
# | `model.merge_adapter()`, `model.unmerge_adapter()` | `state.merge()`, `state.unmerge()` |
# | `model = model.merge_and_unload()` | `state.merge()`, then `state.detach()` |
# | `model = model.unload()` | `state.detach()` |
# | `with model.disable_adapter():` | `with state.disabled():` |
#
# **Trap:** in PEFT, unmerging subtracts the update, so rounding stays behind. Here the old weights come back bit
# for bit, and for that a copy of them is kept while the adapter is merged.
#
# **Trap:** `detach` after `merge` leaves the update in the weights. Without `merge` it takes the adapter off.

# %%
state.merge()
state.detach()
difference_merged = (answer(model) - trained).abs().max().item()
print(
    f"difference after merging: {difference_merged:.1e}; the model has no adapter now"
)

# %% [markdown]
# ## Several adapters
#
# | PEFT | here |
# |---|---|
# | `model.add_adapter("second", config)` | `attach(model, ..., adapter_name="second")` |
# | `model.set_adapter("second")` | `with first.disabled():` |
#
# **Trap:** in PEFT one adapter is active until you ask for more. Here all adapters on a model are added.

# %%
second = tnadapt_torch.attach(
    again,
    families.lotr(),
    target_modules=["o_proj"],
    rank=4,
    adapter_name="second",
    seed=1,
)
with loaded.disabled():
    only_second = answer(again)
print(
    "the new adapter changes nothing yet:",
    torch.equal(only_second, answer(new_model())),
)

# %% [markdown]
# ## Bring the LoRAs that you have
#
# `load_peft` reads a folder that PEFT wrote: LoRA, rsLoRA, DoRA, VeRA, LoHa or LoKr. The update is PEFT's.
#
# **Trap:** give it the plain model, not one that PEFT has wrapped.

# %%
imported = new_model()
from_folder = tnadapt_torch.load_peft(imported, "peft_lora")
difference_imported = (answer(imported) - peft_answer).abs().max().item()
print(f"{from_folder.spec.name}: difference to PEFT {difference_imported:.1e}")

# %% [markdown]
# ## Give others a LoRA
#
# `save_as_lora` writes a folder that PEFT opens, from any family of low rank and without an error.

# %%
from_folder.save_as_lora("exported")
opened = PeftModel.from_pretrained(new_model(), "exported")
difference_exported = (answer(opened) - peft_answer).abs().max().item()
print(f"difference after export and PEFT: {difference_exported:.1e}")

# %% [markdown]
# ## Stay inside PEFT
#
# If your code is built on PEFT, keep it and change one line: `TnConfig` in place of `LoraConfig`. Every spec works,
# also one that you wrote.
#
# **Trap:** import `tnadapt_torch.peft` before `PeftModel.from_pretrained`, too. The import tells PEFT about the
# method.

# %%
from tnadapt_torch.peft import TnConfig

config = TnConfig(
    spec=families.lotr(),
    rank=4,
    scale=unit(LORA_STEP),
    target_modules=["q_proj", "v_proj"],
    seed=0,
)
inside = get_peft_model(new_model(), config)
inside.print_trainable_parameters()
losses_inside = train(
    inside,
    inside.base_model.states()["default"].parameter_groups(lr=1e-2, balance=True),
)
inside.save_pretrained("tn_in_peft")
reopened = PeftModel.from_pretrained(new_model(), "tn_in_peft")
difference_inside = (answer(reopened) - answer(inside.eval())).abs().max().item()
print("difference after save_pretrained and from_pretrained:", difference_inside)

# %% [markdown]
# [PEFT and the Trainer](../guides/peft.md) lists what works inside PEFT and what does not. [Serving](serving.md)
# shows batches whose rows use different adapters. [Compress](compress.md) makes the LoRAs that you have smaller.
