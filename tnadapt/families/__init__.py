"""The published adapters, one short function each: a family is a value of the language, not a class."""

from tnadapt.families._matrix import lora, tlora, vera
from tnadapt.families._product import loha, lokr
from tnadapt.families._tensor import lorta, lotr, tera

__all__ = ["loha", "lokr", "lora", "lorta", "lotr", "tera", "tlora", "vera"]
