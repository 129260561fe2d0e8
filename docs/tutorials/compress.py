# %% [markdown]
# # Compress the LoRAs that you have
#
# You have trained a LoRA. Often its updates are alike from layer to layer. `compress` finds the adapter of another
# family that is closest to it, without data and without the model. This tutorial shows how much you save and how
# much you lose.
#
# You need `pip install . matplotlib` in a clone.

# %% [markdown]
# ## A LoRA to compress
#
# We make one with 6 layers, of which each has a query and a value weight of 64 x 64. All weights use the same 8
# directions at their input and at their output, plus some noise of their own. With a LoRA of your own, skip this
# cell: the next one reads a folder of PEFT.

# %%
import numpy as np

from tnadapt import families, grid, init, save_as_lora

sites = grid(layers=6, kinds={"q_proj": (64, 64), "v_proj": (64, 64)})
lora = families.lora().bind(sites, rank=8, alpha=8)
random = np.random.default_rng(0)
shared_in, shared_out = (
    random.standard_normal((8, 64)),
    random.standard_normal((64, 8)),
)


def trained(shape):
    """Return a matrix A (rank, in) or B (out, rank) as if it had been trained."""
    common = (
        shared_in
        if shape == (8, 64)
        else shared_out @ random.standard_normal((8, 8))
    )
    return common + 0.25 * random.standard_normal(shape)


params = {name: trained(value.shape) for name, value in init(lora).items()}
written = save_as_lora(lora, params, "my_lora")

# %% [markdown]
# ## Read it
#
# `read_peft` reads a folder that PEFT wrote. It loads no model. `low_rank_updates` gives the update of each weight
# as a product of two thin matrices.

# %%
from pathlib import Path

from tnadapt import count, low_rank_updates, read_peft

checkpoint = read_peft("my_lora")
updates = low_rank_updates(checkpoint.adapter, checkpoint.params)
before = Path("my_lora/adapter_model.safetensors").stat().st_size
print(f"{count(checkpoint.adapter).trainable:,} numbers, {before:,} bytes")

# %% [markdown]
# ## Compress it once
#
# `error` is the size of what is lost, relative to the size of all updates together. 0 means nothing is lost, and 1
# means everything is.
#
# **Trap:** the error is that of the weights. It does not say how much worse the model answers. Test the compressed
# adapter on your task.

# %%
from tnadapt import compress, save

found = compress(updates, families.lotr(), rank=8)
small = {name: value.astype(np.float32) for name, value in found.params.items()}
save(found.adapter, small, "small.safetensors")
after = Path("small.safetensors").stat().st_size
print(
    f"relative error {found.error:.3f}, {count(found.adapter).trainable:,} numbers, {after:,} bytes"
)

# %% [markdown]
# The error of each weight shows whether one of them is lost more than the others.

# %%
for site, error in list(found.errors.items())[:4]:
    print(f"{site.path:<18} {error:.3f}")

# %% [markdown]
# ## Error against bytes
#
# Now three families, each at several ranks. A LoRA of a smaller rank is the usual way to make a LoRA smaller: each
# weight by itself, by its singular value decomposition. The others share something between the weights.

# %%
families_tried = {
    "LoRA": (families.lora(), (1, 2, 4, 6)),
    "LoTR": (families.lotr(), (4, 8, 12)),
    "MetaTT": (families.metatt(), (4, 8, 12)),
}
rows = []
for name, (spec, ranks) in families_tried.items():
    for rank in ranks:
        smaller = compress(updates, spec, rank=rank, sweeps=3)
        rows.append(
            (name, rank, 4 * count(smaller.adapter).trainable, smaller.error)
        )

print(f"{'family':<8} {'rank':>4} {'bytes':>7} {'error':>6}")
for name, rank, size, error in rows:
    print(f"{name:<8} {rank:>4} {size:>7,} {error:>6.3f}")

# %% [markdown]
# The picture shows the same. Lower and further left is better. At the same number of bytes, families that share
# keep more of these updates than a smaller LoRA does.
#
# **Trap:** that is so because our updates are alike. If yours have nothing in common, nothing is gained: the points
# of the sharing families then lie above those of LoRA. So look at your own curve.

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in families_tried:
    points = [
        (size / 1024, error) for family, _, size, error in rows if family == name
    ]
    axes.plot(*zip(*points, strict=True), marker="o", label=name)
axes.set(xlabel="size of the values (KiB)", ylabel="relative error", xscale="log")
axes.set_xticks([3, 6, 12, 24, 36], labels=[3, 6, 12, 24, 36])
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# ## What comes out is an adapter
#
# It is a file like any other: load it onto the model with `tnadapt_torch.load` or `tnadapt_jax.load`, go on
# training it, or export it as a LoRA again. Here we compare one update with the old one.

# %%
from tnadapt import delta

path = checkpoint.adapter.sites[0].path
old = delta(checkpoint.adapter, checkpoint.params, path)
new = delta(found.adapter, found.params, path)
relative = np.linalg.norm(new - old) / np.linalg.norm(old)
print(f"{path}: relative error {relative:.3f}")

# %% [markdown]
# ## From the shell
#
# ```
# tnadapt compress my_lora/ --to lotr --rank 8 -o small.safetensors
# ```
#
# prints the error of each weight and the bytes before and after. [Compression](../guides/compression.md) explains
# the algorithm, what it guarantees and what it does not.
