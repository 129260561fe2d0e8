"""Magnitudes in the PyTorch binding: equal to PEFT's DoRA, whatever the layer, the dtype, the bias and the dropout."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout, linear

from tests.torch import hosts
from tests.torch.alone import run_alone
from tests.torch.test_cost import Made
from tests.torch.test_inside import Doubled
from tnadapt import AdapterSpec, FormatError, SiteError, families, magnitude, trainable
from tnadapt.initializers import row_norms
from tnadapt.policies import bonds, grow
from tnadapt_torch import attach, load
from tnadapt_torch.peft import TnConfig

DORA = magnitude(families.lora(alpha=8))
IN, OUT = 12, 20


def host(*, bias=True, kind=nn.Linear):
    torch.manual_seed(1)
    return nn.Sequential(kind(IN, OUT, bias=bias))


def pair(*, bias=True):
    """Return a layer with our DoRA and one with PEFT's, of equal random values, in float64, and their parameters."""
    ours, theirs = host(bias=bias).double(), host(bias=bias).double()
    state = attach(ours, DORA, target_modules=["0"], rank=4).double()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(theirs, config).double()
    layer = theirs.base_model.model[0]
    known = {
        "A": layer.lora_A["default"].weight,
        "B": layer.lora_B["default"].weight,
        "magnitude": layer.lora_magnitude_vector["default"].weight,
    }
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in known.items():
            value.copy_(torch.randn(value.shape, dtype=value.dtype))
            state.params()[name].copy_(value)
    return ours, state, theirs, known


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_it_is_dora_in_outputs_and_all_gradients(bias, inside):
    ours, state, theirs, known = pair(bias=bias)
    state.updates["0"].below.may_fold = inside
    xs = [torch.randn(7, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    for x in xs:
        x.requires_grad_()
    outputs = [model(x) for model, x in zip((ours, theirs), xs, strict=True)]
    hosts.close(*outputs, 1e-12)
    for output in outputs:
        output.pow(3).sum().backward()
    hosts.close(xs[0].grad, xs[1].grad, 1e-12)
    for name, value in known.items():
        hosts.close(state.params()[name].grad, value.grad, 1e-12)


def test_the_start_is_that_of_the_spec_and_the_magnitude_the_lengths_of_the_rows():
    model = host()
    x = torch.randn(5, IN)
    wanted = model(x)
    state = attach(model, DORA, target_modules=["0"], rank=4)
    hosts.close(state.params()["magnitude"], model[0].weight.norm(dim=1), 1e-6)
    hosts.close(model(x), wanted, 1e-6)
    free = magnitude(families.lotr(start="neutral"))
    other = attach(host(), free, target_modules=["0"], rank=4)
    weight = host()[0].weight + other.updates["0"].below.delta(host()[0].weight)
    hosts.close(other.params()["magnitude"].reshape(-1), weight.norm(dim=1), 1e-6)


def oracle(model, state):
    """Return the changed weight by its definition."""
    weight = model[0].weight.double()
    whole = weight + state.updates["0"].below.delta(weight).double()
    return state.params()["magnitude"].double()[:, None] * whole / whole.norm(dim=1, keepdim=True)


def woken(model, spec=DORA, **words):
    return hosts.wake(attach(model, spec, target_modules=["0"], rank=4, **words))


@pytest.mark.parametrize("change", ["none", "subclass", "other adapter", "other fold", "keyword", "hook", "3 axes"])
def test_every_layer_gives_the_output_of_the_changed_weight(change):
    model = host(kind=Doubled if change == "subclass" else nn.Linear).double()
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    x, more = torch.randn(6, IN, dtype=torch.float64), 0.0
    if change.startswith("other"):
        words = {"fold": True} if change == "other fold" else {}
        other = hosts.wake(attach(model, families.lora(), target_modules=["0"], rank=2, adapter_name="b", **words))
        more = x @ other.double().updates["0"].delta(weight).T
    state = woken(model).double()
    whole = state.params()["magnitude"][:, None] * nn.functional.normalize(
        weight + state.updates["0"].below.delta(weight), dim=1
    )
    wanted = linear(x, whole, bias) + more
    if change == "subclass":
        wanted = 2 * linear(x, weight, bias) + linear(x, whole - weight)
    if change == "keyword":
        hosts.close(model[0](input=x), wanted, 1e-10)
    elif change == "3 axes":
        hosts.close(model(x.reshape(2, 3, IN)).reshape(6, OUT), wanted, 1e-10)
    elif change == "hook":
        hosts.close(state.updates["0"](model[0], (x,), {}, linear(x, weight, bias)), wanted, 1e-10)
    else:
        hosts.close(model(x), wanted, 1e-10)


def test_dropout_falls_on_the_input_of_the_update_alone():
    model = host().double()
    state = woken(model, dropout=0.5).double()
    x = torch.randn(6, IN, dtype=torch.float64)
    ratios = state.params()["magnitude"] / (model[0].weight + state.updates["0"].below.delta(model[0].weight)).norm(
        dim=1
    )
    torch.manual_seed(5)
    dropped = dropout(x, 0.5)
    below = dropped @ state.updates["0"].below.delta(model[0].weight).T
    torch.manual_seed(5)
    hosts.close(model(x), ratios * (x @ model[0].weight.T + below) + model[0].bias, 1e-10)


@pytest.mark.parametrize("inside", [False, True])
def test_a_row_of_zeros_stays_finite(inside):
    model = host()
    with torch.no_grad():
        model[0].weight[3] = 0.0
    state = attach(model, DORA, target_modules=["0"], rank=4)
    state.updates["0"].below.may_fold = inside
    x = torch.randn(6, IN, requires_grad=True)
    model(x).square().sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (x, *state.parameters()))
    assert (model(x)[:, 3] == model[0].bias[3]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_lengths_stay_in_float32_on_a_host_of_half_precision(dtype):
    model = host()
    state = woken(model)
    wanted = linear(torch.ones(1, IN).double(), oracle(model, state), model[0].bias.double())
    model.to(dtype)
    assert state.params()["magnitude"].dtype == torch.float32
    assert state.params()["A"].dtype == dtype
    hosts.close(model(torch.ones(1, IN, dtype=dtype)).double(), wanted, 3e-2)
    fresh = host().to(dtype)
    plain = fresh(torch.ones(1, IN, dtype=dtype))
    attach(fresh, DORA, target_modules=["0"], rank=4)
    assert torch.equal(fresh(torch.ones(1, IN, dtype=dtype)), plain)


def test_it_is_merged_unmerged_copied_compiled_saved_and_loaded(tmp_path):
    model = host()
    state, x = woken(model), torch.randn(6, IN)
    before, wanted = model[0].weight.detach().clone(), model(x)
    hosts.close(copy.deepcopy(model)(x), wanted)
    torch._dynamo.reset()
    hosts.close(torch.compile(model, fullgraph=True)(x), wanted)
    state.save(tmp_path / "a.safetensors")
    again = host()
    load(again, tmp_path / "a.safetensors")
    assert torch.equal(again(x), wanted)
    state.merge()
    hosts.close(model[0].weight.double(), oracle_of_merge(state, before), 1e-6)
    hosts.close(model(x), wanted)
    state.unmerge()
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model(x), wanted)


def oracle_of_merge(state, weight):
    whole = weight.double() + state.updates["0"].below.delta(weight).double()
    return state.params()["magnitude"].double()[:, None] * nn.functional.normalize(whole, dim=1)


def test_a_file_is_refused_on_another_host(tmp_path):
    model = host()
    woken(model).save(tmp_path / "a.safetensors")
    other = nn.Sequential(nn.Linear(IN, OUT))
    with pytest.raises(FormatError, match=r"expected the weight of 0 that the adapter was trained with"):
        load(other, tmp_path / "a.safetensors")


def test_blocks_and_a_split_of_columns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12)).double()
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    state = hosts.wake(attach(model, DORA, target_modules=["0"], blocks={"0": (3, 2)}, rank=2)).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    hosts.close(model(x), linear(x, weight + state.updates["0"].delta(weight), bias), 1e-10)
    state.dropout = 0.5
    with pytest.raises(
        SiteError, match=r"expected dropout=0 for a magnitude on a block of columns, got dropout=0.5.\nAttach without"
    ):
        model(x)


