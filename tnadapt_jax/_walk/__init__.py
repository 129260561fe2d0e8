"""Run a function of weights so that each update enters the activations: the weights are followed through its jaxpr."""

from tnadapt_jax._walk.program import dense_all, walk
from tnadapt_jax._walk.views import view_of
from tnadapt_jax._walk.weight import Log, Weight

__all__ = ["Log", "Weight", "dense_all", "view_of", "walk"]
