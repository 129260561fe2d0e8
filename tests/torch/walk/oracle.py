"""The oracle of the walk: outputs and gradients of a host with adapters, in float64.

It takes one thing from the code under test: the present values of the factors. Their dense updates come from the numpy
reference, all else from the book, and the host is written out by hand (`hosts.py`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tnadapt
from tests.torch.walk.book import Book, Entry
from tnadapt.testing import _oracle as dense
from tnadapt.testing import gradients
from tnadapt_torch import AdapterState

States = Mapping[str, AdapterState]
Params = Mapping[str, Mapping[str, np.ndarray]]  # the factors of each adapter by name
Objective = Callable[[Tensor, Tensor], Tensor]
AXES = {"expert": 0, "out": 1, "in": 2}
SCALED = 1.5  # what the user's own parametrization multiplies a weight by


def updates(book: Book, states: States, params: Params | None = None) -> dict[tuple[str, str], Tensor]:
    """Return the dense update of every weight, as stored, by adapter and name, of all adapters that are active."""
    active = {name: entry for name, entry in book.entries.items() if entry.is_active}
    values = values_of(book, states, params)
    return {
        (name, key): update_of(entry, path, states[name].adapter, values[name])
        for name, entry in active.items()
        for path, key in entry.weights.items()
    }


def output(book: Book, states: States, x: Tensor, params: Params | None = None) -> Tensor:
    """Return the output of the host with its adapters, in float64."""
    with torch.no_grad():
        return Plain(book, updates(book, states, params)).run(x)


def times(pull: Tensor) -> Objective:
    """Return the sum of the output times given numbers, as a function of the output."""
    return lambda y, x: (y * pull.to(y.dtype)).sum()


def differentiate(book: Book, states: States, x: Tensor, objective: Objective) -> "Gradients":
    """Return the gradients of a function of output and input by everything that could have one."""
    plain = Plain(book, updates(book, states), with_gradients=True)
    x = x.detach().double().requires_grad_() if x.is_floating_point() else x
    with torch.enable_grad():
        objective(plain.run(x), x).backward()
    values, factors = values_of(book, states), {}
    for name, entry in book.entries.items():
        if entry.is_active:
            pulls, adapter = {}, states[name].adapter
            for path, key in entry.weights.items():
                whole = _unlaid(plain.deltas[name, key].grad.numpy(), entry.layouts[key])
                pulls |= {site.path: whole[site.rectangle] for site in _sites(entry, path, adapter)}
                if entry.reads and any(book.flags[one] for one in book.stored(key)):
                    sites = _sites(entry, path, adapter)
                    passed = {site: pull_at_site(adapter, values[name], site, pulls[site.path]) for site in sites}
                    pull_weight(plain, entry, path, passed)
            found = gradients(adapter, values[name], pulls)
            factors |= {(name, factor): torch.from_numpy(value) for factor, value in found.items()}
    held = {key: leaf.grad for key, leaf in plain.leaves.items() if leaf.grad is not None}
    terms = {key: sum(map(sum_of_sizes, added)) for key, added in plain.added.items()}
    return Gradients(factors, held, x.grad if x.is_floating_point() else None, terms)


@dataclass
class Gradients:
    """The gradients of factors by adapter and name, of the host's tensors by name, and of x if it holds numbers.

    That of a bias is a sum over tokens. `terms` has the largest sum of the sizes of its terms, by name, which is the
    scale of its rounding. The terms may cancel: those of a bias of keys always do, as attention does not depend on it.
    """

    factors: dict[tuple[str, str], Tensor]
    held: dict[str, Tensor]
    x: Tensor | None
    terms: dict[str, float]


class Plain:
    """A host with its updates in float64: the values that the forms written out by hand in `hosts.py` read."""

    def __init__(self, book: Book, updates: dict[tuple[str, str], Tensor], *, with_gradients: bool = False) -> None:
        self.book = book
        self.deltas = {at: update.requires_grad_(with_gradients) for at, update in updates.items()}
        self.added: dict[str, list[Tensor]] = {}  # what each bias added to each token, for the terms of its gradient
        wide = {key: value.double() if value.is_floating_point() else value for key, value in book.tensors.items()}
        self.leaves = {
            key: value.detach().clone().requires_grad_(with_gradients and value.is_floating_point())
            for key, value in wide.items()
        }

    def run(self, x: Tensor) -> Tensor:
        return self.book.kind.plain(self, x.double() if x.is_floating_point() else x)

    def value(self, key: str) -> Tensor:
        """Return a tensor of the host with everything that the user and the adapters add to it where it is read."""
        wraps, value = self.book.wraps.get(key, []), stored_value(self.book, self.leaves, key)
        for wrap in wraps:
            if wrap == "scaled":
                value = SCALED * value
            elif (wrap, key) in self.deltas:
                value = value + self.deltas[wrap, key]
        for (name, at), delta in self.deltas.items():
            value = value + delta if at == key and name not in wraps else value
        return value

    def linear(self, path: str, x: Tensor) -> Tensor:
        return self.block(path, self._linear, x)

    def _linear(self, path: str, x: Tensor) -> Tensor:
        weight, bias = self.value(f"{path}.weight"), f"{path}.bias"
        turned = self.book.kind.layout(f"{path}.weight") == ("in", "out")
        y = x @ (weight if turned else weight.T)
        if bias not in self.leaves:
            return y
        added = self.value(bias).expand_as(y)
        if added.requires_grad:
            added.retain_grad()
            self.added.setdefault(bias, []).append(added)
        return y + added

    def norm(self, path: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.value(f"{path}.weight"), self.value(f"{path}.bias"))

    def block(self, path: str, compute: object, x: Tensor) -> Tensor:
        """Compute a module between the user's own hooks on it."""
        hooks = self.book.hooks.get(path, [])
        for factor in (factor for when, factor in hooks if when == "before"):
            x = x * factor
        x = compute(path, x)
        for factor in (factor for when, factor in hooks if when == "after"):
            x = x * factor + 0.25
        return x


