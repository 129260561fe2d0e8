"""The memory and operations of a forward and a backward pass: nothing as large as a weight is kept or computed."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.torch import hosts
from tnadapt import AdapterSpec, frozen, plan, raw, trainable, zeros
from tnadapt_torch import attach

OUT, IN, TOKENS, SITES = 60, 40, 7, 6  # chosen so that no two shapes below coincide
every_family = pytest.mark.parametrize("family", hosts.FAMILIES)


def stack(family, sites=1):
    """Make adapted linear layers of shape (OUT, IN), to be called one by one."""
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(IN, OUT, bias=False) for _ in range(sites)])
    spec, sizes = hosts.FAMILIES[family] if isinstance(family, str) else (family, {"rank": 2})
    return model, hosts.wake(attach(model, spec, target_modules="all-linear", seed=0, **sizes))


class Kept:
    """Records the tensors that autograd saves for the backward pass."""

    def __init__(self):
        self.tensors = []

    def __enter__(self):
        def pack(tensor):
            self.tensors.append(tensor)
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def has(self, wanted):
        return any(t.untyped_storage().data_ptr() == wanted.untyped_storage().data_ptr() for t in self.tensors)

    def new_bytes(self, *known):
        """Count the bytes saved in storages other than those of these tensors, each storage once."""
        pointers = {tensor.untyped_storage().data_ptr() for tensor in known}
        fresh = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors}
        return sum(size for pointer, size in fresh.items() if pointer not in pointers)


class Made(TorchDispatchMode):
    """Records the shapes of all new tensors that operations return, and counts their entries."""

    def __init__(self):
        super().__init__()
        self.shapes, self.entries = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in read:
                self.shapes.append(tuple(leaf.shape))
                self.entries += leaf.numel()
        return result


def numbers(shape):
    return sorted(size for size in shape if size != 1)


@pytest.mark.parametrize(
    ("family", "is_kept"),
    [("tlora", False), ("vera", False), ("tera", False), ("lora", True), ("lotr", True), ("lorta", True)],
)
def test_x_is_saved_only_if_the_factor_that_multiplies_it_is_trained(family, is_kept):
    model, _ = stack(family)
    x = hosts.normal(TOKENS, IN)
    with Kept() as kept:
        model[0](x).sum()
    assert kept.tensors
    assert kept.has(x) is is_kept


@pytest.mark.parametrize(("family", "middle"), [("lora", 2), ("lotr", 3 + 2), ("tlora", 4 * 3), ("vera", 2 * 5 + OUT)])
def test_the_saved_memory_is_proportional_to_the_rank(family, middle):
    model, state = stack(family)
    x = hosts.normal(TOKENS, IN)
    with Kept() as kept:
        model[0](x).sum()
    assert kept.new_bytes(x, model[0].weight, *state.params().values()) <= 4 * TOKENS * middle


@every_family
def test_no_tensor_as_large_as_the_weight_is_computed(family):
    model, state = stack(family)
    x = hosts.normal(TOKENS, IN).requires_grad_()
    with Made() as made:
        model[0](x).square().sum().backward()
    assert any(numbers(shape) == sorted((TOKENS, OUT)) for shape in made.shapes)
    assert not [shape for shape in made.shapes if torch.Size(shape).numel() >= OUT * IN]
    with Made() as made:
        state.delta("0")
    assert [shape for shape in made.shapes if torch.Size(shape).numel() >= OUT * IN], "a delta must be recorded"


@every_family
def test_no_output_is_computed_twice(family):
    """The last step adds to the host's output: one new tensor of that size for the host, one or two for the site."""
    model, _ = stack(family)
    with torch.no_grad(), Made() as made:
        model[0](hosts.normal(TOKENS, IN))
    big = [shape for shape in made.shapes if torch.Size(shape).numel() == TOKENS * OUT]
    assert len(big) <= (2 if family in ("lora", "lotr", "tlora") else 4)


@pytest.mark.parametrize(
    ("family", "chain"), [("lora", (IN, 2, OUT)), ("lotr", (IN, 3, 2, OUT)), ("tlora", (IN, 2, 3, OUT))]
)
def test_a_forward_pass_costs_no_more_than_its_chain_of_products(family, chain):
    model, _ = stack(family)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model[0](hosts.normal(TOKENS, IN))
    by_hand = 2 * TOKENS * sum(left * right for left, right in pairwise(chain))
    assert 0 < counter.get_total_flops() - 2 * TOKENS * OUT * IN <= by_hand


@pytest.mark.parametrize("need", ["nothing", "factors", "factors and x"])
def test_the_contraction_order_depends_on_which_gradients_are_needed(need):
    """In this network each set of gradients has its own best order, and all orders differ in cost."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="site",
        factors={"A": trainable("in q", init=zeros()), "M": frozen("p q"), "B": frozen("out p")},
        scale=raw(),
    )
    layer = torch.nn.Linear(IN, 20, bias=False)
    model = torch.nn.ModuleList([layer])
    state = attach(model, spec, target_modules="all-linear", seed=0, sizes={"p": 40, "q": 40}, overparametrized=True)
    state.updates["0"].may_fold = False  # else the layer would be called with the update in its weight
    x = hosts.normal(16, IN).requires_grad_(need == "factors and x")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(need != "nothing"):
        layer(x)
    orders = {
        "nothing": {"training": False, "x_needs_grad": False},
        "factors": {"x_needs_grad": False},
        "factors and x": {},
    }
    network = state.adapter.groups[0].network
    costs = {name: plan(network, tokens=16, **words).forward_flops for name, words in orders.items()}
    assert len(set(costs.values())) == len(costs)
    assert counter.get_total_flops() - 2 * 16 * 20 * IN == costs[need]


def of_backward(spec, sites):
    """Count the entries that a backward pass through all sites computes."""
    model, _ = stack(spec, sites)
    loss = sum(layer(hosts.normal(1, IN)).sum() for layer in model)
    with Made() as made:
        loss.backward()
    return made.entries


@pytest.mark.parametrize("family", ["lotr", "lorta", "tlora", "tera"])
def test_the_gradient_of_a_stacked_factor_costs_linear_time_in_the_sites(family):
    one, many = of_backward(family, SITES), of_backward(family, 8 * SITES)
    assert many <= 1.3 * 8 * one


def test_gradients_cost_linear_time_for_site_modes_at_any_place():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind",
        factors={
            "A": trainable("out layer p", init=zeros()),
            "B": trainable("p in layer kind"),
        },
        scale=raw(),
    )
    assert of_backward(spec, 8 * SITES) <= 1.3 * 8 * of_backward(spec, SITES)


def test_a_disabled_adapter_computes_nothing():
    model, state = stack("lora")
    x = hosts.normal(TOKENS, IN)
    with state.disabled(), Made() as made:
        model[0](x)
    assert made.shapes.count((TOKENS, OUT)) == 1
