"""The first step of an optimizer: scales, the rates in balance with it, and what is said about a large one."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import tnadapt
import tnadapt_torch
from tests.torch import hosts
from tnadapt import SiteError, SpecError, families, raw, step_size, unit
from tnadapt.binding import balanced_rates
from tnadapt_torch import attach

LR = 2.0**-14  # far from any second order, and exact
WIDTHS = {"wide": (64, 48), "narrow": (32, 64)}  # (in, out)
READ = {  # families whose step depends on the host's weights, and how each start can be known later
    "pissa": families.pissa(),  # the update subtracts it
    "abba": families.abba(),  # lost by training
    "lotr neutral": families.lotr(start="neutral"),  # lost as well
    "hira": families.hira(),  # the weight itself
    "svdiff": families.svdiff(),  # a part of its SVD
    "lora_xs": families.lora_xs(),  # frozen
}


class Two(nn.Module):
    """Three layers of two linear maps of unequal shapes, each with a random linear loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in WIDTHS.items()}) for _ in range(3)
        )

    def forward(self, seed):
        random = torch.Generator().manual_seed(seed)
        total = torch.zeros(())
        for layer in self.layers:
            for one in layer.values():
                x = torch.randn(96, one.in_features, generator=random)
                total = total + (one(x) * torch.randn(96, one.out_features, generator=random)).sum()
        return total


def two(spec, **more):
    model = Two()
    return model, attach(model, spec, target_modules=[*WIDTHS], overparametrized=True, **more)


def deltas(state):
    return {site.path: state.delta(site.path).double() for site in state.adapter.sites}


FAMILIES = ("lora", "lotr", "vera", "tt_lora", "loha", "metatt", "fact_tt", "tlora", "randlora")


@pytest.mark.parametrize("scale", [None, unit(2.0)])
@pytest.mark.parametrize("rank", [4, 40])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_of_adam_moves_the_update_by_the_step_size(name, rank, scale):
    """At rank 40 bonds are larger than some of the modes that they join. RMS over sites and seeds."""
    squares: dict[str, list[float]] = {}
    for seed in range(3):
        model, state = two(getattr(families, name)(), rank=rank, scale=scale, seed=seed)
        before = deltas(state)
        model(seed).backward()
        torch.optim.AdamW(state.parameter_groups(lr=LR, balance=True), weight_decay=0.0).step()
        after = deltas(state)
        for group in state.adapter.groups:
            said = step_size(state.adapter)[group.name].update
            assert scale is None or said * math.sqrt(group.network.volume(group.network.in_modes)) >= 1.99
            found = [((after[one.path] - before[one.path]) / LR).square().mean().item() for one in group.sites]
            shape = str(group.network.weight_shape)
            squares.setdefault(shape, []).extend(square / said**2 for square in found)
    assert len(squares) == len(WIDTHS)
    for shape, ratios in squares.items():
        assert 1 / 1.35 < math.sqrt(sum(ratios) / len(ratios)) < 1.35, shape


def test_scale_replaces_that_of_the_spec_and_alpha_multiplies_it():
    scales = [
        hosts.adapt(hosts.toy(), "lotr", scale=scale, alpha=alpha).adapter.networks[0].scale
        for scale, alpha in ((unit(), None), (unit(), 16), (unit(16), None), (raw(3.0), None), (3, None))
    ]
    assert scales[1] == scales[2] == 16 * scales[0]
    assert scales[3] == scales[4] == 3.0
    with pytest.raises(SpecError, match=r"scale: expected a Scale or a number, got 'unit'; write scale=unit\(\)"):
        hosts.adapt(hosts.toy(), "lotr", scale="unit")
    with pytest.raises(SpecError, match=r"write scale=unit\(\)"):
        hosts.adapt(hosts.toy(), "lotr", scale=unit)
    with pytest.raises(SpecError, match="is read from the host"):
        attach(hosts.toy(), families.pissa(), target_modules=["q_proj"], rank=2, scale=unit())


def test_a_file_keeps_the_number_of_a_unit_scale(tmp_path):
    """As if an older release had another formula: its number is what counts."""
    state = hosts.adapt(hosts.toy(), "lotr", scale=unit(2.0))
    state.save(tmp_path / "unit.safetensors")
    adapter = state.adapter
    older = tnadapt.from_json(tnadapt.to_json(adapter).replace(repr(adapter.networks[0].scale), "0.125"))
    assert older.networks[0].scale == 0.125
    params = {name: value.detach().numpy() for name, value in state.params().items()}
    tnadapt.save(older, params, tmp_path / "older.safetensors")
    loaded = tnadapt_torch.load(hosts.toy(), tmp_path / "older.safetensors")
    loaded.save(tmp_path / "again.safetensors")
    again = tnadapt_torch.load(hosts.toy(), tmp_path / "again.safetensors")
    assert again.adapter == loaded.adapter == older != adapter
    path = next(site.path for site in adapter.groups[0].sites)
    hosts.close(again.delta(path), 0.125 / adapter.networks[0].scale * state.delta(path))


