# %% [markdown]
# # Your first adapter in five minutes
#
# A fine-tuning adapter adds a small trained update to the frozen weights of a model. In this tutorial you put one
# on a small PyTorch model, train it, save it, load it again and merge it.
#
# You need to know what an `nn.Linear` is and how a training loop looks. Install what is used here with `pip install
# ".[torch]"` in a clone of the repository.

# %% [markdown]
# ## A model that knows something
#
# We make a model with three linear layers. In real life it would be a pretrained language model. `frozen_answer` is
# what it says before we touch it.

# %%
import torch
from torch import nn

import tnadapt_torch
from tnadapt import LORA_STEP, count, families, unit

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)
)
x = torch.randn(256, 64)
frozen_answer = model(x).detach()

# %% [markdown]
# ## A task that it cannot do
#
# The wanted answer is the model's own answer plus a linear map of rank 4. A small update can learn that.

# %%
y = frozen_answer + 0.5 * x[:, :4] @ torch.randn(4, 64)


def loss_of(model):
    return nn.functional.mse_loss(model(x), y)


loss_before = loss_of(model).item()
print(f"loss before training: {loss_before:.3f}")

# %% [markdown]
# ## Choose an adapter
#
# `families` has the published methods. We take LoTR: all weights share two matrices `A` and `B`, and each weight
# has its own small core `G`. A family is a table of factors, without any size. Print it to see which factors there
# are.

# %%
spec = families.lotr()
print(spec)

# %% [markdown]
# ## Attach it
#
# `attach` freezes the model and puts the update beside the layers that you name. It replaces no module.
#
# * `rank=8` is the size of the inner axes.
# * `seed=0` makes the starting values the same each time.
# * `scale=unit(LORA_STEP)` makes the first training step as large as that of LoRA, whatever the family.
#
# **Trap:** in `nn.Sequential` the layers are called `"0"`, `"2"` and `"4"`. A name that matches nothing is an error
# that lists the nearest names. `"all-linear"` means all linear layers, without the output head that a model names.

# %%
state = tnadapt_torch.attach(
    model,
    spec,
    target_modules=["0", "2", "4"],
    rank=8,
    scale=unit(LORA_STEP),
    seed=0,
)
print(state.table())
state.print_trainable_parameters()

# %% [markdown]
# At the start the update is exactly 0, so the model still gives its old answer.

# %%
assert torch.equal(model(x), frozen_answer)
print("norm of all updates:", state.norms()["dW"])

# %% [markdown]
# ## Train it
#
# The loop is the usual one. `parameter_groups` gives each factor its learning rate. With `balance=True` one `lr`
# suits every family.
#
# **Trap:** `model.parameters()` holds the frozen weights too. Give the optimizer the groups of the adapter.

# %%
optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-2, balance=True))
losses = []
for step in range(200):
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 40 == 0:
        print(f"step {step:3d}  loss {losses[-1]:.4f}")
print(f"after 200 steps: {loss_of(model).item():.4f}")

# %% [markdown]
# ## Save it
#
# The file holds the trained factors, the spec and the seed. It does not hold the model, so it is small.

# %%
state.save("first_adapter.safetensors")
trained_answer = model(x).detach()
numbers_of_model = sum(
    p.numel()
    for name, p in model.named_parameters()
    if not name.startswith("tnadapt_")
)
print(
    f"{count(state.adapter).trainable:,} trained numbers for a model of {numbers_of_model:,}"
)

# %% [markdown]
# ## Load it
#
# To load, you need the same base model. Here we take the adapter off, which gives the old answers again, and load
# the file.
#
# **Trap:** load onto the base model that you trained on. The file knows the names and the shapes of the weights, so
# another architecture is an error. For most families it cannot see that the values of the weights are others.

# %%
state.detach()
assert torch.equal(model(x), frozen_answer)

loaded = tnadapt_torch.load(model, "first_adapter.safetensors")
print("difference after loading:", (model(x) - trained_answer).abs().max().item())

# %% [markdown]
# ## Merge it
#
# `merge` adds the updates to the weights. The model is then as fast as without an adapter. `unmerge` puts the old
# weights back, bit for bit.
#
# **Trap:** a merged model does not equal the adapted one to the last digit, since sums are rounded in another
# order.

# %%
loaded.merge()
difference_merged = (model(x) - trained_answer).abs().max().item()
print(f"difference after merging: {difference_merged:.1e}")
loaded.unmerge()
with loaded.disabled():
    assert torch.equal(model(x), frozen_answer)

# %% [markdown]
# ## Where to go from here
#
# * Change `families.lotr()` to `families.lora()`, `families.vera()` or any [other family](../reference/families.md).
#   Nothing else has to change.
# * [Invent an adapter of your own](own_adapter.md).
# * Do you come from PEFT? Read [From PEFT](from_peft.md).
# * [PyTorch](../guides/torch.md) has all the details.
