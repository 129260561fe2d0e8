"""Every family under torch.compile: one graph for a model, and for all equal layers; the numbers of eager code."""

import pytest
import torch

from tests.table import FAMILIES, REPRESENTATIVES
from tests.thorough import IS_THOROUGH, left_to_laws
from tests.torch import hosts
from tests.torch.seam import compiled
from tnadapt_torch._run import site

LINEAR = [name for name, case in FAMILIES.items() if case.is_linear and (IS_THOROUGH or name in REPRESENTATIVES)]
LAYERS = 4


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batches(*sizes):
    return [hosts.normal(size, 4, 8, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("name", LINEAR if IS_THOROUGH else ["pissa"])  # test_compile.py has others
def test_a_model_is_one_graph(name):
    model = compiled.host(LAYERS)
    compiled.adapt(model, name)
    wanted = [compiled.answers(model, x) for x in batches(3, 5, 6)]
    backend = compiled.Counting(both=IS_THOROUGH)
    model.compile(fullgraph=True, backend=backend, dynamic=True)
    for x, answer in zip(batches(3, 5, 6), wanted, strict=True):
        compiled.agree(compiled.answers(model, x), answer)
    assert backend.graphs == 1


@pytest.mark.parametrize("name", [*LINEAR, *(["losa"] if not IS_THOROUGH else [])])  # which reads the host's weight
def test_equal_layers_by_themselves_are_one_graph(name):
    model = compiled.host(LAYERS)
    compiled.adapt(model, name)
    (x,) = batches(3)
    wanted = compiled.answers(model, x)
    backend = compiled.Counting(both=IS_THOROUGH)
    for layer in model.layers:
        layer.compile(fullgraph=True, backend=backend)
    compiled.agree(compiled.answers(model, x), wanted)
    assert backend.graphs == 1


@left_to_laws("the C++ compiler takes seconds for each; others test single families")
@pytest.mark.parametrize("name", LINEAR)
def test_the_code_of_inductor_gives_the_numbers_of_eager_code(name):
    model = compiled.host()
    compiled.adapt(model, name)
    (x,) = batches(3)
    wanted = compiled.answers(model, x)
    compiled.agree(compiled.answers(model, x, torch.compile(model, fullgraph=True)), wanted)


def without_update(patch):
    patch.setattr(site.SiteUpdate, "add", lambda update, output, x, product=None: output)


def without_the_gradient_of_a_factor(patch):
    read = site.read_all
    patch.setattr(
        site,
        "read_all",
        lambda refs, like: [part.detach() if not n else part for n, part in enumerate(read(refs, like))],
    )


def without_the_gradient_of_x(patch):
    add = site.SiteUpdate.add
    patch.setattr(
        site.SiteUpdate, "add", lambda update, output, x, product=None: add(update, output, x.detach(), product)
    )


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (without_update, "gradients of"),
        (without_the_gradient_of_a_factor, "gradients of"),
        (without_the_gradient_of_x, "x: off by"),
    ],
)
def test_a_fault_in_compiled_code_is_noticed(plant, found, monkeypatch):
    """The check of this file fails where compiled code computes less."""
    model = compiled.host()
    compiled.adapt(model, "lora")
    (x,) = batches(3)
    wanted = compiled.answers(model, x)
    plant(monkeypatch)
    called = torch.compile(model, fullgraph=True, backend=compiled.Counting(both=IS_THOROUGH))
    with pytest.raises(AssertionError, match=found):
        compiled.agree(compiled.answers(model, x, called), wanted)
