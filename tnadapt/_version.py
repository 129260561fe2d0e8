"""The version of the installed library."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("tnadapt")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
