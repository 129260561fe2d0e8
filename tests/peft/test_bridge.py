"""PEFT's own usage, method by method, for every spec: `tnadapt_torch.peft`."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of its imports
    import peft
from peft import PeftModel, get_peft_model

from tests.peft.models import (
    OWN,
    SPECS,
    attached,
    bert,
    close,
    config,
    differs,
    gpt2,
    llama,
    logits,
    wake,
)
from tnadapt import FormatError, SiteError, SpecError, families
from tnadapt_torch import load
from tnadapt_torch.peft import TnConfig, TnLinear
from tnadapt_torch.peft._config import check_release
from tnadapt_torch.peft._tuner import _put_back

# transformers' own: PEFT 0.21.2 asks its models for `is_gradient_checkpointing`, which they deprecate
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

every_spec = pytest.mark.parametrize("name", SPECS)


def adapted(name, *, awake=True, model=None, **more):
    model = get_peft_model(model or llama(), config(name, **more))
    if awake:
        wake(state_of(model))
    return model


def state_of(model, adapter="default"):
    return model.base_model.states()[adapter]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain():
    return logits(llama())


@every_spec
def test_the_logits_are_those_of_attach(name, plain):
    model = adapted(name, awake=False)
    close(logits(model), plain)
    wake(state_of(model))
    close(logits(model), logits(attached(llama(), name)))
    differs(logits(model), plain)


@every_spec
def test_each_factor_is_registered_once_and_alone_is_trained(name):
    model = adapted(name)
    state = state_of(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.tnadapt_states.default.{key}" for key, _ in state.named_parameters()}
    identities = [id(value) for value in model.state_dict(keep_vars=True).values()]
    assert len(identities) == len(set(identities))
    model(input_ids=torch.arange(4)[None]).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in state.parameters())


@every_spec
def test_a_saved_adapter_has_one_key_a_trained_factor_and_comes_back(name, tmp_path):
    model = adapted(name)
    model.save_pretrained(tmp_path)
    adapter = state_of(model).adapter
    stored = {f"base_model.tnadapt_states.{key}" for key, slot in adapter.slots.items() if slot.is_stored}
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == stored
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's on missing keys
        back = PeftModel.from_pretrained(llama(), tmp_path)
    assert state_of(back).adapter == adapter
    assert torch.equal(logits(back), logits(model))
    assert not any(parameter.requires_grad for parameter in back.parameters())
    again = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    assert all(parameter.requires_grad for parameter in state_of(again).parameters())


@every_spec
def test_adapters_have_names_and_are_switched_added_loaded_and_deleted(name, tmp_path, plain):
    model = adapted(name)
    first = logits(model)
    others = {id(value) for value in state_of(model).state_dict(keep_vars=True).values()}
    model.add_adapter("second", config(name, seed=5))
    wake(state_of(model, "second"), seed=9)
    assert torch.equal(logits(model), first)  # added is not active
    assert not any(parameter.requires_grad for parameter in state_of(model, "second").parameters())
    model.set_adapter("second")
    second = logits(model)
    differs(second, first)
    assert all(parameter.requires_grad for parameter in state_of(model, "second").parameters())
    assert not any(parameter.requires_grad for parameter in state_of(model).parameters())
    assert {id(value) for value in state_of(model).state_dict(keep_vars=True).values()} == others
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path / "second", "third")
    model.set_adapter("third")
    assert torch.equal(logits(model), second)
    with model.disable_adapter():
        close(logits(model), plain)
    assert torch.equal(logits(model), second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert list(model.base_model.states()) == ["default", "third"] == list(model.peft_config)
    assert not any(".second." in key for key in model.state_dict())
    assert torch.equal(logits(model), first)


@every_spec
def test_merging_is_undone_bit_for_bit_and_unload_gives_the_base_model_back(name):
    model, before = adapted(name), weights(llama())
    wanted = logits(model)
    model.merge_adapter()
    close(logits(model), wanted, 1e-5)
    assert model.get_model_status().merged_adapters == ["default"]
    model.unmerge_adapter()
    assert torch.equal(logits(model), wanted)
    same(weights(copy.deepcopy(model).unload()), before)
    merged = model.merge_and_unload()
    assert type(merged) is type(llama())
    assert merged.state_dict().keys() == before.keys()
    close(logits(merged), wanted, 1e-5)


def test_a_second_unmerge_warns_where_it_was_asked():
    layer = next(module for module in adapted("lora").modules() if isinstance(module, TnLinear))
    with pytest.warns(UserWarning, match="^Already unmerged") as told:
        layer.unmerge()
    assert told[0].filename == __file__


@every_spec
def test_convert_to_lora(name):
    model = adapted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told, values = peft.convert_to_lora(model, rank=8)
        lora = get_peft_model(llama(), told)
        peft.set_peft_model_state_dict(lora, values)
    ranks = [torch.linalg.matrix_rank(layer.get_delta_weight("default")) for layer in layers(model)]
    if max(ranks) <= 8:
        close(logits(lora), logits(model), 1e-5)
    else:
        assert name == "tera"  # full rank: PEFT cuts its spectrum


def test_a_delta_weight_carries_no_graph():
    (first, *_) = layers(adapted("lotr"))
    assert first.get_delta_weight("default").grad_fn is None


def layers(model):
    return [module for module in model.modules() if isinstance(module, TnLinear)]


@every_spec
def test_sharing_survives_casts_and_copies(name):
    model = adapted(name)
    wanted, idents = logits(model), [id(value) for value in state_of(model).parameters()]
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    wake(state_of(twin), seed=1)
    differs(logits(twin), wanted)
    assert torch.equal(logits(model), wanted)
    model.to(torch.bfloat16)
    assert [id(value) for value in state_of(model).parameters()] == idents
    assert all(hook.owner is state_of(model) for layer in layers(model) for hook in layer.tnadapt_hooks.values())
    assert logits(model).dtype == torch.bfloat16


def test_factors_are_float32_on_a_half_precision_host(tmp_path):
    model = adapted("lotr", model=llama().to(torch.bfloat16))
    assert {parameter.dtype for parameter in state_of(model).parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=True)
    assert {parameter.dtype for parameter in state_of(back).parameters()} == {torch.float32}
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("name", ["lotr", "vera"])
def test_conv1d(name, tmp_path):
    model = adapted(name, model=gpt2(), target_modules=["c_attn", "c_proj"])
    close(logits(model), logits(attached(gpt2(), name, target_modules=["c_attn", "c_proj"])))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(gpt2(), tmp_path)), logits(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told, values = peft.convert_to_lora(model, rank=5)
        lora = get_peft_model(gpt2(), told)
        peft.set_peft_model_state_dict(lora, values)
    close(logits(lora), logits(model), 1e-5)
    wanted = logits(model)
    close(logits(model.merge_and_unload()), wanted, 1e-5)


def test_modules_to_save(tmp_path, plain):
    model = adapted("lotr", modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head
    assert head.modules_to_save["default"].weight.requires_grad
    with torch.no_grad():
        head.modules_to_save["default"].weight.add_(1.0)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(logits(back), logits(model))
    with back.disable_adapter():
        close(logits(back), plain)


def test_a_task_of_peft_on_a_bert_shape(tmp_path):
    asked = TnConfig(spec=families.lotr(), rank=2, task_type="SEQ_CLS")
    model = get_peft_model(bert(), asked)
    wake(state_of(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".tnadapt_states." not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{leaf}" for leaf in ("weight", "bias")
    }
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(bert(), tmp_path)), logits(model))


def test_all_linear_leaves_out_the_head_and_a_model_has_its_usual_targets():
    kinds = {site.path.split(".")[-1] for site in state_of(adapted("lora", target_modules="all-linear")).adapter.sites}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    kinds = {site.path.split(".")[-1] for site in state_of(adapted("lora", target_modules=None)).adapter.sites}
    assert kinds == {"q_proj", "v_proj"}
    one = adapted("lotr", layers_to_transform=[1], exclude_modules=["v_proj"])
    assert {site.path.split(".")[2] for site in state_of(one).adapter.sites} == {"1"}


@pytest.mark.parametrize("spec", ["lotr", families.lotr], ids=["name", "family"])
def test_a_family_stands_for_its_spec(spec):
    assert TnConfig(spec=spec).spec == families.lotr()
    with pytest.raises(SpecError, match=r"^TnConfig: .*got 'lotrr'.\nThe nearest names are lotr, "):
        TnConfig(spec="lotrr")


def test_a_spec_is_asked_for():
    with pytest.raises(SiteError, match="spec must be an AdapterSpec"):
        TnConfig(target_modules=["q_proj"])
    with pytest.raises(SiteError, match="dropout: must be at least 0"):
        TnConfig(spec=OWN, dropout=1.0)


def test_a_config_alone_is_saved_and_read(tmp_path):
    asked = config("own", rank={"p": 3})
    asked.save_pretrained(tmp_path)
    back = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(back, TnConfig)
    assert (back.spec, back.rank, back.seed) == (OWN, {"p": 3}, 3)


REFUSED = [
    ({"target_modules": ["nothing"]}, SiteError, "matches no module"),
    ({"target_modules": ["embed_tokens"]}, SiteError, r"nn\.Linear or transformers' Conv1D"),
    ({"rank": None}, SiteError, "rank"),
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(("words", "error", "told"), REFUSED)
def test_what_is_refused_leaves_the_model_as_it_was(words, error, told, plain):
    model = llama()
    modules, flags = list(model.named_modules()), [each.requires_grad for each in model.parameters()]
    with pytest.raises(error, match=told):
        get_peft_model(model, config("lora", **words))
    assert list(model.named_modules()) == modules
    assert [each.requires_grad for each in model.parameters()] == flags
    close(logits(model), plain)


def test_a_second_adapter_that_does_not_fit_leaves_the_first_as_it_was():
    model = adapted("lotr")
    wanted, keys = logits(model), model.state_dict().keys()
    with pytest.raises(SiteError, match="rank"):
        model.add_adapter("second", config("lotr", rank=None))
    with pytest.raises(SiteError, match="is the name of a factor"):
        model.add_adapter("G", config("lotr"))
    assert model.state_dict().keys() == keys
    assert torch.equal(logits(model), wanted)


def test_what_fails_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    calls = iter(range(3))
    add = TnLinear.add
    monkeypatch.setattr(TnLinear, "add", lambda *words: add(*words) if next(calls) < 2 else 1 / 0)
    model = llama()
    modules, flags = list(model.named_modules()), [each.requires_grad for each in model.parameters()]
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        get_peft_model(model, config("lora"))
    assert list(model.named_modules()) == modules
    assert [each.requires_grad for each in model.parameters()] == flags


def test_a_module_that_got_a_second_name_loses_it_again():
    model = torch.nn.Module()
    model.old = torch.nn.Linear(2, 2)
    before = dict(model.named_modules(remove_duplicate=False))
    model.new = model.old
    _put_back(model, before)
    assert list(model._modules) == ["old"]


def test_modules_to_save_are_put_back_where_the_last_step_fails(monkeypatch):
    place = "peft.tuners.tuners_utils.set_additional_trainable_modules"
    wrap = peft.tuners.tuners_utils.set_additional_trainable_modules
    model = adapted("lotr", modules_to_save=["lm_head"], target_modules=["q_proj"])
    wanted, modules, keys = logits(model), list(model.named_modules()), model.state_dict().keys()
    monkeypatch.setattr(place, lambda **words: 1 / 0 if wrap(**words) is None else None)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        model.add_adapter("second", config("lotr", target_modules=["o_proj"], modules_to_save=["lm_head", "norm"]))
    assert list(model.named_modules()) == modules
    assert model.state_dict().keys() == keys
    assert torch.equal(logits(model), wanted)
    fresh = llama()
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        get_peft_model(fresh, config("lotr"))
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_the_state_is_the_plain_bindings(tmp_path):
    model = adapted("vera")
    state = state_of(model)
    assert len(state.table().splitlines()) == 7
    state.save(tmp_path / "vera.safetensors")
    host = llama()
    load(host, tmp_path / "vera.safetensors")
    close(logits(host), logits(model))
    with pytest.raises(SiteError, match="is switched, merged and deleted by PEFT's own methods"):
        state.merge()


def test_adapters_of_different_modules(plain):
    model = adapted("lotr", target_modules=["q_proj"])
    first = logits(model)
    model.add_adapter("second", config("lotr", target_modules=["down_proj"]))
    wake(state_of(model, "second"))
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "second"])
    together = logits(model)
    differs(together, first)
    model.set_adapter("second")
    differs(logits(model), together)
    model.delete_adapter("default")
    model.delete_adapter("second")
    close(logits(model.base_model.model), plain)  # a PeftModel itself has to have an adapter


def test_a_merge_that_is_not_finite_changes_no_weight():
    model = adapted("lora")
    with torch.no_grad():
        list(state_of(model).parameters())[-1].fill_(torch.inf)
    before = weights(model.base_model.model)
    for ask in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(SiteError, match="a merged weight must be finite"):
            ask()
        same(weights(model.base_model.model), before)
    assert model.get_model_status().merged_adapters == []


def test_another_model_is_refused_and_left_alone(tmp_path):
    adapted("own").save_pretrained(tmp_path)
    other = llama(num_hidden_layers=3)
    modules = list(other.named_modules())
    with pytest.raises(FormatError, match="was saved from a model with 6 sites"):
        PeftModel.from_pretrained(other, tmp_path)
    assert list(other.named_modules()) == modules


def rewrite_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_factors(folder, change):
    path = folder / "adapter_model.safetensors"
    values = load_file(path)
    change(values)
    save_file(values, path)


def cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def pickle(folder):
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


U = "base_model.tnadapt_states.U"
DAMAGE = {
    "unknown key": (lambda folder: rewrite_config(folder, extra=1), "unknown keys"),
    "wrong type": (lambda folder: rewrite_config(folder, dropout="0"), "dropout has a value of the wrong type"),
    "two specs": (lambda folder: rewrite_config(folder, spec="{}"), "leave spec out"),
    "no adapter": (lambda folder: rewrite_config(folder, adapter="{}"), "missing keys|saved with format"),
    "digest": (lambda folder: rewrite_config(folder, digests={"V": "0"}), "V was drawn again from seed 3"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "JSON|Expecting"),
    "cut short": (cut, "was cut short or damaged"),
    "pickle": (pickle, "is a pickle"),
    "missing": (lambda folder: rewrite_factors(folder, lambda values: values.pop(keyed(values, "c"))), "is missing"),
    "unknown": (lambda folder: rewrite_factors(folder, lambda values: values.update(stranger(values))), "none of this"),
    "shape": (lambda folder: rewrite_factors(folder, shrink), "must have shape"),
    "stranger": (
        lambda folder: rewrite_factors(folder, lambda values: values.update(x=torch.ones(1), y=torch.ones(1))),
        "holds x, which this",
    ),
}


def keyed(values, factor):
    return next(key for key in values if key.endswith(f".{factor}"))


def stranger(values):
    return {"base_model.tnadapt_states.W": torch.ones(2)}


def two_strangers(values):
    values.update(x=torch.ones(1), y=torch.ones(1))


def shrink(values):
    values[keyed(values, "c")] = torch.ones(2, 2)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_nothing_of_it_loaded(damage, tmp_path, plain):
    adapted("own").save_pretrained(tmp_path)
    spoil, told = DAMAGE[damage]
    spoil(tmp_path)
    model = llama()
    with pytest.raises((FormatError, ValueError), match=told):
        PeftModel.from_pretrained(model, tmp_path)
    close(logits(model), plain)


def test_values_that_do_not_fit_are_not_loaded():
    model = adapted("own")
    wanted, good = logits(model), peft.get_peft_model_state_dict(model)
    first = next(iter(good))
    cases = [
        ("is missing", {name: value for name, value in good.items() if name != first}),
        ("is none of this adapter's", good | stranger(good)),
        *(("must have shape", good | {first: torch.ones(shape)}) for shape in ((3, 4, 5), (99, 99))),
    ]
    for told, values in cases:
        with pytest.raises(FormatError, match=told):
            peft.set_peft_model_state_dict(model, {name: value + 1 for name, value in values.items()})
    assert torch.equal(logits(model), wanted)


def test_another_release_of_peft_is_told():
    with pytest.raises(ImportError, match=r"However, peft 0\.0\.1 is installed"):
        check_release("0.0.1")


def test_dropout_acts_in_training_alone():
    model = adapted("lora", dropout=0.5)
    wanted = logits(attached(llama(), "lora"))
    close(logits(model), wanted)
    model.train()
    differs(model(input_ids=torch.arange(5)[None]).logits, model(input_ids=torch.arange(5)[None]).logits)


def test_a_centered_spec(plain, tmp_path):
    model = get_peft_model(llama(), TnConfig(spec=families.quanta(order=2), target_modules=["q_proj"], seed=1))
    close(logits(model), plain)
    wake(state_of(model))
    differs(logits(model), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
