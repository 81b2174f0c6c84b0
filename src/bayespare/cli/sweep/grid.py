"""From the keys of a sweep to its cells: one fit for each method, seed, listed value and point.

Points fill ranges such as ``lr=1e-4..1e-2`` evenly (a Sobol sequence): every process finds the same
ones without asking, and more ``trials=`` later keep those from before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.quasirandom import SobolEngine

from bayespare import methods
from bayespare.cli.folder import default_name
from bayespare.cli.keys import DataKeys, FitKeys, SweepBase
from bayespare.cli.parse import Given, make_keys
from bayespare.cli.prepare import load_splits
from bayespare.errors import BayespareError
from bayespare.nets.registry import builder

WHOLE = ("target", "keep", "cfg", "device", "project")
"""Keys of fit that have one value in a sweep; commas belong to it."""

ELSEWHERE = {"project", "name", "exist_ok", "resume", "cfg", "threads", "device"}
"""Keys that say where and how a cell is computed, not what."""


_NUMBER = r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"{_NUMBER}\.\.{_NUMBER}")
"""Two numbers with two dots between them."""


@dataclass(frozen=True)
class Cell:
    """One fit of a sweep.

    Attributes:
        name: The same wherever the same fit is asked for; also the name of its folder.
        keys: Of the fit.
        told: What differs from the defaults and is not the seed, JSON-ready.
    """

    name: str
    keys: FitKeys
    told: Mapping[str, Any]

    @classmethod
    def of(cls, keys: FitKeys, fingerprint: str) -> Cell:
        """The cell of a fit to data of a fingerprint, wherever they lie."""
        told = keys.model_dump(mode="json", exclude=ELSEWHERE, exclude_defaults=True)
        told = {**told, "method": keys.method}
        text = json.dumps({**told, "data": fingerprint, "seed": keys.seed}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        data = Path(keys.data or "").stem
        readable = default_name(data, keys.net or "", keys.method, f"s{keys.seed}")
        told.pop("seed", None)
        return cls(f"{readable[:80]}-{digest}", keys, told)

    @property
    def group(self) -> str:
        """The same for the cells that differ in their seed alone."""
        return json.dumps(self.told, sort_keys=True)


def cells(keys: SweepBase) -> list[Cell]:
    """All cells of a sweep: every configuration at the first seed, then at the next.

    Raises:
        BayespareError: If a value is not allowed, the seeds are given twice, a range comes without
            ``trials=``, or data cannot be read.
    """
    given = {
        key: value
        for key, value in keys.model_dump().items()
        if key in FitKeys.model_fields and key in keys.model_fields_set
    }
    if "seeds" in keys.model_fields_set and "," in str(given.get("seed", "")):
        raise BayespareError("sweep: seed= lists the seeds, so seeds= has nothing to say; drop one")
    ranges = {key: str(value) for key, value in given.items() if RANGE.fullmatch(str(value))}
    lists = {key: values_of(key, str(value)) for key, value in given.items() if key not in ranges}
    first = make_keys(FitKeys, {"seed": Given(lists.pop("seed", ["0"])[0], "sweep: ")}).seed
    seeds = values_of("seed", str(given.get("seed", "0")))
    if len(seeds) == 1:
        seeds = [str(first + number) for number in range(keys.seeds)]
    found: dict[str, Cell] = {}
    fingerprints: dict[FitKeys, str] = {}
    tried = [*product(seeds, points(ranges, keys.trials))]
    for (seed, point), values in product(tried, product(*lists.values())):
        told = {"seed": seed, **point, **dict(zip(lists, values, strict=True))}
        fit = make_keys(FitKeys, {key: Given(value, "sweep: ") for key, value in told.items()})
        methods.find(fit.method)
        source = FitKeys(**fit.model_dump(include=set(DataKeys.model_fields)))
        if source not in fingerprints:
            fingerprints[source] = load_splits(source).fingerprint
        cell = Cell.of(fit, fingerprints[source])
        found.setdefault(cell.name, cell)
    return list(found.values())


def points(ranges: Mapping[str, str], trials: int | None) -> list[dict[str, str]]:
    """Values of the keys that have ranges, one point a trial; the log is spread where it is wide.

    Raises:
        BayespareError: If there is a range or a number of trials without the other, or a range is
            empty.
    """
    if bool(ranges) != (trials is not None):
        raise BayespareError(
            "sweep: trials= says at how many points ranges such as lr=1e-4..1e-2 are tried; give "
            "both or none"
        )
    if trials is None:
        return [{}]
    sequence = SobolEngine(len(ranges), scramble=True, seed=0)  # type: ignore[no-untyped-call]
    draws = sequence.draw(trials, dtype=torch.float64)
    found: list[dict[str, str]] = []
    for draw in draws.tolist():
        found.append({})
        for (key, text), share in zip(ranges.items(), draw, strict=True):
            low, high = text.split("..")
            found[-1][key] = _between(key, low, high, share)
    return found


def _between(key: str, low: str, high: str, share: float) -> str:
    """The number at a share of a range: whole if both ends are, on a log scale from 10 to 1 on."""
    first, last = float(low), float(high)
    if not first < last:
        raise BayespareError(f"sweep: {key}={low}..{high}: the range is empty")
    if 0 < 10 * first <= last:
        value = first * (last / first) ** share
    else:
        value = first + (last - first) * share
    return str(round(value)) if low.isdigit() and high.isdigit() else f"{value:.4g}"


def values_of(key: str, text: str) -> list[str]:
    """The values that a key of fit was given, with commas between them.

    A comma inside a network's name belongs to it: ``mlp:400,400,lenet300`` are two networks.
    """
    if key == "method" and text == "all":
        return methods.registered()
    if key in WHOLE or (key == "data" and Path(text).exists()):
        return [text]
    parts = [part.strip() for part in text.split(",")]
    if key == "net":
        parts = _networks(parts)
    if "" in parts:
        raise BayespareError(f"sweep: {key}={text}: an empty value between commas")
    return parts


def _networks(parts: Sequence[str]) -> list[str]:
    """Put pieces of networks' names together again."""
    found = [parts[0]]
    for part in parts[1:]:
        if builder(part.partition(":")[0]) is not None or ":" in part:
            found.append(part)
        else:
            found[-1] += f",{part}"
    return found


def label(cell: Cell, among: Sequence[Cell]) -> str:
    """What tells a cell's configuration from the others of its sweep; its method at least."""
    varied = [
        key
        for key in dict.fromkeys(key for other in among for key in other.told)
        if key != "method" and len({json.dumps(other.told.get(key)) for other in among}) > 1
    ]
    words = [f"{key}={_shown(cell.told[key])}" for key in varied if key in cell.told]
    return " ".join([cell.keys.method, *words])


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
