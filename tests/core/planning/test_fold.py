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


@pytest.mark.parametrize(("family", "few"), [("oft", 128), ("hira", 1), ("monarch", 16)])
def test_folding_keeps_at_most_one_x_more_than_the_plan(family, few):
    """OFT keeps x alone; W + dW is as large as 256 rows of x. HiRA makes the update anyway."""
    network = getattr(families, family)().bind([Site("q", (256, 256))], rank=None if family == "oft" else 4).networks[0]
    assert not plan(network, tokens=few).pays_to_fold
    assert plan(network, tokens=256).pays_to_fold
    assert plan(network, tokens=256, training=False).pays_to_fold


def test_a_low_rank_is_not_folded():
    assert not plan(families.lora().bind(SITES, rank=4).networks[0], tokens=1024).pays_to_fold
