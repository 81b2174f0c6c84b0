"""``bayespare select``: the ranked table, the files, and what it refuses."""

import csv
import json

import numpy as np
import pytest
from cli_caller import Caller


@pytest.fixture
def rows(tmp_path):
    """y is made of ``a`` and ``kind``; ``b`` is noise, ``same`` never varies, ``copy`` is ``a``."""
    draw = np.random.default_rng(1)
    path = tmp_path / "rows.csv"
    lines = ["a,b,same,copy,kind <i>,y"]
    for _ in range(240):
        a, b, kind = draw.normal(), draw.normal(), draw.integers(3)
        y = 2 * a + 1.5 * (kind == 1) + 0.3 * draw.normal()
        lines.append(f"{a:.4f},{b:.4f},7,{-3 * a:.4f},{'uvw'[kind]},{y:.4f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_it_ranks_the_columns_and_writes_the_files(cli: Caller, rows, tmp_path):
    said = cli("select", f"data={rows}", "target=y", "seeds=2", "name=found")
    assert said.code == 0, said.err
    assert "do not vary, left out: same" in said.out
    assert "say the same thing: a, copy" in said.out
    folder = tmp_path / "runs" / "found"
    with (folder / "features.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    by_name = {row["name"]: row for row in table}
    assert len(table) == 5
    assert by_name["kind <i>"]["selected"] == "True"
    assert by_name["kind <i>"]["inputs"] == "3"
    assert "True" in {by_name["a"]["selected"], by_name["copy"]["selected"]}
    assert by_name["b"]["selected"] == by_name["same"]["selected"] == "False"
    assert [row["rank"] for row in table] == list("12345")
    page = (folder / "features.html").read_text(encoding="utf-8")
    assert "kind &lt;i&gt;" in page
    assert "kind <i>" not in page
    kept = json.loads((folder / "features.json").read_text(encoding="utf-8"))
    assert {f["name"]: f["log_odds"] for f in kept["features"]}["same"] is None
    again = cli("select", f"data={rows}", "target=y", "name=found")
    assert again.code == 2
    assert "exists and is not empty" in again.err


def test_columns_that_go_together_are_one_line(cli: Caller, rows, tmp_path):
    words = ("target=y", "groups=b+kind <i>,copy+a", "epochs=400", "name=found", "--json")
    said = cli("select", f"data={rows}", *words)
    assert said.code == 0, said.err
    found = json.loads(said.out)["features"]
    assert {f["name"]: f["inputs"] for f in found} == {"a+copy": 2, "b+kind <i>": 4, "same": 1}
    assert sum(f["importance"] for f in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say which data"),
        (("data={rows}", "target=z"), "z"),
        (("data={rows}", "target=y", "rule=fdrr"), "did you mean 'fdr'"),
        (("data={rows}", "target=y", "method=node-pips"), "did you mean 'node-pip'"),
        (("data={rows}", "target=y", "seeds=0"), "seeds"),
        (("data={rows}", "target=y", "fdr=0.05"), "fdr=0.05 is the bound of rule=fdr"),
        (("data={rows}", "target=y", "groups=a"), "columns that go together"),
        (("data={rows}", "target=y", "groups=a+copi"), "did you mean 'copy'"),
        (("data={rows}", "target=y", "groups=a+copy,a+b"), "'a' is named twice"),
        (("data={rows}", "target=y", "net=mlq:3"), "did you mean"),
        (("data={rows}.gone", "target=y"), "rows.csv.gone"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(cli: Caller, rows, tmp_path, words, says):
    said = cli("select", *(word.format(rows=rows) for word in words))
    assert said.code == 2
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
