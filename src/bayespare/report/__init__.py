"""The report of a run: one HTML page, and the dense -> compact table in plain text."""

from bayespare.report.page import render, write_report
from bayespare.report.run_view import RunView
from bayespare.report.text import summary_table

__all__ = ["RunView", "render", "summary_table", "write_report"]
