"""Tables of what marginal-likelihood training costs and how its posterior predicts."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from forms import percent, spread, table, three, whole


def cost_of_training(folder: Path) -> list[str]:
    """Milliseconds per epoch, in epochs of plain Adam, and the overhead against the best rival."""
    text = []
    for net in ("digits", "lenet", "lenet-sampled"):
        path = folder / f"{net}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        text += [*_training(record), ""]
    return text or ["Not run yet.", ""]


def _training(record: dict[str, Any]) -> list[str]:
    seconds = record["seconds"]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    plain = middle.pop("plain")
    rows = []
    for name, value in middle.items():
        who, structure, kind, _, every = name.split()
        # The fastest rival with the same curvature and schedule.
        rivals = [
            other - plain
            for words, other in middle.items()
            if words.startswith(f"laplace-torch {structure} ") and words.endswith(f" {every}")
        ]
        saved = ""
        if who == "ours" and rivals:
            # Less than a fiftieth of plain Adam is lost in the noise.
            excess, least = value - plain, 0.02 * plain
            times = min(rivals) / max(excess, least)
            saved = f"> {times:.0f}" if excess < least else f"{times:.1f}"
        rows.append(
            [
                who,
                structure,
                kind,
                every,
                str(len(seconds[name])),
                f"{1e3 * value:.1f}",
                f"{value / plain:.2f}",
                saved,
                three(record["evidence"][name]) if name in record["evidence"] else "",
            ]
        )
    head = ["training", "curvature", "kind", "every", "rounds", "ms / epoch", "/ plain"]
    head += ["times less overhead", "log evidence / example"]
    samples = record.get("samples", record["examples"])
    seen = "" if samples == record["examples"] else f", our curvature of {samples:,} of them"
    words = f"{record['net']}, {record['examples']:,} examples{seen}: plain Adam {1e3 * plain:.1f} "
    words += f"ms an epoch ({len(seconds['plain'])} rounds; {record['peer']}; "
    words += f"load average {record['load_average']:.1f})."
    return [words, "", *table(head, rows)]


def updates_of_transformers(path: Path) -> list[str]:
    """Memory and time of one update."""
    if not path.exists():
        return ["Not run yet."]
    record = json.loads(path.read_text())
    rows = [
        [
            name,
            whole(found["parameters"]),
            f"{found['blocks']} of {found['tensors']}",
            f"{found['state_gb']:.2f}",
            f"{found['estimate_gb']:.2f}",
            f"{found['peak_gb']:.2f}",
            f"{found['wiring_seconds']:.1f}",
            f"{found['update_seconds']:.1f}",
        ]
        for name, found in record["nets"].items()
    ]
    head = ["network", "parameters", "tensors with a block", "state GB", "estimate GB", "peak GB"]
    words = f"{record['examples']} examples of {record['tokens']} tokens."
    return [words, "", *table([*head, "wiring, CPU s", "update, CPU s"], rows)]


def predictions(folder: Path) -> list[str]:
    """Test scores of each way to predict."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        groups[record["name"]].append(record)
    if not groups:
        return ["Not run yet."]
    rows = []
    for name, records in groups.items():
        for way in records[0]["test"]:
            rows.append([name, way, str(len(records))])
            for key, form in (("nll", three), ("ece", three), ("accuracy", percent)):
                for part in ("valid", "test") if key == "nll" else ("test",):
                    rows[-1].append(spread([r[part][way][key] for r in records], form))
    head = ["data", "prediction", "seeds", "valid. NLL", "test NLL", "test ECE", "test acc %"]
    return table(head, rows)
