"""Contraction order: the exact search, and the plan that is made of it."""

from tnadapt._planning.plan import BUCKETS, Plan, Step, bucket, plan
from tnadapt._planning.search import OBJECTIVES, Cost, ExactOrder, Modes, Objective, Question, measure, search

__all__ = [
    "BUCKETS",
    "OBJECTIVES",
    "Cost",
    "ExactOrder",
    "Modes",
    "Objective",
    "Plan",
    "Question",
    "Step",
    "bucket",
    "measure",
    "plan",
    "search",
]
