"""Everything a fit needs, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from bayespare import nets
from bayespare.cli.keys import FitKeys
from bayespare.data import BUNDLED, Dataset, Splits, Standardize, load
from bayespare.errors import BayespareError
from bayespare.methods import base as methods
from bayespare.options import Options
from bayespare.structure import Plan, trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import pick_device

QUICK = 10
"""How many times fewer epochs ``quick`` gives."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A fit that can start.

    Attributes:
        keys: What was asked for, the network named.
        splits: The data.
        model: The network, untrained.
        plan: What can be removed from it.
        options: For :func:`bayespare.sparsify`.
    """

    keys: FitKeys
    splits: Splits
    model: nn.Module
    plan: Plan
    options: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """What ``config.json`` notes besides what :func:`bayespare.sparsify` knows."""
        transform = self.splits.transform
        kept = {"cfg", "resume", "exist_ok", "project", "name", "threads"}
        return {
            "method": self.keys.method,
            "net": self.keys.net,
            "data": self.splits.name,
            "data_fingerprint": self.splits.fingerprint,
            "task": self.splits.train.task,
            "seed": self.keys.seed,
            "keys": self.keys.model_dump(exclude=kept),
            "transform": None if transform is None else transform.to_json(),
            "target": self.splits.target.to_json(),
        }


def prepare(keys: FitKeys) -> Prepared:
    """Read the data, build the network and find what can be removed; nothing is written.

    Raises:
        BayespareError: If anything that was given is wrong.
        UnsupportedStructureError: If nothing can be removed from the network.
    """
    if keys.quick and keys.epochs is not None:
        raise BayespareError("quick=true and epochs= exclude each other; give one of them")
    pick_device(keys.device)
    _check_method(keys)
    splits = load_splits(keys)
    train = splits.train
    keys = keys.model_copy(update={"net": keys.net or default_net(train), "data": _lasting(keys)})
    assert keys.net is not None  # filled in just now
    model = nets.build(keys.net, inputs=train.inputs, outputs=train.outputs, seed=keys.seed)
    check_outputs(model, keys.net, train)
    options = options_for(keys, len(train))
    plan = with_positions(trace(model, train.x[:4], inputs=train.feature_groups))
    return Prepared(keys, splits, model, plan, options)


def load_splits(keys: FitKeys) -> Splits:
    """Read the data a fit is about.

    Raises:
        BayespareError: If they cannot be read or learnt from.
    """
    if keys.data is None:
        raise BayespareError(
            f"fit: say which data, as in data=digits or data=FILE (known: {', '.join(BUNDLED)})"
        )
    return load(keys.data, target=keys.target, impute=keys.impute, task=keys.task, seed=keys.seed)


def options_for(keys: FitKeys, examples: int) -> dict[str, Any]:
    """The arguments of :func:`bayespare.sparsify`.

    Raises:
        BayespareError: If batch or epochs do not fit the data.
    """
    settings: dict[str, Any] = {}
    if keys.settings != "default":
        settings["settings"] = keys.settings
    if keys.prior is not None:
        settings["prior"] = keys.prior
    options = Options(batch=keys.batch, epochs=keys.epochs)
    epochs = options.epochs_for(examples)
    return {
        "method": keys.method,
        "settings": settings,
        "epochs": max(2, round(epochs / QUICK)) if keys.quick else epochs,
        "batch": options.batch_for(examples),
        "tempering": keys.tempering,
        "seed": keys.seed,
        "device": keys.device,
        "precision": keys.precision,
        "max_params": keys.max_params,
        "baseline": keys.baseline,
        "samples": keys.samples,
    }


def default_net(train: Dataset) -> str:
    """A network for data when none is asked for: smaller where each input is a named column."""
    shared = isinstance(train.transform, Standardize) and len(train.transform.mean) == 1
    return "mlp:64,32" if train.features and not shared else "mlp:400,400"


@torch.no_grad()
def check_outputs(model: nn.Module, net: str, train: Dataset) -> None:
    """Make sure that a network takes the data and gives as many outputs as they have classes.

    Raises:
        BayespareError: If it does not.
    """
    training = model.training
    model.eval()
    try:
        output = model(train.x[:2])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BayespareError(
            f"net {net!r}: does not run on inputs of shape {train.inputs} ({reason})"
        ) from error
    finally:
        model.train(training)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    allowed: list[Any] = [(2, train.outputs)]
    if train.task == "regression":
        allowed.append((2,))
    if shape not in allowed:
        what = f"{train.outputs} classes" if train.task == "classification" else "regression"
        raise BayespareError(
            f"net {net!r}: gives {shape} for 2 rows, {what} need {(2, train.outputs)}"
        )


def _check_method(keys: FitKeys) -> None:
    options = options_for(keys.model_copy(update={"batch": None}), 1000)
    try:
        methods.build(keys.method, **options["settings"])
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise BayespareError(f"method {keys.method}: {setting}: {first['msg']}") from None


def _lasting(keys: FitKeys) -> str | None:
    """The data as they are found from any directory."""
    if keys.data is None or keys.data in BUNDLED:
        return keys.data
    return str(Path(keys.data).expanduser().resolve())
