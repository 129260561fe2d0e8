"""What a binding to a framework, or a tool beside the library, needs of the core beyond the public names."""

from tnadapt._files import Checkpoint, Written, digests, file_size, read_checkpoint
from tnadapt._hosts import Block, Place, Rule, coordinates_of, in_layers, match, nearest, places_of
from tnadapt._language import Factor, Group, Network, Slot
from tnadapt._planning import BUCKETS, OBJECTIVES, Cost, ExactOrder, Objective, Plan, Step, bucket
from tnadapt._structure import Cut, LoRA, minimum_cut
from tnadapt._values import Params, map_factor, pull_back, redraw

__all__ = [
    "BUCKETS",
    "OBJECTIVES",
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
    "Place",
    "Plan",
    "Rule",
    "Slot",
    "Step",
    "Written",
    "bucket",
    "coordinates_of",
    "digests",
    "file_size",
    "in_layers",
    "map_factor",
    "match",
    "minimum_cut",
    "nearest",
    "places_of",
    "pull_back",
    "read_checkpoint",
    "redraw",
]
