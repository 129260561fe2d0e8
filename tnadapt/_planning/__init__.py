"""Contraction orders: the search for a cheap one, and the plan that is made of it."""

from tnadapt._planning.cost import (
    FIXED,
    OBJECTIVES,
    TRAINING,
    Convolution,
    Cost,
    Modes,
    Objective,
    Question,
    measure,
    shared_by,
)
from tnadapt._planning.equation import equation_of
from tnadapt._planning.host_product import find_product
from tnadapt._planning.parted import FactorProducts, part_products
from tnadapt._planning.plan import BUCKETS, Plan, Step, bucket, plan
from tnadapt._planning.run import Backend, Labeled, NumpyBackend, run
from tnadapt._planning.search import ExactOrder, search

__all__ = [
    "BUCKETS",
    "FIXED",
    "OBJECTIVES",
    "TRAINING",
    "Backend",
    "Convolution",
    "Cost",
    "ExactOrder",
    "FactorProducts",
    "Labeled",
    "Modes",
    "NumpyBackend",
    "Objective",
    "Plan",
    "Question",
    "Step",
    "bucket",
    "equation_of",
    "find_product",
    "measure",
    "part_products",
    "plan",
    "run",
    "search",
    "shared_by",
]