def stored_value(book: Book, leaves: Mapping[str, Tensor], key: str) -> Tensor:
    """Return a weight from what is stored of it, in float64: one tensor, or the two of torch's weight_norm."""
    parts = [leaves[name].double() for name in book.stored(key)]
    return parts[0] if len(parts) == 1 else parts[1] * (parts[0] / parts[1].norm(dim=1, keepdim=True))


def own_weight(book: Book, leaves: Mapping[str, Tensor], key: str, name: str) -> Tensor:
    """Return a weight as an adapter reads it: without updates. One that is folded in reads what it is added to."""
    wraps = book.wraps.get(key, [])
    below = wraps[: wraps.index(name)] if name in wraps else wraps
    return SCALED ** below.count("scaled") * stored_value(book, leaves, key)


def sum_of_sizes(added: Tensor) -> float:
    """Return the largest entry of the sum over tokens of the sizes of what each token pulls at a bias."""
    return 0.0 if added.grad is None else largest(added.grad.abs().flatten(end_dim=-2).sum(0))


def largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


def values_of(book: Book, states: States, params: Params | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Return the present values of all factors in float64, or others, and of the weights that the adapters read."""
    return {name: values_at(book, state, params[name] if params else None) for name, state in states.items()}


def values_at(book: Book, state: AdapterState, params: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Return the values of one adapter, as `values_of`."""
    own = params or {key: value.detach().double().numpy() for key, value in state.params().items()}
    return {**own, **weights_read(book, book.entries[state.name], state.adapter)}


def weights_read(book: Book, entry: Entry, adapter: tnadapt.Adapter) -> dict[str, np.ndarray]:
    """Return the entries of params that are the host's weights or their patterns, from before the adapter's merge."""
    if not entry.reads:
        return {}
    wholes = {}
    for path, key in entry.weights.items():
        is_merged = entry.merge is not None
        held = book.original(entry, key).double() if is_merged else own_weight(book, book.tensors, key, entry.name)
        wholes[path] = _unlaid(held.numpy(), entry.layouts[key])
    found = {}
    for name, (site, kind) in adapter.hosts.items():
        weight = wholes[site.weight][site.rectangle].reshape(site.shape)
        found[name] = {"host": weight, "host_mask": (weight != 0).astype(np.float64)}[kind]
    return found


def pull_weight(plain: Plain, entry: Entry, path: str, parts: Mapping[tnadapt.Site, np.ndarray]) -> None:
    """Add what an update passes on, at each of its sites, to the gradient of the weight that it reads."""
    with torch.enable_grad():
        own_weight(plain.book, plain.leaves, entry.weights[path], entry.name).backward(
            _laid(entry, path, parts, next(iter(parts)).weight_shape)
        )


def pull_at_site(
    adapter: tnadapt.Adapter, values: Mapping[str, np.ndarray], site: tnadapt.Site, pull: np.ndarray
) -> np.ndarray:
    """Return the gradient of sum(pull * update) by the weight that is read: each term without its node of the weight.

    The length of a row below a magnitude is a constant in it, and a pattern passes nothing on.
    """
    network, arrays = dense.local(adapter, values, site)
    outer, total = (*network.out_modes, *network.in_modes), np.zeros(site.shape)
    if network.magnitude:
        below = sum(term.sign * dense._product_of(network, term, arrays) for term in network.terms)
        _, ratios = dense._rows(adapter, values, site, network.scale * np.asarray(below).reshape(site.shape))
        total, pull = pull * (ratios - 1.0), pull * ratios
    split = pull.reshape([network.sizes[mode] for mode in outer])
    for term in network.terms:
        for name in term.nodes:
            if network.factors[network.nodes[name].factor].init.kind == "host":
                others = [(arrays[other], network.local_modes(other)) for other in term.nodes if other != name]
                found = dense._product([*others, (split, outer)], network.local_modes(name), network)
                total = total + term.sign * network.scale * found.reshape(site.shape)
    return total


def update_of(entry: Entry, path: str, adapter: tnadapt.Adapter, values: Mapping[str, np.ndarray]) -> Tensor:
    """Return the dense update of one weight for the present task, in the stored layout."""
    sites = _sites(entry, path, adapter)
    shape = adapter.weights[path][0].weight_shape
    return _laid(entry, path, {site: tnadapt.delta(adapter, values, site) for site in sites}, shape)


def terms_of(entry: Entry, path: str, adapter: tnadapt.Adapter, values: Mapping[str, np.ndarray]) -> float:
    """Return the largest entry of what an update is summed from, the scale of its rounding.

    A centered update is the difference of the network at the present and at the starting values, which may be much
    larger than the difference. With a magnitude it is the difference of two weights.
    """
    if adapter.spec.magnitude:
        return max(largest_of(values, adapter), 1e-3)
    if adapter.spec.start != "centered":
        return 1e-3
    plain = replace(adapter, spec=replace(adapter.spec, start="free"))
    held = {key: value for key, value in values.items() if not key.endswith(":start")}
    return max(largest(update_of(entry, path, plain, held)), 1e-3)


def largest_of(values: Mapping[str, np.ndarray], adapter: tnadapt.Adapter) -> float:
    return max(float(np.abs(values[name]).max()) for name in adapter.hosts)


def _sites(entry: Entry, path: str, adapter: tnadapt.Adapter) -> list[tnadapt.Site]:
    return [site for site in adapter.weights[path] if site.coordinates.get("task", "") == entry.task]


def _order(layout: Iterable[str]) -> list[int]:
    """Return the axes of (expert, out, in), without those that the layout lacks, in the stored order."""
    layout = list(layout)
    present = sorted(layout, key=AXES.__getitem__)
    return [present.index(role) for role in layout]


def _laid(entry: Entry, path: str, parts: Mapping[tnadapt.Site, np.ndarray], shape: Iterable[int]) -> Tensor:
    """Return what belongs to sites of a weight in its stored layout, and 0 elsewhere."""
    whole = np.zeros(shape)
    for site, part in parts.items():
        whole[site.rectangle] = part
    return torch.from_numpy(np.ascontiguousarray(whole.transpose(_order(entry.layouts[entry.weights[path]]))))


def _unlaid(stored: np.ndarray, layout: Iterable[str]) -> np.ndarray:
    return stored.transpose(np.argsort(_order(layout)))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: str, least: float = 1e-3) -> None:
    """Compare relative to the largest wanted entry, or to `least` where that is larger."""
    assert isinstance(found, Tensor), f"{what}: expected a tensor, got {type(found).__name__}"
    assert type(found) in (Tensor, nn.Parameter), f"{what}: expected a plain tensor, got {type(found).__name__}"
    assert found.shape == wanted.shape, f"{what}: expected the shape {tuple(wanted.shape)}, got {tuple(found.shape)}"
    if wanted.numel():
        largest = max(wanted.abs().max().item(), least)
        error = (found.detach().double() - wanted.double()).abs().max().item()
        assert math.isfinite(error), f"{what}: not finite"
        assert error <= tolerance * largest, f"{what}: off by {error / largest:.3g} of the largest entry"
