"""The study that the processes of a sweep share: who works on which cell, and what came out.

It is an Optuna study, so Optuna's own tools read it too. No lock is held while a cell is computed:
a process writes a running trial for it and owns the cell if no trial with a lower number does. The
storage gives numbers out one at a time, so there is always exactly one owner. An owner shows
that it lives by a beat; when the beat stops, or its process is gone from this machine, the cell is
free again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayespare.cli.sweep.grid import Cell
from bayespare.errors import BayespareError
from bayespare.methods import registered

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

BEAT = 30.0
"""Seconds between two signs of life."""

STALE = 150.0
"""Seconds without one after which a process on another machine counts as dead."""

OBJECTIVES = {"error": "valid_error", "params": "parameters", "latency": "latency_ms"}
"""What a study can minimise, and its name among the figures of a cell."""


@dataclass(frozen=True)
class Ended:
    """A cell that needs no more work.

    Attributes:
        figures: What came out, JSON-ready; empty if it failed.
        error: Why it failed, or None.
    """

    figures: Mapping[str, Any]
    error: str | None = None


class Study:
    """A sweep's cells on a storage that any number of processes may open.

    Args:
        name: Of the study.
        url: Of an SQL database, or None for a journal.
        journal: The file it is kept in without ``url``; its folder exists.
        objectives: What is minimised, of :data:`OBJECTIVES`.
        forgiven: Failures of trials with lower numbers do not count.

    Raises:
        BayespareError: If Optuna is missing, the storage cannot be opened, or holds a study with
            other objectives.
    """

    def __init__(
        self,
        name: str,
        url: str | None,
        journal: Path,
        objectives: Sequence[str],
        forgiven: int = 0,
    ) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
        except ImportError as error:
            raise BayespareError("sweep needs Optuna: pip install 'bayespare[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.where = url or str(journal)
        self._states = optuna.trial.TrialState
        self._finished = optuna.exceptions.UpdateFinishedTrialError
        self.forgiven = forgiven
        self._seen: dict[int, tuple[Any, float]] = {}
        with self._reachable():
            self.storage: BaseStorage = (
                optuna.storages.JournalStorage(
                    # A write takes milliseconds; who holds the lock longer was killed.
                    JournalFileBackend(str(journal), JournalFileSymlinkLock(str(journal), 10))
                )
                if url is None
                else optuna.storages.RDBStorage(url)
            )
            study = optuna.create_study(
                storage=self.storage,
                study_name=name,
                directions=["minimize"] * len(objectives),
                load_if_exists=True,
            )
            known = study.user_attrs.get("objectives")
            if known is None:
                study.set_user_attr("objectives", list(objectives))
            elif known != list(objectives):
                raise BayespareError(
                    f"{self.where}: the study was begun with objective={','.join(known)}; give "
                    "that again, or another project="
                )
            self.objectives = tuple(objectives)
            self._id = self.storage.get_study_id_from_name(name)

    # ----------------------------------------------------------------- cells
    def ended(self) -> dict[str, Ended]:
        """Every cell that is done or has failed, by name."""
        found: dict[str, Ended] = {}
        for trial in self._trials():
            if trial.state == self._states.COMPLETE:
                found[_cell(trial)] = Ended(trial.user_attrs["figures"])
            elif self._failed(trial):
                found.setdefault(_cell(trial), Ended({}, trial.user_attrs["error"]))
        return found

    def forgive(self) -> None:
        """Let cells that have failed until now be tried again."""
        self.forgiven = len(self._trials())

    def claim(self, cell: Cell) -> Claim | None:
        """Take a cell, unless it is done, has failed, or another process has it."""
        if any(self._holds(trial) for trial in self._trials(cell)):
            return None
        with self._reachable():
            mine = self.storage.create_new_trial(self._id, self._template(cell))
            number = self.storage.get_trial(mine).number
        claim = Claim(self, mine)
        if any(self._holds(t) for t in self._trials(cell) if t.number < number):
            claim.release()
            return None
        return claim

    def _template(self, cell: Cell) -> FrozenTrial:
        """A trial that says who runs which cell."""
        from optuna.distributions import CategoricalDistribution, IntDistribution
        from optuna.trial import create_trial

        return create_trial(
            state=self._states.RUNNING,
            params={"method": cell.keys.method, "seed": cell.keys.seed},
            distributions={
                "method": CategoricalDistribution(registered()),
                "seed": IntDistribution(0, 2**31),
            },
            user_attrs={
                "cell": cell.name,
                "keys": {**cell.told, "seed": cell.keys.seed},
                "machine": machine(),
                "process": os.getpid(),
                "beat": 0,
            },
        )

    def _holds(self, trial: FrozenTrial) -> bool:
        """Whether a trial's cell is not free because of it."""
        if trial.state == self._states.RUNNING:
            return not self._lost(trial)
        return trial.state == self._states.COMPLETE or self._failed(trial)

    def _failed(self, trial: FrozenTrial) -> bool:
        return "error" in trial.user_attrs and trial.number >= self.forgiven

    def _lost(self, trial: FrozenTrial) -> bool:
        """Whether the process of a running trial is gone; then the trial ends."""
        if not self._gone(trial):
            return False
        self.end(trial._trial_id, self._states.FAIL)
        return True

    def _gone(self, trial: FrozenTrial) -> bool:
        told = trial.user_attrs
        if told["machine"] == machine() and not exists(told["process"]):
            return True
        # How long it has been silent is measured here: clocks of machines differ.
        now = time.monotonic()
        beat, since = self._seen.get(trial.number, (None, now))
        if beat != told["beat"]:
            beat, since = told["beat"], now
        self._seen[trial.number] = (beat, since)
        return now - since > STALE

    def _trials(self, cell: Cell | None = None) -> list[FrozenTrial]:
        with self._reachable():
            trials = self.storage.get_all_trials(self._id, deepcopy=False)
        known = [trial for trial in trials if "cell" in trial.user_attrs]
        return known if cell is None else [trial for trial in known if _cell(trial) == cell.name]

    # ---------------------------------------------------------------- writing
    def note(self, trial: int, key: str, value: Any) -> None:
        """Note something with a running trial; nothing if another process has ended it."""
        with self._reachable(), suppress(self._finished):
            self.storage.set_trial_user_attr(trial, key, value)

    def end(self, trial: int, state: Any, values: Sequence[float] | None = None) -> None:
        """End a running trial; nothing if another process has ended it."""
        with self._reachable(), suppress(self._finished):
            self.storage.set_trial_state_values(trial, state, values)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Say which storage an error came from."""
        try:
            yield
        except (BayespareError, self._finished):
            raise
        except Exception as error:  # whatever a database driver raises
            why = " ".join(str(error).split())[:200]
            raise BayespareError(
                f"{self.where}: the study cannot be read or written ({type(error).__name__}: {why})"
            ) from error


class Claim:
    """A cell that this process owns, until it says what came of it.

    Args:
        study: The study.
        trial: Its running trial there.
    """

    def __init__(self, study: Study, trial: int) -> None:
        self._study, self._trial = study, trial

    def done(self, figures: Mapping[str, Any]) -> None:
        """The cell is finished."""
        values = [float(figures[OBJECTIVES[name]]) for name in self._study.objectives]
        self._study.note(self._trial, "figures", dict(figures))
        self._study.end(self._trial, self._study._states.COMPLETE, values)

    def failed(self, why: str) -> None:
        """The cell cannot be computed."""
        self._study.note(self._trial, "error", why)
        self.release()

    def release(self) -> None:
        """Give the cell back."""
        self._study.end(self._trial, self._study._states.FAIL)

    @contextmanager
    def alive(self, each_second: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Show signs of life from another thread meanwhile.

        Args:
            each_second: Called there about once a second.
        """
        stop = threading.Event()

        def beat() -> None:
            count, last = 0, time.monotonic()
            while not stop.wait(1.0):
                each_second()
                if time.monotonic() - last < BEAT:
                    continue
                count, last = count + 1, time.monotonic()
                with suppress(BayespareError):  # said by the next call that matters
                    self._study.note(self._trial, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def machine() -> str:
    """What two processes share if they can see each other's numbers; empty if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def exists(process: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be known."""
    if not machine():
        return True
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # dead, not yet waited for


def _cell(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["cell"])
