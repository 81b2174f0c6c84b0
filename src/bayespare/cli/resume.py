"""The keys of a run that was stopped, so that it goes on as it began."""

from __future__ import annotations

from pathlib import Path

from bayespare.cli.folder import unfinished
from bayespare.cli.keys import FitKeys
from bayespare.cli.parse import Given, make_keys
from bayespare.data import Splits
from bayespare.errors import BayespareError
from bayespare.nets.registry import builder
from bayespare.training.checkpoint import read_json

FREE = {"resume", "cfg", "threads", "device"}
"""Keys that may differ from those of the start: they choose where to compute, not what."""


def continued(keys: FitKeys, folder: Path) -> FitKeys:
    """The keys a stopped run began with.

    Args:
        keys: What was given together with ``resume=``.
        folder: Of the run.

    Raises:
        BayespareError: If it is finished, its data have changed, or a key
            was given that would change it.
    """
    path = folder / "config.json"
    config = read_json(path)
    stored = config.get("keys") if isinstance(config, dict) else None
    if not isinstance(stored, dict):
        raise BayespareError(f"{path}: was not written by fit, so the run cannot be resumed")
    if not unfinished(folder):
        raise BayespareError(
            f"resume={folder}: the run is finished; there is nothing to go on with"
        )
    started = make_keys(FitKeys, {k: Given(v, f"{path}: ") for k, v in stored.items()})
    for key in sorted(keys.model_fields_set - FREE):
        if getattr(keys, key) != getattr(started, key):
            raise BayespareError(
                f"fit: {key}={getattr(keys, key)} cannot be changed on resume; the run began with "
                f"{key}={getattr(started, key)}"
            )
    net = started.net or ""
    if keys.net is None and builder(net.partition(":")[0]) is None:
        raise BayespareError(
            f"resume={folder}: the network is your own code, which is never imported because a "
            f"file says so; add net={net}"
        )
    free = {key: getattr(keys, key) for key in FREE & keys.model_fields_set}
    return started.model_copy(update=free)


def check_same_data(folder: Path, splits: Splits) -> None:
    """Make sure that a run goes on with the data it began with.

    Raises:
        BayespareError: If they have changed.
    """
    if read_json(folder / "config.json").get("data_fingerprint") != splits.fingerprint:
        raise BayespareError(
            f"resume={folder}: {splits.source}: the data have changed since the run began"
        )
