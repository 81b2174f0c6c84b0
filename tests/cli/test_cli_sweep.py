"""``sweep``: what its cells are, and that processes that come and go share them without loss."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_caller import Caller, files
from optuna import load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import bayespare.cli.sweep.study as module
from bayespare.cli.folder import alone_in
from bayespare.cli.keys import FitKeys, SweepKeys
from bayespare.cli.parse import read_keys
from bayespare.cli.sweep import summary, work
from bayespare.cli.sweep.grid import Cell, cells, label
from bayespare.cli.sweep.study import Ended, Study
from bayespare.errors import BayespareError
from bayespare.methods import registered

TINY = ("net=mlp:8", "epochs=2", "baseline=false", "batch=32")


def grid(*words: str) -> list[Cell]:
    return cells(read_keys(SweepKeys, words, "sweep"))


# ------------------------------------------------------------------------- grid


def test_every_combination_is_a_cell_and_the_first_seed_comes_first() -> None:
    found = grid("data=digits", "method=bmr,ss-ig", "epochs=10,20", "seeds=2")
    told = [(c.keys.seed, c.keys.method, c.keys.epochs) for c in found]
    assert told == [
        (seed, method, epochs)
        for seed in (0, 1)
        for method in ("bmr", "ss-ig")
        for epochs in (10, 20)
    ]
    assert label(found[1], found) == "bmr epochs=20"
    assert found[0].group == found[4].group != found[1].group


def test_all_methods_and_listed_seeds() -> None:
    found = grid("data=digits", "method=all", "seed=3,7")
    assert {c.keys.method for c in found} == set(registered())
    assert {c.keys.seed for c in found} == {3, 7}
    assert [c.keys.seed for c in grid("data=digits", "seed=3", "seeds=2")] == [3, 4]


def test_a_table_is_swept_with_the_method_it_is_fitted_with(table: Path) -> None:
    words = (f"data={table}", "target=price")
    (cell,) = grid(*words)
    assert cell.keys.method == "node-pip"
    assert cell.name == grid(*words, "method=node-pip")[0].name
    assert cell.name != grid(*words, "method=ss-ghs")[0].name


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("mlp:400,400,lenet300", ["mlp:400,400", "lenet300"]),
        ("mlp:64,act=silu,mlp:8", ["mlp:64,act=silu", "mlp:8"]),
        ("wrn:16,4,my.module:net", ["wrn:16,4", "my.module:net"]),
        ("lenet5", ["lenet5"]),
    ],
)
def test_a_comma_inside_a_network_belongs_to_it(text: str, networks: list[str]) -> None:
    assert [c.keys.net for c in grid("data=digits", f"net={text}")] == networks


def test_ranges_are_filled_evenly_and_more_trials_keep_the_first() -> None:
    words = ("data=digits", "lr=1e-4..1e-2", "epochs=10..20", "method=bmr,ss-ig", "seeds=2")
    few, more = grid(*words, "trials=8"), grid(*words, "trials=32")
    assert (len(few), len(more)) == (32, 128)
    assert {c.name for c in few} <= {c.name for c in more}
    rates = sorted({c.keys.lr for c in more})
    assert len(rates) == 32
    # A quarter of the points in each quarter of the logarithm.
    logs = [4 * (math.log10(rate) + 4) / 2 for rate in rates]
    assert [sum(int(log) == quarter for log in logs) for quarter in range(4)] == [8] * 4
    epochs = {c.keys.epochs for c in more}
    assert epochs <= set(range(10, 21))
    assert len(epochs) > 8
    assert [c.keys.lr for c in few if c.keys.seed == 0] == [
        c.keys.lr for c in few if c.keys.seed == 1
    ]


def test_a_cell_has_the_same_name_wherever_it_is_asked_for() -> None:
    one, *_ = grid("data=digits", "epochs=10,20", "project=a", "device=cpu")
    other = grid("data=digits", "epochs=10", "method=ss-ghs", "seeds=3", "jobs=4")[0]
    assert one.name == other.name
    assert one.name.startswith("digits-ss-ghs-s0-")
    assert len({c.name for c in grid("data=digits", "epochs=10,10,1e1")}) == 1


def test_a_cell_is_told_by_its_data_and_not_by_where_they_lie(tmp_path: Path, digits: Path) -> None:
    copy = tmp_path / digits.name
    copy.write_bytes(digits.read_bytes())
    (before,), (moved,) = grid(f"data={digits}"), grid(f"data={copy}")
    assert before.name == moved.name
    np.savez(copy, x=np.eye(40, 64), y=np.arange(40) % 3)
    (changed,) = grid(f"data={copy}")
    assert changed.name != before.name


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("data=missing.csv",), "there is no such file"),
        (("epochs=10,x",), "epochs=x: must be a whole number"),
        (("method=bmr,ss-gi",), "unknown method 'ss-gi' (did you mean 'ss-ig'?)"),
        (("epochs=10,,20",), "epochs=10,,20: an empty value between commas"),
        (("seed=1,2", "seeds=3"), "seed= lists the seeds"),
        (("objective=speed",), "must be some of error,params,latency"),
        (("lr=1e-4..1e-2",), "trials= says at how many points"),
        (("trials=3",), "trials= says at how many points"),
        (("epochs=20..10", "trials=2"), "epochs=20..10: the range is empty"),
        (("tempering=0..0.5", "method=1..2", "trials=2"), "unknown method"),
        (("threads=2",), "unknown key 'threads'"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(
    cli: Caller, words: tuple[str, ...], complaint: str
) -> None:
    data = () if words[0].startswith("data=") else ("data=digits",)
    said = cli("sweep", *data, *words)
    assert said.code == 2
    assert complaint in said.error
    assert not Path("runs").exists()


# ------------------------------------------------------------------------ study


def study(folder: Path, **options: Any) -> Study:
    return Study("s", None, folder / "sweep.journal", ("error",), **options)


def cell(seed: int = 0) -> Cell:
    return Cell.of(FitKeys(data="digits", seed=seed), "abc")


FIGURES = {"valid_error": 0.25, "parameters": 3, "latency_ms": 1.0}


def test_a_cell_has_one_owner_until_it_is_given_back(tmp_path: Path) -> None:
    one, other = study(tmp_path), study(tmp_path)
    claim = one.claim(cell())
    assert claim is not None
    assert other.claim(cell()) is None
    assert other.claim(cell(1)) is not None
    claim.release()
    again = other.claim(cell())
    assert again is not None
    again.done(FIGURES)
    assert one.claim(cell()) is None
    assert one.ended() == {cell().name: Ended(FIGURES)}


def test_of_two_that_claim_at_once_the_first_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks before the first has written, and writes after it."""
    one, other = study(tmp_path), study(tmp_path)
    original, taken = other._template, []

    def meanwhile(cell: Cell) -> Any:
        taken.append(one.claim(cell))
        return original(cell)

    monkeypatch.setattr(other, "_template", meanwhile)
    assert other.claim(cell()) is None
    assert taken[0] is not None
    taken[0].done(FIGURES)
    assert one.ended().keys() == {cell().name}


