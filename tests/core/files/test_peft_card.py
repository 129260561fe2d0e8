"""The model card of an exported LoRA: what it tells, and when it is written anew."""

import pytest

from tnadapt import FormatError, families, grid, init, save_as_lora
from tnadapt._files.peft_card import CLASSES, MARK, Made, card_of
from tnadapt._files.peft_write import TASK_TYPES

MADE = Made("an adapter of the spec `lotr`", "lotr")


def card(*, ranks=(4, 4), errors=(0.0, 0.0), made=MADE, **config):
    paths = [f"h.{number}" for number in range(len(ranks))]
    return card_of(config, made, dict(zip(paths, ranks, strict=True)), dict(zip(paths, errors, strict=True)))


def test_a_card_has_metadata_and_tells_how_to_load_the_folder():
    text = card(base_model_name_or_path="some/model", task_type="CAUSAL_LM", modules_to_save=["score"])
    head = text.split("---\n")[1].splitlines()
    assert head == [
        'base_model: "some/model"',
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        "- lora",
        "- tnadapt",
        '- "lotr"',
    ]
    assert "AutoPeftModelForCausalLM.from_pretrained(" in text
    for row in ("base model | `some/model`", "rank | 4", "updates | 0, up to rounding", "in full | `score`"):
        assert f"{row} |" in text


def test_a_card_of_an_inexact_lora_of_an_unknown_model():
    text = card(ranks=(2, 8), errors=(0.0, 0.123456), made=Made("a chain of 3 adapters", ""))
    assert "| rank | 2 to 8 |" in text
    assert "| relative error of the updates | at most 0.12 |" in text
    assert "| made from | a chain of 3 adapters |" in text
    assert "base_model:" not in text
    assert "pipeline_tag" not in text
    assert "PeftModel.from_pretrained(base_model, " in text


PATHS = ["/home/somebody/model", "C:\\model", "a/b/c", "a\nb", ""]
PATHS += [
    "../model",
    "./model",
    "..",
    ".",
    "a/..",
    "a/../b",
    "~",
    "~/model",
    "model/",
    "a//b",
    "..\\model",
    "a\\b",
    "C:/b",
]
PATHS += [".hidden", "a/.hidden", "-model", "model-", "model.", "a--b", "a..b", "mod\u00e9le", "a/b ", "file:b"]


@pytest.mark.parametrize("base", PATHS)
def test_a_path_of_the_machine_is_not_told(base):
    text = card(base_model_name_or_path=base, task_type="CAUSAL_LM")
    assert "base_model:" not in text
    assert "not named: add it here" in text
    assert "AutoPeft" not in text  # which would look for the base model


@pytest.mark.parametrize("base", ["gpt2", "some/model", "some-org/Model_1.5-7B-v0.1", "a/b", "_/1"])
def test_a_name_on_a_hub_is_told_unless_it_is_a_folder_here(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f'base_model: "{base}"' in card(base_model_name_or_path=base)
    (tmp_path / base).mkdir(parents=True)
    assert "base_model:" not in card(base_model_name_or_path=base)


def test_every_task_has_a_class():
    assert CLASSES.keys() == set(TASK_TYPES)


@pytest.fixture
def folder(tmp_path):
    adapter = families.lora().bind(grid(layers=1, kinds={"q": (4, 4)}), rank=2)
    target = tmp_path / "lora"

    def write(**words):
        save_as_lora(adapter, init(adapter), target, **words)
        return (target / "README.md").read_text()

    return target, write


def test_a_card_is_written_anew_until_the_user_changes_it(folder):
    target, write = folder
    assert MARK in write()
    assert "`some/model`" in write(base_model="some/model")
    (target / "README.md").write_text("my own words")
    assert write(base_model="other/model") == "my own words"
    (target / "README.md").unlink()
    assert "`other/model`" in write(base_model="other/model")


def test_a_readme_without_a_checkpoint_is_not_taken_for_one(folder):
    target, write = folder
    target.mkdir()
    (target / "README.md").write_text("of something else")
    with pytest.raises(FormatError, match=r"expected a new folder, .* got one that holds README\.md"):
        write()
    assert (target / "README.md").read_text() == "of something else"
