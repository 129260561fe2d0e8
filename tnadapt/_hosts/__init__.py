"""The weights to adapt: sites and blocks, the paths of modules, and the configs of well-known models."""

from tnadapt._hosts.configs import CONFIGS
from tnadapt._hosts.expected import expect_site, expect_sites
from tnadapt._hosts.known import Host, find_host
from tnadapt._hosts.parts import check_parts, grid, split_sites
from tnadapt._hosts.paths import (
    Place,
    Rule,
    coordinates_of,
    in_layers,
    is_named,
    match,
    nearest,
    places_of,
    sites_of,
)
from tnadapt._hosts.site import (
    EXPERT,
    RUNNING,
    TASK,
    Block,
    Coordinate,
    Site,
    as_integer,
    as_integers,
    as_number,
    check_size,
    divisors,
)

__all__ = [
    "CONFIGS",
    "EXPERT",
    "RUNNING",
    "TASK",
    "Block",
    "Coordinate",
    "Host",
    "Place",
    "Rule",
    "Site",
    "as_integer",
    "as_integers",
    "as_number",
    "check_parts",
    "check_size",
    "coordinates_of",
    "divisors",
    "expect_site",
    "expect_sites",
    "find_host",
    "grid",
    "in_layers",
    "is_named",
    "match",
    "nearest",
    "places_of",
    "sites_of",
    "split_sites",
]
