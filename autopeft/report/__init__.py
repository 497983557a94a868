"""Reports of a study: one value that says all, and its forms as JSON, tables, pictures and an HTML page. Torch-free."""

from autopeft.report.html import write_report
from autopeft.report.records import Summary
from autopeft.report.summary import report_json, summarise
from autopeft.report.svg import front_svg

__all__ = ["Summary", "front_svg", "report_json", "summarise", "write_report"]
