"""The names beside the points of a picture: they can be read, however near to each other the points are."""

import itertools
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("modules")
RESULTS = Path(__file__).parents[2] / "results"
TASKS = ("digits", "family_relationships")


def boxes_of(axes):
    """Return the extent of each name on the axes, without its line."""
    from matplotlib.text import Text

    axes.figure.draw_without_rendering()
    return {text.get_text(): Text.get_window_extent(text) for text in axes.texts}


def assert_readable(axes, names):
    boxes = boxes_of(axes)
    assert boxes.keys() == set(names)
    for (one, box), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(second), f"{one} and {other}"
    around = axes.get_window_extent()
    assert all(around.contains(*box.min) and around.contains(*box.max) for box in boxes.values())


@pytest.fixture
def placed():
    """A function: axes with these points, of equal names but for a number, and their labels."""
    import page  # chooses the backend
    from labels import Label, place_labels

    def place(points, errors=None):
        _, axes = page.plt.subplots(figsize=(6, 4))
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o")
        axes.set(xlim=(0, 10), ylim=(0, 10))
        errors = errors or [0.0] * len(points)
        labels = [Label(f"method {n}", *point, errors[n], "black") for n, point in enumerate(points)]
        place_labels(axes, labels)
        return axes

    yield place
    page.plt.close("all")


NEAR = {
    "one": [(5, 5)],
    "apart": [(2, 2), (8, 8)],
    "at one place": [(5, 5)] * 9,
    "in a column": [(5, 5 + n / 10) for n in range(9)],
    "in a row": [(4 + n / 4, 5) for n in range(9)],
    "in the corners": [(0.1, 0.1), (9.9, 0.1), (0.1, 9.9), (9.9, 9.9)],
}


@pytest.mark.parametrize("points", NEAR.values(), ids=NEAR)
def test_no_name_lies_over_another_or_outside(points, placed):
    assert_readable(placed(points), [f"method {n}" for n in range(len(points))])


def test_a_point_alone_has_its_name_on_the_right_and_no_line(placed):
    axes = placed([(5, 5)])
    (text,) = axes.texts
    middle = axes.transData.transform((5, 5))
    assert 0 < boxes_of(axes)["method 0"].x0 - middle[0] < 10
    assert text.arrow_patch is None
    assert sum(one.arrow_patch is not None for one in placed([(5, 5)] * 5).texts) == 3


def test_a_name_lies_over_no_point_and_avoids_the_error_bar_of_another(placed):
    for above in (0.0, -0.27):
        points = [(5, 5), (5.5, 5 + above)]
        axes = placed(points)
        for x, y in axes.transData.transform(points):
            assert not any(box.padded(4).contains(x, y) for box in boxes_of(axes).values())
    x = axes.transData.transform((5, 5))[0]
    assert boxes_of(placed([(5, 5), (5.8, 2)]))["method 0"].x0 > x
    assert boxes_of(placed([(5, 5), (5.8, 2)], [0.0, 4.0]))["method 0"].x1 < x


@pytest.mark.parametrize("task", TASKS)
def test_the_names_in_the_pictures_of_the_records_can_be_read(task, monkeypatch):
    import page
    from records import read

    records = [read(path) for path in RESULTS.glob(f"{task}--*--final.json")]
    monkeypatch.setattr(page, "_save", lambda figure, path: found.append(figure))
    found = []
    page._draw_pareto(task, records, Path("unused"))
    (figure,) = found
    assert_readable(figure.axes[0], {one.key.method for one in records})
    page.plt.close(figure)
