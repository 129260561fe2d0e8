"""Reports on adapters: counts, rank bounds, costs and first steps as tables, for one adapter or for several."""

from tnadapt._report.comparison import Comparison, compare
from tnadapt._report.report import LIMIT, TOKENS, NetworkReport, Report, report

__all__ = ["LIMIT", "TOKENS", "Comparison", "NetworkReport", "Report", "compare", "report"]