def test_a_failure_stays_until_it_is_forgiven(tmp_path: Path) -> None:
    first = study(tmp_path)
    claim = first.claim(cell())
    assert claim is not None
    claim.failed("no luck")
    assert first.ended() == {cell().name: Ended({}, "no luck")}
    assert study(tmp_path).claim(cell()) is None
    again = study(tmp_path)
    again.forgive()
    assert again.ended() == {}
    claim = again.claim(cell())
    assert claim is not None
    claim.failed("again")
    # What fails now is not tried for ever, here or in the processes it starts.
    assert again.claim(cell()) is None
    assert study(tmp_path, forgiven=again.forgiven).claim(cell()) is None


def test_a_dead_process_loses_its_cell_and_a_silent_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = study(tmp_path), study(tmp_path)
    monkeypatch.setattr(module, "machine", lambda: "elsewhere")
    silent = one.claim(cell())
    monkeypatch.undo()
    assert silent is not None
    assert other.claim(cell()) is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + module.STALE - 1)
    assert other.claim(cell()) is None
    silent._study.note(silent._trial, "beat", 1)
    monkeypatch.setattr(time, "monotonic", lambda: now + module.STALE + 1)
    assert other.claim(cell()) is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * module.STALE + 2)
    taken = other.claim(cell())
    assert taken is not None
    silent.done(FIGURES)  # too late: it is another's now
    assert one.ended() == {}
    monkeypatch.setattr(module, "exists", lambda process: False)
    assert one.claim(cell()) is not None


