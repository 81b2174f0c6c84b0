"""A run folder with every part a report can show."""

import json
from pathlib import Path
from typing import Any

import pytest

METRICS: dict[str, Any] = {
    "method": "ss-ghs",
    "seed": 0,
    "n_train": 1257,
    "n_test": 540,
    "dense": {
        "accuracy": 0.9778, "accuracy_interval": [0.9617, 0.9872], "nll": 0.0921, "ece": 0.0142,
        "ece_mass": 0.0131, "brier": 0.0361, "parameters": 190410, "nonzeros": 190410,
        "bytes": 763240, "macs": 189600, "latency_ms": {"1": 0.0312, "256": 0.512},
        "peak_memory_bytes": 1700000,
    },
    "compact": {
        "accuracy": 0.9741, "accuracy_interval": [0.9571, 0.9844], "nll": 0.0903, "ece": 0.0098,
        "ece_mass": 0.0093, "brier": 0.0388, "parameters": 3214, "nonzeros": 3214, "bytes": 14920,
        "macs": 3158, "latency_ms": {"1": 0.0372, "256": 0.0561}, "peak_memory_bytes": 160000,
    },
    "averaged": {"accuracy": 0.9747, "nll": 0.0899, "ece": 0.0091, "brier": 0.0381},
    "stages": {"dense": {"accuracy": 0.9778, "nll": 0.09}, "pruned": {"accuracy": 0.97, "nll": 1}},
    "time_s": {"dense_training": 20.0, "training": 14.0, "finetuning": 1.0},
    "units": {"input": [3, 4], "fc1": [1, 4]},
    "separation": {"undecided": {"input": 0.25, "fc1": 0.0}},
    "tempering": 0.125,
    "spread": 0.25,
    "reliability": {"dense": [[0.9, 0.8, 30]], "compact": [[0.5, 0.6, 10], [0.95, 0.9, 20]]},
    "warnings": ["the machine was busy while latency was measured"],
    "compact_equals_masked": 3.1e-7,
}  # fmt: skip
CONFIG = {
    "method": "ss-ghs", "net": "mlp:400,400", "data": "digits", "seed": 0,
    "task": "classification", "settings": {"prior": "ghs", "epochs": 60}, "batch": 128,
    "versions": {"torch": "2.13.0"}, "data_fingerprint": "sha256:9f2c",
}  # fmt: skip
PLAN = {
    "groups": [
        {"name": "input", "unit": "feature", "size": 4, "kept": [0, 1, 2],
         "log_odds": [12.0, 1.0, 30.5, -40.0]},
        {"name": "fc1", "unit": "unit", "size": 4, "kept": [2],
         "log_odds": [None, -9.0, 4.0, -3.0]},
    ],
    "left_alone": {"fc2": "its units are the model's outputs"},
}  # fmt: skip
HISTORY = [
    {"epoch": e, "phase": "training" if e < 3 else "cooling", "nll": 1 / (1 + e), "kl": 90.0 - e,
     "valid_accuracy": 0.5 + e / 20, "valid_nll": 1.1 / (1 + e), "parameters": 1000 - 100 * e,
     "seconds": 0.1}
    for e in range(5)
]  # fmt: skip
FRONTIER = [
    {"name": "small", "macs": 900, "parameters": 950, "valid_accuracy": 0.92, "chosen": False},
    {"name": "middle", "macs": 3158, "parameters": 3214, "valid_accuracy": 0.976, "chosen": True},
]


@pytest.fixture
def metrics() -> dict[str, Any]:
    return json.loads(json.dumps(METRICS))  # type: ignore[no-any-return]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    parts = {"metrics": METRICS, "config": CONFIG, "plan": PLAN, "frontier": FRONTIER}
    for name, data in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in HISTORY)
    (folder / "history.jsonl").write_text(lines, encoding="utf-8")
    return folder
