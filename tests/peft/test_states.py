"""State dicts of whole models under PEFT: merged ones, sharded ones, and those that lack factors."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from tests.peft.models import close, wake
from tnadapt import FormatError, SiteError, families
from tnadapt_torch.peft import TnConfig


class Net(nn.Module):
    """Two linear layers and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.head = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.head(torch.tanh(self.k(torch.tanh(self.q(x)))))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def adapted(spec=None, *, host=None, seed=0, **more):
    words = {"rank": 2, "target_modules": ["q", "k"], "seed": 3} | more
    model = get_peft_model(host or Net(), TnConfig(spec=spec or families.lora(), **words))
    wake(model.base_model.states()["default"], seed=seed)
    return model.eval()


@pytest.fixture
def merged():
    model = adapted()
    model.merge_adapter()
    return model


def test_the_state_dict_of_a_merged_model_is_not_loaded_into_a_plain_one(merged):
    other = adapted(seed=5)
    wanted = other(X)
    for strict in (True, False):
        with pytest.raises(SiteError, match=r"^load_state_dict: .* without merged adapters, .*, got one with them"):
            other.load_state_dict(merged.state_dict(), strict=strict)
    assert torch.equal(other(X), wanted)


def test_a_plain_state_dict_is_not_loaded_into_a_merged_model(merged):
    wanted = merged(X)
    with pytest.raises(SiteError, match=r"with merged adapters, .* without them\.\nNothing was loaded\. Call unmerge"):
        merged.load_state_dict(adapted(seed=5).state_dict())
    assert torch.equal(merged(X), wanted)
    merged.unmerge_adapter()
    merged.load_state_dict(adapted(seed=5).state_dict())
    assert torch.equal(merged(X), adapted(seed=5)(X))


def test_merged_state_dicts_are_loaded_into_the_same_merged_model_alone(merged):
    twin, wanted = copy.deepcopy(merged), merged(X)
    twin.load_state_dict(merged.state_dict())
    assert torch.equal(twin(X), wanted)
    twin.unmerge_adapter()
    close(twin(X), adapted()(X))
    other = adapted(seed=5)
    other.merge_adapter()
    with pytest.raises(SiteError, match=r"expected the merged weights of this model, got another base_model\.model\.q"):
        other.load_state_dict(merged.state_dict())


def test_the_factors_alone_are_loaded_whether_merged_or_not(merged):
    values = get_peft_model_state_dict(adapted(seed=5))
    set_peft_model_state_dict(merged, values)
    merged.unmerge_adapter()
    assert torch.equal(merged(X), adapted(seed=5)(X))
    assert "base_model.tnadapt_merged" not in merged.state_dict()


def test_a_state_dict_without_factors_raises():
    model = adapted()
    part = {key: value for key, value in model.state_dict().items() if "factors" not in key}
    with pytest.raises(FormatError, match=r"expected a state dict of the whole PEFT model, got one without base_model"):
        get_peft_model_state_dict(model, state_dict=part)
    odd = {f"module.{key}": value for key, value in model.state_dict().items()}
    with pytest.raises(FormatError, match="expected a state dict of the whole PEFT model"):
        get_peft_model_state_dict(model, state_dict=odd)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch, on machines without an accelerator
@pytest.mark.parametrize("spec", [families.lotr(), families.vera()], ids=["lotr", "vera"])
def test_a_sharded_model_is_saved_and_loaded(spec, group, tmp_path):
    from torch.distributed.fsdp import fully_shard

    model = adapted(spec, modules_to_save=["head"])
    wanted = model(X)
    for layer in model.base_model._layers().values():
        fully_shard(layer)
    fully_shard(model)
    close(model(X), wanted)
    model.save_pretrained(tmp_path)
    close(PeftModel.from_pretrained(Net(), tmp_path)(X), wanted)
    other = adapted(spec, modules_to_save=["head"], seed=5)
    fully_shard(other)
    other(X)
    told = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert not told.unexpected_keys
    close(other(X), wanted)


def test_the_checkpoint_functions_of_torch_distributed_find_every_key(merged):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    wanted = merged(X)
    set_model_state_dict(merged, get_model_state_dict(merged))
    assert torch.equal(merged(X), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_is_traced_by_jit():
    model = adapted()
    traced = torch.jit.trace(model, X, strict=False)
    wake(model.base_model.states()["default"], seed=1)
    close(traced(X), model(X))


def test_the_bonds_of_an_adapter_under_peft_do_not_change():
    """PEFT's layers and configs know the ranks of before."""
    from tnadapt.policies import grow

    state = adapted().base_model.states()["default"]
    held = {name: value.clone() for name, value in state.params().items()}
    with pytest.raises(
        SiteError, match=r"attached to a model, got one under PEFT\.\n.*tnadapt_torch.load\(model, path"
    ):
        state.resize(grow(state.adapter, state.arrays(), "r", 1), None)
    assert all(torch.equal(value, held[name]) for name, value in state.params().items())
