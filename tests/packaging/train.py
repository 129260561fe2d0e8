"""A program for an environment with a wheel: train a small adapter, save it, load it, and print the losses."""

import json
import sys
from pathlib import Path

import torch

import tnadapt
import tnadapt_torch


def model_of() -> torch.nn.Module:
    """Return the same small model at each call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16))


def main() -> None:
    """Train LoTR on a linear map, and write what the test compares as JSON."""
    torch.set_num_threads(1)
    model, path = model_of(), Path(sys.argv[1])
    state = tnadapt_torch.attach(model, tnadapt.families.lotr(), target_modules="all-linear", rank=4, seed=0)
    x = torch.randn(64, 16)
    y = x[:, :2] @ torch.randn(2, 16)
    optimizer = torch.optim.AdamW(state.parameter_groups(lr=1e-2))
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state.save(path)
    other = model_of()
    tnadapt_torch.load(other, path)
    with torch.no_grad():
        same = torch.equal(model(x), other(x))
    said = {"files": [tnadapt.__file__, tnadapt_torch.__file__], "version": tnadapt_torch.__version__}
    print(json.dumps(said | {"first": losses[0], "last": losses[-1], "same": same}))


if __name__ == "__main__":
    main()
