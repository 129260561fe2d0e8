"""A call of the PyTorch binding with wrong arguments raises an error that says what to write."""

import pytest
import torch
from torch import nn

from tnadapt import FormatError, SiteError, SpecError, families, grid
from tnadapt_torch import attach, load, load_peft
from tnadapt_torch._run import map_factor

LORA = families.lora()
ADAPTER = LORA.bind(grid(layers=1, kinds={"q": (8, 8)}), rank=2)
WHOLE = {"target_modules": ["0"], "rank": 2}


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def on(spec, **changes):
    return lambda: attach(model(), spec, **(WHOLE | changes))


MISTAKES = {  # the mistake -> the call, its error and part of the message
    "an adapter": (on(ADAPTER), SpecError, r"^attach: .*the Adapter 'lora'.\nPass its spec, .*adapter.spec."),
    "a family's name": (on("lotrr"), SpecError, r"^attach: .*got 'lotrr'.\nThe nearest names are lotr, "),
    "PEFT's r": (on(LORA, r=8), SiteError, r"^attach: .*got 'r'.\nPEFT's r is called rank here."),
    "PEFT's alpha": (on(LORA, lora_alpha=8), SiteError, r"\nPEFT's lora_alpha is called alpha here."),
    "PEFT's dropout": (on(LORA, lora_dropout=0.1), SiteError, r"\nPEFT's lora_dropout is called dropout here."),
    "PEFT's pattern": (on(LORA, layers_pattern="h"), SiteError, r"is called layers_to_transform here."),
    "the word of JAX": (on(LORA, target=["0"]), SiteError, r"is called target_modules here."),
    "swapped": (lambda: attach(LORA, model()), SiteError, r"AdapterSpec 'lora'.\nThe model comes first: attach\(mo"),
    "no spec": (lambda: attach(model()), SiteError, r"expected the argument 'spec', got none.\nWrite attach\(model, s"),
    "by position": (
        lambda: attach(model(), LORA, ["0"]),
        SiteError,
        r"at most 2 positional arguments, got 3.\nPass .*target_modules=",
    ),
    "an alpha of 0": (
        on(LORA, alpha=0),
        SpecError,
        r"expected an alpha that is not 0, got 0: nothing would ever train",
    ),
    "a rank of text": (on(LORA, rank="8"), SiteError, r"^rank: .*got '8'.\nWrite a whole number"),
    "a target of 0": (on(LORA, target_modules=0), SiteError, r"a list of names as target_modules, got 0."),
    "targets of numbers": (on(LORA, target_modules=[0]), SiteError, r"a list of names as target_modules, got \[0\]."),
    "a dropout of text": (on(LORA, dropout="0.1"), SiteError, r"^dropout: .*got '0.1'.\nWrite dropout=0.1."),
    "no dropout": (on(LORA, dropout=None), SiteError, r"^dropout: .*got None.\nWrite dropout=0.1."),
    "one number of blocks": (
        on(LORA, blocks={"0": 2}),
        SiteError,
        r"^blocks: .*got 2.\nWrite blocks={\"0\": \(4, 1\)}.",
    ),
    "a layout of 3": (on(LORA, target_parameters={"1.weight": 3}), SiteError, r"^1.weight: expected a layout .*got 3."),
    "the whole model": (on(LORA, modules_to_save=[""]), SiteError, r"^modules_to_save: expected names of modules"),
    "a name of 3": (on(LORA, adapter_name=3), SiteError, r"^adapter_name: expected an identifier, got 3.\nWrite ada"),
    "layers of text": (on(LORA, layers_to_transform="0"), SiteError, r"got '0'.\nWrite layers_to_transform=\[0, 1\]."),
    "one saved module": (on(LORA, modules_to_save="1"), SiteError, r"got '1'.\nWrite modules_to_save=\[\"1\"\]."),
    "a fold of text": (on(LORA, fold="no"), SiteError, r"^attach: expected True or False as fold, got 'no'"),
    "one task": (on(LORA, tasks="nli"), SiteError, r"a list of names as tasks, got 'nli'.\nWrite tasks=\[\"nli\"\]."),
    "parameters as a list": (on(LORA, target_parameters=["0"]), SiteError, r"layouts by name as target_parameters"),
    "a file first": (lambda: load("f", model()), SiteError, r"^load: .*got 'f'.\nThe model comes first: load\(model"),
    "a file of 3": (lambda: load(model(), 3), FormatError, r"^load: expected the path of a file, got 3."),
    "a slip at load": (
        lambda: load(model(), "f", dropuot=0.1),
        FormatError,
        r"got 'dropuot'.\nThe nearest names are dr",
    ),
    "a folder first": (lambda: load_peft("d", model()), SiteError, r"^load_peft: .*\nThe model comes first: load_peft"),
    "bind of a model": (
        lambda: LORA.bind(model()),
        SiteError,
        r"Sequential.\nTo adapt a torch module, call tnadapt_to",
    ),
    "bind of a layer": (
        lambda: LORA.bind(nn.Linear(8, 8)),
        SiteError,
        r"\nTo adapt a torch module, call tnadapt_torch",
    ),
    "an unknown map": (lambda: map_factor("no_such_map", torch.eye(2)), SpecError, r"expected one of .*'no_such_map'"),
}


@pytest.mark.parametrize(("act", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_argument_raises(act, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        act()


def test_a_wrong_argument_leaves_the_model_unchanged():
    host = model()
    with pytest.raises(SpecError, match="an alpha that is not 0"):
        attach(host, LORA, **WHOLE, alpha=0)
    assert [name for name, _ in host.named_children()] == ["0", "1"]
    assert all(parameter.requires_grad for parameter in host.parameters())


@pytest.mark.parametrize("spec", ["lotr", families.lotr, families.lotr()], ids=["name", "family", "spec"])
def test_a_family_can_be_attached_by_name_and_the_default_seed_is_0(spec):
    found, wanted = (
        attach(model(), one, **WHOLE, **seed) for one, seed in ((spec, {}), (families.lotr(), {"seed": 0}))
    )
    assert found.adapter == wanted.adapter
    for name, value in wanted.params().items():
        assert torch.equal(found.params()[name], value)


def test_a_file_with_experts_that_is_loaded_without_their_layouts_says_what_to_pass(tmp_path):
    host = nn.Module()
    host.up = nn.Parameter(torch.ones(2, 8, 8))
    attach(host, LORA, target_parameters={"up": "expert in out"}, rank=2).save(tmp_path / "file")
    host.tnadapt_default.detach()
    with pytest.raises(FormatError, match=r"one where it is a parameter without a layout\.\nPass target_parameters"):
        load(host, tmp_path / "file")


def test_a_factor_without_a_map_is_unchanged():
    assert torch.equal(map_factor("", torch.eye(2)), torch.eye(2))
