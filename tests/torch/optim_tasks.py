"""A quadratic loss on the updates of an adapter, and the path that an optimizer takes on it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.parity.sides import moved, torch_side
from tnadapt import Adapter
from tnadapt.binding import Params
from tnadapt_torch import AdapterState

Maker = Callable[[AdapterState], torch.optim.Optimizer]


def started(adapter: Adapter, params: Params | None = None, dtype: torch.dtype = torch.float64) -> AdapterState:
    """Return the state of an adapter on a host of zeros."""
    host, state = torch_side(adapter, moved(adapter) if params is None else params, dtype)
    state.kept_alive = (host,)
    return state


def loss_of(state: AdapterState, seed: int = 7) -> Tensor:
    """Return half of the mean square distance of all updates from random ones."""
    random = np.random.default_rng(seed)
    parts = []
    for site in state.adapter.sites:
        target = torch.from_numpy(random.standard_normal(site.shape)).to(next(state.parameters()).dtype)
        parts.append((state.delta(site.path) - target).square().mean() / 2)
    return torch.stack(parts).mean()


def walk(state: AdapterState, make: Maker, steps: int) -> tuple[np.ndarray, list[float]]:
    """Return all updates after each step, in one array, and the losses before each step."""
    optimizer, path, losses = make(state), [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(state)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            path.append(torch.cat([state.delta(site.path).flatten() for site in state.adapter.sites]).numpy())
    return np.stack(path), losses


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance of two paths, relative to the largest norm of the first."""
    return float(np.linalg.norm(one - other, axis=1).max() / np.linalg.norm(one, axis=1).max())
