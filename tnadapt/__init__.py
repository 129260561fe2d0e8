"""Parameter-efficient fine-tuning with tensor networks: describe an adapter as a spec, derive everything else."""

from tnadapt import families as families
from tnadapt._apply import apply, delta, merge
from tnadapt._count import FactorCount, ParamCount, count
from tnadapt._errors import FormatError, PlanError, SiteError, SpecError, TnadaptError
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
from tnadapt._format import Checkpoint, load, read, save
from tnadapt._init import Params, init
from tnadapt._json import from_json, to_json
from tnadapt._network import Group, Network, Site, grid
from tnadapt._plan import BUCKETS, Plan, Step, bucket, plan
from tnadapt._search import OBJECTIVES, Cost, ExactOrder, Objective
from tnadapt._spec import Adapter, AdapterSpec, Slot

__all__ = [
    "BUCKETS",
    "OBJECTIVES",
    "Adapter",
    "AdapterSpec",
    "Checkpoint",
    "Cost",
    "ExactOrder",
    "Factor",
    "FactorCount",
    "FormatError",
    "Group",
    "Init",
    "Network",
    "Objective",
    "ParamCount",
    "Params",
    "Plan",
    "PlanError",
    "Scale",
    "Site",
    "SiteError",
    "Slot",
    "SpecError",
    "Step",
    "TnadaptError",
    "apply",
    "bucket",
    "constant",
    "count",
    "delta",
    "from_json",
    "frozen",
    "grid",
    "init",
    "kaiming_normal",
    "kaiming_uniform",
    "load",
    "merge",
    "normal",
    "ones",
    "orthogonal",
    "over_rank",
    "over_sqrt_rank",
    "plan",
    "raw",
    "read",
    "save",
    "to_json",
    "trainable",
    "uniform",
    "zeros",
]
