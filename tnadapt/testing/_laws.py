"""The laws: properties of every adapter, each a function that raises LawError if the adapter breaks it.

A law takes an adapter and a random generator. Its docstring is its statement, which `check` prints.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from tnadapt._hosts import Site
from tnadapt._language import START, Adapter, count, host_entry
from tnadapt._planning import plan
from tnadapt._structure import degrees_of_freedom, first_gradients, generic_rank, rank_bound
from tnadapt._values import Params, apply, delta
from tnadapt.testing._expect import bind_again, expect, expect_close, same_spec, some_site
from tnadapt.testing._magnitude import magnitudes_set_lengths, of_the_sum
from tnadapt.testing._oracle import (
    dense,
    gradients,
    least_cut,
    local,
    random_params,
    rounding_size,
    run_plan,
    start_params,
)
from tnadapt.testing._steps import first_steps_are_predicted
from tnadapt.testing._stored import files_give_back, texts_give_back
from tnadapt.testing._sums import linear_in_alpha, second_names_change_nothing, terms_add_up

__all__ = ["LAWS", "Law"]

Law = Callable[[Adapter, np.random.Generator], None]
"""A function of an adapter and random numbers that raises LawError where the law does not hold."""
Array = npt.NDArray[np.float64]

STEP = 0.1  # of a finite difference, which is exact up to rounding, since an update is linear in each factor
FEW = 120  # largest number of trainable entries for a numerical Jacobian
ROUNDED = 2.0**-22  # of a float32 number, relative, twice
FEW_FACTORS = 8  # largest number of factors for trying every partition
TOKENS = 3
GRADIENT, CHANGE = ("zero", "nonzero"), ("no change", "a change")  # words for False and True


def update_is_its_definition(adapter: Adapter, random: np.random.Generator) -> None:
    """`delta` is the scale times the signed sum of its terms, each the product of its factors, summed over bonds."""
    params = random_params(adapter, random, frozen=not adapter.starts)
    for site in adapter.sites:
        size = rounding_size(adapter, params, site)
        expect_close(delta(adapter, params, site), dense(adapter, params, site), f"delta of {site.path}", size)


def identity_at_the_start(adapter: Adapter, random: np.random.Generator) -> None:
    """At the starting values every update is exactly 0, unless the spec says start="free".

    With a magnitude it is 0 up to the rounding of that to float32.
    """
    begin = start_params(adapter)
    if adapter.spec.start != "free":
        for site in adapter.sites:
            most = ROUNDED * float(np.abs(begin[host_entry(site)]).max()) if adapter.spec.magnitude else 0.0
            is_zero = float(np.abs(delta(adapter, begin, site)).max()) <= most
            expect(is_zero, f"start of {site.path}: expected an update of 0, got another")


def living_gradient(adapter: Adapter, random: np.random.Generator) -> None:
    """At the starting values, exactly the trainable factors named by `first_gradients` have a nonzero gradient."""
    pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
    found = gradients(adapter, start_params(adapter), pulls)
    named = first_gradients(adapter.spec)
    for group in adapter.groups:
        for name, factor in group.network.factors.items():
            if factor.trainable and not (factor.map and group.network.sizes[factor.modes[-1]] == 1):  # a constant
                moves = bool(found[adapter.slot_name(group, name)].any())
                words = GRADIENT[name in named], GRADIENT[moves]
                expect(words[0] == words[1], f"gradient of {name} at the start: expected {words[0]}, got {words[1]}")
    expect(bool(named) or adapter.spec.start == "free", "first_gradients: expected at least one factor, got none")


def counts_are_sizes(adapter: Adapter, random: np.random.Generator) -> None:
    """`count` states the shapes of the arrays of `init`, and how many of their entries are trainable and frozen."""
    params, counted = start_params(adapter), count(adapter)
    shapes = {name: value.shape for name, value in params.items() if name not in adapter.hosts}
    stated = {row.name: row.shape for row in counted.rows}
    expect(stated == shapes, "count: expected the shapes of the arrays of init, got others")
    trained = sum(params[name].size for name, slot in adapter.slots.items() if slot.factor.trainable)
    expect(counted.trainable == trained, f"count: expected {trained} trainable entries, got {counted.trainable}")
    frozen = sum(params[name].size for name in adapter.slots) - trained
    expect(counted.frozen == frozen, f"count: expected {frozen} frozen entries, got {counted.frozen}")
    total = sum(counted.by_group().values())
    expect(total == trained, f"count of all groups: expected a total of {trained} trainable entries, got {total}")


def formula_is_count(adapter: Adapter, random: np.random.Generator) -> None:
    """The parameter formula, evaluated at the sizes of each group and summed over the groups, equals the count."""

    def value(formula: str, sizes: Mapping[str, int]) -> int:
        terms = [term.split("*") for term in formula.split(" + ")]
        return sum(math.prod(int(word) if word.isdecimal() else sizes[word] for word in term) for term in terms)

    counted = count(adapter)
    if len(adapter.groups) > 1 and any(factor.shared for factor in adapter.spec.arrays.values()):
        return  # a factor that all groups share counts once, at its largest sizes
    stated = sum(value(counted.formula, network.sizes) for network in adapter.networks)
    expect(stated == counted.trainable, f"formula {counted.formula}: expected {counted.trainable}, got {stated}")
    if len(adapter.groups) == 1:
        frozen = value(adapter.spec.formula(trainable=False), adapter.networks[0].sizes)
        wanted = counted.frozen - sum(row.entries for row in counted.rows if row.name.endswith(START))
        expect(frozen == wanted, f"formula of the frozen entries: expected {wanted}, got {frozen}")


def rank_keeps_its_bound(adapter: Adapter, random: np.random.Generator) -> None:
    """The rank of an update is at most `rank_bound`, the minimum cut; at random values it equals `generic_rank`."""
    params = random_params(adapter, random, frozen=not adapter.starts)
    site = some_site(adapter, random)
    matrix = delta(adapter, params, site).reshape(site.shape[0], -1)
    found = int(np.linalg.matrix_rank(matrix, tol=1e-9 * rounding_size(adapter, params, site)))
    bound, generic = rank_bound(adapter, site).rank, generic_rank(adapter, site)
    network = adapter.find(site)[0].network
    if len(network.terms) == 1 and len(network.nodes) <= FEW_FACTORS and not network.magnitude:
        least = least_cut(network)
        expect(bound == least, f"rank_bound at {site.path}: expected {least}, the smallest cut of all, got {bound}")
    expect(found <= bound, f"rank of the update of {site.path}: expected at most the bound {bound}, got {found}")
    expect(generic <= bound, f"generic_rank at {site.path}: expected at most the bound {bound}, got {generic}")
    random_rank = f"rank of the update of {site.path} at random values"
    expect(found <= generic, f"{random_rank}: expected at most the generic rank {generic}, got {found}")
    expect(found == generic or bool(adapter.starts), f"{random_rank}: expected {generic}, got {found}")


@of_the_sum
def freedom_is_the_rank_of_the_jacobian(adapter: Adapter, random: np.random.Generator) -> None:
    """`degrees_of_freedom` equals the rank of the numerical Jacobian (tested up to 120 trainable entries).

    It is for generic values, also of starting values that the update uses. If those are not random, such as a constant,
    the numerical rank may be lower.
    """
    group = adapter.groups[int(random.integers(len(adapter.groups)))]
    names = [adapter.slot_name(group, name) for name, factor in group.network.factors.items() if factor.trainable]
    trained = (factor for factor in group.network.factors.values() if factor.trainable)
    entries = sum(group.network.volume(factor.held) for factor in trained)
    if entries > FEW or any(factor.map for factor in group.network.factors.values()):
        return
    stated = degrees_of_freedom(adapter, group)
    expect(stated.trainable == entries, f"freedom of {group.name}: expected {entries} entries, got {stated.trainable}")
    params = random_params(adapter, random, frozen=True)
    rows = []
    for _ in range(entries + 1):
        pulls = {site.path: random.standard_normal(site.shape) for site in group.sites}
        answer = gradients(adapter, params, pulls)
        rows.append(np.concatenate([answer[name].ravel() for name in names]))
    found = int(np.linalg.matrix_rank(np.array(rows)))
    starts = [slot.factor.init for slot in adapter.starts.values()]
    is_generic = all(init.kind in ("normal", "uniform") and init.amount for init in starts)
    holds = found == stated.degrees if is_generic else found <= stated.degrees
    expect(holds, f"freedom of {group.name}: expected {found} degrees, got {stated.degrees}")


def apply_is_multiplication(adapter: Adapter, random: np.random.Generator) -> None:
    """`apply` returns x times the transposed update, for any number of leading axes of x."""
    params, site = random_params(adapter, random), some_site(adapter, random)
    update = delta(adapter, params, site)
    for lead in ((), (1,), (0,), (2, 3)):
        x = random.standard_normal((*lead, *site.shape[1:]))
        flat = x.reshape(*lead, math.prod(site.shape[1:]))
        wanted = flat @ update.reshape(site.shape[0], -1).T
        size = rounding_size(adapter, params, site) * float(np.abs(flat).sum(axis=-1).max(initial=0.0))
        expect_close(apply(adapter, params, site, x), wanted, f"apply at {site.path}, x of shape {x.shape}", size)


def weights_are_their_blocks(adapter: Adapter, random: np.random.Generator) -> None:
    """The update of a weight contains the update of each of its sites in that site's block, and is 0 elsewhere."""
    params = random_params(adapter, random)
    for path, sites in adapter.weights.items():
        if len({site.coordinates.get("task") for site in sites}) > 1:
            continue  # such a weight has one update per task
        left = delta(adapter, params, path)
        shape = sites[0].weight_shape
        expect(left.shape == shape, f"update of {path}: expected shape {shape}, got {left.shape}")
        for site in sites:
            is_equal = np.array_equal(left[site.rectangle], delta(adapter, params, site))
            expect(is_equal, f"update of {path}: expected that of {site.path} in its block, got other values")
            left[site.rectangle] = 0.0
        expect(not left.any(), f"update of {path}: expected 0 outside its sites, got other values")


