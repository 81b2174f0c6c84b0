"""The page: complete, self-contained, safe with hostile text, calm about missing parts."""

import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bayespare.errors import BayespareError
from bayespare.report import RunView, render, write_report

FILES = ("metrics.json", "config.json", "plan.json", "frontier.json", "history.jsonl")
VOID = {"meta", "br", "hr"}


class Outline(HTMLParser):
    """Collects tags and attributes, and insists that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def edit(folder: Path, name: str, change: Any) -> None:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    change(data)
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def test_the_page_shows_every_part_of_the_run(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    page = path.read_text(encoding="utf-8")
    for text in (
        "mlp:400,400 on digits: 59.2× fewer parameters",  # noqa: RUF001
        "method ss-ghs", "1,257 training rows", "97.78 %", "[95.7, 98.4]", "59.2× smaller",  # noqa: RUF001
        "1.19× slower", "9.13× faster", "0.75×", "Units kept", "3 of 4 features", "Log-odds",  # noqa: RUF001
        "25.0 % of 4 features undecided", "1 never in question", "Calibration", "Accuracy and size",
        "middle (chosen)", "Training", "Validation accuracy", "KL from the prior", "cooling",
        "Stages", "averaged over the posterior", "Left alone", "its units are the model&#x27;s",
        "the machine was busy", "sha256:9f2c", "3.1e-07", "prior", "128",
    ):  # fmt: skip
        assert text in page, text
    assert outline(page).tags.count("svg") == 2 + 2 + 1 + 1 + 4
    assert not list(run_folder.glob(".report*"))


def test_nothing_is_loaded_and_no_script_runs(run_folder: Path) -> None:
    page = render(RunView.read(run_folder))
    assert not re.search(r"https?://|url\(|@import|javascript:", page)
    parsed = outline(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not any(name.startswith("on") for name in names)
    assert "src" not in names
    assert {value for name, value in parsed.attributes if name == "href"} == {"#warnings"}
    assert ("http-equiv", "Content-Security-Policy") in parsed.attributes
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes


def test_hostile_text_stays_text(run_folder: Path) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"

    def plan(data: Any) -> None:
        data["groups"][0].update(name=evil, unit=evil)
        data["left_alone"] = {evil: evil}

    def metrics(data: Any) -> None:
        data.update(method=evil, warnings=[evil], units={evil: [1, 2]}, measured_on=evil)
        data["stages"] = {evil: {"accuracy": 0.5}}
        data["dense"]["latency_ms"] = {evil: 1.0}
        data["time_s"] = {evil: 1.0}

    def config(data: Any) -> None:
        data.update(net=evil, data=evil, task=evil, versions={evil: evil}, settings={evil: evil})

    edit(run_folder, "plan.json", plan)
    edit(run_folder, "metrics.json", metrics)
    edit(run_folder, "config.json", config)
    edit(run_folder, "frontier.json", lambda rows: rows[0].update(name=evil))
    lines = [json.dumps({"phase": evil, "nll": n, "valid_nll": n}) for n in (1.0, 2.0)]
    (run_folder / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")
    page = render(RunView.read(run_folder))
    parsed = outline(page)
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert page.count("&lt;script&gt;") > 15


@pytest.mark.parametrize("seconds", [1.0, None, 0.0, float("nan")])
def test_training_is_drawn_over_its_time_or_else_its_epochs(
    run_folder: Path, seconds: float | None
) -> None:
    rows = [{"phase": "warm", "nll": 1.0, "seconds": 8.0}]
    rows += [{"phase": "dense", "nll": 0.9 - 0.1 * i, "seconds": seconds} for i in range(3)]
    text = "\n".join(json.dumps(row) for row in rows)
    (run_folder / "history.jsonl").write_text(text, encoding="utf-8")
    page = render(RunView.read(run_folder))
    titles = ("seconds of training", "epochs of all phases")
    assert [title in page for title in titles] == [seconds == 1.0, seconds != 1.0]


@pytest.mark.parametrize("missing", [c for n in range(1, 6) for c in combinations(FILES, n)])
def test_any_missing_file_but_the_first_two_is_left_out(
    run_folder: Path, missing: tuple[str, ...]
) -> None:
    for name in missing:
        (run_folder / name).unlink()
    if {"metrics.json", "config.json"} <= set(missing):
        with pytest.raises(BayespareError, match="no run here"):
            write_report(run_folder)
        return
    outline(write_report(run_folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", FILES)
def test_empty_parts_are_left_out(run_folder: Path, part: str) -> None:
    text = {"history.jsonl": "\n{}\n{}\n", "frontier.json": "[]"}.get(part, "{}")
    (run_folder / part).write_text(text, encoding="utf-8")
    outline(render(RunView.read(run_folder)))


@pytest.mark.parametrize("key", ["dense", "compact", "stages", "reliability", "units", "time_s"])
def test_missing_keys_are_left_out(run_folder: Path, key: str) -> None:
    edit(run_folder, "metrics.json", lambda data: data.pop(key))
    outline(render(RunView.read(run_folder)))


def test_values_that_are_not_finite_never_break_the_page(run_folder: Path) -> None:
    edit(
        run_folder,
        "plan.json",
        lambda d: d["groups"][0].update(
            log_odds=[float("inf"), float("-inf"), float("nan"), 1e300]
        ),
    )
    edit(run_folder, "metrics.json", lambda d: d["compact"].update(nll=float("nan")))
    edit(run_folder, "frontier.json", lambda d: d[0].update(macs=0, valid_accuracy=float("inf")))
    rows = [{"nll": v, "valid_accuracy": v, "parameters": 0} for v in (float("inf"), 1.0, 2.0)]
    text = "\n".join(json.dumps(row) for row in rows)
    (run_folder / "history.jsonl").write_text(text, encoding="utf-8")
    page = render(RunView.read(run_folder))
    outline(page)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["{", '{"a": 1', "\x00\x01", "[1, 2", '"', "[" * 100_000])
def test_a_damaged_file_is_named(run_folder: Path, name: str, damage: str) -> None:
    (run_folder / name).write_text(damage, encoding="utf-8")
    with pytest.raises(BayespareError, match=re.escape(name)) as caught:
        write_report(run_folder)
    assert "\n" not in str(caught.value)
    assert not (run_folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", '{"dense": {"accuracy": "high"}}', r"metrics\.json: dense\.accuracy"),
        ("metrics.json", "[]", r"metrics\.json: the whole file"),
        ("plan.json", '{"groups": [{"size": 3}]}', r"plan\.json: groups\.0\.name"),
        ("plan.json", '{"groups": [{"name": "a", "size": -3}]}', r"plan\.json: groups\.0\.size"),
        ("frontier.json", "{}", r"frontier\.json: must be a list"),
        ("frontier.json", '[{}, {"macs": "x"}]', r"frontier\.json row 1: macs"),
        ("history.jsonl", '{"epoch": 1}\n{"epoch": "x"}\n', r"history\.jsonl line 2: epoch"),
    ],
)
def test_a_wrong_type_names_file_and_field(
    run_folder: Path, name: str, content: str, message: str
) -> None:
    (run_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(BayespareError, match=message) as caught:
        RunView.read(run_folder)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_a_damaged_file(run_folder: Path) -> None:
    (run_folder / "metrics.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BayespareError, match=r"metrics\.json"):
        RunView.read(run_folder)


def test_half_a_surrogate_pair_can_be_written(run_folder: Path) -> None:
    edit(run_folder, "metrics.json", lambda d: d.update(warnings=["broken \ud800 text"]))
    assert "broken \ufffd text" in write_report(run_folder).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BayespareError, match="no run here"):
        write_report(tmp_path / "nowhere")


def test_regression_runs_show_rmse_and_coverage(run_folder: Path) -> None:
    scores = {"rmse": 55.3, "nll": 5.445, "coverage": {"90": 0.88}}
    metrics = {"dense": scores, "compact": scores, "stages": {"dense": scores}}
    (run_folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    frontier = [{"name": "a", "parameters": 10, "valid_rmse": 3.0, "chosen": True}]
    (run_folder / "frontier.json").write_text(json.dumps(frontier), encoding="utf-8")
    page = render(RunView.read(run_folder))
    for text in ("RMSE", "55.30", "inside the 90 % interval", "88.00 %", "validation RMSE"):
        assert text in page, text
    assert "accuracy" not in page.split("Training")[0].split("Accuracy and size")[0]


@pytest.mark.parametrize("method", ["ss-ghs", "reduce", "prune"])
def test_the_time_is_spent_on_what_was_done(run_folder: Path, method: str) -> None:
    edit(run_folder, "metrics.json", lambda m: m.update(method=method))
    page = write_report(run_folder).read_text(encoding="utf-8")
    trains = method == "ss-ghs"
    assert ("<dt>sparse training</dt>" in page) == trains
    assert ("<dt>removal</dt>" in page) == (not trains)
    assert "<dt>fine-tuning</dt>" in page
