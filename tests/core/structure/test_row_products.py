"""The lengths of the rows of a weight with its update, from networks that do not make the update."""

import numpy as np
import pytest

from tests.table import FAMILIES
from tnadapt import Site, families, plan
from tnadapt._planning import Labeled, NumpyBackend, run
from tnadapt.binding import row_products
from tnadapt.testing._oracle import dense, local, random_params


@pytest.mark.parametrize("family", FAMILIES)
def test_they_add_up_to_the_squares_of_the_rows(family):
    adapter = FAMILIES[family].bind(layers=2, kinds={"q": (4, 6)}, seed=1)
    random = np.random.default_rng(0)
    params, site = random_params(adapter, random, frozen=not adapter.starts), adapter.sites[-1]
    network, arrays = local(adapter, params, site)
    weight = random.standard_normal(site.shape)
    split = weight.reshape([network.sizes[mode] for mode in (*network.out_modes, *network.in_modes)])
    found = row_products(network)
    total = (weight.reshape(len(weight), -1) ** 2).sum(axis=1)
    for one in (found.cross, found.square):
        order = plan(one, "delta", training=False)
        sources = [found.source(node) for node in order.operands]
        values = [split if source == "(host)" else arrays[source] for source in sources]
        operands = [Labeled(value, modes) for value, modes in zip(values, order.inputs, strict=True)]
        total = total + one.scale * run(order, operands, NumpyBackend()).array.reshape(-1)
    whole = weight + dense(adapter, params, site)
    wanted = (whole.reshape(len(whole), -1) ** 2).sum(axis=1)
    np.testing.assert_allclose(total, wanted, rtol=1e-10, atol=1e-10 * wanted.max())


def test_they_pay_for_a_low_rank_and_not_for_a_full_one():
    sites = [Site("q", (512, 512))]
    assert row_products(families.lora().bind(sites, rank=8).networks[0]).pays
    assert not row_products(families.loha().bind(sites, rank=32).networks[0]).pays
    assert not row_products(families.hira().bind(sites, rank=8).networks[0]).pays
