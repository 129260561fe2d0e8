"""What is compiled before a change of the adapters sees the change: compilers guard classes, not forward hooks."""

import copy

import pytest
import torch

from tests.thorough import IS_THOROUGH
from tests.torch import hosts

WORDS = hosts.words()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model):
    return torch.compile(model, backend="eager")


def ran(model):
    """Compile a model and run it, so that there is code of before."""
    fast = compiled(model)
    with torch.no_grad():
        fast(WORDS)
    return fast


def assert_seen(fast, model):
    with torch.no_grad():
        hosts.close(fast(WORDS), model(WORDS))


def attach_first(model):
    hosts.adapt(model, "lora")


def attach_second(model):
    hosts.adapt(model, "lora", name="one")
    hosts.adapt(model, "lotr", name="two", target_modules=["k_proj"])


def attach_part(model):
    hosts.adapt(model.layers[1], "lora")


def attach_folded(model):
    hosts.adapt(model, "lora", fold=True)


def attach_blocks(model):
    hosts.adapt(model, "lora", blocks={"q_proj": (2, 1)})


ATTACHES = [attach_first, attach_folded, *([attach_second, attach_part, attach_blocks] if IS_THOROUGH else [])]


@pytest.mark.parametrize("change", ATTACHES)
def test_an_attach_after_a_compiled_run(change):
    model = hosts.toy().eval()
    fast = ran(model)
    with torch.no_grad():
        before = model(WORDS)
    change(model)
    assert_seen(fast, model)
    with torch.no_grad():
        assert not torch.allclose(fast(WORDS), before, atol=1e-4)


def detach(model, state):
    state.detach()


def merge(model, state):
    state.merge()


def merge_and_wake(model, state):
    """The factors of a merged adapter are not read any more."""
    state.merge()
    hosts.wake(state, seed=99)


def switch_task(model, state):
    state.set_task("b")


def new_values(model, state):
    hosts.wake(state, seed=99)


def to_double(model, state):
    model.double()


def second(model, state):
    hosts.adapt(model, "vera", name="second")


def disable(model, state):
    state.enabled = False


def loaded(model, state):
    model.load_state_dict({key: value + 0.5 for key, value in model.state_dict().items()}, assign=True)


CHANGES = [detach, merge, switch_task, second, disable]  # a class, a weight, a factor's row, two adapters, a flag
MORE = [merge_and_wake, new_values, to_double, loaded] if IS_THOROUGH else []  # values, by other ways


@pytest.mark.parametrize("change", [*CHANGES, *MORE])
def test_a_change_after_a_compiled_run(change):
    model = hosts.toy(layers=1).eval()
    state = hosts.adapt(model, "lora", tasks=["a", "b"])
    fast = ran(model)
    with torch.no_grad():
        before = model(WORDS)
    change(model, state)
    assert_seen(fast, model)
    with torch.no_grad():
        is_same = torch.allclose(fast(WORDS).float(), before, atol=1e-4)
    assert is_same == (change in (merge, merge_and_wake, to_double))


@pytest.mark.parametrize("family", ["lora", "lotr"] if IS_THOROUGH else ["lotr"])
def test_a_copy_of_a_model_whose_base_was_compiled(family):
    base = hosts.toy().eval()
    ran(copy.deepcopy(base))
    model = copy.deepcopy(base)
    hosts.adapt(model, family)
    assert_seen(compiled(model), model)
    other = copy.deepcopy(base)
    hosts.adapt(other, "vera")
    assert_seen(compiled(other), other)


def test_dropout_that_is_switched_by_train_and_eval():
    model = hosts.toy()
    hosts.adapt(model, "lora", dropout=0.5)
    fast = compiled(model.train())
    torch.manual_seed(0)
    wanted = model(WORDS)
    torch.manual_seed(0)
    hosts.close(fast(WORDS), wanted)
    model.eval()
    hosts.close(fast(WORDS), model(WORDS))
    assert not torch.allclose(model(WORDS), wanted)


def test_layers_compiled_by_themselves_before_attach():
    model = hosts.toy().eval()
    plain = copy.deepcopy(model)
    for layer in model.layers:
        layer.compile(backend="eager")
    with torch.no_grad():
        model(WORDS)
        hosts.adapt(model, "lotr")
        hosts.adapt(plain, "lotr")
        hosts.close(model(WORDS), plain(WORDS))
