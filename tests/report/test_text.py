"""Numbers as text, and the plain-text table."""

from typing import Any

import pytest

from bayespare.errors import BayespareError
from bayespare.report import summary_table
from bayespare.report.scales import tick_label
from bayespare.report.text import (
    count,
    duration,
    milliseconds,
    number,
    percent,
    quantity,
    size,
    times,
)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (count(431080), "431,080"),
        (count(0), "0"),
        (count(4_089_184_256), "4,089.2 M"),
        (count(25_557_032_000), "25.6 G"),
        (size(999), "999 B"),
        (size(14920), "14.92 kB"),
        (size(2.5e9), "2.50 GB"),
        (percent(0.97784), "97.78 %"),
        (number(0.09214), "0.0921"),
        (number(1234.5), "1,234"),
        (number(-5.5), "\u22125.5000"),
        (number(-0.00001), "0.0000"),
        (number(float("nan")), "\u2013"),
        (number(None), "\u2013"),
        (quantity(53.7134), "53.71"),
        (quantity(0.0), "0.0000"),
        (quantity(1.23456e30), "1.235e+30"),
        (quantity(-1.23456e-30), "\u22121.235e\u221230"),
        (quantity(1234567.0), "1.235e+06"),
        (quantity(None), "\u2013"),
        (tick_label(2.5e30), "2.5e+30"),
        (tick_label(2.5e9), "2.5G"),
        (milliseconds(0.0312), "0.031 ms"),
        (milliseconds(123.456), "123.5 ms"),
        (duration(59.94), "59.9 s"),
        (duration(61), "1 min 1 s"),
        (duration(3725), "1 h 2 min"),
        (times(1.084), "1.08\u00d7"),
        (times(38.12), "38.1\u00d7"),
        (times(212.4), "212\u00d7"),
    ],
)
def test_numbers_read_well(made: str, expected: str) -> None:
    assert made == expected


def test_the_table_has_a_line_per_measure_and_aligned_columns(metrics: dict[str, Any]) -> None:
    lines = summary_table(metrics).splitlines()
    assert lines[0].split() == ["dense", "compact", "change"]
    table = {line[:20].strip(): line for line in lines[2:]}
    assert "97.78 % [96.2, 98.7]" in table["accuracy"]
    assert "\u22120.37 points" in table["accuracy"]
    assert table["parameters"].split() == [
        "parameters",
        "190,410",
        "3,214",
        "59.2\u00d7",
        "smaller",
    ]
    assert table["latency, batch 1"].endswith("1.19\u00d7 slower")
    assert table["latency, batch 256"].endswith("9.13\u00d7 faster")
    column = lines[0].index("compact") + len("compact")
    assert all(line[column - 1] not in " " and line[column] == " " for line in lines[2:])


@pytest.mark.parametrize(("scale", "shown"), [(1e30, "e+30"), (1e-30, "e\u221230")])
def test_targets_of_any_size_keep_their_digits(scale: float, shown: str) -> None:
    metrics = {"dense": {"rmse": 1.25 * scale}, "compact": {"rmse": 3.5 * scale}}
    line = summary_table(metrics).splitlines()[-1]
    assert line.split() == ["RMSE", f"1.25{shown}", f"3.5{shown}", f"+2.25{shown}"]


def test_one_model_alone_is_enough() -> None:
    text = summary_table({"compact": {"accuracy": 0.9, "parameters": 10}})
    assert "90.00 %" in text
    assert "\u2013" in text
    assert "smaller" not in text


def test_equal_costs_and_zero_costs() -> None:
    text = summary_table({"dense": {"macs": 5, "bytes": 0}, "compact": {"macs": 5, "bytes": 0}})
    assert text.splitlines()[-1].endswith("the same")
    assert text.splitlines()[-2].rstrip().endswith("0 B")


def test_a_wrong_type_is_one_line() -> None:
    with pytest.raises(BayespareError, match=r"metrics: dense\.nll"):
        summary_table({"dense": {"nll": "low"}})