@of_the_sum
def sharing_is_what_the_modes_say(adapter: Adapter, random: np.random.Generator) -> None:
    """Changing one row of a factor changes the updates of exactly those sites that read this row."""
    params = random_params(adapter, random, frozen=not adapter.starts)
    before = {site.path: delta(adapter, params, site) for site in adapter.sites}
    for name, slot in adapter.slots.items():
        if adapter.starts and not slot.factor.trainable:
            continue  # an update less its start stays 0 while no trainable factor has changed
        if slot.factor.map and slot.sizes[slot.factor.modes[-1]] == 1:
            continue  # a reflection or a rotation of size 1 does not depend on its entries
        readers = dict(_readers(adapter, name))
        for row in dict.fromkeys(readers.values()):
            place = tuple(slice(None) if at is None else at for at in row)
            changed = dict(params) | {name: params[name].copy()}
            changed[name][place] = random.standard_normal(changed[name][place].shape)
            for site in adapter.sites:
                moves = not np.array_equal(delta(adapter, changed, site), before[site.path])
                words = CHANGE[readers.get(site.path) == row], CHANGE[moves]
                where = f"update of {site.path} after a change of row {row} of {name}"
                expect(words[0] == words[1], f"{where}: expected {words[0]}, got {words[1]}")


def _readers(adapter: Adapter, name: str) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """Yield the row of a slot that each site reads: an index along each site mode, None along the other modes."""
    for group in adapter.groups:
        for factor, one in ((name, group.network.factors[name]) for name in adapter.spec.arrays):
            if adapter.slot_name(group, factor) == name:
                yield from ((site.path, tuple(map(group.index(site).get, one.held))) for site in group.sites)


