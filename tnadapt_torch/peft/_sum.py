"""Weighted sums of adapters: one adapter of the same spec whose update is exactly the sum of theirs.

The bonds of the sum are as long as those of all summands together. Each summand has its own block along every bond, and
all entries outside the blocks are 0, so that a contraction stays within one block.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tnadapt import AdapterSpec, Site, SiteError
from tnadapt.binding import Network, told
from tnadapt_torch._state import AdapterState
from tnadapt_torch.peft._config import TnConfig

__all__: list[str] = []

REMEDY = "Merge the adapters into the weights, or make them active together, with base_model.set_adapter([...])."


@dataclass(frozen=True)
class Summand:
    """An adapter, its weight in the sum, and the first place of its block along each bond."""

    state: AdapterState
    weight: float
    offsets: Mapping[str, int]


def config_of_sum(configs: Sequence[TnConfig], states: Sequence[AdapterState]) -> TnConfig:
    """Return the config of the sum of these adapters, for the weights that any of them updates.

    Raises:
        SiteError: they differ in more than seed, rank, alpha and targets, or no network of their spec is a sum.
    """
    spec = states[0].spec
    _check_alike(configs, states)
    bonds = spec.free_bonds
    paths = dict.fromkeys(path for state in states for path, weight in state.weights.items() if weight.is_called)
    layouts = {
        path: " ".join(weight.layout)
        for state in states
        for path, weight in state.weights.items()
        if not weight.is_called
    }
    first = configs[0]
    ranks = {bond: sum(_longest(state, bond) for state in states) for bond in bonds}
    return TnConfig(
        spec=spec,
        sizes=_outer_sizes(states[0]) | ranks,
        seed=states[0].adapter.seed,
        dropout=first.dropout,
        target_modules="|".join(map(re.escape, paths)) if paths else None,
        target_parameters=layouts or None,
        blocks=first.blocks,
        fused=first.fused,
        tasks=first.tasks,
        fold=first.fold,
        overparametrized=True,
        task_type=first.task_type,
        inference_mode=first.inference_mode,
    )


def fill(total: AdapterState, states: Sequence[AdapterState], weights: Sequence[float]) -> None:
    """Set the factors of a sum: the block of each summand, with its weight and scale in one trained factor."""
    bonds = total.spec.free_bonds
    scaled = _own_factor(total.spec) or next(name for name, one in total.spec.arrays.items() if one.trainable)
    offsets = dict.fromkeys(bonds, 0)
    params = total.params()
    with torch.no_grad():
        for value in params.values():
            value.zero_()
        for state, weight in zip(states, weights, strict=True):
            _write(params, total, Summand(state, weight, dict(offsets)), scaled)
            offsets = {bond: at + _longest(state, bond) for bond, at in offsets.items()}


def check_apart(total: AdapterState, states: Sequence[AdapterState]) -> None:
    """Raise SiteError if the block of a summand would be read at a site that the summand does not have.

    It is 0 there only if a factor has an own place for the site, such as a row of its layer, that the summand leaves 0.
    """
    adapter = total.adapter
    bonds = {*total.spec.free_bonds}

    def places_of(site: Site) -> Iterator[tuple[str, tuple[object, ...]]]:
        for part in adapter.address(site).parts.values():
            held = zip(part.factor.held, part.cut, strict=True)
            yield part.name, tuple(at for mode, at in held if mode not in bonds)

    for state in states:
        own = {*adapter.sites} & {*state.adapter.sites}
        written = {repr(place) for site in own for place in places_of(site)}
        for site in (site for site in adapter.sites if site not in own):
            if all(repr(place) in written for place in places_of(site)):
                raise SiteError(
                    f"{site.path}: expected a sum of adapters that all have this site, or a factor that tells it from "
                    f"the others, got {state.name!r} without it.\n{REMEDY}"
                )


def _write(params: Mapping[str, Tensor], total: AdapterState, summand: Summand, scaled: str) -> None:
    """Write the block of one summand into the factors of the sum, site by site."""
    own = summand.state.params()
    for site in summand.state.adapter.sites:
        here, there = summand.state.adapter.address(site), total.adapter.address(site)
        old, new = here.group.network, there.group.network
        for name, part in here.parts.items():
            cut = tuple(
                _block(old, mode, summand.offsets[mode]) if mode in summand.offsets else at
                for mode, at in zip(part.factor.held, there.parts[name].cut, strict=True)
            )
            value = own[part.name][part.cut]
            ratio = summand.weight * old.scale / new.scale if name == scaled else 1.0
            params[there.parts[name].name][cut] = value * ratio


def _block(network: Network, bond: str, offset: int) -> slice:
    return slice(offset, offset + network.sizes[bond])


def _own_factor(spec: AdapterSpec) -> str:
    """Return a trained factor of which each group has its own, so that the scale of each can be made up; "" if none."""
    return next((name for name, factor in spec.arrays.items() if factor.trainable and not factor.shared), "")


def _longest(state: AdapterState, bond: str) -> int:
    return max(network.sizes[bond] for network in state.adapter.networks)


def check_weights_of_sum(adapters: object, weights: object, known: Mapping[str, AdapterState], kind: str) -> None:
    """Raise SiteError unless there is one finite weight for each of these adapters, and the sum is to be exact."""
    if kind != "cat":
        raise SiteError(
            f"combination_type: expected 'cat', the exact sum, got {kind!r}.\n"
            "The other types are approximations for LoRA. Use peft.convert_to_lora first."
        )
    if isinstance(adapters, str) or not isinstance(adapters, Sequence) or not adapters:
        raise SiteError(f"adapters: expected a list of names, got {told(adapters)}.")
    if wrong := [name for name in adapters if name not in known]:
        raise SiteError(f"adapters: expected names of adapters ({', '.join(known)}), got {wrong[0]!r}.")
    numbers = list(weights) if isinstance(weights, Sequence) else [weights]
    if len(numbers) != len(adapters) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in numbers
    ):
        raise SiteError(f"weights: expected {len(adapters)} finite numbers, one per adapter, got {told(weights)}.")


def _check_alike(configs: Sequence[TnConfig], states: Sequence[AdapterState]) -> None:
    """Raise SiteError unless the adapters can be summed."""
    specs = list(dict.fromkeys(replace(each.spec, scale=replace(each.spec.scale, alpha=1.0)) for each in states))
    if len(specs) > 1:
        names = ", ".join(dict.fromkeys(spec.name for spec in specs))
        raise SiteError(f"adapters: expected adapters of one spec, got several ({names}).\n{REMEDY}")
    for word in ("blocks", "fused", "tasks", "fold"):
        if len({repr(getattr(config, word)) for config in configs}) > 1:
            raise SiteError(f"adapters: expected the same {word} in all of them, got different ones.\n{REMEDY}")
    sizes = [_outer_sizes(state) for state in states]
    if any(each != sizes[0] for each in sizes):
        raise SiteError(f"adapters: expected the same sizes in all of them, got {sizes[0]} and others.\n{REMEDY}")
    if any(config.modules_to_save for config in configs):
        raise SiteError(
            f"adapters: expected adapters without modules_to_save, got some.\nWhole modules have no sum. {REMEDY}"
        )
    if not _own_factor(states[0].spec) and any(map(_scales_differ, states)):
        raise SiteError(
            "adapters: expected one scale for all weights, since they share every trained factor, got several.\n"
            f"{REMEDY}"
        )
    if reason := _why_not(states[0].spec):
        raise SiteError(f"{states[0].spec.name}: expected a spec whose networks can be summed, got {reason}.\n{REMEDY}")


def _scales_differ(state: AdapterState) -> bool:
    """Return whether groups have several scales, or could have under longer bonds: `unit` follows from all sizes."""
    networks = state.adapter.networks
    return len({one.scale for one in networks}) > 1 or (state.spec.scale.is_unit and len(networks) > 1)


def _outer_sizes(state: AdapterState) -> dict[str, int]:
    """Return the sizes that stay: those passed to `bind` without those of free bonds, and those in the spec."""
    sizes, spec = state.adapter.sizes, state.spec
    passed = {mode: size for mode, size in sizes.items() if mode.rpartition(".")[2] not in spec.free_bonds}
    return {mode: size for mode, size in spec.sizes.items() if isinstance(size, int)} | passed


def _why_not(spec: AdapterSpec) -> str:
    """Return why the sum of two updates of a spec is not an update of the spec with longer bonds; "" if it is one."""
    bonds = set(spec.free_bonds)
    if spec.hosts:
        return "one with the host's weight"
    if len(spec.sum) > 1 or len(spec.arrays) < len(spec.factors):
        return "one of several terms" if len(spec.sum) > 1 else "one that uses a factor twice"
    if mapped := [name for name, factor in spec.arrays.items() if factor.map]:
        return f"one with a {spec.arrays[mapped[0]].map} of the factor {mapped[0]}"
    fixed = [name for name, factor in spec.arrays.items() if factor.init.kind == "cyclic" and not factor.trainable]
    if longer := [name for name in fixed if bonds & {*spec.arrays[name].modes}]:
        return f"one with a fixed pattern, {longer[0]}, that would become longer"
    if alone := [name for name, factor in spec.arrays.items() if not bonds & {*factor.modes}]:
        return f"one whose factor {alone[0]} has no bond that could become longer"
    modes = [bonds & {*factor.modes} for factor in spec.arrays.values()]
    linked = modes.pop()
    while joined := [each for each in modes if each & linked]:
        linked = linked.union(*joined)
        modes = [each for each in modes if not each <= linked]
    return "one whose factors are not all linked by bonds" if modes else ""
