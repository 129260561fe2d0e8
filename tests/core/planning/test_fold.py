"""The cost of folding an update into its weight, beside the host's own product."""

import pytest

from tnadapt import Site, families, plan

SITES = [Site("q", (256, 128))]


@pytest.mark.parametrize(("training", "x_needs_grad"), [(False, False), (True, False), (True, True)])
def test_folding_costs_the_update_and_the_gradient_of_the_weight(training, x_needs_grad):
    network = families.hira().bind(SITES, rank=4).networks[0]
    words = {"tokens": 1024, "training": training, "x_needs_grad": x_needs_grad, "objective": "flops"}
    order, update = plan(network, **words), plan(network, "delta", training=training, objective="flops")
    made, folded = order._other_costs()
    product = 2 * 1024 * 256 * 128
    own = update.forward_flops + update.backward_flops
    assert folded == own + product * training
    assert made == own + product * (1 + training + x_needs_grad)
    assert order.pays_to_fold
    assert "it would pay" in order.explain()


def test_a_low_rank_is_not_folded():
    assert not plan(families.lora().bind(SITES, rank=4).networks[0], tokens=1024).pays_to_fold
