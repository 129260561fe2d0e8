"""The version of the library. The package is built with it, and tests compare the other files that state it."""

__all__ = ["__version__"]

__version__ = "0.2.0"