def test_a_unit_adapter_is_merged_and_exported(tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, "lora", scale=unit(2.0))
    words = hosts.words()
    wanted = model(words).detach()
    state.save_as_lora(tmp_path / "lora")
    state.merge()
    hosts.close(model(words), wanted)
    other = hosts.toy()
    tnadapt_torch.load_peft(other, tmp_path / "lora")
    hosts.close(other(words), wanted)


def adafactor(params):
    transformers = pytest.importorskip("transformers")
    return transformers.Adafactor(params, lr=LR, relative_step=False, scale_parameter=False)


def muon(params):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is of torch 2.9")
    return torch.optim.Muon(params, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("sizes", [(64, 64, 4), (256, 64, 8), (64, 256, 16)])
@pytest.mark.parametrize(
    ("make", "bounds"),
    [
        (adafactor, (0.9, 1.1)),
        (lambda params: torch.optim.Adafactor(params, lr=LR), (0.0009, 0.0011)),
        (muon, (0.15, 0.25)),
    ],
    ids=["adafactor", "adafactor of torch", "muon"],
)
def test_the_steps_of_other_optimizers_are_those_that_the_page_of_rates_states(make, bounds, sizes):
    out, width, rank = sizes
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, out, bias=False))
    state = attach(model, families.lora(), target_modules=["0"], rank=rank, seed=0)
    before = state.delta("0").detach()
    (model(torch.eye(width)).T * torch.randn(out, width)).sum().backward()
    make([*state.parameters()]).step()
    change = (state.delta("0").detach() - before).square().mean().sqrt().item() / LR
    (said,) = step_size(state.adapter).values()
    assert bounds[0] < change / said.update < bounds[1]


def by_hand(state, lr, decay):
    """Return groups, one per parameter, written without `parameter_groups`."""
    sizes, found = step_size(state.adapter), []
    for group in state.adapter.groups:
        for factor, rate in sizes[group.name].rates.items():
            value = state.params()[state.adapter.slot_name(group, factor)]
            if all(value is not each["params"][0] for each in found):
                found.append({"params": [value], "lr": lr * rate, "weight_decay": decay / rate})
    return found


