"""A chain on a quantized host keeps its links beside the weights, and is merged where the weights are plain."""

import numpy as np
import pytest
import torch

from tests.quantized.ways import WAYS, WIDTH, dense_host, normal, quantized
from tnadapt import SiteError, families
from tnadapt_torch import attach
from tnadapt_torch.policies import Restarts, load_chain

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the libraries


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.passes])
def test_links_stay_beside_quantized_weights(name, tmp_path):
    way = WAYS[name]
    model = quantized(way)
    state = attach(model, families.lora(), target_modules=["up", "down"], rank=2, seed=3)
    if not any(weight.storage for weight in state.weights.values()):
        pytest.skip("the weights are plain")
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.02)
    with pytest.raises(SiteError, match="expected a plain floating-point matrix to merge into"):
        Restarts(state, optimizer, every=2, beside=False)
    restarts = Restarts(state, optimizer, every=2)
    x = normal(4, WIDTH)
    before = model(x)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
        restarts.step()
    after = model(x)
    assert (after - before).abs().max() > 0
    chain = restarts.links
    assert len(chain) == 3
    plain = dense_host(way, model)
    with torch.no_grad():
        weights = {path: plain.get_submodule(path).weight.float().numpy() for path in chain.weights}
        for path, weight in chain.merged(weights).items():
            plain.get_submodule(path).weight.copy_(torch.from_numpy(np.asarray(weight)))
    wanted = plain(x)
    error = (after.float() - wanted.float()).abs().max() / wanted.float().abs().max()
    assert error < 1e-4
    restarts.save(tmp_path / "chain")
    fresh = quantized(way)
    with pytest.raises(SiteError, match="expected a plain floating-point matrix to merge into"):
        load_chain(fresh, tmp_path / "chain", beside=False)
    assert torch.equal(fresh(x), before)
    assert len(load_chain(fresh, tmp_path / "chain")) == 3
    assert (fresh(x).float() - after.float()).abs().max() / after.float().abs().max() < 1e-4
