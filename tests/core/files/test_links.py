"""Several adapters in one file; tests/core/policies/test_chain_file.py has what is refused."""

import numpy as np
import pytest

from tests.table import REPRESENTATIVES
from tests.thorough import each_kind
from tnadapt import FormatError
from tnadapt._files import read_links, save_links


@pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
def test_links_come_back_in_order(adapter, moved, tmp_path):
    links = [(adapter, moved(adapter, seed)) for seed in range(11)]  # the numbers 10 and 2 are in order, too
    save_links(tmp_path / "links", links)
    found = read_links(tmp_path / "links")
    assert len(found) == len(links)
    for checkpoint, (one, params) in zip(found, links, strict=True):
        assert checkpoint.adapter == one
        for name, value in params.items():
            np.testing.assert_array_equal(checkpoint.params[name], value)


@each_kind
def test_nothing_is_written_for_params_of_another_adapter(adapter, moved, tmp_path):
    params = moved(adapter)
    with pytest.raises(FormatError, match="Nothing was written"):
        save_links(tmp_path / "links", [(adapter, params), (adapter, params | {"zz": np.ones(1)})])
    assert not (tmp_path / "links").exists()