@of_the_sum
def linear_in_each_factor(adapter: Adapter, random: np.random.Generator) -> None:
    """An update is linear in each factor without a map that no term has twice, up to a constant, all others fixed."""
    site, by = some_site(adapter, random), float(random.uniform(-3, 3))
    params, other = (random_params(adapter, random, frozen=not adapter.starts) for _ in range(2))
    address = adapter.address(site)
    network = address.group.network
    twice = {
        factor
        for term in network.terms
        for factor, times in Counter(network.nodes[name].factor for name in term.nodes).items()
        if times > 1
    }
    names = {
        adapter.slot_name(address.group, name)
        for name, factor in adapter.spec.arrays.items()
        if not factor.map and name not in twice and (factor.trainable or not (adapter.starts and factor.init.is_read))
    }
    for name in names:
        params_at = [params | {name: value} for value in (by * params[name] + other[name], params[name], other[name])]
        nothing = dense(adapter, params | {name: np.zeros(params[name].shape)}, site)
        mixed, first, second = (delta(adapter, one, site) - nothing for one in params_at)
        size = 8 * sum(rounding_size(adapter, one, site) for one in params_at)
        expect_close(mixed, by * first + second, f"delta of {site.path} as a function of {name}", size)


@of_the_sum
def plans_give_the_numbers(adapter: Adapter, random: np.random.Generator) -> None:
    """Running the plans of `apply` and `delta` step by step gives the update, in as many flops as they state."""
    params, site = random_params(adapter, random, frozen=not adapter.starts), some_site(adapter, random)
    fixed = [name for name, slot in adapter.slots.items() if slot.is_fixed]  # plans rely on their values
    params |= {name: start_params(adapter)[name] for name in fixed}
    network, arrays = local(adapter, params, site)
    x = random.standard_normal((TOKENS, *(network.sizes[mode] for mode in network.in_modes)))
    inner = math.prod(x.shape[1:])
    wanted = dense(adapter, params, site).reshape(site.shape[0], inner)
    size = rounding_size(adapter, params, site)
    questions: dict[Literal["apply", "delta"], Params] = {"apply": {"(x)": x} | arrays, "delta": arrays}
    for ask, operands in questions.items():
        order = plan(network, ask, tokens=TOKENS)
        value, flops = run_plan(order, operands)
        found = network.scale * value.reshape(-1 if ask == "apply" else site.shape[0], *_tail(ask, site, inner))
        through = x.reshape(TOKENS, inner)
        most = float(np.abs(through).sum(axis=1).max()) if ask == "apply" else 1.0
        expect_close(found, through @ wanted.T if ask == "apply" else wanted, f"plan of {ask}", size * most)
        expect(flops == order.forward_flops, f"plan of {ask}: expected {order.forward_flops} flops, got {flops}")


