"""What a user gives in Python, checked before any work: the network, its outputs, the data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.layers import can_be_variational
from bayespare.data import Dataset
from bayespare.errors import BayespareError

PROBABILITIES = (
    "the network's outputs are probabilities and are taken as logits, so it will be less sure than "
    "it is right; leave out its softmax, or use LogSoftmax"
)

TELLING_ROWS = 10
"""Of fewer one is more than a tenth of what is measured."""


def checked_model(model: nn.Module) -> nn.Module:
    """A copy on the CPU in single precision, to be worked with.

    Raises:
        BayespareError: If it is no network, or none that can be copied.
    """
    if not isinstance(model, nn.Module):
        raise BayespareError(f"model: an nn.Module is needed, not {type(model).__name__}")
    lazy = nn.parameter.UninitializedParameter
    for name, parameter in model.named_parameters():
        if isinstance(parameter, lazy):
            raise BayespareError(f"{name} has no shape yet: show the network a batch first")
    try:
        copied = copy.deepcopy(model).cpu()
    except RuntimeError as error:
        raise BayespareError(
            f"the network cannot be copied ({str(error).splitlines()[0]}); weight_norm of "
            "torch.nn.utils has to be removed first, that of its parametrizations need not"
        ) from error
    return single_precision(copied)


def single_precision(model: nn.Module) -> nn.Module:
    """The network itself, in place in float32 if its parameters are not."""
    return model.float() if _other_precisions(model) else model


def precision_warnings(model: nn.Module) -> list[str]:
    """A warning that the network given is not of single precision, or none."""
    kinds = _other_precisions(model)
    if not kinds:
        return []
    return [
        f"the network's weights are {' and '.join(kinds)}; it is worked with, and given back, in "
        "float32"
    ]


def _other_precisions(model: nn.Module) -> list[str]:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    return sorted(str(kind).removeprefix("torch.") for kind in kinds)


def check_around(model: nn.Module) -> None:
    """Refuse a layer by itself: the one that is drawn takes its place in the module around it.

    Raises:
        BayespareError: With what to give instead.
    """
    if not list(model.children()) and can_be_variational(model):
        raise BayespareError(
            f"model: a {type(model).__name__} by itself cannot be given a posterior, which goes "
            "into the module around it; give nn.Sequential(model)"
        )


def checked_outputs(model: nn.Module, train: Dataset, example: Tensor) -> int:
    """Outputs of the network.

    Args:
        model: On the CPU; not changed.
        train: What it learns.
        example: A few of its inputs.

    Raises:
        BayespareError: If they do not fit the targets.
    """
    output = _said(model, example)
    if output is None:
        return train.outputs
    rows = len(example)
    wanted = (rows, train.outputs)
    fits = isinstance(output, Tensor) and (
        tuple(output.shape) == wanted
        or (train.task == "regression" and tuple(output.shape) == (rows,))
        or (
            train.task == "classification"
            and output.shape[:1] == (rows,)
            and output.dim() == 2
            and output.shape[1] > train.outputs
        )
    )
    if not fits:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BayespareError(
            f"the network's output for {rows} rows is {shape}, the data need {wanted} "
            f"({train.task}, {train.outputs} outputs){_hint(output, train)}"
        )
    return int(output[0].numel())


def _hint(output: object, train: Dataset) -> str:
    """What a user may have meant."""
    if not isinstance(output, Tensor):
        return "; give a module whose forward returns the tensor of outputs alone"
    if train.task == "regression":
        return "; decimal targets are numbers: for classes give whole numbers, y.long()"
    if output[0].numel() != 1:
        return ""
    if train.outputs == 2:
        return "; two classes need two outputs, one logit each"
    return "; whole-number targets are classes: for a regression give decimals, y.float()"


@torch.no_grad()
def _said(model: nn.Module, x: Tensor) -> Any:
    """What a network in evaluation mode says; None if it fails: trace names the layer."""
    try:
        return copy.deepcopy(model).eval()(x)
    except (RuntimeError, TypeError, ValueError):
        return None


def output_warnings(model: nn.Module, train: Dataset, example: Tensor) -> list[str]:
    """A warning if a classifier says probabilities, or none."""
    said = _said(model, example)
    if train.task != "classification" or said is None:
        return []
    sums = said.sum(-1)
    likely = bool((said >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    return [PROBABILITIES] if likely and said.shape[-1] > 1 else []


def task_warnings(train: Dataset) -> list[str]:
    """A warning if the numbers of a regression look like two classes, or none."""
    if train.task != "regression":
        return []
    mean, std = train.target_scale
    values = torch.unique(train.y).double().cpu() * std + mean
    if len(values) != 2 or not torch.allclose(values, values.round(), rtol=0, atol=1e-4):
        return []
    low, high = (int(value) for value in values.round().tolist())
    return [
        f"the targets are decimals, so this is a regression, but they are {low} and {high} alone: "
        "for binary classification give whole labels 0 and 1 (y.long()) and a network with two "
        "outputs"
    ]


def data_warnings(
    model: nn.Module,
    train: Dataset,
    example: Tensor,
    valid: Dataset | None,
    test: Dataset | None,
) -> list[str]:
    """All that is to be said of a network and its data before any work.

    Args:
        model: On the CPU.
        train: Training data.
        example: A few inputs, on the CPU.
        valid: As in :func:`few_rows_warnings`.
        test: As in :func:`few_rows_warnings`.
    """
    return [
        *output_warnings(model, train, example),
        *task_warnings(train),
        *few_rows_warnings(valid, test),
    ]


def few_rows_warnings(valid: Dataset | None, test: Dataset | None) -> list[str]:
    """Warnings about parts so small that what is told by them is luck.

    Args:
        valid: Chooses sizes and spread; None where nothing is chosen by it.
        test: None where there is none.
    """
    found = []
    if valid is not None and len(valid) < TELLING_ROWS:
        found.append(
            f"only {_rows(valid)} of validation data, which cannot tell networks apart: the size "
            "chosen and the width of its posterior are luck; it needs more rows"
        )
    if test is not None and len(test) < TELLING_ROWS:
        found.append(
            f"only {_rows(test)} of test data: their scores say next to nothing; it needs more rows"
        )
    return found


def _rows(data: Dataset) -> str:
    return "1 row" if len(data) == 1 else f"{len(data)} rows"


def check_weights(data: Dataset, name: str) -> None:
    """Refuse weights of examples that are none.

    Raises:
        BayespareError: If they are of another number, negative, not finite, or all zero.
    """
    weight = data.weight
    if weight is None:
        return
    if weight.shape != (len(data),):
        raise BayespareError(
            f"{name}: weight of shape {tuple(weight.shape)} for {len(data)} examples"
        )
    bad = (~torch.isfinite(weight)) | (weight < 0)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise BayespareError(
            f"{name}: the weight of row {row} (counting from 0) is {float(weight[row])}: it says "
            "how often the row counts, 0 or more"
        )
    if not bool(weight.any()):
        raise BayespareError(f"{name}: all weights are zero")


def check_units(model: nn.Module, train: Dataset) -> None:
    """Refuse a network that was trained on numbers as a loader gives them.

    Its targets have been brought to mean 0 and deviation 1: training would undo what it knows.

    Raises:
        BayespareError: If it fits them as they were.
    """
    if train.task != "regression" or train.target_scale == (0.0, 1.0):
        return
    mean, std = train.target_scale
    rows = train.subset(torch.arange(min(len(train), 1000)))
    said = _said(model, rows.x)
    asked = rows.y * std + mean
    if said is not None and float((said.view(-1) - asked).square().mean()) < 0.5 * float(
        asked.var(correction=0)
    ):
        raise BayespareError(
            "the network fits the targets as the loader gives them, but sparsify trains on targets "
            f"of mean 0 and deviation 1 (these: {mean:.4g}, {std:.4g}); use bayespare.reduce, "
            "which keeps the units, or a network trained on such targets"
        )