@pytest.mark.parametrize("family", hosts.FAMILIES)
def test_balanced_groups_are_those_made_by_hand(family):
    trained = []
    for make in (
        lambda state: state.parameter_groups(lr=2**-5, balance=True, weight_decay=0.25),
        lambda state: by_hand(state, 2**-5, 0.25),
    ):
        model = hosts.toy()
        state = hosts.adapt(model, family, awake=False)
        optimizer = torch.optim.AdamW(make(state))
        for _ in range(3):
            model(hosts.words()).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append([value.detach() for value in state.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_factor_of_two_rates_has_two_groups_with_names_of_their_own():
    state = hosts.adapt(hosts.toy(), "lora", modules_to_save=["score"])  # down has longer rows than q_proj and v_proj
    groups = state.parameter_groups(lr=0.5, balance=True)
    rates = {group["name"]: group["lr"] for group in groups}
    a, b = (0.5 * 6 / math.sqrt(3 * width) for width in (hosts.WIDTH, hosts.INNER))
    assert rates == {
        "0.self_attn.q_proj.A": pytest.approx(a),
        "0.mlp.down.A": pytest.approx(b),
        "B": 0.5,
        "modules_to_save": 0.5,
    }
    grouped = [id(one) for group in groups for one in group["params"]]
    assert len(grouped) == len({*grouped})
    assert "weight_decay" not in groups[0]


def test_all_factors_shrink_alike_with_a_weight_decay():
    """AdamW multiplies by 1 - rate * decay: with one decay for all, LoTR's A and B would shrink four times faster."""
    state = hosts.adapt(hosts.toy(), "lotr")
    before = copy.deepcopy(state.params())
    for value in state.parameters():
        value.grad = torch.zeros_like(value)
    torch.optim.AdamW(state.parameter_groups(lr=0.125, balance=True, weight_decay=0.5)).step()
    for name, value in state.params().items():
        torch.testing.assert_close(value.detach(), before[name].detach() * (1 - 0.125 * 0.5))
    rates = {group["lr"] for group in state.parameter_groups(lr=0.125, balance=True)}
    assert max(rates) > 4 * min(rates)


def test_a_weight_decay_refers_to_lr_beside_a_ratio_too():
    groups = hosts.adapt(hosts.toy(), "lora").parameter_groups(lr=0.5, ratio=4.0, weight_decay=0.5)
    assert {group["name"]: group["weight_decay"] for group in groups} == {"A": 0.5, "B": 0.125}


def test_a_weight_decay_at_a_tiny_lr_is_that_at_any_other():
    """lr times the decay would be 0 there, and so would be the decay."""
    groups = hosts.adapt(hosts.toy(), "lora").parameter_groups(lr=2.0**-1060, ratio=4.0, weight_decay=2.0**-20)
    assert {group["name"]: group["weight_decay"] for group in groups} == {"A": 2.0**-20, "B": 2.0**-22}


def test_a_rate_so_small_that_a_part_of_it_is_0_is_refused():
    """A has 6 / sqrt(3 width) times the rate, which is less than half of it."""
    state = attach(nn.Sequential(nn.Linear(512, 4)), "lora", target_modules=["0"], rank=2, seed=0)
    for more in ({}, {"weight_decay": 0.1}):
        with pytest.raises(SiteError, match=r"lr: expected a rate .*, got 5e-324, at which A has the rate: 0\.0\."):
            state.parameter_groups(lr=5e-324, balance=True, **more)
    groups = state.parameter_groups(lr=1e-300, balance=True, weight_decay=0.1)
    assert [group["weight_decay"] * (group["lr"] / 1e-300) for group in groups] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_rates_of_numpy_are_python_numbers(number, balance):
    state = hosts.adapt(hosts.toy(), "lora")
    found, wanted = (
        [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        for groups in (
            state.parameter_groups(lr=number(0.5), weight_decay=number(0.25), balance=balance),
            state.parameter_groups(lr=0.5, weight_decay=0.25, balance=balance),
        )
    )
    assert found == wanted
    assert {type(one) for each in found for one in each[1:]} == {float}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"lr": 5e-324, "ratio": 0.01}, r"lr: expected a rate .*, got 5e-324, .*: 0\.0\."),
        ({"lr": 1e308, "ratio": 1e8}, r"lr: expected a rate .*, got 1e\+308, .*: inf\."),
        ({"lr": 1.0, "ratio": 1e-8, "weight_decay": 1e308}, r"weight_decay: expected one .*, got 1e\+308, .*: inf\."),
        ({"lr": "1"}, "lr: expected a positive number, got '1'"),
        ({"lr": np.bool_(1)}, "lr: expected a positive number, got"),
        ({"lr": 1.0, "weight_decay": "0"}, "weight_decay: expected a number of at least 0, got '0'"),
        ({"lr": 1.0, "weight_decay": np.bool_(1)}, "weight_decay: expected a number of at least 0, got"),
        ({"lr": {"A": 1.0, "B": 1.0}, "balance": True}, "balance: expected one lr, got a rate for every factor"),
        ({"lr": 1.0, "ratio": 2.0, "balance": True}, r"balance: expected no ratio beside it.*got 2\.0"),
        ({"lr": 1.0, "balance": "full"}, "balance: expected True or False, got 'full'"),
        ({"lr": 1.0, "balance": 1}, "balance: expected True or False, got 1"),
        ({"lr": -1.0, "balance": True}, "lr: expected a positive number, got -1.0"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay: expected a number of at least 0, got -0.1"),
        ({"lr": 1.0, "weight_decay": math.nan}, "weight_decay: expected a number of at least 0, got nan"),
        ({"lr": 1.0, "weight_decay": True}, "weight_decay: expected a number of at least 0, got True"),
        ({"lr": {"A": 1.0, "B": 1.0}, "weight_decay": 0.1}, "weight_decay: expected one lr"),
    ],
)
def test_words_that_contradict_each_other_raise(asked, told):
    with pytest.raises(SiteError, match=told):
        hosts.adapt(hosts.toy(), "lora").parameter_groups(**asked)


def test_a_shared_trained_factor_is_in_one_group_once():
    spec = families.bslora()
    state = attach(hosts.toy(), spec, target_modules=hosts.TARGETS, rank=2, seed=0, overparametrized=True)
    for balance in (False, True):
        grouped = [id(one) for group in state.parameter_groups(lr=1.0, balance=balance) for one in group["params"]]
        assert sorted(grouped) == sorted(map(id, state.parameters()))


