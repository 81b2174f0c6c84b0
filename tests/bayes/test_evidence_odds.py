"""Prior odds of a layer, and units that are scored by one block."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

from bayespare.bayes.evidence import (
    block_delta_f,
    block_disagreement,
    delta_f,
    keeps,
    log_odds,
    prior_log_odds,
    unit_delta_f,
)
from bayespare.errors import BayespareError


def repeated(*pairs: tuple[int, float]) -> Tensor:
    return torch.cat([torch.full((n,), value, dtype=torch.float64) for n, value in pairs])


def fixed_point(values: np.ndarray, iterations: int) -> list[float]:
    """The authors' loop, densely."""
    zeta, path = 0.0, []
    for _ in range(iterations):
        q = special.expit(zeta - values)
        zeta = special.digamma(1 + q.sum()) - special.digamma(1 + (1 - q).sum())
        path.append(float(zeta))
    return path


# -------------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("values", "path", "kept"),
    [
        (
            repeated((900, 5), (100, -10)),
            [-2.127916, -2.185252, -2.185718, -2.185722],
            100,
        ),
        (
            repeated((600, 2), (300, 0), (100, -1)),
            [-0.872026, -1.556821, -2.135471, -2.651364],
            0,
        ),
        (repeated((990, -20), (10, 0.5)), [None, None, None, 7.470088], 1000),
        (torch.linspace(-5, 5, 1001, dtype=torch.float64), [0.0, 0.0, 0.0, 0.0], 501),
        (
            delta_f(torch.linspace(-2, 2, 100_001, dtype=torch.float64), 0.1, 1.0),
            [2.202413, 3.169416, 3.867164, 4.457835],
            100_001,
        ),
    ],
)
def test_the_published_iterations_have_the_published_values(values, path, kept):
    twin = fixed_point(values.numpy(), 4)
    for found, expected in zip(twin, path, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=1e-6)
    odds = prior_log_odds(values, "published")
    assert odds == pytest.approx(path[-1], abs=1e-6)
    # A weight at the line itself is on either side of it by rounding.
    assert int(keeps(values, round(odds, 9)).sum()) == kept


def test_at_random_initialisation_many_are_redundant_and_none_is_removed():
    values = delta_f(torch.linspace(-2, 2, 100_001, dtype=torch.float64), 0.1, 1.0)
    assert (values > 0).double().mean().item() == pytest.approx(0.10729, abs=1e-5)
    assert bool(keeps(values, prior_log_odds(values, "published")).all())


def test_to_convergence_the_odds_are_others():
    values = repeated((600, 2), (300, 0), (100, -1))
    odds = prior_log_odds(values, "converged")
    assert odds == pytest.approx(-6.494020, abs=1e-6)
    assert odds == pytest.approx(fixed_point(values.numpy(), 3000)[-1], abs=1e-8)
    assert prior_log_odds(values, "converged", bound=3.0) == -3.0
    assert prior_log_odds(-values, "published", bound=1.0) == 1.0


@given(
    values=st.lists(st.floats(-30, 30), min_size=1, max_size=40),
    alpha=st.floats(0.2, 5),
    beta=st.floats(0.2, 5),
)
def test_converged_odds_are_a_fixed_point(values, alpha, beta):
    tensor = torch.tensor(values, dtype=torch.float64)
    odds = prior_log_odds(tensor, "converged", alpha=alpha, beta=beta)
    q = special.expit(odds - np.array(values))
    again = special.digamma(alpha + q.sum()) - special.digamma(beta + (1 - q).sum())
    assert odds == pytest.approx(again, abs=1e-6)


def test_many_weights_are_counted_in_bins():
    random = torch.Generator().manual_seed(0)
    values = torch.randn(300_000, generator=random) * 3 - 1
    for rule, iterations in (("published", 4), ("converged", 2000)):
        slow = fixed_point(values[:60_000].double().numpy(), iterations)[-1]
        exact = prior_log_odds(values[:60_000], rule)
        assert exact == pytest.approx(slow, abs=1e-6)
        # The same values five times over: far more than are taken one by one.
        binned = prior_log_odds(values[:60_000].repeat(5), rule)
        same = fixed_point(np.tile(values[:60_000].double().numpy(), 5), 4)[-1]
        if rule == "published":
            assert binned == pytest.approx(same, abs=1e-5)
        assert binned == pytest.approx(exact, abs=2e-3)
    values[::2] = -math.inf
    assert prior_log_odds(values, "published") > 0


def test_fixed_and_zero_odds_do_not_look_at_the_weights():
    values = repeated((5, 3.0))
    assert prior_log_odds(values, "zero") == 0.0
    assert prior_log_odds(values, "fixed", fixed=-1.5) == -1.5


