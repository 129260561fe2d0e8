# %% [markdown]
# # Write up: reproduce the table of a paper
#
# Papers on adapters have a column with the number of trained parameters. Can you believe it? In this tutorial you
# compute such columns again from the table of each method, and find out what a published number includes.
#
# Nothing is trained and nothing is downloaded. `pip install .` in a clone is enough.

# %% [markdown]
# ## The published numbers
#
# We take three columns that can be looked up:
#
# * **LoTR** and **LoRA** on RoBERTa-base, query and value weights: the column `params` of the files
#   `data/table/roberta/glue/lotr.csv` and `lora.csv` in github.com/daskol/lotr, at commit ced3945. This is the
#   repository of the LoTR paper (arXiv:2402.01376).
# * **TLoRA** on RoBERTa-large, query and value weights: table 1 of arXiv:2504.18735.
#
# **Trap:** copy a number together with its model, the adapted weights, the rank and the place where it stands. A
# count without these cannot be checked.

# %%
PUBLISHED = {  # method: (model, {rank: trained parameters})
    "lotr": (
        "roberta-base",
        {1: 3_096, 2: 4_704, 4: 8_064, 8: 15_360, 16: 32_256, 32: 75_264},
    ),
    "lora": (
        "roberta-base",
        {1: 38_400, 2: 75_264, 4: 148_992, 8: 296_448, 16: 591_360, 32: 1_181_184},
    ),
    "tlora": ("roberta-large", {8: 3_120, 16: 12_336, 32: 49_200}),
}

# %% [markdown]
# ## The same numbers from the structure
#
# `find_host` knows the shapes of these models. `sites()` are their query and value weights. `bind` puts a method on
# them, and `count` adds up the sizes of its arrays.

# %%
from tnadapt import count, families, find_host


def computed(method, model, rank):
    """Count the trained parameters of a method on the query and value weights of a model."""
    spec = getattr(families, method)()
    return count(spec.bind(find_host(model).sites(), rank=rank)).trainable


differences = {}
print(
    f"{'method':<7} {'model':<14} {'rank':>4} {'published':>10} {'computed':>10} {'difference':>10}"
)
for method, (model, numbers) in PUBLISHED.items():
    for rank, published in numbers.items():
        ours = computed(method, model, rank)
        differences[method, rank] = published - ours
        print(
            f"{method:<7} {model:<14} {rank:>4} {published:>10,} {ours:>10,} {published - ours:>10,}"
        )

# %% [markdown]
# ## Where they differ, and why
#
# TLoRA's three numbers are equal to ours. The numbers of the LoTR repository are all larger, and all by 1,536,
# whatever the method and the rank. So the difference is not the adapter.
#
# 1,536 = 2 x 768 is the size of a matrix from 768 features to two classes. Most tasks in these files have two
# classes, so the output matrix of the classifier is the likely cause. The files do not say so, and we do not know
# it. What we know is that the same number was added to every row.
#
# **Trap:** some papers count the classifier and some do not. Compare two methods only if both counts include the
# same.

# %%
print(
    "differences of the LoTR repository:",
    sorted({n for (method, _), n in differences.items() if method != "tlora"}),
)
print(
    "differences of TLoRA:",
    sorted({n for (method, _), n in differences.items() if method == "tlora"}),
)

# %% [markdown]
# ## A formula instead of a number
#
# A formula can be checked by hand and holds for every model. `formula()` derives it from the table of the method.
# `site` counts the adapted weights, here 24.

# %%
for method in PUBLISHED:
    print(f"{method:<6}", getattr(families, method)().formula())

out = into = 768
site = 24
assert computed("lotr", "roberta-base", 8) == out * 8 + site * 8 * 8 + into * 8

# %% [markdown]
# ## The other trap: what the number of a method does not count
#
# TLoRA trains few numbers, but it multiplies with two frozen matrices for each weight. They need no bytes in a
# file, since they are drawn again from the seed. They do need memory when the model runs. `count` gives both.

# %%
frozen = {}
for method, (model, _) in PUBLISHED.items():
    adapter = getattr(families, method)().bind(find_host(model).sites(), rank=32)
    total = count(adapter)
    frozen[method] = total.frozen
    print(
        f"{method:<6} rank 32 on {model:<14} trained {total.trainable:>9,}  frozen {total.frozen:>9,}"
    )

# %% [markdown]
# ## The table for your own paper
#
# `compare` makes the table that a reader wants: parameters, rank, degrees of freedom and the size of the first
# step, all computed. `to_markdown()` gives it as text to paste.

# %%
from tnadapt import compare

sites = find_host("roberta-base").sites()
adapters = [getattr(families, method)().bind(sites, rank=4) for method in PUBLISHED]
table = compare(*adapters)
print(table)

# %% [markdown]
# Equal ranks are not a fair comparison, since the methods then train very different numbers of parameters.
# `fit_rank` finds the largest rank within a budget.

# %%
from tnadapt import fit_rank

BUDGET = 50_000
ranks = {}
for method in PUBLISHED:
    spec = getattr(families, method)()
    ranks[method] = fit_rank(spec, sites, trainable=BUDGET)
    trained = count(spec.bind(sites, rank=ranks[method])).trainable
    print(
        f"{method:<6} rank {ranks[method]:>3} trains {trained:,} of at most {BUDGET:,}"
    )

# %% [markdown]
# [Families](../reference/families.md) has the counts of all methods on two models, with the source of each method.
# [Structure](../explanation/structure.md) explains the other columns.
