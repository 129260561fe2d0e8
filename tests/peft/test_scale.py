"""The scale and the rates of an adapter under PEFT: in the config, in its file, and in training."""

import json
import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings from importing PEFT
    from peft import PeftModel, get_peft_model

from tests.peft.models import close, llama, logits, wake
from tnadapt import FormatError, SiteError, SpecError, families, from_json, raw, step_size, to_json, unit
from tnadapt_torch import attach
from tnadapt_torch.peft import TnConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and PEFT

TARGETS = ["q_proj", "v_proj"]


def config(spec=None, **more):
    return TnConfig(spec=spec or families.lotr(), **({"rank": 2, "target_modules": TARGETS, "seed": 0} | more))


def adapted(**more):
    model = get_peft_model(llama(), config(**more))
    return model, model.base_model.states()["default"]


@pytest.mark.parametrize(
    "more",
    [{"scale": unit(2.0)}, {"scale": unit(), "alpha": 16}, {"scale": raw(3.0)}, {"scale": 3}, {"scale": np.float32(3)}],
)
def test_a_config_takes_the_scale_that_attach_takes(more):
    _, state = adapted(**more)
    other = attach(llama(), families.lotr(), rank=2, target_modules=TARGETS, seed=0, **more)
    assert state.adapter == other.adapter
    assert state.adapter.networks == other.adapter.networks


@pytest.mark.parametrize("alpha", [np.float32(16), np.float64(16), np.int64(16)])
def test_an_alpha_of_numpy_is_kept_in_a_config_and_its_file(tmp_path, alpha):
    plain = config(scale=unit(), alpha=alpha)
    plain.save_pretrained(tmp_path)
    assert TnConfig.from_pretrained(tmp_path).alpha == 16
    assert adapted(scale=unit(), alpha=alpha)[1].adapter == adapted(scale=unit(16))[1].adapter


def test_a_scale_survives_save_pretrained(tmp_path):
    model, state = adapted(scale=unit(2.0))
    wake(state)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    assert loaded.base_model.states()["default"].adapter == state.adapter
    close(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    one, two = (json.loads((at / "adapter_config.json").read_text()) for at in (tmp_path, tmp_path / "again"))
    assert one["adapter"] == two["adapter"]
    assert one["spec"] is two["spec"] is None


def test_the_number_in_a_file_wins(tmp_path):
    """As if an older release had another formula."""
    model, state = adapted(scale=unit(2.0))
    wake(state)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    data = json.loads(path.read_text())
    number = state.adapter.networks[0].scale
    data["adapter"] = data["adapter"].replace(repr(number), repr(2 * number))
    path.write_text(json.dumps(data))
    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    again = loaded.base_model.states()["default"]
    assert {one.scale for one in again.adapter.networks} == {
        2 * number,
        *(2 * one.scale for one in state.adapter.networks),
    }
    site = state.adapter.groups[0].sites[0]
    close(
        again.updates[site.path].delta(state.weights[site.weight].like),
        2 * state.updates[site.path].delta(state.weights[site.weight].like),
    )
    loaded.save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert from_json(stored["adapter"]) == again.adapter != state.adapter


def test_a_file_with_an_unknown_rule_is_refused(tmp_path):
    model, _ = adapted(scale=unit(2.0))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    data = json.loads(path.read_text())
    data["adapter"] = data["adapter"].replace('"unit"', '"golden"')
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match="golden"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_a_config_that_was_never_bound_keeps_its_scale(tmp_path):
    """Its file has the spec, with this scale, and alpha beside it."""
    plain = config(scale=unit(2.0), alpha=3.0)
    assert plain.spec.scale == unit(2.0)
    plain.save_pretrained(tmp_path)
    read = TnConfig.from_pretrained(tmp_path)
    assert read.spec == plain.spec
    assert read.alpha == 3.0
    data = json.loads((tmp_path / "adapter_config.json").read_text())
    data["spec"] = data["spec"].replace('"unit"', '"golden"')
    (tmp_path / "adapter_config.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="golden"):
        TnConfig.from_pretrained(tmp_path)


def test_scales_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match=r"expected a Scale or a number, got 'unit'; write scale=unit\(\)"):
        config(scale="unit")
    with pytest.raises(SpecError, match="is read from the host"):
        config(families.pissa(), scale=unit())
    _, state = adapted()
    with pytest.raises(FormatError, match="scale: expected none beside a saved adapter"):
        TnConfig(adapter=to_json(state.adapter), scale=unit())


def test_states_under_peft_have_balanced_groups():
    model, state = adapted(scale=unit(1.6))
    groups = state.parameter_groups(lr=0.5, balance=True, weight_decay=0.5)
    assert sorted(id(one) for group in groups for one in group["params"]) == sorted(map(id, state.parameters()))
    rates = {rate for size in step_size(state.adapter).values() for rate in size.rates.values()}
    assert {group["lr"] for group in groups} == {0.5 * rate for rate in rates}
    optimizer = torch.optim.AdamW(groups)
    logits(model)
    optimizer.zero_grad()
    with pytest.raises(SiteError, match="balance: expected True or False"):
        state.parameter_groups(lr=0.5, balance="yes")
