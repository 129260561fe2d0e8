"""Chains in training: what a restart does to the model and the optimizer, resuming, and what is refused."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
from tests.parity.cases import FAMILIES
from tests.thorough import IS_THOROUGH
from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt.policies import load_chain
from tnadapt_torch import attach
from tnadapt_torch.policies import Restarts

EVERY = 4
PATH = "layers.0.self_attn.q_proj"


def train(model, state, restarts, optimizer, steps, *, first=0, schedule=None):
    for number in range(first, first + steps):
        optimizer.zero_grad()
        model(hosts.words(seed=number)).square().mean().backward()
        optimizer.step()
        restarts.step()
        if schedule is not None:
            schedule.step()


def made(family="lora", *, every=EVERY, dtype=torch.float32, lr=0.05, **more):
    model = hosts.toy(dtype=dtype)
    state = hosts.adapt(model, family, awake=False)
    optimizer = torch.optim.AdamW(state.parameters(), lr=lr, weight_decay=0.01)
    return model, state, optimizer, Restarts(state, optimizer, every=every, **more)


def weights_of(model, state):
    return {path: model.get_submodule(path).weight.detach().double().numpy().copy() for path in state.weights}


# Below, every family of the table is in a chain, too.
some = pytest.mark.parametrize("family", hosts.FAMILIES if IS_THOROUGH else hosts.REPRESENTATIVES)


def beside(value):
    return pytest.mark.parametrize("beside", [False, True] if value is None else [value])


@some
@beside(None)
def test_a_restart_does_not_change_the_model(family, beside):
    model, state, optimizer, restarts = made(family, beside=beside)
    train(model, state, restarts, optimizer, EVERY - 1)
    optimizer.zero_grad()
    model(hosts.words()).square().mean().backward()
    optimizer.step()
    before = model(hosts.words())
    restarts.step()
    hosts.close(model(hosts.words()), before)
    assert all(state.delta(path).abs().max() == 0 for path in state.weights)


@some
@beside(None)
def test_the_chain_has_the_updates_of_the_model(family, beside, tmp_path):
    model, state, optimizer, restarts = made(family, beside=beside)
    plain = weights_of(hosts.toy(), state)
    train(model, state, restarts, optimizer, 3 * EVERY + 2)
    chain = restarts.links
    assert [link.adapter.seed for link in chain.links] == [3, 4, 5, 6]
    restarts.save(tmp_path / "chain")
    merged = load_chain(tmp_path / "chain").merged(plain)
    other = hosts.toy()
    with torch.no_grad():
        for path, weight in merged.items():
            other.get_submodule(path).weight.copy_(torch.from_numpy(weight))
    hosts.close(other(hosts.words()), model(hosts.words()))
    if not beside:
        for path, weight in restarts.merged().items():
            np.testing.assert_allclose(weight.numpy(), merged[path], rtol=1e-5, atol=1e-6)


def test_links_have_the_rank_of_their_sum():
    model, state, optimizer, restarts = made("lora")
    plain = weights_of(model, state)
    train(model, state, restarts, optimizer, 3 * EVERY)
    after = weights_of(model, state)
    change = after[PATH] - plain[PATH]
    values = np.linalg.svd(change, compute_uv=False)
    assert (values > 1e-5 * values[0]).sum() == 6  # three links of rank 2
    assert restarts.links.rank_bound(PATH) == 6


def test_each_link_begins_with_a_fresh_seed():
    model, state, optimizer, restarts = made("lora")
    starts = []
    for link in range(3):
        assert state.adapter.seed == 3 + link
        wanted = tnadapt.init(state.adapter)
        for name, value in state.params().items():
            np.testing.assert_array_equal(value.detach().numpy(), wanted[name])
        starts.append(wanted)
        train(model, state, restarts, optimizer, EVERY)
    name = next(name for name in starts[0] if name.endswith(".A"))
    assert not any((starts[0][name] == other[name]).all() for other in starts[1:])


def test_the_running_link_can_be_saved(tmp_path):
    model, state, optimizer, restarts = made("vera")
    train(model, state, restarts, optimizer, EVERY + 2)
    state.save(tmp_path / "link")
    adapter, params = tnadapt.load(tmp_path / "link")
    assert adapter == state.adapter
    for path in state.weights:
        hosts.close(torch.from_numpy(tnadapt.delta(adapter, params, path)), state.delta(path))


def test_a_centered_spec_begins_anew():
    model = hosts.toy()
    state = attach(model, families.lotr(start="neutral"), target_modules=hosts.TARGETS, rank=2, seed=3)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.05)
    restarts = Restarts(state, optimizer, every=2)
    train(model, state, restarts, optimizer, 4)
    assert all(state.delta(path).abs().max() == 0 for path in state.weights)
    train(model, state, restarts, optimizer, 1)
    assert max(state.delta(path).abs().max() for path in state.weights) > 0
    assert len(restarts.links) == 3


# ---- bfloat16


def test_a_bfloat16_host_loses_nothing():
    """Links below half an ulp of every weight arrive; merged one by one, or summed in bfloat16, they would be lost."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    nn.init.ones_(model[0].weight)
    state = attach(model, families.lora(), target_modules=["0"], rank=1, alpha=1, seed=0)
    optimizer = torch.optim.SGD(state.parameters(), lr=0.1)
    restarts = Restarts(state, optimizer, every=1)
    links, step = 400 if IS_THOROUGH else 50, 0.1 * torch.finfo(torch.bfloat16).eps
    for _ in range(links):
        with torch.no_grad():
            params = state.params()
            params["A"].fill_(1.0)
            params["B"].fill_(step)
        restarts.step()
    assert model[0].weight.dtype == torch.bfloat16
    wanted = torch.full((4, 4), 1 + links * step).to(torch.bfloat16)
    assert torch.equal(model[0].weight, wanted)
    merged = restarts.links.merged({"0": np.ones((4, 4), np.float32)})["0"]
    np.testing.assert_allclose(merged, 1 + links * step, rtol=1e-5)