def test_processes_are_there_or_not() -> None:
    assert module.exists(os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.5)
    assert not module.exists(gone.pid)  # a zombie until somebody waits for it
    gone.wait()
    assert not module.exists(gone.pid)


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.0)
    here = study(tmp_path)
    claim = here.claim(cell())
    assert claim is not None
    with claim.alive():
        time.sleep(1.5)
    assert here._trials()[0].user_attrs["beat"] >= 1


def test_other_objectives_and_damaged_journals_are_refused(tmp_path: Path) -> None:
    study(tmp_path)
    with pytest.raises(BayespareError, match="begun with objective=error; give that again"):
        Study("s", None, tmp_path / "sweep.journal", ("error", "params"))
    (tmp_path / "sweep.journal").write_bytes(b"not a journal\n" * 3)
    with pytest.raises(BayespareError, match=r"sweep\.journal: the study cannot be read"):
        study(tmp_path)
    with pytest.raises(BayespareError, match="nosuch://x: the study cannot be read"):
        Study("s", "nosuch://x", tmp_path / "j", ("error",))


def test_an_sql_database_does_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    one, other = (Study("s", url, tmp_path / "none", ("error", "params")) for _ in range(2))
    claim = one.claim(cell())
    assert claim is not None
    assert other.claim(cell()) is None
    claim.done(FIGURES)
    assert other.ended() == {cell().name: Ended(FIGURES)}
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------- summary


