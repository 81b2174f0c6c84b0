"""The precision of a layer's prior in post-hoc reduction: where its evidence is highest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayespare.posthoc.priors import evidence_precision

D = torch.float64


def evidence(log_precision: float, w: Tensor, h: Tensor) -> float:
    """Of a diagonal Laplace approximation, nats, without what the precision does not change."""
    d = math.exp(log_precision)
    return 0.5 * float((log_precision - (h + d).log() - d * w.square()).sum())


def best(w: Tensor, h: Tensor) -> float:
    """The log precision of highest evidence, by ternary search: the evidence is concave in it."""
    low, high = -60.0, 60.0
    while high - low > 1e-6:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if evidence(left, w, h) < evidence(right, w, h):
            low = left
        else:
            high = right
    return (low + high) / 2


def layer(seed: int, size: int, level: float, spread: float) -> tuple[Tensor, Tensor]:
    """Weights and curvatures, log-normal around a level in the units of the weights' precision."""
    random = torch.Generator().manual_seed(seed)
    w = 0.1 * torch.randn(size, generator=random, dtype=D)
    return w, 100 * (level + spread * torch.randn(size, generator=random, dtype=D)).exp()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 300),
    st.floats(-16, 12),  # from hardly seen by the data to determined by them
    st.floats(0, 8),
)
def test_the_precision_is_where_the_evidence_is_highest(seed, size, level, spread):
    w, h = layer(seed, size, level, spread)
    found = evidence_precision(w, h, torch.ones(size, dtype=torch.bool))
    assert found is not None
    assert math.log(found) == pytest.approx(best(w, h), abs=1e-3)
    # MacKay's condition.
    gamma = float((h / (h + found)).sum())
    assert found * float(w.square().sum()) == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize("level", [-16, -8, -4, 0, 4, 12])
def test_few_steps_find_it(level, monkeypatch):
    """Undamped steps took hundreds where the data determine little."""
    w, h = layer(0, 500, level, 2.0)
    steps, exp = [], math.exp
    monkeypatch.setattr(math, "exp", lambda x: steps.append(x) or exp(x))
    found = evidence_precision(w, h, torch.ones(500, dtype=torch.bool))
    assert found is not None
    assert len(steps) <= 8


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_a_few_determined_weights_among_many_that_are_not(share):
    """The slope of the condition rises, falls and rises again between the two levels."""
    w, _ = layer(1, 2000, 0, 0)
    h = torch.full_like(w, 1e-6)
    h[: int(share * len(h))] = 1e8
    found = evidence_precision(w, h, torch.ones(len(w), dtype=torch.bool))
    assert found is not None
    assert math.log(found) == pytest.approx(best(w, h), abs=1e-3)
