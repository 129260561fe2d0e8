"""The JAX binding: pure functions on plain pytrees, for any model that is a function of its weights."""

from tnadapt import __version__
from tnadapt.binding import extra

with extra("jax", "tnadapt_jax"):
    from tnadapt_jax._adapt import Explained, adapt, explain
    from tnadapt_jax._apply import apply, delta
    from tnadapt_jax._files import load, save
    from tnadapt_jax._find import find_sites
    from tnadapt_jax._leaf import Leaf, Leaves
    from tnadapt_jax._merge import merge, merge_loss
    from tnadapt_jax._params import Params, init
    from tnadapt_jax._rates import rate_labels
    from tnadapt_jax._resize import carry, resize
    from tnadapt_jax._scan import apply_in_layer, scan_split
    from tnadapt_jax._shardings import shardings

__all__ = [
    "Explained",
    "Leaf",
    "Leaves",
    "Params",
    "__version__",
    "adapt",
    "apply",
    "apply_in_layer",
    "carry",
    "delta",
    "explain",
    "find_sites",
    "init",
    "load",
    "merge",
    "merge_loss",
    "rate_labels",
    "resize",
    "save",
    "scan_split",
    "shardings",
]
