"""Adapters of `tnadapt_torch.peft` under the methods of PEFT: save, load, switch, merge, convert, delete."""

import copy
import json
import os
import re
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
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
from tnadapt_torch import attach, load
from tnadapt_torch.peft import TnConfig, TnLinear
from tnadapt_torch.peft._config import check_release
from tnadapt_torch.peft._modules import put_back

# PEFT 0.21.2 reads `is_gradient_checkpointing` of the models, which transformers deprecates
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
def test_the_logits_equal_those_of_attach(name, plain):
    model = adapted(name, awake=False)
    close(logits(model), plain)
    wake(state_of(model))
    close(logits(model), logits(attached(llama(), name)))
    differs(logits(model), plain)


@every_spec
def test_each_factor_is_registered_once_and_only_factors_are_trained(name):
    model = adapted(name)
    state = state_of(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.tnadapt_states.default.{key}" for key, _ in state.named_parameters()}
    identities = [id(value) for value in model.state_dict(keep_vars=True).values()]
    assert len(identities) == len(set(identities))
    model(input_ids=torch.arange(4)[None]).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in state.parameters())


@every_spec
def test_a_saved_adapter_has_one_key_per_stored_factor_and_can_be_loaded(name, tmp_path):
    model = adapted(name)
    model.save_pretrained(tmp_path)
    adapter = state_of(model).adapter
    stored = {f"base_model.tnadapt_states.{key}" for key, slot in adapter.slots.items() if slot.is_stored}
    if len(stored) < len(adapter.slots):
        stored.add("base_model.tnadapt_seed")
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == stored
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns about missing keys
        back = PeftModel.from_pretrained(llama(), tmp_path)
    assert state_of(back).adapter == adapter
    assert torch.equal(logits(back), logits(model))
    assert not any(parameter.requires_grad for parameter in back.parameters())
    again = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    assert all(parameter.requires_grad for parameter in state_of(again).parameters())


@every_spec
def test_named_adapters_can_be_added_switched_loaded_and_deleted(name, tmp_path, plain):
    model = adapted(name)
    first = logits(model)
    others = {id(value) for value in state_of(model).state_dict(keep_vars=True).values()}
    model.add_adapter("second", config(name, seed=5))
    wake(state_of(model, "second"), seed=9)
    assert torch.equal(logits(model), first)  # a new adapter is not active
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
def test_unmerge_restores_every_bit_and_unload_returns_the_base_model(name):
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
def test_convert_to_lora_keeps_the_logits_of_low_rank_updates(name):
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
        assert name == "tera"  # full rank: PEFT truncates it


def test_a_delta_weight_has_no_graph():
    (first, *_) = layers(adapted("lotr"))
    assert first.get_delta_weight("default").grad_fn is None


def layers(model):
    return [module for module in model.modules() if isinstance(module, TnLinear)]


@every_spec
def test_factors_stay_shared_after_casts_and_copies(name):
    model = adapted(name)
    wanted, idents = logits(model), [id(value) for value in state_of(model).parameters()]
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    wake(state_of(twin), seed=1)
    differs(logits(twin), wanted)
    assert torch.equal(logits(model), wanted)
    model.to(torch.bfloat16)
    assert [id(value) for value in state_of(model).parameters()] == idents
    hooks = [hook for layer in layers(model) for found in layer.tnadapt_updates.values() for hook in found.values()]
    assert hooks
    assert all(hook.owner is state_of(model) for hook in hooks)
    assert logits(model).dtype == torch.bfloat16


def test_factors_are_float32_on_a_half_precision_host(tmp_path):
    model = adapted("lotr", model=llama().to(torch.bfloat16))
    assert {parameter.dtype for parameter in state_of(model).parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=True)
    assert {parameter.dtype for parameter in state_of(back).parameters()} == {torch.float32}
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("name", ["lotr", "vera"])
def test_conv1d_can_be_adapted_saved_converted_and_merged(name, tmp_path):
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


def test_modules_to_save_are_trained_and_saved(tmp_path, plain):
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


def test_a_peft_task_type_saves_the_classifier_of_a_bert(tmp_path):
    asked = TnConfig(spec=families.lotr(), rank=2, task_type="SEQ_CLS")
    model = get_peft_model(bert(), asked)
    wake(state_of(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".tnadapt_states." not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{leaf}" for leaf in ("weight", "bias")
    }
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(bert(), tmp_path)), logits(model))


def test_target_modules_of_peft_all_linear_and_defaults():
    kinds = {site.path.split(".")[-1] for site in state_of(adapted("lora", target_modules="all-linear")).adapter.sites}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    kinds = {site.path.split(".")[-1] for site in state_of(adapted("lora", target_modules=None)).adapter.sites}
    assert kinds == {"q_proj", "v_proj"}
    one = adapted("lotr", layers_to_transform=[1], exclude_modules=["v_proj"])
    assert {site.path.split(".")[2] for site in state_of(one).adapter.sites} == {"1"}