def test_the_summary_has_mean_spread_and_what_nothing_beats(tmp_path: Path) -> None:
    wanted = grid("data=digits", "method=bmr,ss-ig,spam", "seeds=2")
    sizes = {"bmr": (0.1, 100), "ss-ig": (0.2, 50), "spam": (0.3, 100)}
    ended = {}
    for one in wanted:
        error, size = sizes[one.keys.method]
        figures = dict.fromkeys(summary.MEASURES, 1.0) | {"score": "accuracy"}
        figures |= {"valid_error": error + 0.02 * one.keys.seed, "parameters": size}
        ended[one.name] = Ended(figures)
    ended[wanted[-1].name] = Ended({}, "no luck")
    found = summary.summary(wanted, ended, ("error", "params"))
    rows = {row["label"]: row for row in found["configurations"]}
    assert rows["bmr"]["mean"]["valid_error"] == pytest.approx(0.11)
    assert rows["bmr"]["spread"]["valid_error"] == pytest.approx(0.02 / 2**0.5)
    assert rows["spam"]["spread"]["valid_error"] is None
    assert {name: row["best"] for name, row in rows.items()} == {
        "bmr": True,
        "ss-ig": True,
        "spam": False,
    }
    assert found["failed"] == {wanted[-1].name: "no luck"}
    assert len(found["cells"]) == 5
    summary.write(found, tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["bmr", "ss-ig", "spam"]
    assert float(lines[0]["valid_error_mean"]) == pytest.approx(0.11)
    assert lines[2]["valid_error_std"] == ""
    assert "11.00 % ± 1.41 %" in summary.table(found)


def test_the_table_of_another_sweep_is_kept(tmp_path: Path) -> None:
    """But not that of a sweep that has grown, by seeds or by methods."""
    figures = dict.fromkeys(summary.MEASURES, 1.0) | {"score": "accuracy"}

    def swept(*words: str) -> Path | None:
        wanted = grid("data=digits", *words)
        ended = {cell.name: Ended(figures) for cell in wanted}
        return summary.write(summary.summary(wanted, ended, ("error",)), tmp_path)

    assert swept("method=bmr") is None
    assert swept("method=bmr,ss-ig", "seeds=2") is None
    both = (tmp_path / "sweep.csv").read_text()
    assert swept("method=spam") == tmp_path / "sweep-1.csv"
    assert swept("method=flat-map") == tmp_path / "sweep-2.csv"
    assert (tmp_path / "sweep-1.csv").read_text() == both
    assert "spam" in (tmp_path / "sweep-2.csv").read_text()
    assert len(json.loads((tmp_path / "sweep-1.json").read_text())["cells"]) == 4


# --------------------------------------------------------------------- the verb


def test_a_sweep_computes_what_is_missing_and_tells_failures(cli: Caller, digits: Path) -> None:
    words = ("sweep", f"data={digits}", *TINY, "project=s", "objective=error,params")
    said = cli(*words, "method=ss-ghs,flat-map", "seeds=2", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert len(found["cells"]) == 4
    assert not found["failed"]
    folders = {path.name for path in Path("s").iterdir() if path.is_dir()}
    assert folders == {row["cell"] for row in found["cells"]}
    before = {name: content for name, content in files(Path("s")).items() if "/" in name}
    said = cli(*words, "method=ss-ghs,flat-map", "seeds=3", "batch=32")
    assert said.code == 2  # batch= twice
    said = cli(*words, "method=ss-ghs", "seeds=3")
    assert said.code == 0, said.err
    assert "s: 3 cells, 2 of them done before" in said.out
    assert "3/3  ss-ghs      2" in said.out
    after = files(Path("s"))
    assert {name: after[name] for name in before} == before
    # A budget cannot be met by a method that removes nothing: its cells fail, the others do not.
    said = cli(*words, "method=flat-map,ss-ghs", "max_params=1e5")
    assert said.code == 2
    assert "1 of 2 cells failed" in said.error
    assert "removes nothing by itself" in said.error
    assert len(json.loads(Path("s/sweep.json").read_text())["configurations"]) == 1
    said = cli(*words, "method=flat-map", "max_params=1e5", "retry=true")
    assert "1/1  flat-map      0  failed: method=flat-map removes nothing" in said.out


def test_a_cell_that_another_process_works_in_is_left_alone(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the study thinks that it is free."""
    monkeypatch.setattr(work, "WAIT", 0.0)
    (one,) = grid(f"data={digits}", *TINY)
    here = study(tmp_path)
    (tmp_path / one.name).mkdir()
    with alone_in(tmp_path / one.name):
        assert work.work_one(here, [one], tmp_path)
    assert here.ended() == {}
    assert not any((tmp_path / one.name).iterdir())
    assert work.work_one(here, [one], tmp_path)
    assert here.ended().keys() == {one.name}


def test_two_processes_share_twenty_cells_and_a_kill_loses_none(
    tmp_path: Path, digits: Path
) -> None:
    """One of them is killed while it works and started again; the other has two workers."""
    words = [f"data={digits}", *TINY, "method=ss-ghs,bmr", "seeds=10", "project=s"]
    command = [sys.executable, "-m", "bayespare", "sweep", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(jobs: int) -> subprocess.Popen[bytes]:
        with (tmp_path / "said").open("ab") as log:
            return subprocess.Popen(
                [*command, f"jobs={jobs}"],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def working(process: subprocess.Popen[bytes]) -> bool:
        journal = tmp_path / "s/sweep.journal"
        return journal.exists() and f'"process":{process.pid}' in journal.read_text()

    second, first = start(jobs=1), start(jobs=2)
    deadline = time.monotonic() + 60
    while not working(second) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    second.send_signal(signal.SIGKILL)
    second.wait()
    second = start(jobs=1)
    assert first.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    assert second.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s/sweep.journal")))
    trials = load_study(study_name="s", storage=storage).trials
    done = Counter(t.user_attrs["cell"] for t in trials if t.state == TrialState.COMPLETE)
    assert len(done) == 20
    assert len({trial.user_attrs["process"] for trial in trials}) > 2
    assert set(done.values()) == {1}
    assert all(trial.state.is_finished() for trial in trials)
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == set(done)
    assert len(json.loads((tmp_path / "s/sweep.json").read_text())["cells"]) == 20
    stray = [path for path in (tmp_path / "s").rglob("*") if path.name.startswith(".")]
    assert not stray
    assert not list((tmp_path / "s").rglob("checkpoint"))
