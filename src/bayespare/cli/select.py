"""``select``: which columns of a table belong in the model, and how sure that is."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayespare.cli.fit import threads
from bayespare.cli.folder import check_free, claim, default_name
from bayespare.cli.keys import SelectKeys
from bayespare.cli.output import Output
from bayespare.cli.tables import columns
from bayespare.data import BUNDLED, load
from bayespare.errors import BayespareError
from bayespare.report.features import features_page
from bayespare.report.page import write_page
from bayespare.report.text import number, percent
from bayespare.select import Limits, Selection, fit_options, fit_parts
from bayespare.select import select as select_features
from bayespare.training.checkpoint import write_json
from bayespare.training.loop import pick_device
from bayespare.training.progress import ProgressBar

MOST_ROWS = 30


def select(keys: SelectKeys, output: Output) -> Mapping[str, Any]:
    """Rank the features; write ``features.csv``, ``features.json`` and ``features.html``.

    Raises:
        BayespareError: On bad input; then nothing has been written.
    """
    if keys.data is None:
        raise BayespareError(
            f"select: say which data, as in data=FILE target=COLUMN (known: {', '.join(BUNDLED)})"
        )
    if "fdr" in keys.model_fields_set and keys.rule != "fdr":
        raise BayespareError(f"select: fdr={keys.fdr} is the bound of rule=fdr; add that")
    pick_device(keys.device)
    limits = Limits(keys.rule, keys.fdr, keys.max_features, keys.correlation)
    splits = load(keys.data, **keys.reading, seed=keys.seed)
    project = Path(keys.project)
    if keys.name is not None:
        check_free(project / keys.name, exist_ok=False)
    output.say(f"{splits.name}: {splits.note}")
    options = fit_options(keys.method, keys.epochs)
    one = options.schedule(len(fit_parts(splits, options)[0])).total
    with threads(keys.threads), ProgressBar(one * keys.seeds, show=True) as progress:
        found = select_features(
            splits,
            method=keys.method,
            net=keys.net,
            limits=limits,
            groups=keys.groups,
            seeds=keys.seeds,
            epochs=keys.epochs,
            seed=keys.seed,
            device=keys.device,
            report=progress,
        )
    folder = claim(project, keys.name, default_name(splits.name, "features"))
    return _finish(found, splits.name, folder, output)


def _finish(found: Selection, name: str, folder: Path, output: Output) -> Mapping[str, Any]:
    """Write the files and say what was found."""
    write_page(_csv(found), folder / "features.csv")
    values = _as_json(found)
    write_json(folder / "features.json", values)
    page = write_page(features_page(name, found), folder / "features.html")
    output.say()
    output.say(features_table(found))
    rest = len(found.features) - MOST_ROWS
    if rest > 0:
        output.say(f"and {rest} more, in {folder / 'features.csv'}")
    output.say()
    likely = any(feature.log_odds > 0 for feature in found.features)
    why = "no group of columns fits max_features=" if likely else "nothing is told from noise"
    output.say(f"selected: {', '.join(found.selected) or f'none: {why}'}")
    for group in found.correlated:
        members = ", ".join(group["features"])
        output.say(f"say the same thing: {members} (one of them: {percent(group['probability'])})")
    if found.constant:
        output.say(f"do not vary, left out: {', '.join(found.constant)}")
    for learner, own in found.scores.items():
        few = number(own["selected"]) if "selected" in own else "-"
        output.say(f"test score, {learner}: {number(own['all'])} with all, {few} with selected")
    output.say()
    output.say(f"table:  {folder / 'features.csv'}")
    output.say(f"report: {page}")
    return {"folder": str(folder), "selected": found.selected, **values}


def _as_json(found: Selection) -> dict[str, Any]:
    """All that was found; JSON has no infinities, so the log-odds of constants are null."""
    values = asdict(found)
    for feature in values["features"]:
        feature["log_odds"] = feature["log_odds"] if math.isfinite(feature["log_odds"]) else None
    return values


def features_table(found: Selection) -> str:
    """The first features as a table, the kept ones marked."""
    several = found.seeds > 1
    rows = [["feature", "probability", "log-odds", "importance", *["seeds"] * several, ""]]
    for feature in found.features[:MOST_ROWS]:
        rows.append(
            [
                feature.name,
                percent(feature.probability),
                f"{feature.log_odds:.1f}",
                percent(feature.importance),
                *[percent(feature.stability)] * several,
                "<- selected" if feature.selected else "",
            ]
        )
    return columns(rows)


def _csv(found: Selection) -> str:
    """All features, one line each, in the order of the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", *asdict(found.features[0])])
    for rank, feature in enumerate(found.features, 1):
        writer.writerow([rank, *asdict(feature).values()])
    return text.getvalue()
