"""Runs that were fitted before: loading them, their own data, and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayespare import measure, nets
from bayespare.cli.folder import existing_run
from bayespare.cli.keys import FitKeys
from bayespare.cli.parse import Given, make_keys
from bayespare.cli.prepare import load_splits
from bayespare.data import Splits
from bayespare.errors import BayespareError
from bayespare.load import LoadedRun, RunConfig, dense_network, load


def load_run(run: str | None, net: str | None, verb: str, *, point: str | None = None) -> LoadedRun:
    """Load a run; its network is imported only if the user names it.

    Args:
        run: Its folder.
        net: What the user gave as ``net=``.
        verb: For messages.
        point: Name of another network on the frontier.

    Raises:
        BayespareError: As :func:`bayespare.load.load`.
    """
    folder = existing_run(run, verb)
    own = None if net is None else original(folder, net)
    return load(folder, own, point=point)


def original(folder: Path, net: str | None) -> nn.Module:
    """The network of a run at its original size, untrained.

    Args:
        folder: Of the run.
        net: What the user gave as ``net=``: then it may be the user's own code.

    Raises:
        BayespareError: If ``net`` is not the run's, or is missing although it is needed.
    """
    config = RunConfig.read(folder)
    if net is None:
        return dense_network(folder, config)
    if net != config.net:
        raise BayespareError(f"net={net}: the run was fitted with net={config.net}")
    return nets.build(net, inputs=config.inputs, outputs=config.outputs, seed=0)


def own_data(run: LoadedRun) -> Splits:
    """Read the data of a run again, split as they were.

    Raises:
        BayespareError: If they cannot be read, or have changed.
    """
    splits = load_splits(stored_keys(run))
    if splits.fingerprint != fingerprint(run):
        raise BayespareError(
            f"{splits.source}: the data have changed since the run, so its split is gone"
        )
    return splits


def stored_keys(run: LoadedRun) -> FitKeys:
    """The keys a run was fitted with.

    Raises:
        BayespareError: If it was fitted in Python, or the file is damaged.
    """
    stored = (run.config.model_extra or {}).get("keys")
    if not isinstance(stored, dict) or not stored.get("data"):
        raise BayespareError(f"{run.folder}: was fitted on tensors in Python; give data=FILE")
    where = f"{run.folder / 'config.json'}: "
    return make_keys(FitKeys, {key: Given(value, where) for key, value in stored.items()})


def fingerprint(run: LoadedRun) -> str | None:
    """SHA-256 of the data a run was fitted on, where it is known."""
    found = (run.config.model_extra or {}).get("data_fingerprint")
    return found if isinstance(found, str) else None


def in_units(run: LoadedRun, y: Tensor) -> Tensor:
    """Targets as they were in the data: class indices, or values in the user's units."""
    if run.config.task == "classification":
        return y
    mean, std = run.config.target_scale
    return y.double() * std + mean


def scores(run: LoadedRun, x: Tensor, y: Tensor, samples: int) -> dict[str, dict[str, Any]]:
    """Score the posterior's mean (``plain``) and the average over its draws (``averaged``)."""
    truth = in_units(run, y)
    return {
        name: dict(
            measure.evaluate(run.predict(x, samples=samples, averaged=name == "averaged"), truth)
        )
        for name in ("plain", "averaged")
    }
