"""Tables: what an adapter counts, bounds and costs, and several adapters compared."""

from tnadapt._report.report import LIMIT, TOKENS, Comparison, NetworkReport, Report, compare, report

__all__ = ["LIMIT", "TOKENS", "Comparison", "NetworkReport", "Report", "compare", "report"]
