"""A transformation of optax as a rule of tests/descent.py: jitted, with the frozen factors as arguments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tnadapt import Adapter
from tnadapt.binding import Params
from tnadapt_jax._params import tree_of

Maker = Callable[[Adapter], optax.GradientTransformation]


def tree(adapter: Adapter, values: Params, dtype=None):
    names = [name for name, slot in adapter.slots.items() if slot.factor.trainable]
    return {name: jnp.asarray(values[name], dtype or jnp.float64) for name in names}


class JaxRule:
    """Steps of one transformation."""

    def __init__(self, adapter: Adapter, params: Params, make: Maker, dtype=None) -> None:
        self.adapter, self.dtype = adapter, dtype or jnp.float64
        transformation = optax.with_extra_args_support(make(adapter))
        self.frozen = tree_of(adapter, params, self.dtype)["frozen"]
        self.state = transformation.init(tree(adapter, params, self.dtype))

        @jax.jit
        def step(values, grads, state, frozen):
            changes, state = transformation.update(grads, state, values, frozen=frozen)
            return optax.apply_updates(values, changes), state

        self.step = step

    def __call__(self, values: Params, grads: Params) -> Params:
        given = (tree(self.adapter, some, self.dtype) for some in (values, grads))
        new, self.state = self.step(*given, self.state, self.frozen)
        return {name: np.asarray(value).astype(float) for name, value in new.items()}
