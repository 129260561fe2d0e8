"""The tables of known hosts: every layout is valid, and every known config gives a host."""

import pytest

from tnadapt._hosts.configs import CONFIGS, LAYOUTS
from tnadapt._hosts.known import host_of

WORDS = {"hidden", "layers", "heads", "key_heads", "head_size", "query", "key", "fused", "inner", "gates"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_uses_only_known_size_words(name):
    layout = LAYOUTS[name]
    assert {word for shape in layout.kinds.values() for word in shape} <= WORDS
    assert set(layout.targets) <= set(layout.kinds)
    assert layout.optional is not None


@pytest.mark.parametrize("name", CONFIGS)
def test_every_known_config_gives_a_host(name):
    host = host_of(name, name, CONFIGS[name])
    assert len(host.sites("all-linear")) == host.layers * len(host.kinds)
