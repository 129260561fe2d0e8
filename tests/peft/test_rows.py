"""Batches whose rows use different adapters: each row is as in a call with its adapter alone, or a clear error."""

import warnings

import pytest
import torch
import transformers
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import get_peft_model

from tests.peft.models import SPECS, WORDS, bart, close, config, differs, gpt2, llama, wake
from tnadapt import SiteError, families
from tnadapt_torch.peft import TnConfig

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NAMES = ["second", "__base__", "default", "second"]


class Net(nn.Module):
    """Two linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.head = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.head(torch.tanh(self.k(torch.tanh(self.q(input=x)))))


def two(make, first, second):
    """Make a model with two awake adapters."""
    torch.manual_seed(0)
    model = get_peft_model(make(), first).eval()
    model.add_adapter("second", second)
    for seed, state in enumerate(model.base_model.states().values()):
        wake(state, seed=seed)
    return model


def net(first=None, second=None, **more):
    words = {"spec": families.lora(), "rank": 2} | more
    return two(
        Net,
        TnConfig(**words | (first or {"target_modules": ["q"]})),
        TnConfig(**words | (second or {"target_modules": ["q", "k"]})),
    )


@torch.no_grad()
def one_by_one(model, x, names):
    """Call the model for each row with its adapter alone."""
    rows = []
    for row, name in zip(x, names, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(model(row[None]))
        else:
            model.set_adapter(name)
            rows.append(model(row[None]))
    found = [row.logits if hasattr(row, "logits") else row for row in rows]
    return torch.cat(found)


@pytest.mark.parametrize("name", SPECS)
def test_each_row_is_as_with_its_adapter_alone(name):
    model = two(llama, config(name), config(name, seed=5, target_modules=["q_proj", "o_proj"]))
    ids = torch.randint(0, WORDS, (4, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed = model(ids, adapter_names=NAMES).logits
    close(mixed, one_by_one(model, ids, NAMES), 1e-5)
    differs(mixed[0], mixed[1])


def test_conv1d_rows_are_right():
    model = two(gpt2, config("lotr", target_modules=["c_attn"]), config("lotr", target_modules=["c_proj"]))
    ids = torch.randint(0, WORDS, (4, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed = model(ids, adapter_names=NAMES).logits
    close(mixed, one_by_one(model, ids, NAMES), 1e-5)


X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("active", ["default", "second"])
@pytest.mark.parametrize("owner", ["default", "second", "both"])
def test_a_module_trained_in_full_is_used_by_the_rows_of_its_adapter(owner, active):
    words = [{"target_modules": ["q"]}, {"target_modules": ["k"]}]
    for each, name in zip(words, ("default", "second"), strict=True):
        if owner in (name, "both"):
            each["modules_to_save"] = ["head"]
    model = net(*words)
    for seed, copy in enumerate(model.base_model.model.head.modules_to_save.values()):
        nn.init.normal_(copy.weight, generator=torch.Generator().manual_seed(seed))
    model.set_adapter(active)
    with torch.no_grad():
        mixed = model(X, adapter_names=NAMES)
    close(mixed, one_by_one(model, X, NAMES))


@pytest.mark.parametrize("names", [["default"] * 4, ["__base__"] * 4, ["second", "default", "second", "second"]])
def test_equal_names_in_any_order_and_the_gradient_of_x_are_right(names):
    model = net()
    x = X.clone().requires_grad_()
    mixed = model(x, adapter_names=names)
    close(mixed, one_by_one(model, X, names))
    (found,) = torch.autograd.grad(mixed.square().sum(), x)
    for place, name in enumerate(names):
        alone = X[place : place + 1].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(model(alone, adapter_names=[name]).square().sum(), alone)
        close(found[place : place + 1], wanted, 1e-5)


def test_an_empty_batch_is_empty():
    assert net()(X[:0], adapter_names=[]).shape == (0, 3, 6)


def test_a_folded_adapter_is_right_in_its_rows():
    model = net(fold=True)
    with torch.no_grad():
        mixed = model(X, adapter_names=NAMES)
    close(mixed, one_by_one(model, X, NAMES))
    differs(mixed[0], mixed[1])


def test_the_tuner_takes_names_too():
    model = net()
    with torch.no_grad():
        assert torch.equal(model.base_model(X, adapter_names=NAMES), model(X, adapter_names=NAMES))


def test_disabled_adapters_stay_disabled():
    model = net()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(X, adapter_names=NAMES), model(X))


def merged(model):
    model.merge_adapter(["second"])


REFUSED = {
    "unknown": (["other", *NAMES[:3]], lambda model: None, r"names of this model's adapters \(default, second\), or"),
    "too few": (NAMES[:3], lambda model: None, "one name per row, got 3 names and 4 rows at q"),
    "too many": ([*NAMES, "default"], lambda model: None, "one name per row, got 5 names and 4 rows at q"),
    "no list": ("default", lambda model: None, "expected a list of names, got 'default'"),
    "no names": ([0, 1, 2, 3], lambda model: None, "expected a list of names"),
    "training": (NAMES, nn.Module.train, "expected a model in evaluation mode"),
    "merged": (NAMES, merged, "expected a model without merged adapters, got second in q"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_cannot_be_right_raise_and_leave_no_trace(case):
    names, prepare, told = REFUSED[case]
    model = net()
    prepare(model)
    wanted = model(X)
    with pytest.raises(SiteError, match=f"^adapter_names: .*{told}"):
        model(X, adapter_names=names)
    assert torch.equal(model(X), wanted)
    assert all(layer.rows is None for layer in model.base_model._layers().values())


def test_an_error_of_the_model_leaves_no_trace():
    model = net({"target_modules": ["q"], "modules_to_save": ["head"]})
    with pytest.raises(RuntimeError, match=r"shape|size"):
        model(X[..., :5], adapter_names=NAMES)
    assert all(layer.rows is None for layer in model.base_model._layers().values())
    assert not model.base_model.model.head._forward_pre_hooks


def test_offsets_of_another_method_raise():
    with pytest.raises(SiteError, match=r"^alora_offsets: expected none"):
        net()(X, alora_offsets=[1, 2, 3, 4])


GENERATE = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams of a config": {
        "generation_config": transformers.GenerationConfig(num_beams=2, max_new_tokens=5, pad_token_id=0)
    },
}


@pytest.mark.filterwarnings("ignore")  # transformers warns about the settings of such small models
@pytest.mark.parametrize("kind", GENERATE)
@pytest.mark.parametrize("make", [llama, bart])
def test_generate_gives_each_row_the_text_of_its_adapter(make, kind):
    model = two(make, config("lora", target_modules=["q_proj", "v_proj"]), config("lora", target_modules=["v_proj"]))
    ids = torch.randint(3, WORDS, (4, 5), generator=torch.Generator().manual_seed(1))
    words = {"max_new_tokens": 5, "pad_token_id": 1, "do_sample": False} if kind != "beams of a config" else {}
    words |= GENERATE[kind]
    found = model.generate(input_ids=ids, adapter_names=NAMES, **words)
    for place, name in enumerate(NAMES):
        row = ids[place : place + 1]
        if name == "__base__":
            with model.disable_adapter():
                alone = model.generate(input_ids=row, **words)
        else:
            model.set_adapter(name)
            alone = model.generate(input_ids=row, **words)
        assert found[place, : alone.shape[1]].tolist() == alone[0].tolist()


@pytest.mark.filterwarnings("ignore")
def test_several_answers_for_each_row_are_generated():
    model = two(llama, config("lora"), config("lora", seed=4))
    ids = torch.randint(3, WORDS, (4, 5), generator=torch.Generator().manual_seed(1))
    words = {"max_new_tokens": 3, "pad_token_id": 1, "do_sample": True, "num_return_sequences": 2}
    assert model.generate(input_ids=ids, adapter_names=NAMES, **words).shape == (8, 8)
