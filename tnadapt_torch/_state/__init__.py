"""The trained and saved state of an adapter: its factors, hooks, parameter groups and norms."""

from tnadapt_torch._state.factors import stored_factors
from tnadapt_torch._state.hooks import make_hooks
from tnadapt_torch._state.state import AdapterState, child_name, host_modules, states_of

__all__ = ["AdapterState", "child_name", "host_modules", "make_hooks", "states_of", "stored_factors"]
