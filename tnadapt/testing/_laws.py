"""The laws: what holds for every spec, each a function that raises LawError where it does not.

A law takes an adapter and a source of random numbers. Its docstring is its statement.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tnadapt._files import from_json, load, save, to_json
from tnadapt._hosts import Site
from tnadapt._language import START, Adapter, count
from tnadapt._planning import plan
from tnadapt._structure import degrees_of_freedom, first_gradients, generic_rank, rank_bound
from tnadapt._values import Params, apply, delta
from tnadapt.testing._expect import bind_again, expect, expect_close, same_spec, some_site
from tnadapt.testing._oracle import dense, gradients, least_cut, local, magnitude, random_params, run_plan, start_params

__all__ = ["LAWS", "Law"]

Law = Callable[[Adapter, np.random.Generator], None]
Array = npt.NDArray[np.float64]

STEP = 0.1  # of a finite difference; an update is linear in each factor, so that only rounding is left
FEW = 120  # trainable numbers up to which the numerical Jacobian is made
FEW_FACTORS = 8  # up to which every way to part them is tried
TOKENS = 3


def update_is_its_definition(adapter: Adapter, random: np.random.Generator) -> None:
    """Delta is the sum over all bonds of the product of all factors, times the scale; centered: less the start's."""
    params = random_params(adapter, random, frozen=not adapter.spec.centered)
    for site in adapter.sites:
        size = magnitude(adapter, params, site)
        expect_close(delta(adapter, params, site), dense(adapter, params, site), f"delta of {site.path}", size)


def identity_at_the_start(adapter: Adapter, random: np.random.Generator) -> None:
    """At the starting values every update is exactly 0, unless the spec says identity_at_start=False."""
    begin = start_params(adapter)
    if adapter.spec.identity_at_start or adapter.spec.centered:
        for site in adapter.sites:
            expect(not delta(adapter, begin, site).any(), f"the update of {site.path} does not start at 0")


def living_gradient(adapter: Adapter, random: np.random.Generator) -> None:
    """At the starting values the factors of `first_gradients` get a gradient, and no others do."""
    pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
    found = gradients(adapter, start_params(adapter), pulls)
    named = first_gradients(adapter.spec)
    for group in adapter.groups:
        for name, factor in group.network.factors.items():
            if factor.trainable:
                moves = bool(found[adapter.slot_name(group, name)].any())
                expect(moves == (name in named), f"{name} moves at the start: {moves}; stated: {name in named}")
    expect(bool(named) or not adapter.spec.identity_at_start, "no factor moves at the start")


def counts_are_sizes(adapter: Adapter, random: np.random.Generator) -> None:
    """Count tells the shapes of the arrays of init, and how many of their entries are trained and frozen."""
    params, counted = start_params(adapter), count(adapter)
    shapes = {name: value.shape for name, value in params.items()}
    expect({row.name: row.shape for row in counted.rows} == shapes, "the rows of count are not the arrays of init")
    trained = sum(value.size for name, value in params.items() if adapter.slots[name].factor.trainable)
    expect(counted.trainable == trained, f"counts {counted.trainable} trainable numbers, the arrays have {trained}")
    frozen = sum(value.size for value in params.values()) - trained
    expect(counted.frozen == frozen, f"counts {counted.frozen} frozen numbers, the arrays have {frozen}")
    expect(sum(counted.by_group().values()) == trained, "the groups do not add up")


def formula_is_count(adapter: Adapter, random: np.random.Generator) -> None:
    """The formula of a network, with sizes for modes and summed over the groups, is the count."""

    def value(formula: str, sizes: Mapping[str, int]) -> int:
        terms = [term.split("*") for term in formula.split(" + ")]
        return sum(math.prod(int(word) if word.isdecimal() else sizes[word] for word in term) for term in terms)

    counted = count(adapter)
    stated = sum(value(counted.formula, network.sizes) for network in adapter.networks)
    expect(stated == counted.trainable, f"the formula {counted.formula} gives {stated}, count {counted.trainable}")
    if len(adapter.groups) == 1:
        frozen = value(adapter.spec.formula(trainable=False), adapter.networks[0].sizes)
        kept = sum(row.entries for row in counted.rows if row.name.endswith(START))
        expect(
            frozen == counted.frozen - kept, f"the formula of the frozen gives {frozen}, not {counted.frozen - kept}"
        )


