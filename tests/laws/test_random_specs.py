"""The laws: what holds for every spec, tried on specs that nobody wrote, against an oracle of products and sums."""

import dataclasses
import math

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tnadapt import Adapter, apply, count, delta, from_json, init, load, plan, save, to_json

from .strategies import adapters, moved, specs

TOKENS = 3


def close(found, wanted):
    largest = max(abs(np.asarray(wanted)).max(initial=0), 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * largest)


def some_site(data, adapter):
    return data.draw(st.sampled_from(adapter.sites), label="site")


def local(adapter, params, site):
    """The arrays that one site reads, by factor: its slice along a site mode, the leading slice of what is shared."""
    group, _ = adapter.find(site)
    index, sizes = group.index(site), group.network.sizes
    return group.network, {
        name: np.asarray(params[adapter.slot_name(group, name)])[
            tuple(index.get(mode, slice(sizes[mode])) for mode in factor.modes)
        ]
        for name, factor in group.network.factors.items()
    }


def oracle(adapter, params, site):
    """The update by its definition: every factor spread over all modes, all multiplied, the bonds summed."""
    network, arrays = local(adapter, params, site)
    outer = [*network.out_modes, *network.in_modes]
    inner = [mode for mode in network.sizes if mode not in outer and mode not in network.over]
    order = [*outer, *inner]
    whole = np.ones([network.sizes[mode] for mode in order])
    for name, array in arrays.items():
        modes = network.local_modes(name)
        sorted_modes = sorted(modes, key=order.index)
        turned = np.transpose(array, [modes.index(mode) for mode in sorted_modes])
        whole = whole * turned.reshape([network.sizes[mode] if mode in modes else 1 for mode in order])
    summed = whole.sum(axis=tuple(range(len(outer), len(order))))
    return network.scale * summed.reshape(site.shape)


def run(made, operands, tokens=TOKENS):
    """A plan, step by step, by einsum of two operands with numbers for the modes."""
    numbers = {mode: number for number, mode in enumerate(["(token)", *made.network.sizes])}
    values = [operands[name] for name in made.operands]
    for modes, value in zip(made.inputs, values, strict=True):
        assert value.shape == tuple(tokens if mode == "(token)" else made.network.sizes[mode] for mode in modes)
    for step in made.steps:
        sides = [
            part for side in (step.left, step.right) for part in (values[side], [numbers[m] for m in made.modes(side)])
        ]
        values.append(np.einsum(*sides, [numbers[mode] for mode in step.modes]))
    last = made.modes(len(values) - 1)
    return np.transpose(values[-1], [last.index(mode) for mode in made.answer])


@given(data=st.data(), adapter=adapters())
def test_a_delta_is_what_the_definition_says(data, adapter):
    params, site = moved(adapter, frozen_too=True), some_site(data, adapter)
    found = delta(adapter, params, site)
    assert found.shape == site.shape
    close(found, oracle(adapter, params, site))


@given(adapter=adapters())
def test_the_update_is_zero_at_the_start(adapter):
    params = init(adapter)
    for site in adapter.sites:
        np.testing.assert_array_equal(delta(adapter, params, site), np.zeros(site.shape))


@given(data=st.data(), adapter=adapters())
def test_one_factor_alone_has_a_gradient_at_the_start(data, adapter):
    site = some_site(data, adapter)
    group, _ = adapter.find(site)
    start, random = init(adapter), np.random.default_rng(0)
    changes = {}
    for name, factor in group.network.factors.items():
        key = adapter.slot_name(group, name)
        step = start[key] + random.standard_normal(start[key].shape)
        changes[name] = abs(delta(adapter, start | {key: step}, site)).max()
        assert (changes[name] > 0) == factor.init.is_zero, name
    assert sum(change > 0 for change in changes.values()) == 1


@given(adapter=adapters(centered=True))
def test_a_centered_update_is_the_way_from_the_start(adapter):
    start, params = init(adapter), moved(adapter)
    for site in adapter.sites:
        np.testing.assert_array_equal(delta(adapter, start, site), np.zeros(site.shape))
        close(delta(adapter, params, site), oracle(adapter, params, site) - oracle(adapter, start, site))


@given(data=st.data(), adapter=adapters(), by=st.floats(-3, 3))
def test_a_delta_is_linear_in_each_factor(data, adapter, by):
    site, params, other = (
        some_site(data, adapter),
        moved(adapter, 0, frozen_too=True),
        moved(adapter, 1, frozen_too=True),
    )
    name = data.draw(st.sampled_from(sorted(params)))
    mixed = delta(adapter, params | {name: by * params[name] + other[name]}, site)
    parts = delta(adapter, params, site), delta(adapter, params | {name: other[name]}, site)
    group, _ = adapter.find(site)
    read = name in {adapter.slot_name(group, factor) for factor in group.network.factors}
    np.testing.assert_allclose(mixed, by * parts[0] + parts[1] if read else parts[0], atol=1e-8, rtol=1e-8)


@given(data=st.data(), adapter=adapters(), by=st.sampled_from([-2.0, 0.0, 0.5, 3]))
def test_a_delta_is_linear_in_alpha(data, adapter, by):
    site, params, alpha = some_site(data, adapter), moved(adapter), adapter.spec.scale.alpha
    other = adapter.spec.bind(adapter.sites, rank=adapter.rank, seed=adapter.seed, alpha=by * alpha)
    close(delta(other, params, site), by * delta(adapter, params, site))
    assert count(other) == count(adapter)


