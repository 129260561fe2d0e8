"""The arrays of an adapter: starting values, maps on factors, and the reference computation in numpy float64."""

from tnadapt._values.draw import sample
from tnadapt._values.einsum import Array, Modes, Operand, contract, primed
from tnadapt._values.host_starts import HostReader, read_hosts
from tnadapt._values.initialize import Params, drawn_starts, init, redraw, start_values
from tnadapt._values.maps import map_factor, pull_back, unknown_map
from tnadapt._values.reference import apply, arrays_at, delta, merge

__all__ = [
    "Array",
    "HostReader",
    "Modes",
    "Operand",
    "Params",
    "apply",
    "arrays_at",
    "contract",
    "delta",
    "drawn_starts",
    "init",
    "map_factor",
    "merge",
    "primed",
    "pull_back",
    "read_hosts",
    "redraw",
    "sample",
    "start_values",
    "unknown_map",
]
