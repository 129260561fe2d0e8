"""The code that runs in a forward pass: updates of sites and blocks, compiled plans, the layout of intermediates."""

from tnadapt_torch._run.blocks import BlocksHook, Hook
from tnadapt_torch._run.maps import map_factor
from tnadapt_torch._run.site import Held, Leading, Mapped, Owner, Ref, Row, SiteHook, Stack

__all__ = ["BlocksHook", "Held", "Hook", "Leading", "Mapped", "Owner", "Ref", "Row", "SiteHook", "Stack", "map_factor"]
