"""``report``: the page of a run, written again from its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayespare.cli.folder import existing_run
from bayespare.cli.keys import ReportKeys
from bayespare.cli.output import Output
from bayespare.report import write_report


def report(keys: ReportKeys, output: Output) -> Mapping[str, Any]:
    """Write ``report.html``.

    Raises:
        BayespareError: If there is no such run, or a file in it is damaged.
    """
    page = write_report(existing_run(keys.run, "report"))
    output.say(f"report: {page}")
    return {"report": str(page)}
