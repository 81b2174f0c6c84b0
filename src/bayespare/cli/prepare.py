"""Everything a fit needs, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayespare import methods, nets
from bayespare.cli.keys import FitKeys
from bayespare.cli.resume import to_go_on
from bayespare.data import BUNDLED, Dataset, Splits, Standardize, load
from bayespare.errors import BayespareError
from bayespare.lookups import check_lookups, looks_up, with_ids
from bayespare.methods.wiring import judged
from bayespare.options import Options
from bayespare.structure import Plan, trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import pick_device


@dataclass(frozen=True, eq=False)
class Prepared:
    """A fit that can start.

    Attributes:
        keys: What was asked for, the network named.
        splits: The data.
        model: The network, untrained.
        plan: What can be removed from it.
        options: What :func:`bayespare.sparsify` is told.
        foreseen: What the method will take besides training, for the user; or nothing.
    """

    keys: FitKeys
    splits: Splits
    model: nn.Module
    plan: Plan
    options: Options
    foreseen: str

    def config(self) -> dict[str, Any]:
        """What ``config.json`` notes besides what :func:`bayespare.sparsify` knows."""
        transform = self.splits.transform
        return {
            "method": self.keys.method,
            "net": self.keys.net,
            "data": self.splits.name,
            "data_fingerprint": self.splits.fingerprint,
            "task": self.splits.train.task,
            "seed": self.keys.seed,
            "time": self.keys.time,
            "keys": to_go_on(self.keys),
            "transform": None if transform is None else transform.to_json(),
            "target": self.splits.target.to_json(),
        }


def prepare(keys: FitKeys) -> Prepared:
    """Read the data, build the network and find what can be removed; nothing is written.

    Raises:
        BayespareError: If anything that was given is wrong.
        UnsupportedStructureError: If nothing can be removed from the network.
    """
    pick_device(keys.device)
    options = options_for(keys)
    method = methods.build(options.method, **options.method_settings)
    splits = load_splits(keys)
    train = splits.train
    net = keys.net or default_net(train)
    keys = keys.model_copy(update={"net": net, "data": _lasting(keys)})
    options.batch_for(len(train))
    model = nets.build(net, inputs=train.inputs, outputs=train.outputs, seed=keys.seed)
    if "standardize" not in keys.model_fields_set and looks_up(model, train.x):
        keys = keys.model_copy(update={"standardize": "target"})
        splits = load_splits(keys)
    train, valid, test = (with_ids(model, p) for p in (splits.train, splits.valid, splits.test))
    splits = replace(splits, train=train, valid=valid, test=test)
    parts = {"training": train, "validation": valid, "test": test}
    check_lookups(model, {f"{splits.source}, {name} rows": p.x for name, p in parts.items()})
    check_outputs(model, net, train)
    plan = with_positions(trace(model, train.x[:4], inputs=train.feature_groups))
    plan = options.narrowed(judged(model, plan))
    foreseen = method.foresee(model, train.x[:4])
    if keys.resume is None:
        weights = method.judged_weights(model, plan)
        options.budget.check(model, plan, train.x[:1], weights)
    if options.time is not None:
        options = options.timed(model, plan, train)
        # A run that is resumed has these epochs, however busy the machine is then.
        keys = keys.model_copy(update={"epochs": options.epochs})
    return Prepared(keys, splits, model, plan, options, foreseen)


def load_splits(keys: FitKeys) -> Splits:
    """Read the data a fit is about.

    Raises:
        BayespareError: If they cannot be read or learnt from.
    """
    if keys.data is None:
        raise BayespareError(
            f"say which data, as in data=digits or data=FILE (known: {', '.join(BUNDLED)})"
        )
    return load(keys.data, **keys.reading, seed=keys.seed)


def options_for(keys: FitKeys) -> Options:
    """What :func:`bayespare.sparsify` is told; ``time`` is not when it has become epochs.

    Raises:
        BayespareError: If keys exclude each other.
    """
    settings: dict[str, Any] = {}
    if keys.settings != "default":
        settings["settings"] = keys.settings
    for name in ("prior", "scope", "curvature", "max_memory_gb"):
        if getattr(keys, name) is not None:
            settings[name] = getattr(keys, name)
    same = Options.__dataclass_fields__.keys() & FitKeys.model_fields.keys()
    values = {key: getattr(keys, key) for key in same}
    if keys.resume is not None and keys.epochs is not None:
        values["time"] = None
    return Options(**{**values, "settings": settings})


def default_net(train: Dataset) -> str:
    """A network for data when none is asked for: smaller where each input is a named column.

    With one hidden layer: few rows speak at full weight against a second one, and then ``node-pip``
    closes all of it (wine).
    """
    shared = isinstance(train.transform, Standardize) and len(train.transform.mean) == 1
    return "mlp:64" if train.features and not shared else "mlp:400,400"


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


def _lasting(keys: FitKeys) -> str | None:
    """The data as they are found from any directory."""
    if keys.data is None or keys.data in BUNDLED:
        return keys.data
    return str(Path(keys.data).expanduser().resolve())
