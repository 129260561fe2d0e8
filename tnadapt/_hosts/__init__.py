"""The weights to adapt: sites and blocks, paths and layer indices, known models and their configs."""

from tnadapt._hosts.configs import CONFIGS
from tnadapt._hosts.expected import expect_site, expect_sites
from tnadapt._hosts.known import Host, find_host
from tnadapt._hosts.paths import sites_of
from tnadapt._hosts.site import (
    RUNNING,
    TASK,
    Block,
    Coordinate,
    Site,
    check_parts,
    check_size,
    divisors,
    grid,
    split_sites,
)

__all__ = [
    "CONFIGS",
    "RUNNING",
    "TASK",
    "Block",
    "Coordinate",
    "Host",
    "Site",
    "check_parts",
    "check_size",
    "divisors",
    "expect_site",
    "expect_sites",
    "find_host",
    "grid",
    "sites_of",
    "split_sites",
]
