"""What a file holds of one adapter: tensors and plain data, and the way back."""

from pathlib import Path

import numpy as np
import pytest

from tnadapt import FormatError, SiteError, families, grid, init
from tnadapt._files.content import check_shapes, checkpoint_of, content_of, promise_of
from tnadapt._files.tensors import Entry
from tnadapt._files.text import VERSION

ADAPTER = families.vera().bind(grid(layers=2, kinds={"q": (6, 4)}), rank=2, seed=3)
WHERE = Path("file")


def entries_of(tensors):
    kinds = {"float64": "F64", "float32": "F32", "int64": "I64"}
    return {name: Entry(kinds[one.dtype.name], one.shape, 0, one.nbytes, one.size) for name, one in tensors.items()}


def test_content_comes_back():
    params, extra = init(ADAPTER), {"head": np.ones(3)}
    tensors, data = content_of(ADAPTER, params, extra)
    promise = promise_of(WHERE, data, VERSION, entries_of(tensors))
    check_shapes(WHERE, promise, entries_of(tensors))
    assert {slot.name for slot in promise.drawn_slots} == {"A", "B"}
    found = checkpoint_of(WHERE, promise, tensors)
    assert found.adapter == ADAPTER
    assert found.is_double
    np.testing.assert_array_equal(found.extra["head"], extra["head"])
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value)


def test_tensors_that_were_not_promised_are_refused():
    tensors, data = content_of(ADAPTER, init(ADAPTER), {})
    with pytest.raises(FormatError, match="expected exactly the factors of its adapter"):
        promise_of(WHERE, dict(data), VERSION, {})
    promise = promise_of(WHERE, dict(data), VERSION, entries_of(tensors))
    wrong = {name: value.astype(np.float32) for name, value in tensors.items()}
    with pytest.raises(FormatError, match="another digest"):
        checkpoint_of(WHERE, promise, wrong)
    name = next(iter(tensors))
    with pytest.raises(FormatError, match=r"of shape \(.*\), got \(1,\)"):
        check_shapes(WHERE, promise, entries_of(tensors | {name: np.ones(1)}))
    with pytest.raises(FormatError, match=r"expected tensors of float16, float32, float64, got .* of int64"):
        promise_of(WHERE, dict(data), VERSION, entries_of(tensors | {name: np.ones(1, np.int64)}))


def test_a_chain_with_a_hosts_weight_is_no_content_without_it():
    adapter = families.hira().bind(grid(layers=1, kinds={"q": (6, 4)}), rank=2)
    weights = {"layers.0.q": np.ones((6, 4))}
    params = {name: value for name, value in init(adapter, weights).items() if not name.endswith(":host")}
    with pytest.raises(FormatError, match="expected the host's weight"):
        content_of(adapter, params, {})
    with pytest.raises(SiteError, match="host"):
        init(adapter)
