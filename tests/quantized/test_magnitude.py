"""A magnitude, and an update that reads the product of the layer, on quantized hosts: as on dequantized weights."""

import pytest
import torch

from tests.quantized.test_ways import ARGUMENTS, close, wake
from tests.quantized.ways import WAYS, WIDTH, dense_host, normal, quantized
from tnadapt import AdapterSpec, families, frozen, magnitude, same, trainable
from tnadapt.initializers import host, zeros
from tnadapt_torch import attach

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the libraries
TURNED = AdapterSpec(
    name="turned",
    weight="out in",
    factors={
        "R": trainable("out a", init=zeros(), map="cayley"),
        "W2": same("W", "a in"),
        "W": frozen("out in", init=host()),
    },
    terms=["R W2", "- W"],
)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.reads and way.dense])
@pytest.mark.parametrize("spec", [magnitude(families.lora()), TURNED], ids=lambda spec: spec.name)
def test_the_output_is_that_of_the_dequantized_weights(name, spec):
    model = quantized(WAYS[name]).eval()
    dense = dense_host(WAYS[name], model).eval()
    x = normal(5, WIDTH)
    words = ARGUMENTS if spec.free_bonds else {"target_modules": ARGUMENTS["target_modules"]}
    with torch.no_grad():
        plain = model(x), dense(x)
        noise = (plain[0] - plain[1]).abs().max() / plain[1].abs().max()  # of the library's own product
        for one in (model, dense):
            wake(attach(one, spec, **words))
        close(model(x), dense(x), 1e-4 + 10 * float(noise))
