"""The page on troubleshooting quotes errors word for word: each quote is part of a message that is raised here."""

import hashlib
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.thorough import left_to_laws
from tnadapt import AdapterSpec, families, grid, read_peft, trainable, zeros
from tnadapt_torch import attach, load

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [
    *re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL),
    *re.findall(r"`((?:expected|got one|that the adapter|element 0) [^`]*)`", PAGE),
    *re.findall(r'"(expected [^"]*)"', PAGE),
]
LORA = families.lora()
X = torch.ones(3, 16)


def layers(size=16):
    return nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))


def adapted(model, spec=LORA, **changes):
    return attach(model, spec, **({"target_modules": ["0", "1"], "rank": 2, "seed": 0} | changes))


def projections(kind):
    block = nn.Module()
    block.q_proj, block.v_proj = kind(), kind()
    return block


def match_nothing(folder):
    model = nn.Module()
    model.layers = nn.ModuleList([projections(lambda: nn.Linear(4, 4)) for _ in range(2)])
    adapted(model, target_modules=["q_prj"])


def adapt_a_layer_of_peft(folder):
    adapted(
        projections(type("Linear", (nn.Module,), {"__module__": "peft.tuners.lora.layer"})), target_modules=["q_proj"]
    )


def write_two_faults(folder):
    factors = {"A": trainable("r in", init=zeros()), "B": trainable("out", init=zeros())}
    AdapterSpec(name="mine", weight="out in", over="site", factors=factors)


def freeze_all(folder):
    model = layers()
    adapted(model)
    model.requires_grad_(False)(X).sum().backward()


class Half(nn.Sequential):
    def forward(self, x):
        return self[0](x)


def leave_one_out(folder):
    model = Half(*layers())
    adapted(model)
    model(X).sum().backward()


def load_a_merged_state_dict(folder):
    merged, plain = layers(), layers()
    adapted(merged).merge()
    adapted(plain)
    plain.load_state_dict(merged.state_dict())


def load_edited(folder, **changes):
    """Load a file whose text has other entries, and a digest that fits them."""
    adapted(layers()).save(folder / "file")
    with safe_open(folder / "file", "pt") as file:
        text = json.dumps(json.loads(file.metadata()["tnadapt"].partition(" ")[2]) | changes, separators=(",", ":"))
    metadata = {"tnadapt": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    save_file(load_file(folder / "file"), folder / "edited", metadata)
    load(layers(), folder / "edited")


def load_damaged(folder, *, end=None):
    adapted(layers()).save(folder / "file")
    content = bytearray((folder / "file").read_bytes())
    content[-3] ^= 1
    (folder / "damaged").write_bytes(content[:end])
    load(layers(), folder / "damaged")


def load_from_another_program(folder):
    save_file({"A": torch.ones(2)}, folder / "other")
    load(layers(), folder / "other")


def read_what_the_bridge_wrote(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "TNADAPT"}')
    read_peft(folder)


def load_onto(model, folder, spec=LORA):
    adapted(layers(), spec).save(folder / "file")
    load(model, folder / "file")


def load_without_layouts(folder):
    host = nn.Module()
    host.up = nn.Parameter(torch.ones(2, 8, 8))
    state = attach(host, LORA, target_parameters={"up": "expert in out"}, rank=2)
    state.save(folder / "file")
    state.detach()
    load(host, folder / "file")


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the only quantization that it brings
        return torch.ao.quantization.quantize_dynamic(layers(), {nn.Linear}, dtype=torch.qint8)


def wrap_first(folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        adapted(nn.parallel.DistributedDataParallel(layers()))
    finally:
        torch.distributed.destroy_process_group()


def forget_the_axis_of_layers(folder):
    jax, binding = pytest.importorskip("jax"), pytest.importorskip("tnadapt_jax")
    stack = {"layers": {"q": {"kernel": jax.numpy.ones((3, 8, 8))}}}
    binding.find_sites(stack, target=["q"], layout="in out")


def scan_with_a_gap(folder):
    pytest.importorskip("jax")
    binding = pytest.importorskip("tnadapt_jax")
    sites = [site for site in grid(layers=3, kinds={"q": (8, 8), "v": (8, 8)}) if site.path != "layers.1.q"]
    adapter = LORA.bind(sites, rank=2)
    binding.scan_split(adapter, binding.init(adapter))


def import_without_hypothesis(folder):
    held = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("tnadapt.testing")}
    before, sys.modules["hypothesis"] = sys.modules.get("hypothesis"), None
    try:
        import tnadapt.testing  # noqa: F401
    finally:
        del sys.modules["hypothesis"]
        sys.modules.update(held | ({"hypothesis": before} if before else {}))


CASES = {  # a part of one quote -> what raises it
    "'q_prj'": match_nothing,
    "peft.tuners": adapt_a_layer_of_peft,
    "'mine'": write_two_faults,
    "element 0": freeze_all,
    "every adapted layer": leave_one_out,
    "without merged updates": load_a_merged_state_dict,
    "got format 3": lambda folder: load_edited(folder, format=3),
    "['new']": lambda folder: load_edited(folder, new=0),
    "the digest": load_damaged,
    "a whole safetensors file": lambda folder: load_damaged(folder, end=-9),
    "a tnadapt file": load_from_another_program,
    "'TNADAPT'": read_what_the_bridge_wrote,
    "got one where it is (8, 8)": lambda folder: load_onto(layers(8), folder),
    "got one where it is missing": lambda folder: load_onto(projections(lambda: nn.Linear(4, 4)), folder),
    "without a layout": load_without_layouts,
    "was trained with": lambda folder: load_onto(layers(), folder, families.hira()),
    "to merge into": lambda folder: adapted(quantized()).merge(),
    "passes the gradient on": lambda folder: adapted(model := quantized()) and model(X).sum().backward(),
    "not wrapped yet": wrap_first,
    "got the 3 axes": forget_the_axis_of_layers,
    "got none in layer 1": scan_with_a_gap,
    "hypothesis": import_without_hypothesis,
}


LARGE = ("not wrapped yet", "got the 3 axes", "got none in layer 1")  # these import torch.distributed and jax
SOME = [
    pytest.param(quote, marks=left_to_laws("2 s of imports")) if any(part in quote for part in LARGE) else quote
    for quote in QUOTES
]


@pytest.mark.parametrize("quote", SOME)
def test_a_quoted_error_has_these_words(quote, tmp_path):
    (case,) = (case for part, case in CASES.items() if part in quote)
    with pytest.raises(Exception, match=re.escape(quote.partition(": ")[2] if "Error: " in quote else quote)) as caught:
        case(tmp_path)
    assert quote in f"{caught.type.__name__}: {caught.value}"


def test_each_case_is_quoted():
    assert [part for part in CASES if not any(part in quote for quote in QUOTES)] == []
