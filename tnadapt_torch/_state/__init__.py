"""The trained and saved state of an adapter: its factors, what it knows of its host, parameter groups and norms."""

from tnadapt_torch._state.checkpoint import Run
from tnadapt_torch._state.enclosing import Enclosing
from tnadapt_torch._state.factors import stored_factors, to_numpy
from tnadapt_torch._state.known import check_apart, check_unmerged, check_unread, enter, states_of
from tnadapt_torch._state.marks import MarksCheck
from tnadapt_torch._state.modules import host_modules
from tnadapt_torch._state.pretrained import Saved
from tnadapt_torch._state.replicas import Replicas, shared_by
from tnadapt_torch._state.resize import COUNTS, SQUARED, check_moments, check_open, check_whole
from tnadapt_torch._state.state import AdapterState
from tnadapt_torch._state.step import note_of_step
from tnadapt_torch._state.updates import make_updates
from tnadapt_torch._state.values import copy_values, set_values
from tnadapt_torch._state.watch import Watch

__all__ = [
    "COUNTS",
    "SQUARED",
    "AdapterState",
    "Enclosing",
    "MarksCheck",
    "Replicas",
    "Run",
    "Saved",
    "Watch",
    "check_apart",
    "check_moments",
    "check_open",
    "check_unmerged",
    "check_unread",
    "check_whole",
    "copy_values",
    "enter",
    "host_modules",
    "make_updates",
    "note_of_step",
    "set_values",
    "shared_by",
    "states_of",
    "stored_factors",
    "to_numpy",
]
