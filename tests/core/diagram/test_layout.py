"""Where the cells of a layered picture lie."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt._diagram.layout import ROOM, Cell, Layout, Stack, bent, level

NAMES = "abcdefgh"


def placed(layers, links, stacks=(), **changes):
    """A layout of equal cells, each in its layer; `changes` are for all cells."""
    shape = {"width": 20.0, "above": 10.0, "below": 10.0} | changes
    cells = {("cell", name): Cell(layer, **shape) for name, layer in layers.items()}
    return Layout(cells, [(("cell", one), ("cell", other)) for one, other in links], stacks)


def height(found, name):
    return found.spots["cell", name][1]


def along(route):
    """Points of an edge, some pixels apart."""
    for at in range(1, len(route), 3):
        piece = route[at - 1 : at + 3]
        for step in range(17):
            t = step / 16
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            yield tuple(sum(w * point[side] for w, point in zip(weights, piece, strict=True)) for side in (0, 1))


@given(
    layers=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), min_size=2),
    pairs=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=8, unique=True),
    spread=st.sampled_from([0.0, 18.0]),
)
def test_no_cell_lies_over_another_and_no_edge_runs_through_a_third_cell(layers, pairs, spread):
    links = [(one, other) for one, other in pairs if one in layers and other in layers and layers[one] < layers[other]]
    found = placed(layers, links, spread=spread)
    assert found.spots.keys() == found.cells.keys()
    sides = {
        key: (x, y - found.cells[key].above, x + found.cells[key].width, y + found.cells[key].below)
        for key, (x, y) in found.spots.items()
    }
    for (left, top, right, bottom), (x, y, u, v) in combinations(sides.values(), 2):
        assert right <= x or u <= left or bottom <= y or v <= top
    for route, link in zip(found.routes, links, strict=True):
        others = [side for key, side in sides.items() if key[1] not in link]
        assert not any(x < a < u and y < b < v for a, b in along(route) for x, y, u, v in others)


@given(layers=st.dictionaries(st.sampled_from(NAMES), st.integers(-2, 5), min_size=2))
def test_layers_go_from_left_to_right(layers):
    found = placed(layers, [])
    for one, other in combinations(layers, 2):
        (x, _), (u, _) = (found.spots["cell", name] for name in (one, other))
        assert (x == u) == (layers[one] == layers[other])
        assert (x + 20.0 < u) == (layers[one] < layers[other])


def test_every_link_has_its_route():
    links = [("a", "b"), ("b", "c"), ("a", "c")]
    found = placed({"a": 0, "b": 1, "c": 2}, links)
    assert len(found.routes) == 3
    for route, (start, end) in zip(found.routes, links, strict=True):
        assert len(route) % 3 == 1
        assert route[0] == (found.spots["cell", start][0] + 20.0, height(found, start))
        assert route[-1] == (found.spots["cell", end][0], height(found, end))


def test_edges_end_inside_of_a_cell_that_says_so_and_apart_from_each_other():
    found = placed({"a": 0, "b": 0, "c": 1}, [("a", "c"), ("b", "c")], inset=4.0, spread=18.0)
    starts, ends = ([route[at] for route in found.routes] for at in (0, -1))
    assert {x for x, _ in starts} == {16.0}
    assert {x for x, _ in ends} == {found.spots["cell", "c"][0] + 4.0}
    assert sorted(y - height(found, "c") for _, y in ends) == [-9.0, 9.0]
    assert found.cells["cell", "c"].above == 10.0 + 9.0  # it grows with them


def test_a_chain_is_straight():
    found = placed(dict(zip("abcd", range(4), strict=True)), pairwise("abcd"))
    assert len({y for _, y in found.spots.values()}) == 1
    assert all(y == height(found, "a") for route in found.routes for _, y in route)


def test_cells_of_one_layer_keep_their_room():
    found = placed({"a": 0, "b": 0, "c": 0}, [])
    heights = sorted(height(found, name) for name in "abc")
    assert [lower - upper for upper, lower in pairwise(heights)] == [20.0 + ROOM] * 2
    assert found.bottom == max(heights) + 10.0


def test_a_crossing_that_can_be_avoided_is_avoided():
    found = placed({"a": 0, "b": 0, "c": 1, "d": 1}, [("a", "d"), ("b", "c")])
    assert (height(found, "a") < height(found, "b")) == (height(found, "d") < height(found, "c"))


def test_a_ladder_over_four_layers_has_no_crossing():
    layers = {name: number // 2 for number, name in enumerate(NAMES)}
    links = [("a", "d"), ("b", "c"), ("c", "e"), ("d", "f"), ("e", "h"), ("f", "g")]
    found = placed(layers, links)
    chains = ["bceh", "adfg"]
    upper = [height(found, one) < height(found, other) for one, other in zip(*chains, strict=True)]
    assert len(set(upper)) == 1


def test_a_layer_of_fixed_cells_keeps_its_order():
    links = [("a", "d"), ("b", "c")]
    found = placed({"a": 0, "b": 0, "c": 1, "d": 1}, links, is_fixed=True)
    assert height(found, "a") < height(found, "b")
    assert height(found, "c") < height(found, "d")


@pytest.mark.parametrize(("align", "left"), [(0.0, 0.0), (0.5, 20.0), (1.0, 40.0)])
def test_a_narrow_cell_stands_where_it_is_aligned(align, left):
    cells = {("cell", "a"): Cell(0, 20.0, 5.0, 5.0, align=align), ("cell", "b"): Cell(0, 60.0, 5.0, 5.0)}
    assert Layout(cells, [], []).spots["cell", "a"][0] == left


def test_two_cells_of_one_layer_that_lie_together_are_joined_directly():
    middle = ("cell", "m")
    stack = Stack(middle, (("cell", "a"), ("cell", "b")), width=80.0, height=40.0)
    found = placed({"a": 0, "b": 0, "m": 1}, [("a", "m"), ("b", "m")], [stack])
    upper, lower = found.joined[middle]
    assert {upper, lower} == {("cell", "a"), ("cell", "b")}
    assert middle not in found.spots
    assert found.routes == [(), ()]
    assert found.spots[lower][1] - found.spots[upper][1] == 10.0 + 40.0 + 10.0
    assert found.width == 80.0


def test_two_cells_with_another_between_them_are_joined_by_way_of_their_middle():
    stack = Stack(("cell", "m"), (("cell", "a"), ("cell", "c")), width=80.0, height=40.0)
    found = placed({"a": 0, "b": 0, "c": 0, "m": 1}, [("a", "m"), ("c", "m")], [stack], is_fixed=True)
    assert found.joined == {}
    assert all(found.routes)


@pytest.mark.parametrize("piece", [level, bent])
def test_a_piece_ends_where_it_should(piece):
    points = piece((0.0, 0.0), (30.0, 12.0))
    assert len(points) == 3
    assert points[-1] == (30.0, 12.0)


def test_a_level_piece_is_straight_and_a_bent_one_leaves_and_arrives_level():
    assert level((0.0, 0.0), (30.0, 12.0)) == [(10.0, 4.0), (20.0, 8.0), (30.0, 12.0)]
    assert bent((0.0, 0.0), (30.0, 12.0)) == [(15.0, 0.0), (15.0, 12.0), (30.0, 12.0)]
    assert bent((0.0, 5.0), (30.0, 5.0)) == level((0.0, 5.0), (30.0, 5.0))
    assert level((1.0, 2.0), (1.0, 2.0)) == []