# ---- the optimizer and its rate


def test_the_state_of_the_optimizer_is_dropped():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, EVERY - 1)
    assert len(optimizer.state) == len(list(state.parameters()))
    train(model, state, restarts, optimizer, 1)
    assert len(optimizer.state) == 0
    assert all(parameter.grad is None for parameter in state.parameters())


@pytest.mark.parametrize("prune", [0, 0.9, 0.999, 1])
def test_a_fraction_of_the_moments_is_pruned(prune):
    model, state, optimizer, restarts = made(prune=prune)
    train(model, state, restarts, optimizer, EVERY)
    for kind in ("exp_avg", "exp_avg_sq"):
        values = torch.cat([optimizer.state[one][kind].flatten() for one in state.parameters()])
        kept = (values != 0).double().mean().item()
        assert kept == pytest.approx(1 - prune, abs=4 * (prune * (1 - prune) / values.numel()) ** 0.5)
    assert {int(optimizer.state[one]["step"]) for one in state.parameters()} == {EVERY}


def test_the_rate_rises_again_in_each_link():
    model, state, optimizer, restarts = made(warmup_steps=2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, restarts.warmup)
    seen = []
    for number in range(2 * EVERY):
        seen.append(schedule.get_last_lr()[0])
        train(model, state, restarts, optimizer, 1, first=number, schedule=schedule)
    assert seen == pytest.approx([0.025, 0.05, 0.05, 0.05] * 2)
    assert Restarts(state, optimizer, every=3).warmup(7) == 1.0


# ---- resuming


@pytest.mark.parametrize("options", [{}, {"prune": 0.9}, {"beside": True}, {"sites": 2, "warmup_steps": 3}], ids=str)
@pytest.mark.parametrize("family", ["lora", "vera"])
def test_a_resumed_run_equals_the_uninterrupted_one(family, options):
    def begin():
        model, state, optimizer, restarts = made(family, **options)
        return model, state, optimizer, restarts, torch.optim.lr_scheduler.LambdaLR(optimizer, restarts.warmup)

    model, state, optimizer, restarts, schedule = begin()
    train(model, state, restarts, optimizer, 12, schedule=schedule)
    first = begin()
    train(*first[:2], first[3], first[2], 6, schedule=first[4])
    file = io.BytesIO()
    torch.save([one.state_dict() for one in (first[3], first[2], first[4])], file)
    file.seek(0)
    policy, moments, rate = torch.load(file, weights_only=True)
    again = begin()
    again[3].load_state_dict(policy)
    again[2].load_state_dict(moments)
    again[4].load_state_dict(rate)
    assert torch.equal(again[0](hosts.words()), first[0](hosts.words()))
    train(*again[:2], again[3], again[2], 6, first=6, schedule=again[4])
    assert torch.equal(again[0](hosts.words()), model(hosts.words()))
    wanted, found = model.state_dict(), again[0].state_dict()
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []
    assert len(again[3].links) == len(restarts.links) == 3


