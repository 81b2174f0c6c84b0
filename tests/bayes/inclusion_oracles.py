"""Slow and obvious: every model enumerated, coordinate ascent in the open, the card's data."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bayespare.bayes.inclusion import gaussian_kl, prior_log_odds, reduced_log_odds


def exact_inclusion(
    score: Callable[[tuple[int, ...]], float], count: int, prior: float
) -> tuple[np.ndarray, float]:
    """Weigh all ``2^count`` models by prior and evidence; inclusion and log evidence of all."""
    assert count <= 15, "2^15 models are enough"
    models = list(itertools.product((0, 1), repeat=count))
    weights = np.array(
        [
            score(model) + sum(model) * math.log(prior) + (count - sum(model)) * math.log1p(-prior)
            for model in models
        ]
    )
    evidence = float(np.logaddexp.reduce(weights))
    return np.exp(weights - evidence) @ np.array(models), evidence


def linear_evidence(
    x: np.ndarray, y: np.ndarray, noise: float, slab: float, spike: float = 0.0
) -> Callable[[tuple[int, ...]], float]:
    """Log evidence of a linear model; the columns of ``y`` share a model. All are variances."""
    y = y.reshape(len(y), -1)

    def score(model: tuple[int, ...]) -> float:
        scale = np.where(np.array(model) == 1, slab, spike)
        cov = noise * np.eye(len(x)) + (x * scale) @ x.T
        fit = float(np.sum(y * np.linalg.solve(cov, y)))
        logdet = float(np.linalg.slogdet(cov)[1])
        return -0.5 * (y.size * math.log(2 * math.pi) + y.shape[1] * logdet + fit)

    return score


def ascend(
    x: np.ndarray,
    y: np.ndarray,
    noise: float,
    slab: float,
    prior: float,
    start: list[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Coordinate ascent on a linear model with gates, by the library's F2.

    Returns:
        Log-odds (J,), means (J, K), standard deviations (J, K) and the evidence bound.
    """
    x_, y_ = torch.tensor(x), torch.tensor(y.reshape(len(y), -1))
    outputs = y_.shape[1]
    energy = x_.square().sum(0)
    std = (energy / noise + 1 / slab).rsqrt()[:, None].expand(-1, outputs)
    mean = torch.zeros(x.shape[1], outputs, dtype=torch.float64)
    inclusion = torch.tensor(start or [0.5] * x.shape[1], dtype=torch.float64)
    odds, prior_odds = torch.logit(inclusion), prior_log_odds(prior)
    for _ in range(5000):
        before = inclusion.clone()
        for j in range(x.shape[1]):
            others = inclusion.clone()
            others[j] = 0
            residual = y_ - x_ @ (others[:, None] * mean)
            mean[j] = std[j] ** 2 / noise * (x_[:, j] @ residual)
            odds[j] = reduced_log_odds(mean[j], std[j], prior_odds, slab**0.5)
            inclusion[j] = odds[j].sigmoid()
        if (inclusion - before).abs().max() < 1e-13:
            break
    used = inclusion[:, None] * mean
    variance = inclusion[:, None] * (std**2 + mean**2) - used**2
    fit = (y_ - x_ @ used).square().sum() + (energy[:, None] * variance).sum()
    bound = -0.5 * y_.numel() * math.log(2 * math.pi * noise) - 0.5 / noise * fit
    gates = sum(
        float(p * (p.log() - math.log(q))) if p > 0 else 0.0
        for pair in zip(inclusion, 1 - inclusion, strict=True)
        for p, q in zip(pair, (prior, 1 - prior), strict=True)
    )
    kl = (inclusion * gaussian_kl(mean, std, slab**0.5).sum(1)).sum()
    return odds, mean, std, float(bound - kl) - gates


# ------------------------------------------------------------------------ data of the card


def orthogonal() -> tuple[np.ndarray, np.ndarray]:
    """T5."""
    r = np.random.default_rng(11)
    q, upper = np.linalg.qr(r.standard_normal((32, 4)))
    x = q * np.sign(np.diag(upper)) * math.sqrt(32)
    return x, x @ np.array([1, 0.45, 0, -0.3]) + r.standard_normal(32)


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """T6."""
    r = np.random.default_rng(2024)
    z = r.standard_normal((40, 6))
    place = np.arange(6)
    x = z @ np.linalg.cholesky(0.6 ** np.abs(place[:, None] - place)).T
    y = x @ np.array([1.2, 0, 0, -0.8, 0, 0.4]) + r.standard_normal(40)
    return x, y


def grouped() -> tuple[np.ndarray, np.ndarray]:
    """T9."""
    r = np.random.default_rng(7)
    x = r.standard_normal((30, 5))
    weights = np.zeros((5, 3))
    weights[0], weights[2] = (0.8, -0.5, 0.3), (0.25, 0.35, -0.2)
    return x, x @ weights + r.standard_normal((30, 3))


def hidden() -> tuple[np.ndarray, np.ndarray]:
    """T10."""
    r = np.random.default_rng(5)
    x, a, c = r.standard_normal((60, 2)), r.standard_normal((2, 6)), r.standard_normal(6)
    units = np.tanh(x @ a + c)
    return units, 1.5 * units[:, 0] - 1.2 * units[:, 3] + 0.5 * r.standard_normal(60)


def duplicated() -> tuple[np.ndarray, np.ndarray]:
    """T15."""
    r = np.random.default_rng(8)
    column, noise, third = (r.standard_normal(30) for _ in range(3))
    return np.stack([column, column, third], 1), column + noise


def logistic() -> tuple[np.ndarray, np.ndarray]:
    """T11."""
    r = np.random.default_rng(3)
    x = r.standard_normal((80, 3))
    chance = 1 / (1 + np.exp(-(x @ np.array([1.2, 0, -0.5]))))
    return x, (r.random(80) < chance).astype(float)
