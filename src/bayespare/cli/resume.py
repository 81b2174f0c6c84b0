"""The keys of a run that was stopped, so that it goes on as it began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bayespare.cli.folder import REPLACED, unfinished
from bayespare.cli.keys import FitKeys, PosthocKeys, PruneKeys, ReduceKeys
from bayespare.cli.output import Interrupted
from bayespare.cli.parse import Given, make_keys
from bayespare.data import Splits
from bayespare.errors import BayespareError
from bayespare.nets.registry import builder
from bayespare.training import ranks
from bayespare.training.checkpoint import Checkpoint, WriteError, read_json

K = TypeVar("K", FitKeys, ReduceKeys, PruneKeys)

FREE = {"resume", "cfg", "threads", "device"}
"""Keys that may differ from those of the start: they choose where to compute, not what."""

GIVEN = "given"
"""Where ``config.json`` has the keys of a verb that is not ``fit``."""


def to_go_on(keys: FitKeys | PosthocKeys) -> dict[str, Any]:
    """Of the keys of a run those that say what it computes, JSON-ready."""
    return keys.model_dump(exclude={"cfg", "resume", "exist_ok", "project", "name", "threads"})


def continued(keys: K, folder: Path, verb: str = "fit") -> K:
    """The keys a stopped run began with.

    Args:
        keys: What was given together with ``resume=``.
        folder: Of the run.
        verb: That is to go on with it.

    Raises:
        BayespareError: If it is finished, of another verb, or a key was given that would change it.
    """
    path = folder / "config.json"
    config = read_json(path)
    config = config if isinstance(config, dict) else {}
    began = str(config["method"]) if GIVEN in config else "fit"
    stored = config.get(GIVEN if GIVEN in config else "keys")
    if began != verb:
        raise BayespareError(
            f"{verb}: resume={folder}: the run was begun by {began}; go on with: bayespare {began} "
            f"resume={folder}"
        )
    if not isinstance(stored, dict):
        raise BayespareError(f"{path}: was not written by {verb}, so the run cannot be resumed")
    if not unfinished(folder):
        raise BayespareError(
            f"resume={folder}: the run is finished; there is nothing to go on with"
        )
    started = make_keys(type(keys), {k: Given(v, f"{path}: ") for k, v in stored.items()})
    for key in sorted(keys.model_fields_set - FREE):
        if getattr(keys, key) != getattr(started, key):
            raise BayespareError(
                f"{verb}: {key}={getattr(keys, key)} cannot be changed on resume; the run began "
                f"with {key}={getattr(started, key)}"
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


@contextmanager
def said_how_to_go_on(verb: str, net: str | None, folder: Path) -> Iterator[None]:
    """Turn a stop into a message with the command that goes on.

    Args:
        verb: That is running.
        net: Its network, which has to be named again where it is the user's own code.
        folder: Of the run.

    Raises:
        Interrupted: After Ctrl-C.
        BayespareError: If nothing more can be written, or another process is gone.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {_how_to_go_on(verb, net or '', folder)}") from None
    except (WriteError, ranks.LostRankError) as error:
        raise BayespareError(f"{error}; {_how_to_go_on(verb, net or '', folder)}") from error
    except BayespareError as error:
        if not (folder / REPLACED).is_dir():
            raise
        raise BayespareError(
            f"{error}; the run that was there is kept in {folder / REPLACED}"
        ) from error


def _how_to_go_on(verb: str, net: str, folder: Path) -> str:
    """What is kept of a stopped run, and how to go on with it."""
    checkpoint, step = Checkpoint(folder / "checkpoint"), "epoch" if verb == "fit" else "step"
    kept = (
        f"the last finished {step} is kept in {checkpoint.folder}"
        if checkpoint.exists()
        else f"no {step} was finished that can be kept, so the run will start over"
    )
    own = "" if builder(net.partition(":")[0]) else f" net={net}"
    several = ranks.world() > 1
    program = "torchrun --nproc-per-node=N -m bayespare" if several else "bayespare"
    return f"{kept}; go on with: {program} {verb} resume={folder}{own}"
