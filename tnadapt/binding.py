"""What a binding to a framework, or a tool beside the library, needs of the core beyond the public names."""

from tnadapt._files import Checkpoint, Written, digests, file_size, params_to_store, read_checkpoint
from tnadapt._hosts import Block, Place, Rule, coordinates_of, in_layers, match, nearest, places_of
from tnadapt._language import START, Address, Factor, Group, Network, Part, Slot
from tnadapt._planning import (
    BUCKETS,
    OBJECTIVES,
    Backend,
    Cost,
    ExactOrder,
    Objective,
    Plan,
    Step,
    bucket,
    equation_of,
    run,
)
from tnadapt._structure import Cut, LoRA, minimum_cut
from tnadapt._values import Params, drawn_starts, map_factor, pull_back, redraw

__all__ = [
    "BUCKETS",
    "OBJECTIVES",
    "START",
    "Address",
    "Backend",
    "Block",
    "Checkpoint",
    "Cost",
    "Cut",
    "ExactOrder",
    "Factor",
    "Group",
    "LoRA",
    "Network",
    "Objective",
    "Params",
    "Part",
    "Place",
    "Plan",
    "Rule",
    "Slot",
    "Step",
    "Written",
    "bucket",
    "coordinates_of",
    "digests",
    "drawn_starts",
    "equation_of",
    "file_size",
    "in_layers",
    "map_factor",
    "match",
    "minimum_cut",
    "nearest",
    "params_to_store",
    "places_of",
    "pull_back",
    "read_checkpoint",
    "redraw",
    "run",
]
