"""Tensor-network diagrams of specs and networks, as SVG and as text."""

from tnadapt._diagram.draw import Diagram, draw

__all__ = ["Diagram", "draw"]
