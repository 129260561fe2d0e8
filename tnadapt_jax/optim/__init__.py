"""Optax transformations that do not depend on how an update is split into factors. Needs optax."""

from tnadapt.binding import extra

with extra("jax", "tnadapt_jax.optim"):
    from tnadapt_jax.optim._preconditioned import Preconditioned
    from tnadapt_jax.optim._rite import Rite, RiteState

__all__ = ["Preconditioned", "Rite", "RiteState"]
