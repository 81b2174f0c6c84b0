"""The JSON files of a run folder, read with their types checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from bayespare.errors import BayespareError


class _Part(BaseModel):
    """A part of a run file. Keys this page does not show may be there and are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Scores(_Part):
    """How good a model is and what it costs; what was not measured is None."""

    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    rmse: float | None = None
    nll: float | None = None
    ece: float | None = None
    ece_chance: float | None = None
    ece_mass: float | None = None
    brier: float | None = None
    coverage: dict[str, float] = Field(default_factory=dict)
    parameters: int | None = None
    nonzeros: int | None = None
    bytes: int | None = None
    macs: int | None = None
    latency_ms: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None


class Metrics(_Part):
    """``metrics.json``: the dense and the compact model, the stages between them, the time.

    ``averaged`` holds the scores of the compact model averaged over its posterior.
    """

    dense: Scores = Field(default_factory=Scores)
    compact: Scores = Field(default_factory=Scores)
    averaged: Scores | None = None
    stages: dict[str, Scores] = Field(default_factory=dict)
    time_s: dict[str, float | None] = Field(default_factory=dict)
    units: dict[str, tuple[int, int]] = Field(default_factory=dict)
    reliability: dict[str, list[tuple[float, float, float]]] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    method: str | None = None
    seed: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    measured_on: str | None = None
    tempering: float | None = None
    spread: float | None = None
    compact_equals_masked: float | None = None
    load_average: float | None = None


class Config(_Part):
    """``config.json``: what was asked for, and with which versions it ran. Any key is kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    method: str | None = None
    net: str | None = None
    data: str | None = None
    task: str | None = None
    seed: int | None = None
    data_fingerprint: str | None = None
    settings: Any = None
    versions: dict[str, str] = Field(default_factory=dict)


class GroupView(_Part):
    """One group of ``plan.json``: how many units, which were kept, and the log-odds of each.

    A log-odds of None belongs to a unit that was never in question.
    """

    name: str
    unit: str = "unit"
    size: int = Field(ge=0)
    kept: list[int] | None = None
    log_odds: list[float | None] | None = None


class PlanView(_Part):
    """``plan.json``."""

    groups: list[GroupView] = Field(default_factory=list)
    left_alone: dict[str, str] = Field(default_factory=dict)


class Epoch(_Part):
    """One row of ``history.jsonl``.

    ``penalty`` is what the prior adds to the mean loss, tempered, in nats per row. ``valid_score``
    is the validation accuracy of a classifier.
    """

    epoch: float | None = None
    phase: str = ""
    loss: float | None = None
    nll: float | None = Field(None, validation_alias=AliasChoices("nll", "train_nll"))
    kl: float | None = None
    penalty: float | None = None
    valid_score: float | None = None
    valid_accuracy: float | None = None
    valid_rmse: float | None = None
    valid_nll: float | None = None
    parameters: float | None = None
    macs: float | None = None
    seconds: float | None = None
    tempering: float | None = None


class Candidate(_Part):
    """One finished network of ``frontier.json``."""

    name: str = ""
    macs: float | None = None
    parameters: float | None = None
    valid_accuracy: float | None = None
    valid_rmse: float | None = None
    valid_nll: float | None = None
    tempering: float | None = None
    chosen: bool = False


class RunView(_Part):
    """All that the report shows of a run. Files that are missing leave their part empty."""

    name: str
    config: Config = Field(default_factory=Config)
    metrics: Metrics = Field(default_factory=Metrics)
    plan: PlanView = Field(default_factory=PlanView)
    history: list[Epoch] = Field(default_factory=list)
    frontier: list[Candidate] = Field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunView:
        """Read a run folder.

        Raises:
            BayespareError: If the folder holds no run, or a file in it is damaged; the message
                names the file, and the line or field.
        """
        names = ("config", "metrics", "plan", "frontier")
        found = {name: folder / f"{name}.json" for name in names}
        if not (found["config"].is_file() or found["metrics"].is_file()):
            raise BayespareError(
                f"{folder}: no run here (neither config.json nor metrics.json); "
                "give the folder that fit wrote"
            )
        parts: dict[str, Any] = {
            name: _json(path) for name, path in found.items() if path.is_file()
        }
        kinds: dict[str, type[BaseModel]] = {
            "config": Config,
            "metrics": Metrics,
            "plan": PlanView,
        }
        read: dict[str, Any] = {
            name: checked(kind, parts[name], str(found[name]))
            for name, kind in kinds.items()
            if name in parts
        }
        if "frontier" in parts:
            rows = _rows(parts["frontier"], found["frontier"])
            read["frontier"] = [
                checked(Candidate, row, f"{found['frontier']} row {i}")
                for i, row in enumerate(rows)
            ]
        read["history"] = _history(folder / "history.jsonl")
        return cls(name=folder.resolve().name, **read)


Kind = TypeVar("Kind", bound=BaseModel)


def checked(kind: type[Kind], data: Any, where: str) -> Kind:
    """Check parsed JSON against a model; the error is one line that names place and field."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BayespareError(
            f"{where}: {field}: {first['msg']}; the file is damaged or was edited by hand"
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise BayespareError(f"{path}: not readable as JSON ({_line(error)})") from error


def _rows(data: Any, path: Path) -> list[Any]:
    if not isinstance(data, list):
        raise BayespareError(f"{path}: must be a list of candidates; the file is damaged")
    return data


def _history(path: Path) -> list[Epoch]:
    """Read one JSON object per line; an absent file is an empty history."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise BayespareError(f"{path}: not readable ({_line(error)})") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row: Mapping[str, Any] = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BayespareError(f"{where}: not readable as JSON ({_line(error)})") from error
        epochs.append(checked(Epoch, row, where))
    return epochs


def _line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
