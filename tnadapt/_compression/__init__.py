"""Fit an adapter of any spec to given updates."""

from tnadapt._compression.project import SWEEPS, Projection, Sweep, project
from tnadapt._compression.updates import low_rank

__all__ = ["SWEEPS", "Projection", "Sweep", "low_rank", "project"]