@given(adapter=adapters())
def test_counts_are_the_sizes_of_the_arrays(adapter):
    params, counted = init(adapter), count(adapter)
    assert {row.name: row.shape for row in counted.rows} == {name: value.shape for name, value in params.items()}
    trained = {name for name, slot in adapter.slots.items() if slot.factor.trainable}
    assert counted.trainable == sum(params[name].size for name in trained)
    assert counted.frozen == sum(params[name].size for name in params.keys() - trained)
    assert counted.trainable == sum(counted.by_group().values())
    terms = [
        math.prod(1 if word == "1" else network.sizes[word] for word in term.split("*"))
        for network in adapter.networks
        for term in counted.formula.split(" + ")
    ]
    assert sum(terms) == counted.trainable


@given(data=st.data(), adapter=adapters(), lead=st.sampled_from([(), (1,), (0,), (2, 3)]))
def test_apply_is_multiplication_by_the_transposed_update(data, adapter, lead):
    site, params = some_site(data, adapter), moved(adapter)
    x = np.random.default_rng(2).standard_normal((*lead, *site.shape[1:]))
    wanted = np.tensordot(x, oracle(adapter, params, site), [range(len(lead), x.ndim), range(1, len(site.shape))])
    found = apply(adapter, params, site, x)
    assert found.shape == (*lead, site.shape[0])
    close(found, wanted)


@given(data=st.data(), adapter=adapters())
def test_what_another_site_owns_changes_nothing(data, adapter):
    site, params = some_site(data, adapter), moved(adapter)
    group, _ = adapter.find(site)
    index, other = group.index(site), moved(adapter, 1, frozen_too=True)
    mine = {adapter.slot_name(group, name): factor for name, factor in group.network.factors.items()}
    for name, value in params.items():
        if name not in mine:
            continue  # all of it is another group's: taken over below
        keep = tuple(index.get(mode, slice(group.network.sizes[mode])) for mode in mine[name].modes)
        other[name][keep] = value[keep]
    np.testing.assert_array_equal(delta(adapter, other, site), delta(adapter, params, site))


@given(adapter=adapters())
def test_a_file_gives_back_what_was_saved(adapter, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    params = moved(adapter)
    save(adapter, params, path)
    again, loaded = load(path)
    assert again == adapter
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value, strict=True)
    before = path.read_bytes()
    save(again, {name: loaded[name] for name in reversed(loaded)}, path)
    assert path.read_bytes() == before


@given(adapter=adapters())
def test_a_text_gives_back_what_was_written(adapter):
    again = from_json(to_json(adapter))
    assert again == adapter
    assert hash(again) == hash(adapter)
    assert from_json(to_json(adapter.spec)) == adapter.spec
    assert str(again) == str(adapter)
    assert to_json(again) == to_json(adapter)


@given(data=st.data(), adapter=adapters())
def test_the_order_of_factors_and_sites_changes_nothing(data, adapter):
    names = data.draw(st.permutations(list(adapter.spec.factors)))
    spec = dataclasses.replace(adapter.spec, factors={name: adapter.spec.factors[name] for name in names})
    assert spec == adapter.spec
    other = spec.bind(adapter.sites, rank=adapter.rank, seed=adapter.seed)
    assert isinstance(other, Adapter)
    assert (other == adapter, hash(other) == hash(adapter)) == (True, True)
    start = init(other)
    assert start.keys() == init(adapter).keys()
    for name, value in init(adapter).items():
        np.testing.assert_array_equal(start[name], value)
    params = moved(adapter)
    for site in adapter.sites:
        close(delta(other, params, site), delta(adapter, params, site))
    assert (count(other).trainable, count(other).frozen) == (count(adapter).trainable, count(adapter).frozen)


@given(data=st.data(), adapter=adapters())
def test_a_plan_of_delta_gives_the_reference(data, adapter):
    site, params = some_site(data, adapter), moved(adapter, frozen_too=True)
    network, arrays = local(adapter, params, site)
    found = network.scale * run(plan(network, "delta"), arrays)
    close(found.reshape(site.shape), delta(adapter, params, site))


@given(data=st.data(), adapter=adapters())
def test_a_plan_of_apply_gives_the_reference(data, adapter):
    site, params = some_site(data, adapter), moved(adapter, frozen_too=True)
    network, arrays = local(adapter, params, site)
    x = np.random.default_rng(3).standard_normal((TOKENS, *site.shape[1:]))
    split = x.reshape(TOKENS, *(network.sizes[mode] for mode in network.in_modes))
    found = network.scale * run(plan(network, "apply"), {"(x)": split} | arrays)
    close(found.reshape(TOKENS, site.shape[0]), apply(adapter, params, site, x))


REACHED = {
    "a bond in three factors": lambda spec, modes: any(modes.count(bond) > 2 for bond in spec.bonds),
    "a weight mode in two factors": lambda spec, modes: any(modes.count(mode) > 1 for mode in ("o0", "i0")),
    "an axis of two modes": lambda spec, modes: any(len(axis) > 1 for axis in spec.axes),
    "a kernel": lambda spec, modes: len(spec.axes) == 3,
    "a scalar": lambda spec, modes: any(not factor.modes for factor in spec.factors.values()),
    "a frozen factor": lambda spec, modes: any(not factor.trainable for factor in spec.factors.values()),
    "a factor of one site": lambda spec, modes: any(spec.is_private(name) for name in spec.factors),
    "no bond": lambda spec, modes: not spec.bonds,
}


def test_the_strategy_reaches_what_it_says():
    seen = set()

    @settings(max_examples=300, database=None, derandomize=True, phases=[Phase.generate])
    @given(spec=specs())
    def look(spec):
        modes = [mode for factor in spec.factors.values() for mode in factor.modes]
        seen.update(what for what, holds in REACHED.items() if holds(spec, modes))

    look()
    assert seen == REACHED.keys()
