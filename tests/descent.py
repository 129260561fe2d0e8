"""A quadratic loss on the updates of an adapter, with gradients by the oracle, and the path of a rule on it."""

from collections.abc import Callable

import numpy as np

import tnadapt
from tnadapt import Adapter
from tnadapt.binding import Params, drawn_starts
from tnadapt.testing import gradients, start_params

Rule = Callable[[Params, Params], Params]  # values and gradients of the trained arrays -> their new values


def trained_in(adapter: Adapter) -> list[str]:
    return [name for name, slot in adapter.slots.items() if slot.factor.trainable]


def begin(adapter: Adapter) -> Params:
    """Return the starting values, with those that the update subtracts."""
    return start_params(adapter) | drawn_starts(adapter)


def moved(adapter: Adapter, seed: int = 0) -> Params:
    """Return params with random values of everything that is trained."""
    random, values = np.random.default_rng(seed), begin(adapter)
    return values | {name: random.standard_normal(np.shape(values[name])) for name in trained_in(adapter)}


class Task:
    """Half of the mean square distance of the updates of all sites from random ones."""

    def __init__(self, adapter: Adapter, seed: int = 7) -> None:
        random = np.random.default_rng(seed)
        self.adapter = adapter
        self.targets = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
        self.number = sum(target.size for target in self.targets.values())

    def misses(self, params: Params) -> dict[str, np.ndarray]:
        return {path: tnadapt.delta(self.adapter, params, path) - target for path, target in self.targets.items()}

    def updates(self, params: Params) -> np.ndarray:
        return np.concatenate([tnadapt.delta(self.adapter, params, path).ravel() for path in self.targets])

    def loss(self, params: Params) -> float:
        return sum(np.square(miss).sum() for miss in self.misses(params).values()) / (2 * self.number)

    def gradients(self, params: Params) -> Params:
        return gradients(self.adapter, params, {path: miss / self.number for path, miss in self.misses(params).items()})


def walk(task: Task, params: Params, rule: Rule, steps: int) -> tuple[np.ndarray, list[float]]:
    """Return all updates after each step, one row for each, and the losses before the first step and after each."""
    path, losses, values = [], [task.loss(params)], dict(params)
    for _ in range(steps):
        trained = {name: values[name] for name in trained_in(task.adapter)}
        values |= rule(trained, task.gradients(values))
        path.append(task.updates(values))
        losses.append(task.loss(values))
    return np.stack(path), losses


def times(number: float, grads: Params) -> Params:
    return {name: number * grad for name, grad in grads.items()}


def expect_first_steps(adapter: Adapter, params: Params, step: Callable[[Params], Params], *, lr: float) -> None:
    """Check the lengths of the first two steps of Rite on LoRAs with B = 0.

    The first makes r equal singular values lr |scale| sqrt(out) of the update. With the moments' corrections, the
    second changes A by sqrt(in / out) of its length times 0.474 0 + 0.526 / sqrt(0.50025) = 0.744.
    """
    first = step(dict(params))
    second = step(first)
    for group in adapter.groups:
        for site in group.sites:
            network, name = group.network, f"{site.path.removeprefix('layers.')}.A"
            (rank, size), (out, _) = np.shape(params[name]), site.shape
            values = np.linalg.svd(tnadapt.delta(adapter, first, site.path), compute_uv=False)
            np.testing.assert_allclose(values[:rank], lr * abs(network.scale) * out**0.5, rtol=1e-6)
            turned = np.linalg.norm(second[name] - first[name]) / np.linalg.norm(params[name])
            np.testing.assert_allclose(turned, 0.1 / 0.19 / (0.001 / 0.001999) ** 0.5 * (size / out) ** 0.5, rtol=1e-6)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance of two paths, relative to the largest norm on the first."""
    return float(np.linalg.norm(one - other, axis=1).max() / np.linalg.norm(one, axis=1).max())


def rate_of(adapter: Adapter) -> float:
    """Return a rate at which a preconditioned step is small, whatever the scale and the number of factors."""
    scale = max(network.scale**2 for network in adapter.networks)
    count = max(sum(factor.trainable for factor in network.factors.values()) for network in adapter.networks)
    return 0.05 * Task(adapter).number / (scale * count)
