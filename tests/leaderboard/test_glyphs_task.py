"""The task of letters: every method fits its host or is refused, and all train the same head on the same images."""

import pytest
import torch

from tests.thorough import IS_THOROUGH

pytestmark = pytest.mark.usefixtures("modules")
pytest.importorskip("sklearn")
pytest.importorskip("peft")


@pytest.fixture
def task(modules, tmp_path, monkeypatch):
    """The quick task with a transformer of the width of ViT-S, and random weights in its one layer."""
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=1, num_attention_heads=6)).save_pretrained(tmp_path)
    import glyphs_task

    monkeypatch.setattr(glyphs_task, "unpacked", lambda: tmp_path)
    glyphs_task.load.cache_clear()
    yield glyphs_task.load(True, "cpu")
    glyphs_task.load.cache_clear()


def test_the_host_follows_from_the_seed_and_the_splits_are_scored(task):
    one, again, other = (task.host(seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(task.loss(one, 0, 3), task.loss(again, 0, 3))
    assert not torch.equal(task.loss(one, 0, 3), task.loss(one, 1, 3))
    score, loss = task.validate(one)
    assert 0 <= score <= 1
    assert 2 < loss < 6  # log(26) is 3.3
    assert task.test(one)[1] == 40
    assert task.forgetting(one) is None


@pytest.mark.slow
def test_every_method_fits_or_is_refused_in_one_line(task):
    from methods import METHODS, MethodError

    units = [name for name in METHODS if name.endswith(" unit")]  # the same specs at other rates
    left_out = set() if IS_THOROUGH else set(units) - set(units[::4])
    refused = {}
    for name, method in METHODS.items():
        if name in left_out:
            continue
        try:
            adapted = method(task.host(0), task.targets, 0)
        except MethodError as error:
            refused[name] = str(error)
            continue
        (head,) = task.heads(adapted.model)
        groups = [*adapted.groups(0.01), head]
        trained = {id(value) for group in groups for value in group["params"]}
        task.loss(adapted.model, 0, 0).backward()
        assert {id(value) for value in adapted.model.parameters() if value.requires_grad} == trained, name
        assert head["params"][0].grad.abs().sum() > 0
        assert adapted.numbers == sum(v.numel() for g in groups[:-1] for v in g["params"]), name
    assert refused == {}
