"""The demo in JAX: the same encoder, task, batches and initial values, trained with optax and one lax.scan.

    python bigram_shift_jax.py           LoTR and LoRTA in JAX, and LoTR in PyTorch; minutes on two cores
    python bigram_shift_jax.py --quick   the same in a minute or two; the accuracies are meaningless

At the end, each framework reads the other's file, and the predictions are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import bigram_shift
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from bert_jax import Config, encode_stacked, load_bert, mean_of, stack_layers
from bigram_shift import HEAD_RATE, METHODS, Method, Task, difference
from jax import Array
from report import Row, check, table, write_report
from sentences import DataError
from torch import Tensor
from tqdm import tqdm
from training import BATCH, WARMUP, Split, accuracy, by_length, load_classifier, over_all, random_batches

import tnadapt
import tnadapt_jax
import tnadapt_torch
from tnadapt import Adapter
from tnadapt.binding import read_checkpoint

PREFIX = "encoder."  # the path of the encoder in the PyTorch demo's model, so that both can read one file
STEP = 24  # texts are padded to a multiple of this: few lengths mean few compilations
Params = dict[str, dict[str, Array]]


class Host:
    """The frozen encoder as arrays, in two forms: one array per layer, and stacked."""

    def __init__(self, folder: str) -> None:
        """Load the encoder from its folder."""
        self.config: Config
        self.config, self.weights = load_bert(folder, PREFIX)
        self.stacked = stack_layers(self.weights, self.config, PREFIX)

    def fixed(self, frozen: Any) -> dict[str, Any]:
        """Gather the arrays that are not trained into one argument of a jitted function."""
        return {"frozen": frozen, "weights": self.weights, "stacked": self.stacked}


def padded(split: Split, chosen: Sequence[int]) -> tuple[Array, Array]:
    """Return token ids and mask of the chosen texts, both (BATCH, a multiple of STEP). Padding is masked."""
    rows = [split.tokens[i].numpy() for i in chosen]
    length = -(-max(map(len, rows)) // STEP) * STEP
    tokens, mask = np.zeros((BATCH, length), np.int32), np.zeros((BATCH, length), np.float32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], mask[place, : len(row)] = row, 1.0
    return jnp.asarray(tokens), jnp.asarray(mask)


def logits(trained: Any, fixed: Any, batch: tuple[Array, Array], adapter: Adapter, config: Config) -> Array:
    """Return logits (text, class). `trained` has the factors and the head. No large array is captured."""
    adapted = (adapter, {"trainable": trained["adapter"], "frozen": fixed["frozen"]})
    states = encode_stacked(fixed["weights"], fixed["stacked"], *batch, config, adapted=adapted, prefix=PREFIX)
    return head_of(trained["head"], states, batch[1])


def logits_of_merged(head: Mapping[str, Array], weights: Any, batch: tuple[Array, Array], config: Config) -> Array:
    """Return the same from weights into which the update was merged."""
    states = encode_stacked(weights, stack_layers(weights, config, PREFIX), *batch, config, prefix=PREFIX)
    return head_of(head, states, batch[1])


def head_of(head: Mapping[str, Array], states: Array, mask: Array) -> Array:
    """Return the logits from the mean state of the unpadded tokens."""
    return jnp.dot(mean_of(states, mask), head["weight"].T) + head["bias"]


# An adapter is hashed by its value, so one that is read from a file reuses the program compiled for its equal.
answer = jax.jit(logits, static_argnames=("adapter", "config"))
answer_merged = jax.jit(logits_of_merged, static_argnames="config")


def train(
    task: Task, host: Host, adapter: Adapter, rate: float, trained: Any, *, frozen: Any, seed: int
) -> tuple[Any, float]:
    """Train with Adam and a linear schedule, one step per batch. Return the result and the median seconds per step."""
    batches = random_batches(task.train, task.steps, seed)
    parts = {"adapter": optax.adam(linear(rate, task.steps)), "head": optax.adam(linear(HEAD_RATE, task.steps))}
    optimizer = optax.partition(parts, {name: name for name in parts})

    def loss(trained: Any, fixed: Any, batch: Any, labels: Array) -> Any:
        found = logits(trained, fixed, batch, adapter, host.config)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    @jax.jit
    def step(trained: Any, state: Any, fixed: Any, batch: Any, labels: Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(trained, fixed, batch, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(trained, updates), state, value

    state, fixed, times = optimizer.init(trained), host.fixed(frozen), []
    bar = tqdm(batches, f"{adapter.spec.name} (JAX), seed {seed}", unit="step")
    for batch in bar:
        inputs, labels = padded(task.train, batch), jnp.asarray(task.train.labels[batch].numpy())
        start = time.perf_counter()
        trained, state, value = step(trained, state, fixed, inputs, labels)
        bar.set_postfix(loss=f"{float(value):.3f}")
        times.append(time.perf_counter() - start)
    return trained, statistics.median(times)


def answers_of(split: Split, host: Host, adapter: Adapter, trained: Any, frozen: Any) -> Tensor:
    """Return the logits of all texts, in their original order."""
    fixed = host.fixed(frozen)
    return gathered(split, lambda batch: answer(trained, fixed, batch, adapter=adapter, config=host.config))


def answers_merged(split: Split, host: Host, adapter: Adapter, trained: Any, frozen: Any) -> Tensor:
    """Return the same after merging into the weights."""
    leaves = tnadapt_jax.find_sites(host.weights, target=[s.path for s in adapter.sites], layout="hf-torch")
    merged = tnadapt_jax.merge(adapter, {"trainable": trained["adapter"], "frozen": frozen}, host.weights, leaves)
    return gathered(split, lambda batch: answer_merged(trained["head"], merged, batch, config=host.config))


def linear(rate: float, steps: int) -> optax.Schedule:
    """Return a schedule that rises over the first tenth of the steps and falls to 0, as in the PyTorch demo."""

    def at(step: Any) -> Any:
        return rate * jnp.minimum(1.0, (step + 1) / (WARMUP * steps)) * (1.0 - step / steps)

    return at


def gathered(split: Split, answer: Any) -> Tensor:
    """Return the logits of all texts of a split, in their original order, as a torch tensor for comparison."""
    batches = by_length(split, range(len(split.tokens)))
    answers = [np.asarray(answer(padded(split, batch)))[: len(batch)] for batch in batches]
    order = np.argsort(list(chain.from_iterable(batches)))
    return torch.from_numpy(np.concatenate(answers)[order].copy())


def run_method(name: str, method: Method, task: Task, host: Host, seed: int) -> Row:
    """Bind, train, test and save; load the file here and in PyTorch; merge; compare the predictions."""
    leaves = tnadapt_jax.find_sites(host.weights, target=list(task.target_modules), layout="hf-torch")
    adapter = method.spec.bind(
        leaves.sites, rank=method.rank, alpha=method.alpha, sizes=dict(method.sizes) or None, seed=seed
    )
    params, head = tnadapt_jax.init(adapter), load_classifier(task.model, task.classes, seed).head.state_dict()
    trained = {"adapter": params["trainable"], "head": {key: jnp.array(value.numpy()) for key, value in head.items()}}
    trained, step_time = train(task, host, adapter, method.learning_rate, trained, frozen=params["frozen"], seed=seed)
    answers = answers_of(task.test, host, adapter, trained, params["frozen"])
    path = task.out / f"{name.lower()}-jax-seed{seed}.safetensors"
    params = {"trainable": trained["adapter"], "frozen": params["frozen"]}
    tnadapt_jax.save(adapter, params, path, extra={f"head.{key}": value for key, value in trained["head"].items()})
    loaded = answers_of_file(path, task, host)
    merged = answers_merged(task.test, host, adapter, trained, params["frozen"])
    fresh = load_classifier(task.model, task.classes, seed + 1)
    tnadapt_torch.load(fresh, path)
    say(f"{path.name}: trained in JAX, read by PyTorch", difference(answers, over_all(task.test, fresh, "test")), task)
    return Row(
        f"{name} (JAX)",
        seed,
        accuracy(answers, task.test),
        step_time,
        rank=method.rank,
        trainable=tnadapt.count(adapter).trainable,
        file=path.name,
        file_size=path.stat().st_size,
        loaded=difference(answers, loaded),
        merged=difference(answers, merged),
    )


def run_torch(name: str, method: Method, task: Task, host: Host, seed: int) -> Row:
    """Run the PyTorch demo with the same method, and read its file here."""
    row = bigram_shift.run_method(name, method, task, seed)
    model = load_classifier(task.model, task.classes, seed)
    tnadapt_torch.load(model, task.out / row.file)
    answers = over_all(task.test, model, "test")
    say(
        f"{row.file}: trained in PyTorch, read by JAX",
        difference(answers, answers_of_file(task.out / row.file, task, host)),
        task,
    )
    return replace(row, method=f"{name} (PyTorch)")


def answers_of_file(path: Path, task: Task, host: Host) -> Tensor:
    """Return the logits of the test texts, from the adapter and the head in a file."""
    adapter, params = tnadapt_jax.load(path)
    head = {key.removeprefix("head."): jnp.asarray(value) for key, value in read_checkpoint(path).extra.items()}
    trained = {"adapter": params["trainable"], "head": head}
    return answers_of(task.test, host, adapter, trained, params["frozen"])


def say(what: str, found: tuple[int, float], task: Task) -> None:
    """Print one line that compares two sets of predictions."""
    total, (apart, largest) = len(task.test.tokens), found
    print(f"{what}: {total - apart} of {total} predictions are the same, max |logit difference| {largest:.1e}")


def run_all(args: argparse.Namespace) -> int:
    """Run every method with every seed in JAX, and the first one in PyTorch; write the report."""
    task = bigram_shift.make_task(args)
    host, rows = Host(task.model), []
    setting = bigram_shift.setting_of(args, task)
    for seed in dict.fromkeys(args.seeds):
        for name, method in dict(args.methods).items():
            rows.append(run_method(name, method, task, host, seed))
            print(check(rows[-1], setting), flush=True)
        name, method = args.methods[0]
        rows.append(run_torch(name, method, task, host, seed))
    write_report(rows, setting, args.out)
    print(f"\n{table(rows)}\n\nThe table, the plot, all figures and the adapters are in {args.out}")
    return 0


def main() -> int:
    """Return 0 for success, 2 for invalid input, 130 after Ctrl-C."""
    parser = bigram_shift.parser()
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.set_defaults(methods=[(name, METHODS[name]) for name in ("LoTR", "LoRTA")], out=Path("demo_out/jax"))
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return run_all(args)
    except (DataError, OSError, tnadapt.TnadaptError) as error:
        print(f"bigram_shift_jax.py: error: {error}", file=sys.stderr)
        return bigram_shift.INPUT_FAULT
    except KeyboardInterrupt:
        return bigram_shift.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
