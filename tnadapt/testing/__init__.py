"""Property tests for any spec: random specs and sites, a dense oracle, and the laws that every spec must satisfy.

`check(spec)` tests every law on your own spec. Needs hypothesis: `pip install "tnadapt[testing]"`.
"""

from tnadapt._errors import LawError
from tnadapt._extras import extra

with extra("testing", "tnadapt.testing"):
    from tnadapt.testing._check import Held, check
    from tnadapt.testing._laws import LAWS, Law
    from tnadapt.testing._oracle import dense, gradients, random_params, start_params
    from tnadapt.testing._strategies import adapters, networks, sites, specs

__all__ = [
    "LAWS",
    "Held",
    "Law",
    "LawError",
    "adapters",
    "check",
    "dense",
    "gradients",
    "networks",
    "random_params",
    "sites",
    "specs",
    "start_params",
]
