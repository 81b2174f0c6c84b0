"""``README.md`` of a run folder: what the model is, how good, how to use it."""

from __future__ import annotations

from pathlib import Path

from bayespare.report import RunView, summary_table
from bayespare.training.checkpoint import read_json, write_text

MOST_CLASSES = 20


def write_card(folder: Path) -> Path:
    """Write the model card of a run from its files.

    Raises:
        BayespareError: If a file is damaged, or the card cannot be written.
    """
    path = folder / "README.md"
    text = render(RunView.read(folder), read_json(folder / "metrics.json"), _classes(folder))
    write_text(path, text)
    return path


def render(run: RunView, metrics: dict[str, object], classes: list[str]) -> str:
    """The card as Markdown; no text of the user's can become markup."""
    config = run.config
    where = "validation data" if metrics.get("measured_on") == "validation" else "test data"
    shown = ", ".join(map(code, classes[:MOST_CLASSES]))
    more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    facts = [
        ("network", config.net and code(config.net)),
        ("data", config.data and code(config.data)),
        ("data, SHA-256", config.data_fingerprint and code(config.data_fingerprint)),
        ("task", config.task),
        ("classes", shown + more),
        ("method", config.method and code(config.method)),
        ("seed", None if config.seed is None else str(config.seed)),
        ("versions", ", ".join(f"{k} {v}" for k, v in config.versions.items() if v.isprintable())),
    ]
    lines = [
        "# A smaller network that knows how sure it is",
        "",
        *(f"- {name}: {value}" for name, value in facts if value),
        "",
        f"Measured on {where}, with the posterior's mean:",
        "",
        "```",
        summary_table(metrics),
        "```",
        "",
        "Use it:",
        "",
        "```python",
        "import bayespare",
        "",
        'run = bayespare.load("path/to/this/folder")',
        "run.model            # an ordinary torch.nn.Module",
        "run.predict(x)       # averaged over the posterior, with epistemic uncertainty",
        "```",
        "",
        "`report.html` shows more. `frontier/` holds the other sizes of the run: "
        "`bayespare pick FOLDER max_params=N`.",
        "The scores above hold for data like those it was trained on, and say nothing of others.",
    ]
    return "\n".join([*lines, ""])


def code(text: str, limit: int = 80) -> str:
    """Text between backticks, on one line, without backticks of its own."""
    line = "".join(c if c.isprintable() and c != "`" else " " for c in text)
    line = line if len(line) <= limit else line[: limit - 3] + "..."
    return f"`{line.strip() or ' '}`"


def _classes(folder: Path) -> list[str]:
    classes = read_json(folder / "config.json").get("classes", [])
    return [str(label) for label in classes] if isinstance(classes, list) else []
