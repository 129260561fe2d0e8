"""Merge updates into the weights: rounded once, all or none, and undone bit for bit."""

import pytest
import torch
from torch import nn

from tests.torch import hosts
from tnadapt import AdapterSpec, SiteError, frozen, normal, raw, same, trainable
from tnadapt.initializers import host
from tnadapt_torch import attach, load, load_peft
from tnadapt_torch._host import Weight, check_weights

representative = pytest.mark.parametrize("family", hosts.REPRESENTATIVES)
PATH = "layers.0.self_attn.v_proj"


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("tnadapt_")}


def assert_equal_weights(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name]), name


def gpt2():
    import transformers as tf

    torch.manual_seed(0)
    return tf.GPT2Model(tf.GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=4, n_positions=8)).eval()


def outputs(model):
    y = model(hosts.words())
    return y if isinstance(y, torch.Tensor) else y.last_hidden_state


@representative
@pytest.mark.parametrize(("make", "targets"), [(hosts.toy, hosts.TARGETS), (gpt2, ["c_attn", "c_fc"])])
def test_a_merged_model_gives_the_same_outputs(family, make, targets):
    model = make()
    plain = outputs(model)
    state = hosts.adapt(model, family, target_modules=targets)
    before, unmerged = weights(model), outputs(model)
    assert not torch.allclose(unmerged, plain)
    state.merge()
    hosts.close(outputs(model), unmerged)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"{site.path}.weight" for site in state.adapter.sites}
    state.unmerge()
    assert_equal_weights(weights(model), before)
    assert torch.equal(outputs(model), unmerged)


def test_a_centered_update_is_merged_without_its_starting_values():
    own = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("out p"), "B": trainable("p in")},
        scale=raw(0.3),
        start="centered",
    )
    model = hosts.toy()
    state = attach(model, own, target_modules=hosts.TARGETS, rank=2, seed=0)
    assert not state.delta(PATH).any()
    hosts.wake(state)
    unmerged = model(hosts.words())
    state.merge()
    hosts.close(model(hosts.words()), unmerged)


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_unmerge_restores_every_bit(family, dtype):
    model = hosts.toy(dtype=dtype)
    state = hosts.adapt(model, family)
    before = weights(model)
    for _ in range(2):
        state.merge()
        assert not torch.equal(model.get_submodule(PATH).weight, before[f"{PATH}.weight"])
        state.unmerge()
        assert_equal_weights(weights(model), before)


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_rounds_once(family, dtype):
    model = hosts.toy(dtype=dtype)
    state = hosts.wake(hosts.adapt(model, family), size=0.02)  # small: rounding the delta first would lose part of it
    wanted = {}
    for site in state.adapter.sites:
        weight, delta = model.get_submodule(site.path).weight, state.delta(site.path)
        assert delta.dtype == torch.float32
        wanted[site.path] = (weight.float() + delta.float()).to(dtype)
    state.merge()
    for path, weight in wanted.items():
        assert torch.equal(model.get_submodule(path).weight, weight)


@representative
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_of_a_merge_is_what_the_merge_then_loses(family, dtype):
    model = hosts.toy(dtype=dtype)
    state = hosts.wake(hosts.adapt(model, family), size=0.02)
    before, deltas = weights(model), {site.path: state.delta(site.path).double() for site in state.adapter.sites}
    told = state.merge_loss()
    assert_equal_weights(weights(model), before)
    assert told.keys() == deltas.keys()
    state.merge()
    for path, delta in deltas.items():
        kept = model.get_submodule(path).weight.double() - before[f"{path}.weight"].double()
        lost = (kept - delta).norm() / delta.norm()
        assert told[path] == pytest.approx(lost.item(), rel=1e-3)
    assert all(0 < loss < 1.001 for loss in told.values())  # the weight as it was would lose 1


def test_an_update_of_zero_loses_nothing_and_a_merged_one_cannot_be_asked():
    state = hosts.adapt(hosts.toy(dtype=torch.bfloat16), "lora", awake=False)
    assert set(state.merge_loss().values()) == {0.0}
    state.merge()
    with pytest.raises(SiteError, match="expected an adapter that is not merged"):
        state.merge_loss()


def test_a_float64_host_is_merged_in_float64():
    model = hosts.toy(dtype=torch.float64)
    state = hosts.adapt(model, "lotr")
    state.double()
    hosts.wake(state)
    unmerged = model(hosts.words())
    state.merge()
    hosts.close(model(hosts.words()), unmerged, 1e-12)


