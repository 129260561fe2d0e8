# %% [markdown]
# # Invent your own adapter and prove it
#
# A new adapter is a table of six lines. From this table the library derives the number of parameters, a bound on
# the rank, the starting values, the code that runs, and tests. In this tutorial you write such a table and find out
# what your adapter can do before you train it.
#
# You need `pip install ".[torch,testing]"` in a clone.

# %% [markdown]
# ## The idea
#
# Say that you want to adapt the query and value weights of every layer. You guess that
#
# * all weights can read their input through one random matrix that is never trained,
# * queries differ from values in a small matrix `K`,
# * layers differ only by a few weights `c` on its rows,
# * one trained matrix `B` writes the result.
#
# In a formula: the update of the weight of layer `l` and kind `k` is `B diag(c_l) K_k A`.

# %% [markdown]
# ## The table
#
# Each factor is one line: whether it is trained, the names of its axes, and how it starts.
#
# * `out` and `in` are the axes of a weight. `layer` and `kind` say which weight it is; `over` lists these.
# * Every other name is a **bond**. It is summed over, and its size is a rank. Here these are `r` and `s`.
# * A factor without `layer` and `kind` is shared by all weights of one shape.

# %%
from tnadapt import (
    AdapterSpec,
    frozen,
    kaiming_uniform,
    normal,
    over_rank,
    trainable,
    zeros,
)

mine = AdapterSpec(
    name="mine",
    weight="out in",
    over="layer kind",
    factors={
        "A": frozen("s in", init=kaiming_uniform("in")),
        "K": trainable("kind r s", init=kaiming_uniform("s")),
        "c": trainable("layer r", init=normal()),
        "B": trainable("out r", init=zeros()),
    },
    scale=over_rank("r", alpha=8),
)
print(mine)

# %% [markdown]
# ## What a wrong table says
#
# A spec is checked when it is made, and all mistakes are listed at once.
#
# **Trap:** exactly one trained factor should start at zero. Without one, the model changes before it is trained.
# With two, no factor ever gets a gradient. Both are errors. Here is a table with a wrong word and two zeros.

# %%
from tnadapt import SpecError

try:
    AdapterSpec(
        name="broken",
        weight="out in",
        factors={
            "A": trainable("r inn", init=zeros()),
            "B": trainable("out r", init=zeros()),
        },
    )
except SpecError as error:
    mistakes = str(error)
print(mistakes)

# %% [markdown]
# ## Draw it
#
# Boxes are factors and lines are axes. A line between two boxes is a bond. A hatched box is frozen, a double border
# means shared, and a dashed line is a `layer` or a `kind`.

# %%
from tnadapt import draw

draw(mine)

# %% [markdown]
# In a terminal, `print` shows the same as text.

# %%
print(draw(mine))

# %% [markdown]
# ## Count it
#
# `bind` puts the table on the weights of a model: now every size is known. `find_host` knows the shapes of
# well-known models, so nothing is downloaded.

# %%
from tnadapt import count, families, find_host

sites = find_host("roberta-base").sites()  # query and value weights of 12 layers
adapter = mine.bind(sites, rank=4)
lora = families.lora().bind(sites, rank=4)
print("formula:", mine.formula())
print(f"mine: {count(adapter).trainable:,}   LoRA: {count(lora).trainable:,}")

# %% [markdown]
# ## Bound its rank
#
# `rank_bound` finds the narrowest place of the network between `in` and `out`. This is a proved bound.
# `generic_rank` computes the rank at random values, in exact arithmetic. If both agree, the bound is reached.
#
# **Trap:** a small rank of *one* update does not mean that all updates together have a small rank. Ask about the
# whole stack with `rows=`.

# %%
from tnadapt import generic_rank, rank_bound

site = sites[0]
print(
    site.path,
    "- rank at most",
    rank_bound(adapter, site),
    "- at random values",
    generic_rank(adapter, site),
)
print(
    "independent updates over the layers: at most",
    rank_bound(adapter, rows=("layer",)),
)

# %% [markdown]
# ## Count what it can really do
#
# Different values of the factors can give the same update: multiply a row of `c` by 2 and divide a column of `B` by
# 2. `degrees_of_freedom` counts the directions in which training can move the updates. The rest is called gauge.

# %%
from tnadapt import degrees_of_freedom

freedom = degrees_of_freedom(adapter)
print(freedom)

# %% [markdown]
# ## Prove it
#
# `check` binds the table to many random models and tests every law that an adapter must keep: the update is 0 at
# the start, the first gradient is not 0, the counts are those of the arrays, the rank keeps its bound, a saved file
# gives the same adapter back. If a law does not hold, you get the smallest adapter that breaks it. Three examples
# are quick; take 100 before you publish.

# %%
from tnadapt.testing import check

laws = check(mine, examples=3)
for held in laws[:4]:
    print(f"{held.law}: {held.statement}")
print(f"... {len(laws)} laws hold")

# %% [markdown]
# ## Compare it
#
# One table for several adapters. `step` is how far the first training step moves the weights, as a multiple of
# LoRA's.
#
# **Trap:** if `step` is far from 1, LoRA's learning rate is wrong for your adapter. `scale=unit(LORA_STEP)` makes
# the first step as large as LoRA's, so that one rate suits both.

# %%
from tnadapt import LORA_STEP, compare, unit

print(compare(adapter, mine.bind(sites, rank=4, scale=unit(LORA_STEP)), lora))

# %% [markdown]
# ## Train it
#
# Whatever takes a family takes your table too. Here is a small model with two layers, each with a query and a
# value.

# %%
import torch
from torch import nn

import tnadapt_torch


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return x + self.query(x) / 2 + torch.tanh(self.value(x))


torch.manual_seed(0)
model = nn.Sequential(Layer(), Layer())
x = torch.randn(256, 32)
y = model(x).detach() + x[:, :2] @ torch.randn(2, 32)
state = tnadapt_torch.attach(
    model,
    mine,
    target_modules=["query", "value"],
    rank=16,
    scale=unit(LORA_STEP),
    seed=0,
)
optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-2, balance=True))
losses = []
for _ in range(200):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(
    f"loss {losses[0]:.3f} -> {losses[-1]:.3f} with {count(state.adapter).trainable:,} trained numbers"
)
state.save("mine.safetensors")

# %% [markdown]
# The file holds the table itself. Whoever loads it needs neither your code nor this page.

# %%
state.detach()
loaded = tnadapt_torch.load(model, "mine.safetensors")
assert loaded.spec.factors == mine.factors
loss_loaded = nn.functional.mse_loss(model(x), y).item()
print(f"loss after loading: {loss_loaded:.3f}")

# %% [markdown]
# ## Your paper in six lines
#
# ```
# tnadapt new my_adapter
# ```
#
# makes a new folder with a table to change, a test that proves it, its picture, and the row that it has among [the
# families](../reference/families.md). Change the six lines, then run its test: `pip install pytest`, and `python -m
# pytest my_adapter`.
#
# [Concepts](../explanation/concepts.md) has the rest of the language: sums of terms, a factor that occurs twice,
# the weight of the model as a factor. [Structure](../explanation/structure.md) explains ranks and degrees of
# freedom.