def test_a_state_dict_that_does_not_fit_changes_nothing():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, 6)
    good = restarts.state_dict()
    fresh, its, _, new = made()
    before = hosts.photo(fresh)
    cases = [
        (good | {"every": 5}, "expected every = 4, got 5"),
        ({key: value for key, value in good.items() if key != "links"}, "expected a state dict with"),
        (3, "got int"),
        (good | {"steps": 12}, "expected one link for each restart and the running one, got 2 at step 12"),
        (good | {"links": good["links"][:1] * 2}, "expected link 1 of this adapter"),
        (good | {"links": [3, 3]}, "expected link 0 of this adapter"),
        (good | {"weights": {}}, "from before the first link, got another"),
    ]
    broken = copy.deepcopy(good)
    broken["links"][0]["params"] = {name: value[..., :1] for name, value in broken["links"][0]["params"].items()}
    infinite = copy.deepcopy(good)
    for value in infinite["links"][0]["params"].values():
        value.fill_(torch.inf)
    train(*(two := made())[:2], two[3], two[2], 2 * EVERY + 1)
    later = copy.deepcopy(two[3].state_dict())  # its first link is added to the weights, and then taken back
    for value in later["links"][1]["params"].values():
        value.fill_(torch.inf)
    cases += [
        (broken, "expected .* of shape"),
        (later, "expected a finite sum"),
        (infinite, "expected a finite sum of weight and links"),
    ]
    for state_dict, message in cases:
        with pytest.raises(SiteError, match=message):
            new.load_state_dict(state_dict)
        hosts.assert_same_photo(before, hosts.photo(fresh))
        assert its.adapter.seed == 3
    new.load_state_dict(good)
    assert len(new.links) == 2


def with_weights_of(model):
    """Return the parameters and buffers of a host without those of its adapters."""
    return {key: value.clone() for key, value in model.state_dict().items() if "tnadapt" not in key}


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = [("lora", torch.float32), ("lorta", torch.bfloat16), ("vera", torch.float16)]  # each family, each dtype


@pytest.mark.parametrize(
    ("family", "dtype"), [(name, dtype) for name in hosts.FAMILIES for dtype in DTYPES] if IS_THOROUGH else FEW, ids=str
)
def test_weights_that_have_the_finished_links_are_as_good_as_the_originals(family, dtype):
    model, state, optimizer, restarts = made(family, dtype=dtype)
    train(model, state, restarts, optimizer, 2 * EVERY + 2)
    fresh, _, _, new = made(family, dtype=dtype)
    new.load_state_dict(restarts.state_dict())
    other, its, _, late = made(family, dtype=dtype)
    other.load_state_dict(with_weights_of(model), strict=False)
    hosts.wake(its)  # the values of the running link are those of the checkpoint, or any others
    late.load_state_dict(restarts.state_dict())
    for found in (fresh, other):
        wanted, here = model.state_dict(), found.state_dict()
        assert [key for key in wanted if not torch.equal(wanted[key], here[key])] == []
    assert str(late.state_dict()) == str(restarts.state_dict())


@beside(None)
def test_a_policy_goes_back_and_forth(beside):
    model, state, optimizer, restarts = made("vera", beside=beside)
    seen = []
    for number in range(4):
        seen.append((copy.deepcopy(restarts.state_dict()), copy.deepcopy(model.state_dict())))
        train(model, state, restarts, optimizer, 3, first=3 * number)
    for number in (3, 1, 2, 0):
        policy, wanted = seen[number]
        restarts.load_state_dict(policy)
        found = model.state_dict()
        assert found.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []
        assert restarts.steps == 3 * number


