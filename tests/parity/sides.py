"""Results of the numpy reference in float64 and of the PyTorch binding on a host with zero weights, compared."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import tnadapt
from tnadapt import Adapter, AdapterSpec, Site
from tnadapt.binding import Params, read_hosts
from tnadapt.testing import gradients, start_params
from tnadapt_torch import AdapterState, attach

Questions = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def host_of(sites: tuple[Site, ...]) -> nn.Module:
    """Return a module with linear layers at the paths of these sites. Their weights are 0, so outputs are updates."""
    root = nn.Module()
    for site in sites:
        *path, leaf = site.path.split(".")
        place = root
        for word in path:
            if word not in dict(place.named_children()):
                place.add_module(word, nn.Module())
            place = place.get_submodule(word)
        outer, inner = site.shape
        place.add_module(leaf, nn.Linear(inner, outer, bias=False))
    return root.requires_grad_(requires_grad=False).apply(to_zero)


def to_zero(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.weight)


def torch_side(adapter: Adapter, params: Params, dtype: torch.dtype) -> tuple[nn.Module, AdapterState]:
    """Return a host with this adapter attached and set to these params, and the adapter's state."""
    host = host_of(adapter.sites).to(dtype)
    with torch.no_grad():
        for path in adapter.weights if adapter.hosts else ():
            host.get_submodule(path).weight.copy_(torch.from_numpy(np.asarray(params[f"{path}:host"])))
    state = attach(
        host,
        adapter.spec,
        target_modules=[site.path for site in adapter.sites],
        rank=adapter.rank,
        sizes=adapter.sizes,
        seed=adapter.seed,
        overparametrized=True,
    ).to(dtype)
    assert state.adapter == adapter
    with torch.no_grad():
        for name, value in state.params().items():
            value.copy_(torch.from_numpy(params[name]))
    return host, state


def moved(adapter: Adapter, seed: int = 0) -> Params:
    """Return params as after training, exactly representable in float32."""
    random = np.random.default_rng(seed)
    begin = start_params(adapter)
    weights = {path: host_weight(sites, begin) for path, sites in adapter.weights.items() if adapter.hosts}
    if any(kind == "host_mask" for _, kind in adapter.hosts.values()):
        weights = {path: np.where(abs(weight) < 0.5, 0, weight) for path, weight in weights.items()}
    return {
        name: random.standard_normal(begin[name].shape).astype(np.float32).astype(np.float64)
        if slot.factor.trainable
        else begin[name]
        for name, slot in adapter.slots.items()
    } | read_hosts(adapter, weights)


def host_weight(sites: tuple[Site, ...], begin: Params) -> np.ndarray:
    """Return the host's weight in float32 from the entries of its sites; 0 outside of them."""
    whole = np.zeros(sites[0].weight_shape, np.float32)
    for site in sites:
        whole[site.rectangle] = begin[f"{site.path}:host"]
    return whole


@dataclass(frozen=True)
class Answers:
    """Outputs, updates and gradients of x by site; gradients of the trainable factors by name."""

    y: dict[str, np.ndarray]
    delta: dict[str, np.ndarray]
    of_x: dict[str, np.ndarray]
    of_factor: dict[str, np.ndarray]


def questions(adapter: Adapter, seed: int = 1) -> Questions:
    """Return an x of shape (2, 3, in) and a gradient of the output for each site, exactly representable in float32."""
    random = np.random.default_rng(seed)
    xs = {site.path: random.standard_normal((2, 3, site.shape[1])).astype(np.float32) for site in adapter.sites}
    gs = {site.path: random.standard_normal((2, 3, site.shape[0])).astype(np.float32) for site in adapter.sites}
    return xs, gs


def by_reference(adapter: Adapter, params: Params, asked: Questions | None = None) -> Answers:
    """Return the float64 answers; gradients come from the oracle, which a law compares with finite differences."""
    xs, gs = asked or questions(adapter)
    deltas = {site.path: tnadapt.delta(adapter, params, site) for site in adapter.sites}
    outer = {path: np.einsum("abo,abi->oi", gs[path].astype(float), xs[path].astype(float)) for path in xs}
    return Answers(
        y={path: tnadapt.apply(adapter, params, path, x) for path, x in xs.items()},
        delta=deltas,
        of_x={path: gs[path].astype(float) @ deltas[path] for path in xs},
        of_factor=gradients(adapter, params, outer),
    )


def by_torch(adapter: Adapter, params: Params, dtype: torch.dtype) -> Answers:
    """Return the answers of the PyTorch binding, by calling modules and by autograd."""
    host, state = torch_side(adapter, params, dtype)
    given, gs = questions(adapter)
    xs = {path: torch.from_numpy(x).to(dtype).requires_grad_() for path, x in given.items()}
    ys = {path: host.get_submodule(path)(x) for path, x in xs.items()}
    torch.autograd.backward([*ys.values()], [torch.from_numpy(gs[path]).to(dtype) for path in ys])
    assert all(value.grad is None for value in host.parameters() if not value.requires_grad)
    weights = {path: host.get_submodule(path).weight.detach() for path in ys}
    return Answers(
        y={path: (y.detach() - xs[path].detach() @ weights[path].T).numpy() for path, y in ys.items()},
        delta={path: state.delta(path).detach().numpy() for path in ys},
        of_x={path: (x.grad - torch.from_numpy(gs[path]).to(dtype) @ weights[path]).numpy() for path, x in xs.items()},
        of_factor={name: value.grad.numpy() for name, value in state.params().items() if value.requires_grad},
    )


def assert_same(found: Answers, wanted: Answers, tolerance: float) -> None:
    for what in ("y", "delta", "of_x", "of_factor"):
        ours, theirs = getattr(found, what), getattr(wanted, what)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name].shape == value.shape
            largest = np.abs(value).max(initial=0) or 1.0
            error = np.abs(ours[name] - value).max(initial=0) / largest
            assert error <= tolerance, f"{what} of {name} is off by {error:.3g} of the largest entry"


def compare(
    spec: AdapterSpec, sites: tuple[Site, ...], dtype: torch.dtype, *, rank=None, sizes=None, seed=5
) -> Answers:
    """Check that both sides agree for a spec, and return the answers of the reference."""
    rank = rank if spec.free_bonds else None
    adapter = spec.bind(sites, rank=rank, sizes=sizes, seed=seed, overparametrized=True)
    params = moved(adapter)
    wanted = by_reference(adapter, params)
    assert_same(by_torch(adapter, params, dtype), wanted, TOLERANCE[dtype])
    return wanted
