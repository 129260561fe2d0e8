"""The picture of a spec or a network, as SVG and as text."""

from tnadapt._diagram.draw import Diagram, draw

__all__ = ["Diagram", "draw"]
