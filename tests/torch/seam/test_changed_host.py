"""A host that changed after attach is noticed by an error that names the path, and never read past."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.torch import hosts
from tnadapt import SiteError, families
from tnadapt_torch import attach, load

PATH = "layers.0.mlp.down"


def replaced(model):
    model.layers[0].mlp.down = nn.Linear(24, 16)


def removed(model):
    del model.layers[0].mlp.down


def resized(model):
    down = model.layers[0].mlp.down
    down.weight, down.in_features = nn.Parameter(torch.zeros(16, 30)), 30


def shortened(model):
    del model.layers[0]


OPERATIONS = {
    "save": lambda state, folder: state.save(folder / "a.safetensors"),
    "save_as_lora": lambda state, folder: state.save_as_lora(folder / "lora"),
    "merge": lambda state, folder: state.merge(),
    "delta": lambda state, folder: state.delta(PATH),
    "norms": lambda state, folder: state.norms(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("change", [replaced, removed, resized])
def test_a_changed_module_is_named(change, operation, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    change(model)
    with pytest.raises(SiteError, match=rf"^{PATH}: expected the weight of shape \(16, 24\) that the adapter was"):
        OPERATIONS[operation](state, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert state.merged is None


def test_an_unmerge_of_a_changed_host_changes_nothing():
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    state.merge()
    merged = model.layers[1].mlp.down.weight.detach().clone()
    replaced(model)
    with pytest.raises(SiteError, match=f"^{PATH}: expected the weight"):
        state.unmerge()
    assert torch.equal(model.layers[1].mlp.down.weight, merged)
    assert state.merged is not None


@pytest.mark.parametrize("change", [replaced, removed, shortened])
def test_a_changed_host_can_still_be_detached(change):
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    change(model)
    state.detach()
    assert not [name for name, _ in model.named_modules() if "tnadapt" in name]


def orthogonal(layer):
    parametrizations.orthogonal(layer)


def spectral(layer):
    parametrizations.spectral_norm(layer)


def normed(layer):
    parametrizations.weight_norm(layer)


def old_normed(layer):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


COMPUTED = [orthogonal, spectral, normed, old_normed, pruned]


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("compute", COMPUTED)
def test_a_weight_that_is_computed_is_not_merged_into(compute, later, tmp_path):
    model = hosts.toy()
    if not later:
        compute(model.layers[0].mlp.down)
    state = hosts.adapt(model, "lora")
    if later:
        compute(model.layers[0].mlp.down)
    wanted = model(hosts.words()).detach()
    with pytest.raises(SiteError, match=rf"^{PATH}: expected a weight that is stored as a parameter"):
        state.merge()
    assert state.delta(PATH).shape == (16, 24)
    assert torch.equal(model.eval()(hosts.words()), model(hosts.words()))
    state.save(tmp_path / "a.safetensors")
    state.detach()
    assert wanted.shape == (2, 5, 3)


@pytest.mark.parametrize("compute", [orthogonal, normed, pruned])
def test_a_start_is_computed_from_the_weight_that_the_layer_uses(compute):
    model = hosts.toy()
    compute(model.layers[0].mlp.down)
    used = model.layers[0].mlp.down.weight.detach()
    state = attach(model, families.pissa(), target_modules=[PATH], rank=16, alpha=16)
    factors = {name.rpartition(".")[2]: value.detach() for name, value in state.params().items()}
    hosts.close(factors["B"] @ factors["A"], used, 1e-4)


def test_a_parametrization_on_top_of_a_fold_survives_detach():
    class Upper(nn.Module):
        def forward(self, weight):
            return weight.triu()

    model = hosts.toy()
    state = hosts.adapt(model, "lora", fold=True)
    down = model.layers[0].mlp.down
    nn.utils.parametrize.register_parametrization(down, "weight", Upper())
    state.detach()
    assert torch.equal(down.weight, hosts.toy().layers[0].mlp.down.weight.triu())


def swapped(model):
    """Give a layer another weight, as pruning of whole neurons does, without a word to the layer."""
    up, down = model.layers[0].mlp.up, model.layers[0].mlp.down
    up.weight, up.bias = nn.Parameter(up.weight[:20].detach()), nn.Parameter(up.bias[:20].detach())
    down.weight = nn.Parameter(down.weight[:, :20].detach())


def test_a_shape_is_that_of_the_weight_and_not_of_the_words_of_its_layer():
    model = hosts.toy()
    swapped(model)
    base = model(hosts.words())
    state = hosts.adapt(model, "lora", awake=False)
    assert state.delta(PATH).shape == (16, 20)
    hosts.close(model(hosts.words()), base)
    hosts.wake(state)
    wanted = model(hosts.words())
    state.merge()
    hosts.close(model(hosts.words()), wanted)


def test_a_weight_that_was_swapped_after_attach_is_noticed():
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    swapped(model)
    with pytest.raises(
        SiteError, match=rf"^{PATH}: expected the weight of shape \(16, 24\) .*got one of shape \(16, 20"
    ):
        state.merge()


@pytest.mark.parametrize("more", [{"target_modules": ["0"]}, {"target_modules": ["1"]}, {"modules_to_save": ["0"]}])
def test_a_lazy_layer_is_refused_before_anything_changes(more, tmp_path):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with pytest.raises(SiteError, match=r"0: expected a layer whose weight has a shape, got a lazy one"):
        attach(model, "lora", **({"target_modules": ["1"], "rank": 2} | more))
    assert model[1].weight.requires_grad
    assert list(model._modules) == ["0", "1"]


# ---- wrappers


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_a_wrapped_model_has_the_paths_and_files_of_the_plain_one(wrap, tmp_path):
    model = hosts.toy()
    state = hosts.adapt(wrap(model), "lora")
    assert state.model is model
    state.save(tmp_path / "a.safetensors")
    plain = hosts.toy()
    load(plain, tmp_path / "a.safetensors")
    hosts.close(plain(hosts.words()), model(hosts.words()))
    load(wrap(hosts.toy()), tmp_path / "a.safetensors")


def test_the_words_of_wrappers_inside_are_not_in_the_paths(tmp_path):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = hosts.toy()
    model.layers[0] = torch.compile(model.layers[0], backend="eager")
    model.layers[1] = checkpoint_wrapper(model.layers[1])
    state = hosts.adapt(model, "lotr")
    assert [site.path for site in state.adapter.sites] == [
        site.path for site in hosts.adapt(hosts.toy(), "lotr").adapter.sites
    ]
    state.save(tmp_path / "a.safetensors")
    plain = hosts.toy()
    load(plain, tmp_path / "a.safetensors")
    with torch.no_grad():
        hosts.close(plain(hosts.words()), model(hosts.words()))
    state.merge()
    with torch.no_grad():
        hosts.close(plain(hosts.words()), model(hosts.words()))


# ---- devices


def test_factors_live_where_their_sites_are(monkeypatch):
    model = hosts.toy().to("meta")
    state = attach(model, "lora", target_modules=["down"], rank=2)
    assert {p.device.type for p in state.parameters()} == {"cpu"}
    assert model(hosts.words().to("meta")).device.type == "meta"


def test_offloaded_factors_say_what_to_do():
    accelerate = pytest.importorskip("accelerate")
    model = hosts.toy()
    hosts.adapt(model, "lora")
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(SiteError, match=r"factor: expected a factor with values, got one on the meta device"):
        model(hosts.words())


def test_an_adapter_on_an_offloaded_model():
    accelerate = pytest.importorskip("accelerate")
    model, plain = hosts.toy(), hosts.toy()
    accelerate.cpu_offload(model, execution_device="cpu")
    state, other = hosts.adapt(model, "lora"), hosts.adapt(plain, "lora")
    hosts.close(model(hosts.words()), plain(hosts.words()))
    hosts.close(state.delta(PATH), other.delta(PATH))
    with pytest.raises(SiteError, match=r"expected a weight with values, got one on the meta device"):
        state.merge()
    with pytest.raises(SiteError, match=r"expected a weight with values to compute starting values from"):
        attach(model, families.pissa(), target_modules=["down"], rank=2, adapter_name="second")