@pytest.mark.parametrize("name", READ)
def test_the_rates_of_a_run_do_not_change_on_resume(name, tmp_path):
    """Trained values have other sizes than the starting ones, which the rates follow from."""
    model = hosts.toy()
    rank = None if name == "svdiff" else 2
    state = attach(model, READ[name], target_modules=["q_proj", "up"], rank=rank, seed=0, overparametrized=True)
    rates = [(group["name"], group["lr"]) for group in state.parameter_groups(lr=1.0, balance=True)]
    weights = {path: each.module.weight.detach().numpy() for path, each in state.weights.items()}
    wanted = balanced_rates(
        state.adapter, tnadapt.init(state.adapter, weights) | tnadapt.binding.read_hosts(state.adapter, weights)
    )
    assert rates == [(label, pytest.approx(part.rate, rel=1e-5)) for label, part in wanted.items()]
    hosts.wake(state)
    state.save(tmp_path / "run.safetensors")
    loaded = tnadapt_torch.load(hosts.toy(), tmp_path / "run.safetensors")
    for one in (state, loaded):
        again = [(group["name"], group["lr"]) for group in one.parameter_groups(lr=1.0, balance=True)]
        assert again == [(label, pytest.approx(rate, rel=1e-6)) for label, rate in rates]
    state.merge()
    again = [(group["name"], group["lr"]) for group in state.parameter_groups(lr=1.0, balance=True)]
    assert again == [(label, pytest.approx(rate, rel=1e-6)) for label, rate in rates]


def test_rates_are_not_taken_from_a_weight_with_the_update_of_another_adapter():
    model = hosts.toy()
    state = attach(model, families.abba(), target_modules=["q_proj"], rank=2, seed=0)
    rates = [group["lr"] for group in state.parameter_groups(lr=1.0, balance=True)]
    other = hosts.adapt(model, "lora", name="other")
    other.merge()
    with pytest.raises(SiteError, match=r"got one with the update of adapter 'other'\.\nUnmerge 'other' first"):
        state.parameter_groups(lr=1.0, balance=True)
    state.parameter_groups(lr=1.0)
    other.unmerge()
    assert [group["lr"] for group in state.parameter_groups(lr=1.0, balance=True)] == rates


def test_a_large_step_is_told_once(capsys):
    """The A and B of LoTR have the deviation 1: at alpha 64 and a width of 64 it goes 300 times as far as LoRA."""
    _, state = two(families.lotr(), rank=8, alpha=64, seed=0)
    factor = max(size.of_lora for size in step_size(state.adapter).values())
    assert factor == pytest.approx(8 * 8 * 8 / math.sqrt(8 / 3), rel=0.2)
    state.print_trainable_parameters()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("trainable params: ")
    assert rest[0] == (
        f"adapter 'default': the first step of Adam moves lotr {factor:.3g} times as far as a LoRA of rank 8 and alpha "
        "8 at the same learning rate."
    )
    assert rest[1].endswith(f"attach with scale=unit(), or divide the rate of a LoRA by {factor:.2g}.")
    state.print_trainable_parameters()
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("spec", "more"), [(families.lora(), {"alpha": 16}), (families.lotr(), {"scale": unit(1.6)})])
def test_nothing_is_told_about_a_usual_step(spec, more, capsys):
    two(spec, rank=8, seed=0, **more)[1].print_trainable_parameters()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_nothing_is_told_where_the_step_is_not_known(capsys):
    two(families.pissa(), rank=8, alpha=1e4, seed=0)[1].print_trainable_parameters()
    assert len(capsys.readouterr().out.splitlines()) == 1


class Residual(nn.Module):
    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.ups, self.downs = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(2))

    def forward(self, x):
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(torch.tanh(up(x)))
        return x


def trained(family, scale, *, balance, lr=2.0**-4, steps=40):
    """Return the loss after training towards a host with other weights, as a multiple of the loss before."""
    torch.manual_seed(0)
    host = Residual()
    teacher = copy.deepcopy(host)
    falling = 1 / torch.arange(1, 65)
    for weight in (value.data for value in teacher.parameters() if value.dim() == 2):
        left, right = (torch.linalg.qr(torch.randn(64, 64))[0] for _ in range(2))
        weight.add_(0.3 * weight.norm() / falling.norm() * (left * falling) @ right)
    state = attach(host, family, target_modules=r"(ups|downs)\.\d", rank=8, scale=scale, overparametrized=True)
    optimizer = torch.optim.AdamW(state.parameter_groups(lr=lr, balance=balance))
    slope = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 5) * (1 - step / steps))
    random = torch.Generator().manual_seed(1)

    def loss(rows):
        x = torch.randn(rows, 64, generator=random) * 3 * falling.sqrt()
        return (host(x) - teacher(x).detach()).square().mean()

    before = loss(512).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(64).backward()
        optimizer.step()
        slope.step()
    return loss(512).item() / before


@pytest.mark.parametrize("name", ["lora", "lotr", "tt_lora", "randlora", "metatt", "fact_tt", "loha"])
def test_one_rate_trains_every_family_with_the_defaults_of_adamw(name):
    family = getattr(families, name)()
    assert trained(family, unit(1.63), balance=True) < 0.45
    if name == "randlora":
        assert trained(family, None, balance=False) > 10, "its own scale is right at this rate, so this shows nothing"