def test_weights_that_are_neither_are_refused_and_nothing_is_changed():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, EVERY)
    early = with_weights_of(model)
    train(model, state, restarts, optimizer, EVERY + 1, first=EVERY)
    weight, other = (f"layers.{number}.self_attn.q_proj.weight" for number in (0, 1))
    late = with_weights_of(model)
    off, mixed = dict(late), dict(late)
    off[weight] = late[weight].clone()
    off[weight][-1, -1] = torch.nextafter(off[weight][-1, -1], torch.tensor(9.0))
    mixed[other] = hosts.toy().state_dict()[other]
    for weights in (off, mixed, early):  # one number, one weight, another time
        fresh, its, _, new = made()
        fresh.load_state_dict(weights, strict=False)
        before = hosts.photo(fresh)
        with pytest.raises(SiteError, match="expected the weight from before the first link, or that with the 2"):
            new.load_state_dict(restarts.state_dict())
        hosts.assert_same_photo(before, hosts.photo(fresh))
        assert its.adapter.seed == 3
        assert new.steps == 0


def test_links_beside_the_weights_that_are_others_are_refused():
    first, second = made(beside=True), made(beside=True, lr=0.01)
    for model, state, optimizer, restarts in (first, second):
        train(model, state, restarts, optimizer, EVERY + 1)
    before = hosts.photo(first[0])
    with pytest.raises(SiteError, match="'default_link_0': expected the finished link of the state dict, got another"):
        first[3].load_state_dict(second[3].state_dict())
    hosts.assert_same_photo(before, hosts.photo(first[0]))


def test_a_model_that_was_cast_does_not_take_a_state_dict():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, EVERY + 1)
    fresh, _, _, new = made()
    fresh.to(torch.bfloat16)
    with pytest.raises(SiteError, match="expected the weight from before the first link"):
        new.load_state_dict(restarts.state_dict())


def test_an_optimizer_that_lost_the_factors_is_refused_at_a_restart():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, EVERY - 1)
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(one.detach()) for one in state.parameters()]
    before = hosts.photo(model)
    with pytest.raises(SiteError, match="got one without 12 of them"):
        restarts.step()
    hosts.assert_same_photo(before, hosts.photo(model))


def test_it_does_not_resume_on_weights_that_have_links():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, 6)
    merged = {key: value for key, value in model.state_dict().items() if "tnadapt" not in key}
    fresh = hosts.toy()
    fresh.load_state_dict(merged)
    its = hosts.adapt(fresh, "lora", awake=False)
    new = Restarts(its, torch.optim.AdamW(its.parameters()), every=EVERY)
    with pytest.raises(SiteError, match="without links in its weights"):
        new.load_state_dict(restarts.state_dict())


# ---- every family


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_chains_or_is_refused_with_the_reason(name):
    spec, sizes = FAMILIES[name]
    torch.manual_seed(0)
    model = nn.ModuleDict({"q": nn.Linear(4, 6), "v": nn.Linear(4, 6)})
    state = attach(model, spec, target_modules="all-linear", seed=5, overparametrized=True, **sizes)
    plain = {path: model[path].weight.detach().double().numpy().copy() for path in "qv"}
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    x = hosts.normal(5, 4)
    photo = hosts.photo(model)
    reason = "reads the host's weight" if spec.hosts else "an update of 0 at the start" if spec.start == "free" else ""
    if reason:
        with pytest.raises(SiteError, match=reason):
            Restarts(state, optimizer, every=3)
        hosts.assert_same_photo(photo, hosts.photo(model))
        return
    restarts = Restarts(state, optimizer, every=3)
    for _ in range(9):
        optimizer.zero_grad()
        (model["q"](x) + model["v"](x) - 3).square().sum().backward()
        optimizer.step()
        restarts.step()
    chain = restarts.links
    assert len(chain) == 3
    for path, weight in chain.merged(plain).items():
        found = model[path].weight.detach().double().numpy()
        assert np.abs(weight - plain[path]).max() > 0
        np.testing.assert_allclose(found, weight, rtol=0, atol=1e-5 * (1 + np.abs(weight).max()))


# ---- mistakes