def _tail(ask: str, site: Site, inner: int) -> tuple[int]:
    return (site.shape[0],) if ask == "apply" else (inner,)


@of_the_sum
def gradients_are_differences(adapter: Adapter, random: np.random.Generator) -> None:
    """The gradients of the oracle equal the finite differences of `delta` in float64."""
    params = random_params(adapter, random)
    pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
    found = gradients(adapter, params, pulls)

    def value(moved: Params) -> float:
        return sum(float(np.sum(pulls[site.path] * delta(adapter, moved, site))) for site in adapter.sites)

    for name, gradient in found.items():
        if adapter.slots[name].factor.map:
            continue  # a finite difference is not exact there
        way = random.standard_normal(gradient.shape)
        ahead, behind = (value(params | {name: params[name] + sign * STEP * way}) for sign in (1, -1))
        longest = {name: np.abs(params[name]) + np.abs(way)}  # an upper bound on the terms of both moved values
        size = sum(
            float(np.abs(pulls[site.path]).sum()) * rounding_size(adapter, params | longest, site)
            for site in adapter.sites
        )
        expect_close((ahead - behind) / (2 * STEP), np.sum(gradient * way), f"gradient of {name}", size / STEP)


def equal_specs_are_one(adapter: Adapter, random: np.random.Generator) -> None:
    """A spec rebuilt from its parts is equal and has an equal hash, as do its networks; a changed spec is not equal."""
    spec = adapter.spec
    again = same_spec(spec, list(spec.factors))
    expect(again == spec and hash(again) == hash(spec), "rebuilt spec: expected an equal one, got another")
    other = bind_again(again, adapter)
    expect(other == adapter and hash(other) == hash(adapter), "rebuilt adapter: expected an equal one, got another")
    for mine, theirs in zip(adapter.networks, other.networks, strict=True):
        expect(mine == theirs and hash(mine) == hash(theirs), "rebuilt network: expected an equal one, got another")
    changed = replace(spec, scale=replace(spec.scale, alpha=2.0 * spec.scale.alpha))
    expect(changed != spec, "spec with another alpha: expected a different spec, got an equal one")


def order_of_factors_is_nothing(adapter: Adapter, random: np.random.Generator) -> None:
    """The order of the factors changes neither the spec nor the starting values, the counts or the updates."""
    names = list(adapter.spec.factors)
    spec = same_spec(adapter.spec, [names[place] for place in random.permutation(len(names))])
    other = bind_again(spec, adapter)
    expect(spec == adapter.spec and hash(spec) == hash(adapter.spec), "reordering: expected an equal spec, got another")
    turned, mine = start_params(other), start_params(adapter)
    expect(turned.keys() == mine.keys(), "reordering: expected the same names of params, got others")
    for name, value in mine.items():
        expect(np.array_equal(turned[name], value), f"reordering: expected the same start of {name}, got another")
    counts = [(count(one).trainable, count(one).frozen) for one in (adapter, other)]
    expect(counts[0] == counts[1], f"reordering: expected the counts {counts[0]}, got {counts[1]}")
    params, site = random_params(adapter, random), some_site(adapter, random)
    size = rounding_size(adapter, params, site)
    expect_close(delta(other, params, site), delta(adapter, params, site), "delta with reordered factors", size)


LAWS: tuple[Law, ...] = (
    update_is_its_definition,
    identity_at_the_start,
    living_gradient,
    counts_are_sizes,
    formula_is_count,
    rank_keeps_its_bound,
    freedom_is_the_rank_of_the_jacobian,
    apply_is_multiplication,
    weights_are_their_blocks,
    sharing_is_what_the_modes_say,
    linear_in_each_factor,
    linear_in_alpha,
    plans_give_the_numbers,
    gradients_are_differences,
    files_give_back,
    texts_give_back,
    equal_specs_are_one,
    order_of_factors_is_nothing,
    terms_add_up,
    second_names_change_nothing,
    magnitudes_set_lengths,
    first_steps_are_predicted,
)
"""All laws, in the order in which `check` tests them."""
