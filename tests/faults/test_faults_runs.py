"""Kills and full disks lose nothing, and many fits in one process leave nothing behind.

``benchmarks/faults.py`` does the same at length.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fault_runs import (
    kill_and_resume,
    make_data,
    repeated,
    starve_and_resume,
    uninterrupted,
)


@pytest.mark.parametrize("method", ["ss-ghs", "spam"])
def test_a_killed_run_ends_as_if_nobody_had_killed_it(method: str, tmp_path: Path) -> None:
    table, draw = make_data(tmp_path / "d.npz"), random.Random(method)
    whole = uninterrupted(method, table, tmp_path / "whole")
    for number in range(2):
        done = kill_and_resume(method, table, tmp_path / str(number), whole, draw)
        assert done.kills
        assert done.identical, done
        assert not done.stray


def test_a_starved_run_says_so_in_a_line_and_goes_on_later(tmp_path: Path) -> None:
    table = make_data(tmp_path / "d.npz")
    whole = uninterrupted("bmr", table, tmp_path / "whole")
    for most_bytes in (100, 4000):
        done = starve_and_resume("bmr", table, tmp_path / str(most_bytes), whole, most_bytes)
        assert done["exit_code"] == 2
        assert done["said"].startswith("bayespare: ")
        assert "cannot be written" in done["said"]
        assert not done["traceback"]
        assert not done["parts"]
        assert done["identical"]


def test_many_fits_in_one_process_leave_nothing_behind() -> None:
    found = repeated(8)
    assert found["files_end"] == found["files_warm"]
    assert found["bytes_per_fit"] < 300_000
