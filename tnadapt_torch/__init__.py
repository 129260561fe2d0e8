"""The PyTorch binding: attach a tnadapt adapter to any torch module."""

from tnadapt import __version__
from tnadapt.binding import extra

with extra("torch", "tnadapt_torch"):
    from tnadapt_torch._attach import attach
    from tnadapt_torch._files import load, load_peft
    from tnadapt_torch._state import AdapterState

__all__ = ["AdapterState", "__version__", "attach", "load", "load_peft"]