@pytest.mark.parametrize("spec", ["lotr", families.lotr], ids=["name", "family"])
def test_a_family_or_its_name_is_accepted_as_spec(spec):
    assert TnConfig(spec=spec).spec == families.lotr()
    with pytest.raises(SpecError, match=r"^TnConfig: .*got 'lotrr'.\nThe nearest names are lotr, "):
        TnConfig(spec="lotrr")


def test_a_missing_spec_and_a_bad_dropout_raise():
    with pytest.raises(SiteError, match="TnConfig: expected an AdapterSpec as spec, got None"):
        TnConfig(target_modules=["q_proj"])
    with pytest.raises(SiteError, match="dropout: expected a number of at least 0"):
        TnConfig(spec=OWN, dropout=1.0)


def test_a_config_alone_can_be_saved_and_loaded(tmp_path):
    asked = config("own", rank={"p": 3})
    asked.save_pretrained(tmp_path)
    back = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(back, TnConfig)
    assert (back.spec, back.rank, back.seed) == (OWN, {"p": 3}, 3)


REFUSED = [
    ({"target_modules": ["nothing"]}, SiteError, "target_modules: expected a rule that matches a module"),
    ({"target_modules": ["embed_tokens"]}, SiteError, r"nn\.Linear or transformers' Conv1D"),
    ({"rank": None}, SiteError, "rank"),
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(("words", "error", "told"), REFUSED)
def test_a_config_that_does_not_fit_leaves_the_model_unchanged(words, error, told, plain):
    model = llama()
    modules, flags = list(model.named_modules()), [each.requires_grad for each in model.parameters()]
    with pytest.raises(error, match=told):
        get_peft_model(model, config("lora", **words))
    assert list(model.named_modules()) == modules
    assert [each.requires_grad for each in model.parameters()] == flags
    close(logits(model), plain)


def test_a_second_adapter_that_does_not_fit_leaves_the_first_unchanged():
    model = adapted("lotr")
    wanted, keys = logits(model), model.state_dict().keys()
    with pytest.raises(SiteError, match="rank"):
        model.add_adapter("second", config("lotr", rank=None))
    with pytest.raises(SiteError, match="expected a name that no factor, group or module has, got 'G'"):
        model.add_adapter("G", config("lotr"))
    assert model.state_dict().keys() == keys
    assert torch.equal(logits(model), wanted)


def test_an_injection_that_fails_halfway_leaves_the_model_unchanged(monkeypatch):
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
    put_back(model, before)
    assert list(model._modules) == ["old"]


def test_modules_to_save_are_restored_if_the_last_step_fails(monkeypatch):
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


def test_the_state_is_that_of_the_plain_binding(tmp_path):
    model = adapted("vera")
    state = state_of(model)
    assert len(state.table().splitlines()) == 7
    state.save(tmp_path / "vera.safetensors")
    host = llama()
    load(host, tmp_path / "vera.safetensors")
    close(logits(host), logits(model))
    with pytest.raises(SiteError, match="PEFT's methods switch, merge and delete it"):
        state.merge()


def test_two_adapters_can_be_on_different_modules(plain):
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
    close(logits(model.base_model.model), plain)  # a PeftModel must have an adapter


def test_a_merge_that_is_not_finite_changes_no_weight():
    model = adapted("lora")
    with torch.no_grad():
        list(state_of(model).parameters())[-1].fill_(torch.inf)
    before = weights(model.base_model.model)
    for ask in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(SiteError, match="expected a finite sum of weight and update"):
            ask()
        same(weights(model.base_model.model), before)
    assert model.get_model_status().merged_adapters == []


def test_loading_onto_another_model_raises_and_leaves_it_unchanged(tmp_path):
    adapted("own").save_pretrained(tmp_path)
    other = llama(num_hidden_layers=3)
    modules = list(other.named_modules())
    with pytest.raises(
        FormatError, match="expected a model with the 6 sites that the adapter was saved with, got one with 9 sites"
    ):
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
    "wrong type": (
        lambda folder: rewrite_config(folder, dropout="0"),
        "expected another type of value for dropout, got str",
    ),
    "two specs": (lambda folder: rewrite_config(folder, spec="{}"), r"no spec, got a spec as well\.\nLeave spec out"),
    "no adapter": (lambda folder: rewrite_config(folder, adapter="{}"), "expected format 1 or 2, .*, got format None"),
    "digest": (
        lambda folder: rewrite_config(folder, digests={"V": "0"}),
        "expected the stored digest of V, got another .* from seed 3",
    ),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "JSON|Expecting"),
    "cut short": (cut, "got a truncated or damaged one"),
    "pickle": (pickle, "got a pickle"),
    "missing": (
        lambda folder: rewrite_factors(folder, lambda values: values.pop(keyed(values, "c"))),
        "got none named",
    ),
    "unknown": (
        lambda folder: rewrite_factors(folder, lambda values: values.update(stranger(values))),
        "is not one of",
    ),
    "shape": (lambda folder: rewrite_factors(folder, shrink), "with shape .*, got"),
    "stranger": (
        lambda folder: rewrite_factors(folder, lambda values: values.update(x=torch.ones(1), y=torch.ones(1))),
        "expected keys of this model, got x",
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
def test_a_damaged_checkpoint_raises_and_nothing_is_loaded(damage, tmp_path, plain):
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
        ("got none named", {name: value for name, value in good.items() if name != first}),
        ("which is not one of them", good | stranger(good)),
        *(("with shape .*, got", good | {first: torch.ones(shape)}) for shape in ((3, 4, 5), (99, 99))),
    ]
    for told, values in cases:
        with pytest.raises(FormatError, match=told):
            peft.set_peft_model_state_dict(model, {name: value + 1 for name, value in values.items()})
    assert torch.equal(logits(model), wanted)


