"""Parameter-efficient fine-tuning with tensor networks: write an adapter as a spec, and derive everything else."""

from tnadapt import families
from tnadapt._compression import compress, low_rank_updates
from tnadapt._diagram import draw
from tnadapt._errors import FormatError, PlanError, SiteError, SpecError, TnadaptError
from tnadapt._files import from_json, load, read_peft, save, save_as_lora, to_json
from tnadapt._hosts import Site, find_host, grid, sites_of, split_sites
from tnadapt._language import Adapter, AdapterSpec, count, frozen, magnitude, masked, same, trainable
from tnadapt._planning import plan
from tnadapt._report import compare, report
from tnadapt._structure import (
    degrees_of_freedom,
    first_gradients,
    fit_rank,
    generic_rank,
    rank_bound,
    step_size,
    to_lora,
)
from tnadapt._values import apply, delta, init, merge
from tnadapt._version import __version__
from tnadapt.initializers import LORA_STEP, kaiming_uniform, normal, over_rank, raw, unit, zeros

__all__ = [
    "LORA_STEP",
    "Adapter",
    "AdapterSpec",
    "FormatError",
    "PlanError",
    "Site",
    "SiteError",
    "SpecError",
    "TnadaptError",
    "__version__",
    "apply",
    "compare",
    "compress",
    "count",
    "degrees_of_freedom",
    "delta",
    "draw",
    "families",
    "find_host",
    "first_gradients",
    "fit_rank",
    "from_json",
    "frozen",
    "generic_rank",
    "grid",
    "init",
    "kaiming_uniform",
    "load",
    "low_rank_updates",
    "magnitude",
    "masked",
    "merge",
    "normal",
    "over_rank",
    "plan",
    "rank_bound",
    "raw",
    "read_peft",
    "report",
    "same",
    "save",
    "save_as_lora",
    "sites_of",
    "split_sites",
    "step_size",
    "to_json",
    "to_lora",
    "trainable",
    "unit",
    "zeros",
]
