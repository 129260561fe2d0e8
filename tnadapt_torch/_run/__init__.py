"""The code that runs in a forward pass: updates of sites and blocks, compiled plans, the layout of intermediates."""

from tnadapt_torch._run.blocks import BlocksUpdate, Update
from tnadapt_torch._run.bundle import Member, bundle_sites
from tnadapt_torch._run.call import Owner, find_x
from tnadapt_torch._run.layer import Siblings, forget_reading, join_layer
from tnadapt_torch._run.lower import lower_delta
from tnadapt_torch._run.magnitude import MagnitudeUpdate
from tnadapt_torch._run.maps import map_factor
from tnadapt_torch._run.refs import Held, Leading, Mapped, Ref, Row, Stack
from tnadapt_torch._run.site import SiteUpdate

__all__ = [
    "BlocksUpdate",
    "Held",
    "Leading",
    "MagnitudeUpdate",
    "Mapped",
    "Member",
    "Owner",
    "Ref",
    "Row",
    "Siblings",
    "SiteUpdate",
    "Stack",
    "Update",
    "bundle_sites",
    "find_x",
    "forget_reading",
    "join_layer",
    "lower_delta",
    "map_factor",
]
