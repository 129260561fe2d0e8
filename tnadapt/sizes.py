"""Rules for the sizes of a spec's modes."""

from tnadapt._language import SizeRule, at_most, like, required

__all__ = ["SizeRule", "at_most", "like", "required"]
