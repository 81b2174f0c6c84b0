"""Scores of a prediction: how right it is, and whether it knows how right it is."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from bayespare.errors import BayespareError
from bayespare.measure.predictions import ClassPrediction, Prediction, RealPrediction

Score = float | list[float] | dict[str, float]

COVERAGE_LEVELS = (0.5, 0.9, 0.95)


def evaluate(prediction: Prediction, y: Tensor) -> dict[str, Score]:
    """Score a prediction against the truth, with the keys of ``metrics.json``.

    Args:
        prediction: What :func:`~bayespare.measure.predict` returned for N rows.
        y: Class labels, int64, or target values in their own units; shape ``(N,)`` or ``(N, 1)``.

    Returns:
        For classification ``accuracy``, ``accuracy_interval`` (Wilson, 95 %), ``nll`` (nats per
        row), ``ece``, ``ece_chance``, ``ece_mass``, ``brier``; for regression ``rmse``, ``nll``
        and ``coverage`` (``{"50": share, "90": share, "95": share}``).

    Raises:
        BayespareError: If the number of rows differs, a label is not a class of the model, a
            target is not finite, or a predictive variance is not positive.
    """
    y = y.detach().cpu()
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.shape != prediction.epistemic.shape:
        raise BayespareError(
            f"evaluate: {len(prediction.epistemic)} rows were predicted, "
            f"but the truth has shape {tuple(y.shape)}"
        )
    if isinstance(prediction, ClassPrediction):
        return _evaluate_classes(prediction, y)
    return _evaluate_real(prediction, y)


def _evaluate_classes(prediction: ClassPrediction, y: Tensor) -> dict[str, Score]:
    classes = prediction.log_probs.shape[1]
    whole = not y.is_floating_point() and not y.is_complex()
    if not whole or not bool(((y >= 0) & (y < classes)).all()):
        raise BayespareError(
            f"evaluate: labels must be whole numbers from 0 to {classes - 1}, the model's classes"
        )
    y = y.long()
    correct = int((prediction.labels == y).sum())
    probs = prediction.probs
    return {
        "accuracy": correct / len(y),
        "accuracy_interval": list(wilson_interval(correct, len(y))),
        "nll": nll(prediction.log_probs, y),
        "ece": ece(probs, y),
        "ece_chance": ece_chance(probs),
        "ece_mass": ece_mass(probs, y),
        "brier": brier(probs, y),
    }


def _evaluate_real(prediction: RealPrediction, y: Tensor) -> dict[str, Score]:
    y = y.double()
    if not bool(torch.isfinite(y).all()):
        raise BayespareError("evaluate: a target value is not finite")
    if not bool((prediction.variance > 0).all()):
        row = int((prediction.variance <= 0).nonzero()[0])
        raise BayespareError(
            f"evaluate: the predictive variance of row {row} is zero; give predict a noise_std"
        )
    return {
        "rmse": rmse(prediction.mean, y),
        "nll": gaussian_nll(prediction.mean, prediction.variance, y),
        "coverage": coverage(prediction.mean, prediction.variance, y),
    }


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, ``correct`` out of ``total``.

    Raises:
        BayespareError: Unless ``0 <= correct <= total`` and ``total >= 1``.
    """
    if not 0 <= correct <= total or total < 1:
        raise BayespareError(f"wilson_interval: {correct} of {total} is not a share")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = correct / total
    centre = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # The interval reaches 0 and 1 exactly when every row is wrong or right; rounding may not.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high


