"""Parameter-efficient fine-tuning with tensor networks: describe an adapter as a spec, derive everything else."""

from tnadapt import families as families
from tnadapt._apply import apply, delta, merge
from tnadapt._count import FactorCount, ParamCount, count, fit_rank
from tnadapt._diagram import Diagram, draw
from tnadapt._errors import FormatError, LawError, PlanError, SiteError, SpecError, TnadaptError
from tnadapt._factor import (
    Factor,
    Init,
    Scale,
    constant,
    cur,
    cyclic,
    frozen,
    identity,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    over_rank,
    over_sqrt_rank,
    projection,
    raw,
    sign,
    singular,
    train,
    trainable,
    tubal,
    uniform,
    zeros,
)
from tnadapt._format import Checkpoint, digests, file_size, load, read, save
from tnadapt._freedom import Freedom, degrees_of_freedom, first_gradients
from tnadapt._hosts import Block, Host, Site, find_host, grid, sites_of, split_sites
from tnadapt._init import Params, init, redraw
from tnadapt._json import from_json, to_json
from tnadapt._lora import LoRA, to_lora
from tnadapt._maps import map_factor, pull_back
from tnadapt._network import Group, Network
from tnadapt._peft_export import Written, save_as_lora
from tnadapt._peft_import import read_peft
from tnadapt._plan import BUCKETS, Plan, Step, bucket, plan
from tnadapt._project import Projection, Sweep, project
from tnadapt._rank import Cut, generic_rank, minimum_cut, rank_bound
from tnadapt._report import Comparison, NetworkReport, Report, compare, report
from tnadapt._search import OBJECTIVES, Cost, ExactOrder, Objective
from tnadapt._spec import Adapter, AdapterSpec, Slot
from tnadapt._updates import low_rank

__all__ = [
    "BUCKETS",
    "OBJECTIVES",
    "Adapter",
    "AdapterSpec",
    "Block",
    "Checkpoint",
    "Comparison",
    "Cost",
    "Cut",
    "Diagram",
    "ExactOrder",
    "Factor",
    "FactorCount",
    "FormatError",
    "Freedom",
    "Group",
    "Host",
    "Init",
    "LawError",
    "LoRA",
    "Network",
    "NetworkReport",
    "Objective",
    "ParamCount",
    "Params",
    "Plan",
    "PlanError",
    "Projection",
    "Report",
    "Scale",
    "Site",
    "SiteError",
    "Slot",
    "SpecError",
    "Step",
    "Sweep",
    "TnadaptError",
    "Written",
    "apply",
    "bucket",
    "compare",
    "constant",
    "count",
    "cur",
    "cyclic",
    "degrees_of_freedom",
    "delta",
    "digests",
    "draw",
    "file_size",
    "find_host",
    "first_gradients",
    "fit_rank",
    "from_json",
    "frozen",
    "generic_rank",
    "grid",
    "identity",
    "init",
    "kaiming_normal",
    "kaiming_uniform",
    "load",
    "low_rank",
    "map_factor",
    "merge",
    "minimum_cut",
    "normal",
    "ones",
    "orthogonal",
    "over_rank",
    "over_sqrt_rank",
    "plan",
    "project",
    "projection",
    "pull_back",
    "rank_bound",
    "raw",
    "read",
    "read_peft",
    "redraw",
    "report",
    "save",
    "save_as_lora",
    "sign",
    "singular",
    "sites_of",
    "split_sites",
    "to_json",
    "to_lora",
    "train",
    "trainable",
    "tubal",
    "uniform",
    "zeros",
]
