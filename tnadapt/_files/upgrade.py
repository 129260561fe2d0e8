"""Specs of file format 1 as those of format 2."""

from collections.abc import Mapping
from typing import Any

__all__: list[str] = []

KINDS = {  # word of an initializer in format 1 -> its kind
    "cur": "tensor_cur",
    "projection": "hosvd_core",
    "sign": "controlled_z",
    "singular": "svd",
    "train": "tt_svd",
    "tubal": "t_svd",
}
SPEC = {"name": str, "weight": str, "over": str, "factors": dict, "scale": dict, "centered": bool}
SPEC |= {"identity_at_start": bool, "caps": dict}
MORE = {"given": str, "ties": dict}
FACTOR, INITIALIZER = {"modes": str, "trainable": bool, "init": dict}, {"law": str, "amount": (int, float), "fan": str}


def upgrade_spec(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec of format 1, whose keys and types were checked, as one of format 2."""
    sizes: dict[str, Any] = dict.fromkeys(fields.get("given", "").split(), "required")
    sizes |= {bond: {"at_most": mode} for bond, mode in fields["caps"].items()}
    sizes |= {bond: {"like": mode} for bond, mode in fields.get("ties", {}).items()}
    start = "centered" if fields["centered"] else "zero" if fields["identity_at_start"] else "free"
    kept = {key: fields[key] for key in ("name", "weight", "over", "factors", "scale")}
    return kept | {"sizes": sizes, "start": start}


def upgrade_initializer(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an initializer of format 1, whose keys were checked, as one of format 2."""
    others = {key: value for key, value in fields.items() if key != "law"}
    return {"kind": KINDS.get(fields["law"], fields["law"])} | others
