"""What is trained and saved: the adapter's state, its factors, parameter groups and norms."""

from tnadapt_torch._state.state import AdapterState, child_name, host_modules, states_of

__all__ = ["AdapterState", "child_name", "host_modules", "states_of"]
