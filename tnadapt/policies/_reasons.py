"""What can be done with each bond of an adapter, and why something cannot."""

from typing import Literal, get_args

from tnadapt._errors import SiteError
from tnadapt._language import Adapter, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._bonds import every_bond
from tnadapt.policies._cut import why_not_cut
from tnadapt.policies._grow import why_not_grown
from tnadapt.policies._hide import why_not_hidden
from tnadapt.policies._importance import why_not_told
from tnadapt.policies._sweep import why_not_swept

__all__ = ["bonds"]

Operation = Literal["importance", "grow", "cut", "sweep", "hide"]
OK = "ok"


@answers(SiteError)
def bonds(adapter: Adapter, operation: Operation = "importance") -> dict[str, str]:
    """Return every bond with a size of its own by name: "ok", or the reason why the operation does not serve it.

    The names are those that `importance` returns: "<group>.<bond>", or "<bond>" where all groups have it in common.

    Args:
        adapter: the adapter.
        operation: "importance", "grow", "cut", "sweep" or "hide".

    Raises:
        SiteError: there is no such operation.
    """
    adapter = expect_adapter(adapter, "bonds")
    if operation not in get_args(Operation):
        known = ", ".join(map(repr, get_args(Operation)))
        todo = 'Write bonds(adapter, "sweep").'
        raise mistake(SiteError, "bonds", f"one of {known}", told(operation), todo)
    why = {
        "importance": why_not_told,
        "grow": why_not_grown,
        "cut": why_not_cut,
        "sweep": why_not_swept,
        "hide": why_not_hidden,
    }[operation]
    return {name: why(adapter, bond) or OK for name, bond in every_bond(adapter).items()}
