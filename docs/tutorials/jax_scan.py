# %% [markdown]
# # JAX: an adapter for a scanned model
#
# Deep JAX models store the weights of all layers in one array and run the layers with `jax.lax.scan`. In this
# tutorial you adapt such a model without changing it, train the adapter with optax, save it, and load the file in
# PyTorch with the same numbers.
#
# You need `pip install ".[jax]"` in a clone, and `".[torch]"` for the last part.

# %% [markdown]
# ## A scanned model
#
# The model is a function of a tree of weights. The kernels of its three layers are stacked: `kernel` has the shape
# (layer, in, out). Nothing here knows of adapters.

# %%
import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WIDTH = 3, 32
random = np.random.default_rng(0)
weights = {
    "layers": {
        "up": {
            "kernel": jnp.asarray(
                random.standard_normal((LAYERS, WIDTH, WIDTH)) / 6, jnp.float32
            )
        }
    }
}


def model(weights, x):
    """Run all layers: x (batch, in) to (batch, out)."""

    def layer(x, kernel):
        return x + jnp.tanh(x @ kernel), None

    return jax.lax.scan(layer, x, weights["layers"]["up"]["kernel"])[0]


# %% [markdown]
# ## Find the weights
#
# `find_sites` selects the leaves of the tree. `layout` says how a weight is stored. `layer_axis` says which axis of
# the stack counts the layers; the sites then have the names that they would have if each layer were stored by
# itself.
#
# **Trap:** PyTorch stores a weight as (out, in), JAX libraries mostly as (in, out). Nobody can see which it is if
# the weight is square. So you must say it, and a wrong word here gives a wrong adapter without an error.

# %%
import tnadapt_jax
from tnadapt import LORA_STEP, count, families, unit

leaves = tnadapt_jax.find_sites(
    weights, target=["up"], layout="in out", layer_axis={"layers": 0}
)
for site in leaves.sites:
    print(site.path, site.shape)

# %% [markdown]
# ## From a spec to params
#
# `bind` puts a spec on these sites. `init` returns a plain dict with two parts: what is trained and what is frozen.

# %%
adapter = families.lotr().bind(leaves.sites, rank=8, scale=unit(LORA_STEP), seed=0)
params = tnadapt_jax.init(adapter)
for part, arrays in params.items():
    print(part, {name: array.shape for name, array in arrays.items()})

# %% [markdown]
# ## Adapt the function
#
# `adapt` takes the model's function and returns one that takes `params` first. It follows the weights through the
# scan and adds each update to the product that the weight is used in. `explain` says what it did.
#
# **Trap:** call the adapted function under `jax.jit`. Without it, every call traces the model again.

# %%
adapted = tnadapt_jax.adapt(model, adapter, leaves)
x = jnp.asarray(random.standard_normal((128, WIDTH)), jnp.float32)
print(tnadapt_jax.explain(model, adapter, leaves)(params, weights, x))
start_difference = float(
    jnp.abs(jax.jit(adapted)(params, weights, x) - model(weights, x)).max()
)
print("difference at the start:", start_difference)

# %% [markdown]
# ## Train with optax
#
# Differentiate with respect to `params["trainable"]` only. Then the optimizer has no state for frozen factors. The
# weights and the frozen factors are arguments of the step, so they are not compiled into it as constants.
#
# `rate_labels` gives each factor a learning rate that suits it, as multiples of yours.

# %%
import optax

y = model(weights, x) + x[:, :3] @ jnp.asarray(
    random.standard_normal((3, WIDTH)), jnp.float32
)
labels, multiples = tnadapt_jax.rate_labels(adapter)
optimizer = optax.multi_transform(
    {label: optax.adam(1e-2 * times) for label, times in multiples.items()}, labels
)


def loss(trainable, frozen, weights, x, y):
    """Return the mean squared error of the adapted model."""
    return (
        (adapted({"trainable": trainable, "frozen": frozen}, weights, x) - y) ** 2
    ).mean()


@jax.jit
def step(trainable, state, frozen, weights, x, y):
    """Make one step; return the new factors, the state of the optimizer and the loss before the step."""
    value, gradient = jax.value_and_grad(loss)(trainable, frozen, weights, x, y)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(trainable, updates), state, value


trainable, state = params["trainable"], optimizer.init(params["trainable"])
losses = []
for number in range(200):
    trainable, state, value = step(
        trainable, state, params["frozen"], weights, x, y
    )
    losses.append(float(value))
    if number % 50 == 0:
        print(f"step {number:3d}  loss {losses[-1]:.4f}")
params = params | {"trainable": trainable}
print(
    f"loss {losses[0]:.3f} -> {losses[-1]:.4f} with {count(adapter).trainable:,} trained numbers"
)

# %% [markdown]
# ## Save it
#
# The file has one format for numpy, JAX and PyTorch.

# %%
tnadapt_jax.save(adapter, params, "scanned.safetensors")
again, loaded = tnadapt_jax.load("scanned.safetensors")
answer = np.asarray(jax.jit(adapted)(loaded, weights, x))
assert again == adapter

# %% [markdown]
# ## Load it in PyTorch
#
# The same model in PyTorch: its layers are `layers.0.up` and so on, which are the names of the sites above.
#
# **Trap:** the names must agree. If they do not, `load` lists the names that it misses.

# %%
import torch
from torch import nn

import tnadapt_torch


class Layer(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up.weight.data = torch.tensor(
            np.asarray(kernel)
        ).T.contiguous()  # (in, out) to (out, in)

    def forward(self, x):
        return x + torch.tanh(self.up(x))


class Model(nn.Module):
    def __init__(self, kernels):
        super().__init__()
        self.layers = nn.Sequential(*map(Layer, kernels))

    def forward(self, x):
        return self.layers(x)


torch_model = Model(weights["layers"]["up"]["kernel"])
tnadapt_torch.load(torch_model, "scanned.safetensors")
with torch.no_grad():
    torch_answer = torch_model(torch.tensor(np.asarray(x))).numpy()
difference = float(np.abs(torch_answer - answer).max())
print(
    f"largest difference between PyTorch and JAX: {difference:.1e}, at answers of up to {np.abs(answer).max():.1f}"
)

# %% [markdown]
# ## Merge
#
# `merge` returns new weights with all updates added. The model runs with them as it is, at its old speed.

# %%
merged = tnadapt_jax.merge(adapter, loaded, weights, leaves)
merged_difference = float(np.abs(np.asarray(model(merged, x)) - answer).max())
print(f"difference after merging: {merged_difference:.1e}")

# %% [markdown]
# [JAX](../guides/jax.md) has the rest: writing an adapter into a scan by hand, flax nnx, meshes, experts,
# checkpoints of a whole run.