def rank_keeps_its_bound(adapter: Adapter, random: np.random.Generator) -> None:
    """Updates have at most the rank rank_bound, the least of all cuts; with random values they have generic_rank."""
    params = random_params(adapter, random, frozen=not adapter.spec.centered)
    site = some_site(adapter, random)
    matrix = delta(adapter, params, site).reshape(site.shape[0], -1)
    found = int(np.linalg.matrix_rank(matrix, tol=1e-9 * magnitude(adapter, params, site)))
    bound, generic = rank_bound(adapter, site).rank, generic_rank(adapter, site)
    network = adapter.find(site)[0].network
    if not network.centered and len(network.factors) <= FEW_FACTORS:
        least = least_cut(network)
        expect(bound == least, f"the bound is {bound}; the least cut over all ways to part the factors is {least}")
    expect(found <= bound, f"an update of {site.path} has rank {found}, the bound is {bound}")
    expect(generic <= bound, f"the generic rank {generic} is above the bound {bound}")
    expect(found <= generic, f"an update of {site.path} has rank {found}, generic is {generic}")
    expect(found == generic or adapter.spec.centered, f"random values give rank {found}, generic is {generic}")


def freedom_is_the_rank_of_the_jacobian(adapter: Adapter, random: np.random.Generator) -> None:
    """Freedom has the count of the arrays, and the rank of the numerical Jacobian (looked at up to 120 numbers)."""
    group = adapter.groups[int(random.integers(len(adapter.groups)))]
    names = [adapter.slot_name(group, name) for name, factor in group.network.factors.items() if factor.trainable]
    entries = sum(math.prod(adapter.slots[name].shape) for name in names)
    if entries > FEW or any(factor.map for factor in group.network.factors.values()):
        return
    stated = degrees_of_freedom(adapter, group)
    expect(stated.trainable == entries, f"{stated.trainable} trainable numbers are stated, the arrays have {entries}")
    params = random_params(adapter, random, frozen=True)
    rows = []
    for _ in range(entries + 1):
        pulls = {site.path: random.standard_normal(site.shape) for site in group.sites}
        answer = gradients(adapter, params, pulls)
        rows.append(np.concatenate([answer[name].ravel() for name in names]))
    found = int(np.linalg.matrix_rank(np.array(rows)))
    expect(found == stated.degrees, f"the numerical Jacobian has rank {found}, stated are {stated.degrees}")


def apply_is_multiplication(adapter: Adapter, random: np.random.Generator) -> None:
    """Apply is x times the transposed update, for any number of leading axes of x."""
    params, site = random_params(adapter, random), some_site(adapter, random)
    update = delta(adapter, params, site)
    for lead in ((), (1,), (0,), (2, 3)):
        x = random.standard_normal((*lead, *site.shape[1:]))
        flat = x.reshape(*lead, math.prod(site.shape[1:]))
        wanted = flat @ update.reshape(site.shape[0], -1).T
        size = magnitude(adapter, params, site) * float(np.abs(flat).sum(axis=-1).max(initial=0.0))
        expect_close(apply(adapter, params, site, x), wanted, f"apply at {site.path}, x of shape {x.shape}", size)


def weights_are_their_blocks(adapter: Adapter, random: np.random.Generator) -> None:
    """The update of a weight has that of each site where the site lies, and is 0 elsewhere."""
    params = random_params(adapter, random)
    for path, sites in adapter.weights.items():
        if len({site.coordinates.get("task") for site in sites}) > 1:
            continue  # such a weight has an update for each task
        left = delta(adapter, params, path)
        expect(left.shape == sites[0].weight_shape, f"the update of {path} has shape {left.shape}")
        for site in sites:
            found = left[site.rectangle]
            expect(
                np.array_equal(found, delta(adapter, params, site)), f"{path} does not hold {site.path} in its place"
            )
            left[site.rectangle] = 0.0
        expect(not left.any(), f"{path} has an update where no site lies")


