"""Where the cells of a layered picture lie."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt._diagram.layout import Cell, Layout, bent, level


def placed(layers, links):
    cells = {("cell", name): Cell(layer, 20.0, 10.0, 10.0) for name, layer in layers.items()}
    return Layout(cells, [(("cell", one), ("cell", other)) for one, other in links], [])


@given(
    layers=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=2),
    pairs=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=8, unique=True),
)
def test_no_cell_lies_over_another(layers, pairs):
    links = [(one, other) for one, other in pairs if one in layers and other in layers and layers[one] < layers[other]]
    found = placed(layers, links)
    assert found.spots.keys() == found.cells.keys()
    for one, other in combinations(found.cells, 2):
        (x, y), (u, v) = found.spots[one], found.spots[other]
        width, wide = found.cells[one].width, found.cells[other].width
        apart = x + width <= u or u + wide <= x
        above = y + found.cells[one].below <= v - found.cells[other].above
        below = v + found.cells[other].below <= y - found.cells[one].above
        assert apart or above or below


def test_every_link_has_its_route():
    found = placed({"a": 0, "b": 1, "c": 2}, [("a", "b"), ("b", "c"), ("a", "c")])
    assert len(found.routes) == 3
    for route, (start, end) in zip(found.routes, ["ab", "bc", "ac"], strict=True):
        assert len(route) % 3 == 1
        assert route[0][0] >= found.spots["cell", start][0]
        assert route[-1][0] <= found.spots["cell", end][0] + found.cells["cell", end].width


def test_a_crossing_that_can_be_avoided_is_avoided():
    found = placed({"a": 0, "b": 0, "c": 1, "d": 1}, [("a", "d"), ("b", "c")])
    heights = {name: found.spots["cell", name][1] for name in "abcd"}
    assert (heights["a"] < heights["b"]) == (heights["d"] < heights["c"])


@pytest.mark.parametrize("piece", [level, bent])
def test_a_piece_ends_where_it_should(piece):
    points = piece((0.0, 0.0), (30.0, 12.0))
    assert len(points) == 3
    assert points[-1] == (30.0, 12.0)
