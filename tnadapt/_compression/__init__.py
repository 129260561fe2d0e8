"""Find the adapter of a spec whose updates are closest to given ones."""

from tnadapt._compression.compress import SWEEPS, Compression, Sweep, compress
from tnadapt._compression.updates import low_rank_updates

__all__ = ["SWEEPS", "Compression", "Sweep", "compress", "low_rank_updates"]