def test_a_merge_keeps_the_parameter_objects_and_stays_out_of_autograd():
    model = hosts.toy()
    state = hosts.adapt(model)
    before = {name: id(p) for name, p in model.named_parameters()}
    state.merge()
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(p.is_leaf for p in model.parameters())
    assert not model.get_submodule(PATH).weight.requires_grad
    assert not model(hosts.words()).requires_grad


# ---- merges that fail


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_changes_no_weight(value):
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    last = list(state.parameters())[-1]  # of the last site; the sites before it are finite
    with torch.no_grad():
        last[0, 0] = value
    before = weights(model)
    with pytest.raises(SiteError, match=r"layers.1.mlp.down: expected a finite sum(.|\n)*Nothing was merged"):
        state.merge()
    assert_equal_weights(weights(model), before)
    assert state.merged is None
    with state.disabled():
        assert torch.isfinite(model(hosts.words())).all()


@pytest.mark.parametrize(
    ("weight", "got"),
    [
        (torch.ones(4, 4, dtype=torch.int8), r"torch\.int8\.\nThe update would be lost to the rounding"),
        (torch.ones(4), r"a torch\.float32 tensor of 1 axes"),
    ],
    ids=["integers", "a vector"],
)
def test_what_is_no_plain_matrix_is_not_merged_into(weight, got):
    host = torch.nn.Module()
    host.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(SiteError, match=rf"^q: expected a plain floating-point matrix to merge into, got {got}"):
        check_weights(host, {"q": Weight(host, path="q")})


def test_a_sum_that_overflows_float16_changes_no_weight():
    model = hosts.toy(dtype=torch.float16)
    state = hosts.adapt(model, "lora")
    with torch.no_grad():
        for parameter in state.params().values():
            parameter.fill_(200.0)  # 200 * 200 * 2 * 4 is finite in float32
    before = weights(model)
    assert torch.isfinite(state.delta(PATH)).all()
    with pytest.raises(SiteError, match=r"NaN or infinity in torch.float16"):
        state.merge()
    assert_equal_weights(weights(model), before)


def test_a_merge_that_fails_halfway_restores_the_weights(monkeypatch):
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    before, unmerged, calls = weights(model), model(hosts.words()), []
    computed, sites = type(state)._update_of, len(state.adapter.sites)

    def failing(self, path, weight):
        calls.append(path)
        if len(calls) == sites + 3:  # the first pass only checks; this is the third weight of the second pass
            assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())
            raise KeyboardInterrupt("mine")
        return computed(self, path, weight)

    monkeypatch.setattr(type(state), "_update_of", failing)
    with pytest.raises(KeyboardInterrupt, match="mine"):
        state.merge()
    assert_equal_weights(weights(model), before)
    assert torch.equal(model(hosts.words()), unmerged)
    assert state.merged is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words):
        return self.head(self.first(self.embed(words)))


def test_merging_a_weight_that_two_modules_share_raises():
    model = Tied()
    state = hosts.adapt(model, "lora", target_modules="all-linear")
    before, unmerged = weights(model), model(torch.arange(6))
    with pytest.raises(SiteError, match=r"^head: .*, got one shared by embed.weight, head.weight"):
        state.merge()
    assert_equal_weights(weights(model), before)
    assert torch.equal(model(torch.arange(6)), unmerged)
    assert model.head.weight is model.embed.weight


def test_merging_a_module_in_two_places_raises():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    state = hosts.adapt(model, "lora", target_modules=["a"])
    with pytest.raises(SiteError, match=r"got one shared by a\.weight, b\.weight"):
        state.merge()


@pytest.mark.parametrize("form", ["file", "file of a detached one", "lora"])
def test_a_merged_adapter_that_reads_its_weights_is_saved_with_those_before_the_merge(form, tmp_path):
    factors = {"W": frozen("out in", init=host()), "A": trainable("r in"), "B": trainable("a r", init=normal(4))}
    factors |= {"V": same("W", "out a")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["V B A"], start="free")
    model = hosts.toy()
    state = attach(model, spec, target_modules=[PATH], rank=2)
    wanted = outputs(model)
    state.merge()
    if "detached" in form:
        state.detach()
    save, read = (state.save_as_lora, load_peft) if form == "lora" else (state.save, load)
    save(tmp_path / "a")
    other = hosts.toy()
    read(other, tmp_path / "a")
    torch.testing.assert_close(outputs(other), wanted, rtol=1e-4, atol=1e-4)