def merged_state():
    state = made()[1]
    state.merge()
    return state


def detached_state():
    state = made()[1]
    state.detach()
    return state


def with_head():
    return hosts.adapt(hosts.toy(), "lora", modules_to_save=["score"])


def hosted():
    return attach(hosts.toy(), families.hira(), target_modules=hosts.TARGETS, rank=2)


def tied():
    model = hosts.toy()
    model.layers[1].self_attn.q_proj.weight = model.layers[0].self_attn.q_proj.weight
    return hosts.adapt(model, "lora")


def read_by_another():
    model = hosts.toy()
    attach(model, families.hira(), target_modules=hosts.TARGETS, rank=2, adapter_name="other")
    return hosts.adapt(model, "lora")


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_that_reads_a_weight_and_came_later_keeps_its_update(beside):
    model, state, optimizer, restarts = made(beside=beside)
    train(model, state, restarts, optimizer, EVERY - 1)
    other = attach(model, families.hira(), target_modules=hosts.TARGETS, rank=2, adapter_name="other")
    hosts.wake(other)
    saved, before = restarts.state_dict(), other.delta(PATH)
    if beside:
        restarts.step()
    else:
        for change in (restarts.step, lambda: restarts.load_state_dict(saved)):
            with pytest.raises(SiteError, match=f"{PATH}: expected a weight that no other adapter reads, .*'other'"):
                change()
    assert torch.equal(other.delta(PATH), before)
    assert restarts.steps == EVERY - 1 + beside
    other.detach()
    restarts.step()
    assert len(restarts.links) == 1 + beside


