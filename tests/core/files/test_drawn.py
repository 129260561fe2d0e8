"""What a file leaves out: values of the seed, and the patterns that plans rely on, which no file holds."""

import numpy as np
import pytest
from safetensors import safe_open

from tnadapt import FormatError, Site, families, init, load, save
from tnadapt._files.drawn import is_changed, rounded
from tnadapt.binding import check_patterns, params_to_store

C3A = families.c3a().bind([Site("q", (12, 9))], sizes={"o2": 3, "i2": 3})
OTHERS = {
    "twice": lambda a: 2 * a,
    "turned": lambda a: a[::-1],
    "beside": lambda a: a + 1e-9,
    "infinite": lambda a: a + np.inf,
    "nothing": lambda a: a * np.nan,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_pattern_with_other_values_is_neither_written_nor_read(name, tmp_path, monkeypatch):
    params = init(C3A) | {"J": OTHERS[name](init(C3A)["J"])}
    message = r"J: expected the pattern of cyclic\(\), which plans rely on, got other values.\nUse another initializer"
    with pytest.raises(FormatError, match=message):
        save(C3A, params, tmp_path / "a")
    with pytest.raises(FormatError, match=message):
        params_to_store(C3A, params, dict.fromkeys(params, "float32"))
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("tnadapt._files.content.is_changed", lambda slot, value, drawn: not np.array_equal(value, drawn))
        save(C3A, params, tmp_path / "a")
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_pattern_that_a_cast_rounded_is_left_out_and_drawn_again(dtype, tmp_path):
    drawn = init(C3A)
    params = drawn | {"J": rounded(drawn["J"], dtype)}  # 1 / 9 is no number of any of them
    assert {*params_to_store(C3A, params, dict.fromkeys(params, "float32"))} == {"c"}
    save(C3A, params, tmp_path / "a")
    with safe_open(tmp_path / "a", framework="np") as file:
        assert {*file.keys()} == {"c"}
    np.testing.assert_array_equal(load(tmp_path / "a")[1]["J"], drawn["J"])


def test_params_of_a_framework_are_checked_by_name():
    params = init(C3A)
    check_patterns(C3A, params | {"c": params["c"] + 1, "other": np.ones(3)})
    check_patterns(C3A, {})
    check_patterns(C3A, {"J": np.ones((2, 2))})  # of another shape, which who reads it says
    with pytest.raises(FormatError, match=r"^J: expected the pattern of cyclic"):
        check_patterns(C3A, {"J": 2 * params["J"]})


def test_every_other_frozen_factor_may_be_changed():
    vera = families.vera().bind([Site("q", (6, 4))], rank=2)
    value = init(vera)["A"]
    assert is_changed(vera.slots["A"], value * (1 + 1e-9), value)
    assert not is_changed(vera.slots["A"], value, value)


def test_a_number_is_rounded_to_the_nearest_of_a_dtype():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -1 / 3])
    assert rounded(values, "bfloat16").tolist() == [1.0, 1.0, 1 + 2**-6, 1.0, -0.333984375]
    assert rounded(values, "float16").tolist() == values.astype(np.float16).astype(float).tolist()