def sharing_is_what_the_modes_say(adapter: Adapter, random: np.random.Generator) -> None:
    """A change of one row of a factor changes the updates of the sites that have this row, and of all of them."""
    params = random_params(adapter, random, frozen=not adapter.spec.centered)
    before = {site.path: delta(adapter, params, site) for site in adapter.sites}
    for name, slot in adapter.slots.items():
        if adapter.spec.centered and not slot.factor.trainable:
            continue  # the update of a centered spec is 0 while nothing trained has moved
        if slot.factor.map and slot.sizes[slot.factor.modes[-1]] == 1:
            continue  # a reflection or an orthogonal matrix of one row is the same for all numbers
        readers = dict(_readers(adapter, name))
        for row in dict.fromkeys(readers.values()):
            place = tuple(slice(None) if at is None else at for at in row)
            changed = dict(params) | {name: params[name].copy()}
            changed[name][place] = random.standard_normal(changed[name][place].shape)
            for site in adapter.sites:
                moves = not np.array_equal(delta(adapter, changed, site), before[site.path])
                reads = readers.get(site.path) == row
                expect(moves == reads, f"row {row} of {name} changes {site.path}: {moves}; by the modes: {reads}")


def _readers(adapter: Adapter, name: str) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """The row of a slot that each site reads: an index along site modes, nothing along the others."""
    for group in adapter.groups:
        for factor, law in group.network.factors.items():
            if adapter.slot_name(group, factor) == name:
                yield from ((site.path, tuple(map(group.index(site).get, law.held))) for site in group.sites)


def linear_in_each_factor(adapter: Adapter, random: np.random.Generator) -> None:
    """With all other factors held, an update is linear in a factor (a centered one: but for its start)."""
    site, by = some_site(adapter, random), float(random.uniform(-3, 3))
    params, other = (random_params(adapter, random, frozen=not adapter.spec.centered) for _ in range(2))
    group, _ = adapter.find(site)
    names = {  # but for maps, and for frozen ones that are read from the host: they are in the start, too
        adapter.slot_name(group, name)
        for name, factor in group.network.factors.items()
        if not factor.map and (factor.trainable or not (adapter.spec.centered and factor.init.is_read))
    }
    nothing = dense(adapter, {name: np.zeros(value.shape) for name, value in params.items()}, site)
    for name in names:
        changed = [params | {name: by * params[name] + other[name]}, params, params | {name: other[name]}]
        mixed, first, second = (delta(adapter, one, site) - nothing for one in changed)
        size = 4 * sum(magnitude(adapter, one, site) for one in changed)
        expect_close(mixed, by * first + second, f"delta of {site.path} as a function of {name}", size)


def linear_in_alpha(adapter: Adapter, random: np.random.Generator) -> None:
    """Twice the alpha is twice the update, minus the alpha its negative; counts stay."""
    params, site, alpha = random_params(adapter, random), some_site(adapter, random), adapter.spec.scale.alpha
    for by in (-2.0, -1.0, 0.5):
        other = bind_again(adapter.spec, adapter, by * alpha)
        size = 2 * magnitude(adapter, params, site)
        expect_close(
            delta(other, params, site), by * delta(adapter, params, site), f"delta at alpha times {by:g}", size
        )
        expect(count(other) == count(adapter), f"alpha times {by:g} has another count")


def plans_give_the_numbers(adapter: Adapter, random: np.random.Generator) -> None:
    """The plans of apply and delta, run step by step, give the update; their forward flops are those counted."""
    params, site = random_params(adapter, random, frozen=True), some_site(adapter, random)
    network, arrays = local(adapter, params, site)
    x = random.standard_normal((TOKENS, *(network.sizes[mode] for mode in network.in_modes)))
    inner = math.prod(x.shape[1:])
    raw = replace(adapter, spec=replace(adapter.spec, centered=False, identity_at_start=False))
    wanted = dense(raw, params, site).reshape(site.shape[0], inner)
    size = magnitude(raw, params, site)
    questions: dict[Literal["apply", "delta"], Params] = {"apply": {"(x)": x} | arrays, "delta": arrays}
    for ask, operands in questions.items():
        order = plan(network, ask, tokens=TOKENS)
        value, flops = run_plan(order, operands)
        found = network.scale * value.reshape(-1 if ask == "apply" else site.shape[0], *_tail(ask, site, inner))
        through = x.reshape(TOKENS, inner)
        most = float(np.abs(through).sum(axis=1).max()) if ask == "apply" else 1.0
        expect_close(found, through @ wanted.T if ask == "apply" else wanted, f"the plan of {ask}", size * most)
        expect(flops == order.forward_flops, f"the plan of {ask} states {order.forward_flops} flops, {flops} counted")


