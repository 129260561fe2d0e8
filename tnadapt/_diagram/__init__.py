"""Tensor-network diagrams of specs and networks, as SVG and as text."""

from tnadapt._diagram.draw import Diagram, draw
from tnadapt._diagram.score import WIDTH

__all__ = ["WIDTH", "Diagram", "draw"]
