"""What a binding to a framework, or a tool beside the library, needs of the core beyond the public names."""

from tnadapt._files import Checkpoint, Written, digests, file_size, read_checkpoint
from tnadapt._hosts import Block
from tnadapt._language import Factor, Group, Network, Slot, expect_adapter, expect_params, expect_path
from tnadapt._planning import BUCKETS, OBJECTIVES, Cost, ExactOrder, Objective, Plan, Step, bucket
from tnadapt._signature import answers, expect_names, mistake, told
from tnadapt._structure import Cut, LoRA, minimum_cut
from tnadapt._values import Params, map_factor, pull_back, redraw, unknown_map
from tnadapt.families import SpecLike, spec_of

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
    "Plan",
    "Slot",
    "SpecLike",
    "Step",
    "Written",
    "answers",
    "bucket",
    "digests",
    "expect_adapter",
    "expect_names",
    "expect_params",
    "expect_path",
    "file_size",
    "map_factor",
    "minimum_cut",
    "mistake",
    "pull_back",
    "read_checkpoint",
    "redraw",
    "spec_of",
    "told",
    "unknown_map",
]