def _tail(ask: str, site: Site, inner: int) -> tuple[int]:
    return (site.shape[0],) if ask == "apply" else (inner,)


def gradients_are_differences(adapter: Adapter, random: np.random.Generator) -> None:
    """The oracle's gradients, a factor left out, are the finite differences of delta (float64)."""
    params = random_params(adapter, random)
    pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
    found = gradients(adapter, params, pulls)

    def value(moved: Params) -> float:
        return sum(float(np.sum(pulls[site.path] * delta(adapter, moved, site))) for site in adapter.sites)

    for name, gradient in found.items():
        if adapter.slots[name].factor.map:
            continue  # a difference of finite step is no derivative there
        way = random.standard_normal(gradient.shape)
        ahead, behind = (value(params | {name: params[name] + sign * STEP * way}) for sign in (1, -1))
        longest = {name: np.abs(params[name]) + np.abs(way)}  # the moved values have no longer terms than these
        size = sum(
            float(np.abs(pulls[site.path]).sum()) * magnitude(adapter, params | longest, site) for site in adapter.sites
        )
        expect_close((ahead - behind) / (2 * STEP), np.sum(gradient * way), f"gradient of {name}", size / STEP)


def files_give_back(adapter: Adapter, random: np.random.Generator) -> None:
    """Load after save gives the same adapter and the same numbers, and the same bytes when saved again."""
    params = random_params(adapter, random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save(adapter, params, path)
        before = path.read_bytes()
        again, loaded = load(path)
        expect(again == adapter, "the file holds another adapter")
        expect(loaded.keys() == params.keys(), "the file holds other params")
        for name, value in params.items():
            expect(np.array_equal(loaded[name], value), f"the file holds other numbers in {name}")
        save(again, {name: loaded[name] for name in reversed(loaded)}, path)
        expect(path.read_bytes() == before, "saved again, the file has other bytes")


def texts_give_back(adapter: Adapter, random: np.random.Generator) -> None:
    """from_json after to_json gives the same adapter and the same spec, printed the same."""
    again = from_json(to_json(adapter))
    expect(again == adapter and hash(again) == hash(adapter), "the text holds another adapter")
    expect(from_json(to_json(adapter.spec)) == adapter.spec, "the text holds another spec")
    expect((str(again), to_json(again)) == (str(adapter), to_json(adapter)), "the text is another the second time")


def equal_specs_are_one(adapter: Adapter, random: np.random.Generator) -> None:
    """A spec made again is equal and hashes equal, as do its networks; a changed one is not equal."""
    spec = adapter.spec
    again = same_spec(spec, list(spec.factors))
    expect(again == spec and hash(again) == hash(spec), "the same spec made again is another")
    other = bind_again(again, adapter)
    expect(other == adapter and hash(other) == hash(adapter), "the same adapter made again is another")
    for mine, theirs in zip(adapter.networks, other.networks, strict=True):
        expect(mine == theirs and hash(mine) == hash(theirs), "the same network made again is another")
    changed = replace(spec, scale=replace(spec.scale, alpha=2.0 * spec.scale.alpha))
    expect(changed != spec, "a spec with another alpha is equal")


def order_of_factors_is_nothing(adapter: Adapter, random: np.random.Generator) -> None:
    """Factors in another order are the same spec, adapter, starting values, counts and updates."""
    names = list(adapter.spec.factors)
    spec = same_spec(adapter.spec, [names[place] for place in random.permutation(len(names))])
    other = bind_again(spec, adapter)
    expect(spec == adapter.spec and hash(spec) == hash(adapter.spec), "a spec with its factors turned is another")
    turned, mine = start_params(other), start_params(adapter)
    expect(turned.keys() == mine.keys(), "factors turned have other names in params")
    for name, value in mine.items():
        expect(np.array_equal(turned[name], value), f"factors turned start {name} elsewhere")
    counts = [(count(one).trainable, count(one).frozen) for one in (adapter, other)]
    expect(counts[0] == counts[1], "factors turned have other counts")
    params, site = random_params(adapter, random), some_site(adapter, random)
    size = magnitude(adapter, params, site)
    expect_close(delta(other, params, site), delta(adapter, params, site), "delta with its factors turned", size)


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
)
