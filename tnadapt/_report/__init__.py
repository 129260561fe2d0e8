"""Reports on adapters: parameter counts, rank bounds and costs as tables, for one adapter or for several."""

from tnadapt._report.report import LIMIT, TOKENS, Comparison, NetworkReport, Report, compare, report

__all__ = ["LIMIT", "TOKENS", "Comparison", "NetworkReport", "Report", "compare", "report"]