def with_tasks():
    spec = families.mtlora_tasks()
    return attach(hosts.toy(), spec, target_modules=hosts.TARGETS, rank=2, tasks=["a", "b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "expected an attached adapter, got int"),
        (merged_state, "expected an adapter that is not merged"),
        (detached_state, "expected an adapter that is attached"),
        (with_head, "expected no modules_to_save, got score"),
        (hosted, "whose update reads the host's weight"),
        (tied, "expected a weight that no other module shares"),
        (read_by_another, "expected a weight that no other adapter reads"),
        (with_tasks, "expected one task, got a, b"),
    ],
)
def test_a_state_that_forms_no_chain_is_refused(make, message):
    state = make()
    optimizer = torch.optim.SGD(state.parameters() if isinstance(state, nn.Module) else [torch.zeros(1)], lr=0.1)
    with pytest.raises(SiteError, match=message):
        Restarts(state, optimizer, every=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every: expected an integer of at least 1, got 0"),
        ({"every": True}, "every: expected an integer of at least 1, got True"),
        ({"every": 2.0}, r"got 2\.0"),
        ({}, "Restarts: expected the argument 'every'"),
        ({"every": 3, "warmup_steps": 4}, "warmup_steps: expected an integer from 0 to 3, got 4"),
        ({"every": 3, "prune": 2}, "prune: expected a fraction from 0 to 1, got 2"),
        ({"every": 3, "sites": 0}, "sites: expected a number of weights from 1 to 6, got 0"),
        ({"every": 3, "sites": 7}, "sites: expected a number of weights from 1 to 6, got 7"),
        ({"every": 3, "beside": "no"}, "Restarts: expected True or False as beside, got 'no'"),
        ({"every": 3, "seed": 7}, "expected a known argument, got 'seed'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    before = hosts.photo(model)
    with pytest.raises(SiteError, match=message):
        Restarts(state, torch.optim.SGD(state.parameters(), lr=0.1), **arguments)
    hosts.assert_same_photo(before, hosts.photo(model))


def test_an_optimizer_without_the_factors_is_refused():
    state = hosts.adapt(hosts.toy(), "lora")
    for optimizer, message in [
        (torch.optim.SGD(list(state.parameters())[1:], lr=0.1), r"got one without 1 of them"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "got one without 12 of them"),
        (None, r"expected a torch.optim.Optimizer, got NoneType"),
    ]:
        with pytest.raises(SiteError, match=message):
            Restarts(state, optimizer, every=4)


@beside(None)
def test_a_restart_that_fails_changes_nothing(beside):
    model, state, optimizer, restarts = made(beside=beside)
    train(model, state, restarts, optimizer, EVERY + EVERY - 1)
    state.merge()
    with pytest.raises(SiteError, match="expected an adapter that is not merged"):
        restarts.step()
    state.unmerge()
    if beside:
        model.tnadapt_default_link_0.enabled = False
    else:
        kept = model.layers[0].self_attn.q_proj.weight.detach().clone()
        model.layers[0].self_attn.q_proj.weight.data += 1
    before, moments = hosts.photo(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(SiteError, match=r"expected (the weight that the policy left|a finished link that adds)"):
        restarts.step()
    hosts.assert_same_photo(before, hosts.photo(model))
    assert str(moments) == str(optimizer.state_dict())
    assert restarts.steps == 2 * EVERY - 1
    if beside:
        model.tnadapt_default_link_0.enabled = True
    else:
        model.layers[0].self_attn.q_proj.weight.data.copy_(kept)
    restarts.step()
    assert len(restarts.links) == 2


def test_an_update_that_is_not_finite_is_refused():
    model, state, _, restarts = made(every=1)
    with torch.no_grad():
        for parameter in state.parameters():
            parameter.fill_(torch.inf)
    before = hosts.photo(model)
    with pytest.raises(SiteError, match="expected a finite sum of weight and links"):
        restarts.step()
    hosts.assert_same_photo(before, hosts.photo(model))
    assert restarts.steps == 0


def test_links_beside_the_weights_are_not_trained_and_not_merged():
    model, state, optimizer, restarts = made(beside=True)
    plain = weights_of(model, state)
    train(model, state, restarts, optimizer, 2 * EVERY)
    for path, weight in weights_of(model, state).items():
        np.testing.assert_array_equal(weight, plain[path])
    links = [model.tnadapt_default_link_0, model.tnadapt_default_link_1]
    assert not any(parameter.requires_grad for link in links for parameter in link.parameters())
    assert all(parameter.requires_grad for parameter in state.parameters())
    with pytest.raises(SiteError, match="expected links in the weights, got links beside them"):
        restarts.merged()


def test_links_beside_folded_weights_and_read_starts_are_refused():
    model = hosts.toy()
    state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, fold=True)
    with pytest.raises(SiteError, match="folded into its weight"):
        Restarts(state, torch.optim.SGD(state.parameters(), lr=0.1), every=2, beside=True)
    read = attach(hosts.toy(), families.pissa(), target_modules=["q_proj"], rank=2)
    with pytest.raises(SiteError, match="got one that is read from the host's weights"):
        Restarts(read, torch.optim.SGD(read.parameters(), lr=0.1), every=2, beside=True)


def test_a_folded_adapter_chains_in_its_weights():
    model = hosts.toy()
    state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, fold=True, seed=1)
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.05)
    restarts = Restarts(state, optimizer, every=2)
    train(model, state, restarts, optimizer, 5)
    other = hosts.toy()
    with torch.no_grad():
        for path, weight in restarts.merged().items():
            other.get_submodule(path).weight.copy_(weight)
    hosts.close(other(hosts.words()), model(hosts.words()))


def test_a_module_that_was_replaced_is_told_before_anything_is_merged():
    model, state, optimizer, restarts = made()
    train(model, state, restarts, optimizer, EVERY - 1)
    kept = model.layers[0].self_attn.q_proj
    model.layers[0].self_attn.q_proj = nn.Linear(16, 16)
    with pytest.raises(SiteError, match="The model changed after the adapter was attached"):
        restarts.step()
    assert restarts.steps == EVERY - 1
    model.layers[0].self_attn.q_proj = kept
    restarts.step()
    assert len(restarts.links) == 1
    state.detach()
    with pytest.raises(SiteError, match="expected an adapter that is attached"):
        restarts.step()


@pytest.mark.slow
@beside(None)
def test_compiled_code_follows_a_restart(beside):
    outputs = []
    for is_compiled in (False, True):
        model, state, optimizer, restarts = made("vera", beside=beside, every=2)
        run = torch.compile(model, backend="aot_eager" if IS_THOROUGH else "eager") if is_compiled else model
        train(run, state, restarts, optimizer, 5)
        outputs.append(run(hosts.words()).detach())
    hosts.close(*outputs)
