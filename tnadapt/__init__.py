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
    frozen,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    over_rank,
    over_sqrt_rank,
    raw,
    trainable,
    uniform,
    zeros,
)
from tnadapt._format import Checkpoint, file_size, load, read, save
from tnadapt._freedom import Freedom, degrees_of_freedom, first_gradients
from tnadapt._hosts import Host, find_host
from tnadapt._init import Params, init
from tnadapt._json import from_json, to_json
from tnadapt._network import Group, Network
from tnadapt._plan import BUCKETS, Plan, Step, bucket, plan
from tnadapt._project import Projection, Sweep, project
from tnadapt._rank import Cut, generic_rank, minimum_cut, rank_bound
from tnadapt._report import Comparison, NetworkReport, Report, compare, report
from tnadapt._search import OBJECTIVES, Cost, ExactOrder, Objective
from tnadapt._site import Block, Site, grid, split_sites
from tnadapt._spec import Adapter, AdapterSpec, Slot
from tnadapt._updates import LowRank, low_rank

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
    "LowRank",
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
    "apply",
    "bucket",
    "compare",
    "constant",
    "count",
    "degrees_of_freedom",
    "delta",
    "draw",
    "file_size",
    "find_host",
    "first_gradients",
    "fit_rank",
    "from_json",
    "frozen",
    "generic_rank",
    "grid",
    "init",
    "kaiming_normal",
    "kaiming_uniform",
    "load",
    "low_rank",
    "merge",
    "minimum_cut",
    "normal",
    "ones",
    "orthogonal",
    "over_rank",
    "over_sqrt_rank",
    "plan",
    "project",
    "rank_bound",
    "raw",
    "read",
    "report",
    "save",
    "split_sites",
    "to_json",
    "trainable",
    "uniform",
    "zeros",
]