def test_what_is_gone_is_not_counted():
    gone = repeated((900, 5.0), (100, -10))
    candidates = gone < 0
    alone = prior_log_odds(gone[candidates], "converged")
    assert prior_log_odds(gone, "converged", candidates=candidates) == alone
    assert alone > prior_log_odds(gone, "converged") + 1
    assert prior_log_odds(gone, "converged", candidates=gone > 99) == 0.0


def test_ties_are_broken_towards_removal_when_asked():
    values = torch.tensor([-1.0, -0.01, 0.0, 0.01])
    assert keeps(values).tolist() == [True, True, True, False]
    assert keeps(values, tie=0.05).tolist() == [True, False, False, False]
    assert torch.equal(log_odds(values, 2.0), 2.0 - values)


def test_bad_odds_are_refused():
    values = repeated((3, 1.0))
    with pytest.raises(BayespareError, match=r"fc1: no rule 'four'.*converged"):
        prior_log_odds(values, "four", name="fc1")  # type: ignore[arg-type]
    with pytest.raises(BayespareError, match="fc1: a delta-F is NaN"):
        prior_log_odds(values * math.nan, name="fc1")
    with pytest.raises(BayespareError, match="alpha=0"):
        prior_log_odds(values, alpha=0.0)


# ---------------------------------------------------------------------- units


def test_a_block_has_the_published_value():
    mean = torch.tensor([0.1, -0.2, 0.05, 0.3], dtype=torch.float64)
    std = torch.tensor([0.1, 0.2, 0.15, 0.25], dtype=torch.float64)
    elements = delta_f(mean, std, 0.5)
    assert elements.tolist() == pytest.approx([1.109438, 0.416291, 1.148417, -0.026853], abs=1e-6)
    assert block_delta_f(elements.reshape(1, 4), 0).item() == pytest.approx(2.647293, abs=1e-6)


def test_blocks_lie_along_any_dimension():
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert block_delta_f(values, 0).tolist() == [66.0, 210.0]
    assert block_delta_f(values, 1).tolist() == values.sum((0, 2)).tolist()
    assert block_delta_f(values, -1).tolist() == values.sum((0, 1)).tolist()
    assert block_delta_f(torch.ones(3), 0).tolist() == [1.0, 1.0, 1.0]
    # Single precision would lose the one.
    assert block_delta_f(torch.tensor([[1e8, 1.0, -1e8]]), 0).tolist() == [1.0]


def test_a_unit_is_one_block_because_both_tell_the_same_evidence():
    # y = v u x + noise: without u, without v, or without both, it is the same model.
    random = np.random.default_rng(3)
    x = random.standard_normal(20)
    y = 0.6 * x + 0.5 * random.standard_normal(20)
    grid = np.arange(-6, 6 + 1e-9, 0.01)
    step = grid[1] - grid[0]
    product = np.multiply.outer(grid, grid)
    squares = (y**2).sum() - 2 * product * (x * y).sum() + product**2 * (x**2).sum()
    log_prior = -0.5 * grid**2 - 0.5 * np.log(2 * np.pi)
    joint = np.exp(-squares / 0.5 + np.add.outer(log_prior, log_prior))
    evidence = joint.sum() * step**2
    removed = np.log(np.exp(-(y**2).sum() / 0.5) / evidence)
    assert removed == pytest.approx(-11.7512627, abs=1e-6)
    zero = len(grid) // 2
    densities = {"u": joint.sum(1)[zero] * step, "v": joint.sum(0)[zero] * step}
    prior = 1 / math.sqrt(2 * math.pi)
    incoming, outgoing = (
        torch.tensor([np.log(density / evidence / prior)]) for density in densities.values()
    )
    for block in ("incoming", "outgoing"):
        found = unit_delta_f(incoming, outgoing, block).item()
        assert found == pytest.approx(removed, abs=1e-6)
    assert block_disagreement(incoming, outgoing).mean == pytest.approx(0.0, abs=1e-9)
    # A factorised posterior with these marginals would count it twice.
    assert (incoming + outgoing).item() == pytest.approx(2 * removed, abs=1e-5)


def test_blocks_that_disagree_are_reported():
    incoming = torch.tensor([1.0, -2.0, 3.0, -4.0])
    outgoing = torch.tensor([2.0, 2.0, 3.0, -1.0])
    found = block_disagreement(incoming, outgoing)
    assert found.difference.tolist() == [-1.0, -4.0, 0.0, -3.0]
    assert (found.mean, found.opposite) == (2.0, 0.25)
    assert torch.equal(unit_delta_f(incoming, outgoing), outgoing)
    with pytest.raises(BayespareError, match="one value per unit"):
        block_disagreement(incoming, outgoing[:3])
    with pytest.raises(BayespareError, match="no units"):
        block_disagreement(incoming[:0], outgoing[:0])
    with pytest.raises(BayespareError, match="no block 'both'"):
        unit_delta_f(incoming, outgoing, "both")  # type: ignore[arg-type]