def nll(log_probs: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood in nats; ``log_probs`` ``(N, K)``, labels ``(N,)``."""
    return float(-log_probs.gather(1, y[:, None]).mean())


def brier(probs: Tensor, y: Tensor) -> float:
    """Multi-class Brier score, 0 to 2: squared error summed over classes, mean over rows.

    ``probs`` has shape ``(N, K)``, the labels ``(N,)``.
    """
    truth = torch.nn.functional.one_hot(y, probs.shape[1])
    return float((probs - truth).square().sum(dim=1).mean())


def ece(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the top class over equal-width bins of confidence."""
    return _calibration_gap(reliability(probs, y, bins))


def ece_chance(probs: Tensor, bins: int = 15, draws: int = 200) -> float:
    """Mean :func:`ece` of a perfectly calibrated model with these confidences on as many rows.

    An ECE cannot be expected to be lower: it measures a distance, so that chance alone makes it
    positive, by about .02 on a few hundred rows. Labels are drawn from the probabilities.
    """
    # Sorted, so that the order of the rows does not matter.
    confidence = probs.double().amax(dim=1).cpu().sort().values
    random = torch.Generator().manual_seed(0)
    index = _equal_width(confidence, bins)
    total = 0.0
    for _ in range(draws):
        drawn = torch.rand(confidence.shape, generator=random, dtype=torch.float64)
        right = (drawn < confidence).double()
        total += _calibration_gap(_binned(confidence, right, index, bins))
    return total / draws


def ece_mass(probs: Tensor, y: Tensor, bins: int = 20) -> float:
    """Expected calibration error over bins of equal mass.

    Equal confidences share a bin, so the order of the rows does not matter.
    """
    confidence, correct = _top_class(probs, y)
    ordered = confidence.sort().values
    starts = torch.arange(1, bins) * len(ordered) // bins
    index = torch.searchsorted(ordered[starts], confidence, right=True)
    return _calibration_gap(_binned(confidence, correct, index, bins))


def reliability(probs: Tensor, y: Tensor, bins: int = 15) -> list[list[float]]:
    """Return a reliability diagram: confidence against accuracy, over equal-width bins.

    Returns:
        ``[mean confidence, accuracy, rows]`` of each bin that has rows, in ascending order.
    """
    confidence, correct = _top_class(probs, y)
    return _binned(confidence, correct, _equal_width(confidence, bins), bins)


def rmse(mean: Tensor, y: Tensor) -> float:
    """Root mean squared error, in the units of the target; both of shape ``(N,)``."""
    return float((mean - y).square().mean().sqrt())


def gaussian_nll(mean: Tensor, variance: Tensor, y: Tensor) -> float:
    """Mean negative log density in nats under a Gaussian per row; all of shape ``(N,)``."""
    terms = torch.log(2 * math.pi * variance) + (y - mean).square() / variance
    return float(terms.mean() / 2)


def coverage(
    mean: Tensor, variance: Tensor, y: Tensor, levels: tuple[float, ...] = COVERAGE_LEVELS
) -> dict[str, float]:
    """Share of targets inside the central Gaussian interval of each level.

    Returns:
        The level in percent (``"90"``) to the share; a calibrated model covers its level.
    """
    distance = (y - mean).abs() / variance.sqrt()
    return {
        f"{100 * level:g}": float(
            (distance <= NormalDist().inv_cdf(0.5 + level / 2)).double().mean()
        )
        for level in levels
    }


def paired_difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of ``a - b`` over the same N rows, and its standard error.

    The pairing takes out the difficulty of the rows: two models that fail on the same rows differ
    with a smaller error than two independent samples would.

    Args:
        a: Per-row score of one model, shape ``(N,)``: right or wrong, or a loss.
        b: The same for the other model.

    Raises:
        BayespareError: If the shapes differ or there are fewer than two rows.
    """
    if a.shape != b.shape or a.dim() != 1 or len(a) < 2:
        raise BayespareError(
            f"paired_difference: needs two scores per row for at least 2 rows, "
            f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    difference = a.double() - b.double()
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))


def _top_class(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence of the top class, and whether it is right (0 or 1), both float64 ``(N,)``."""
    confidence, label = probs.double().max(dim=1)
    return confidence, (label == y).double()


def _equal_width(confidence: Tensor, bins: int) -> Tensor:
    """Bin of each confidence, of equal width and closed above."""
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def _binned(confidence: Tensor, correct: Tensor, index: Tensor, bins: int) -> list[list[float]]:
    """Mean confidence, accuracy and number of rows per bin, empty bins left out."""
    count = torch.bincount(index, minlength=bins).double()
    used = count > 0
    means = [
        torch.bincount(index, weights=values, minlength=bins)[used] / count[used]
        for values in (confidence, correct)
    ]
    rows: list[list[float]] = torch.stack([*means, count[used]], dim=1).tolist()
    return rows


def _calibration_gap(rows: list[list[float]]) -> float:
    """Mean distance between confidence and accuracy, weighted by the rows of each bin."""
    total = sum(count for _, _, count in rows)
    return sum(count * abs(right - confidence) for confidence, right, count in rows) / total