def test_a_pattern_with_other_values_is_neither_saved_nor_loaded(tmp_path):
    words = {"target_modules": ["q_proj"], "sizes": {"o2": 8, "i2": 8}}
    model = get_peft_model(llama(), TnConfig(spec=families.c3a(), **words))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    (state,) = model.base_model.states().values()
    name = next(name for name, slot in state.adapter.slots.items() if slot.is_fixed)
    save_file(load_file(path) | {f"base_model.tnadapt_states.{name}": torch.ones(8, 8, 8)}, path)
    message = rf"^{name}: expected the pattern of cyclic\(\), which plans rely on, got other values"
    with pytest.raises(FormatError, match=message):
        PeftModel.from_pretrained(llama(), tmp_path)
    state.params()[name].mul_(2)
    with pytest.raises(FormatError, match=message):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("release", ["0.0.1", "0.20.0", "0.22.0", "0.210.0", "1.21.0", "0"])
def test_a_release_of_peft_of_another_series_raises(release):
    message = (
        rf'(?s)expected a release 0\.21\.x of peft, got peft {re.escape(release)}\..*pip install "peft==0\.21\.\*"'
    )
    with pytest.raises(ImportError, match=message):
        check_release(release)


@pytest.mark.parametrize("release", ["0.21.0", "0.21.9", "0.21.3.dev0", "0.21.0rc1"])
def test_any_release_of_the_series_of_peft_is_taken(release):
    check_release(release)


def test_dropout_acts_in_training_only():
    model = adapted("lora", dropout=0.5)
    wanted = logits(attached(llama(), "lora"))
    close(logits(model), wanted)
    model.train()
    differs(model(input_ids=torch.arange(5)[None]).logits, model(input_ids=torch.arange(5)[None]).logits)


def test_a_centered_spec_can_be_used_and_saved(plain, tmp_path):
    model = get_peft_model(llama(), TnConfig(spec=families.quanta(order=2), target_modules=["q_proj"], seed=1))
    close(logits(model), plain)
    wake(state_of(model))
    differs(logits(model), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: os.truncate(path, 2**26 + 1), "adapter_config.json: expected at most 67,108,864 bytes, got more"),
        (
            lambda path: path.write_text('{"rank": 1, "rank": 2}'),
            "expected each key of an object once, got 'rank' twice",
        ),
    ],
)
def test_a_forged_config_is_refused(write, message, tmp_path):
    path = tmp_path / "adapter_config.json"
    path.touch()
    write(path)
    with pytest.raises(FormatError, match=message):
        TnConfig.from_json_file(path)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_the_class_of_peft_for_the_task_opens_a_saved_adapter(task, tmp_path):
    """PEFT looks up the class of the model in the config where no task is named."""
    llama().save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, config("lotr", task_type=task))
    wake(model.base_model.states()["default"])
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["task_type"], saved["base_model_name_or_path"]) == (task, str(tmp_path / "base"))
    assert "library_name: peft" in (tmp_path / "adapter" / "README.md").read_text()
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    close(logits(opened), logits(model))
    differs(logits(opened), logits(llama()))


def test_the_line_of_parameters_is_that_of_peft(capsys):
    attach(llama(), families.lora(), target_modules=["q_proj"], rank=2).print_trainable_parameters()
    peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"])).print_trainable_parameters()
    ours, theirs = capsys.readouterr().out.splitlines()
    assert ours == theirs