def test_a_folded_layer_gives_the_same():
    x = torch.randn(6, IN)
    plain = host()(x)
    models = [host(), host()]
    for model, fold in zip(models, (False, True), strict=True):
        woken(model, fold=fold)
    hosts.close(models[0](x), models[1](x))
    assert not torch.allclose(plain, models[0](x))


def test_a_step_makes_nothing_of_the_size_of_the_weight_that_a_low_rank_spec_need_not():
    """The product of the weight and A is enough for the lengths."""
    model = nn.Sequential(nn.Linear(64, 48, bias=False))
    attach(model, DORA, target_modules=["0"], rank=2)
    with Made() as made:
        model(torch.randn(3, 64))
    assert made.shapes.count((48, 64)) <= 1  # the squares of the weight


def test_a_magnitude_of_ones_own_is_one():
    factors = {**families.lora().factors, "m": trainable("out", init=row_norms())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=families.lora(alpha=8).scale)
    models = [host(), host()]
    for model, one in zip(models, (spec, DORA), strict=True):
        woken(model, one)
    x = torch.randn(6, IN)
    assert torch.equal(models[0](x), models[1](x))


@pytest.mark.parametrize("inside", [False, True])
def test_a_bond_grows_below_a_magnitude(inside):
    model = host().double()
    state, x = woken(model).double(), torch.randn(6, IN, dtype=torch.float64)
    state.updates["0"].below.may_fold = inside
    optimizer = torch.optim.Adam(state.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    wanted = model(x)
    state.resize(grow(state.adapter, state.arrays(), "r", 2), optimizer)
    assert state.params()["A"].shape == (6, IN)
    hosts.close(model(x), wanted, 1e-10)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(model(x), wanted)


def test_the_norm_of_the_update_is_that_of_what_is_added_to_the_weight():
    model = host()
    state = woken(model)
    hosts.close(torch.tensor(state.norms()["dW"]), state.delta("0").norm(), 1e-5)
    hosts.close(torch.tensor(state.norms()["magnitude"]), state.params()["magnitude"].norm(), 1e-6)


def test_it_serves_under_peft():
    model, x = host(), torch.randn(6, IN)
    wanted = host()
    woken(wanted)
    wrapped = peft.get_peft_model(model, TnConfig(spec=DORA, target_modules=["0"], rank=4))
    hosts.close(wrapped(x), host()(x), 1e-6)
    (state,) = wrapped.base_model.states().values()
    hosts.wake(state)
    hosts.close(wrapped(x), wanted(x))
    wrapped.merge_adapter()
    hosts.close(wrapped(x), wanted(x))
    wrapped.unmerge_adapter()
    hosts.close(wrapped(x), wanted(x))


def test_a_weight_that_a_magnitude_reads_takes_no_merge_of_another_adapter():
    model = host()
    state = woken(model)
    other = hosts.wake(attach(model, families.lora(), target_modules=["0"], rank=2, adapter_name="b"))
    with pytest.raises(SiteError, match="expected a weight that no other adapter reads, got a factor of adapter"):
        other.merge()
    state.detach()
    other.merge()
    with pytest.raises(SiteError, match="got one with the update of adapter 'b'"):
        attach(model, DORA, target_modules=["0"], rank=2)


def rows_of(weight, update, lengths):
    """Return a weight with an update, with rows of these lengths: the definition."""
    whole = weight + update
    return lengths[..., None] * whole / whole.norm(dim=-1, keepdim=True)


def test_modules_to_save_are_trained_stored_and_swapped_beside_it(tmp_path):
    model, x = hosts.sequential().double(), torch.randn(6, 5, dtype=torch.float64)
    base = copy.deepcopy(model)
    state = attach(model, DORA, target_modules=["0"], rank=2, modules_to_save=["2"]).double()
    hosts.wake(state)
    optimizer = torch.optim.SGD(state.parameter_groups(lr=0.1))
    model(x).square().mean().backward()
    optimizer.step()
    trained = model[2]
    assert not torch.equal(trained.weight, base[2].weight)
    weight = rows_of(base[0].weight, state.updates["0"].below.delta(base[0].weight), state.params()["magnitude"])
    hosts.close(model(x), trained(torch.tanh(linear(x, weight, base[0].bias))), 1e-10)
    state.save(tmp_path / "a.safetensors")
    with state.disabled():
        hosts.close(model(x), base(x), 1e-12)
    again = copy.deepcopy(base)
    load(again, tmp_path / "a.safetensors")
    hosts.close(again(x), model(x), 1e-6)
    state.detach()
    hosts.close(model(x), base(x), 1e-12)


class Experts(nn.Module):
    """A block that holds the weights of its experts itself."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(hosts.normal(3, OUT, IN, dtype=torch.float64))

    def forward(self, x):
        return torch.einsum("eoi,ti->teo", self.up, x)


@pytest.mark.parametrize("spec", [DORA, magnitude(families.lotr(over="layer expert"))], ids=lambda spec: spec.name)
def test_each_expert_of_a_parameter_has_rows_of_its_own(spec, tmp_path):
    model, x = nn.Sequential(Experts()), torch.randn(6, IN, dtype=torch.float64)
    weight, before = model[0].up.detach().clone(), model(x)
    state = attach(model, spec, target_parameters={"0.up": "expert out in"}, rank=2).double()
    hosts.close(model(x), before, 1e-6)
    hosts.wake(state)
    address = [state.adapter.address(f"0.up[{expert}]") for expert in range(3)]
    parts = [state.params()[one.magnitude.lengths.name][one.magnitude.lengths.cut] for one in address]
    below = [state.updates[f"0.up[{expert}]"].below.delta(weight) for expert in range(3)]
    wanted = rows_of(weight, torch.stack(below), torch.stack([part.reshape(OUT) for part in parts]))
    after = model(x)
    hosts.close(after, torch.einsum("eoi,ti->teo", wanted, x), 1e-10)
    after.pow(3).sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in state.parameters())
    state.save(tmp_path / "a.safetensors")
    state.merge()
    hosts.close(model(x), after, 1e-10)
    state.unmerge()
    state.detach()
    hosts.close(model(x), before, 1e-12)
    load(model, tmp_path / "a.safetensors", target_parameters={"0.up": "expert out in"})
    hosts.close(model(x), after, 1e-6)


@pytest.mark.parametrize("fused", [["q", None, "v"], {"q": 5, "v": 15}])
def test_each_part_of_a_fused_weight_has_rows_of_its_own(fused):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 3 * OUT if isinstance(fused, list) else OUT)).double()
    weight, bias = (value.detach().clone() for value in model[0].parameters())
    state = hosts.wake(attach(model, DORA, target_modules=["0"], rank=2, fused={"0": fused})).double()
    wanted = weight.clone()
    for site in state.adapter.sites:
        update = state.updates[site.path].below.delta(weight)
        lengths = state.params()[state.adapter.address(site).magnitude.lengths.name]
        wanted[site.rectangle] = rows_of(weight[site.rectangle], update, lengths)
    for tokens in (1, 300):
        x = torch.randn(tokens, IN, dtype=torch.float64)
        hosts.close(model(x), linear(x, wanted, bias), 1e-10)


def train_in_flat_parts():
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = []
    for is_flat in (False, True):
        model = hosts.toy()
        state = hosts.wake(attach(model, DORA, target_modules=hosts.TARGETS, rank=2))
        wrapped = model
        if is_flat:
            wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        optimizer = torch.optim.SGD(state.parameters(), lr=0.02)
        for seed in range(2):
            optimizer.zero_grad()
            wrapped(hosts.words(4, seed=seed)).square().mean().backward()
            optimizer.step()
        outputs = wrapped(hosts.words())
        with FullyShardedDataParallel.summon_full_params(wrapped):
            found.append({key: value.detach().clone() for key, value in state.params().items()})
            found[-1]["delta"] = state.delta("layers.0.mlp.down")
            state.norms()
            if is_flat:
                with pytest.raises(SiteError, match="expected factors that this process holds to change their shapes"):
                    state.resize(grow(state.adapter, state.arrays(), next(iter(bonds(state.adapter))), 1), None)
        found[-1]["outputs"] = outputs
        found[-1]["start"] = hosts.toy()(hosts.words())
    for key, value in found[0].items():
        hosts.close(found[1][key], value)
    assert not torch.allclose(found[0]["outputs"], found[0]["start"], atol=1e-3)


def test_it_trains_under_fully_sharded_data_parallelism_of_the_first_kind():
    run_alone(train_in_flat_parts)
