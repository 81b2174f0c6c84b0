"""Kronecker-factored posteriors against dense covariance matrices, and the card's vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bayespare.bayes.evidence import (
    KroneckerPosterior,
    MatrixNormal,
    conditional_row_cost,
    joint_delta_f,
    survivors,
)
from bayespare.errors import BayespareError


def published() -> KroneckerPosterior:
    random = np.random.default_rng(7)
    mean = 0.3 * random.standard_normal((4, 6))
    left = random.standard_normal((4, 9))
    right = random.standard_normal((6, 12))
    outputs, inputs = 3 / 9 * left @ left.T, 20 / 12 * right @ right.T
    assert (mean.sum(), np.trace(inputs), np.trace(outputs)) == pytest.approx(
        (-2.820379907523177, 97.38307194388322, 10.18597956146245)
    )
    return KroneckerPosterior.from_factors(
        torch.tensor(mean), torch.tensor(outputs), torch.tensor(inputs), 4.0
    )


def random_factors(seed: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    left, right = draw(outputs, outputs + 1), draw(inputs, inputs)
    return draw(outputs, inputs), left @ left.T / 2, right @ right.T


def dense(posterior: KroneckerPosterior) -> Tensor:
    """Covariance of the flattened matrix, by brute force."""
    assert posterior.factors is not None
    precision = torch.kron(*posterior.factors)
    return (precision + posterior.prior_precision * torch.eye(len(precision)).double()).inverse()


def close(expected: object) -> object:
    """Near enough for a dense inverse, also where the expected value happens to be about zero."""
    return pytest.approx(expected, rel=1e-6, abs=1e-8)


def flat(rows: list[int], columns: list[int], width: int) -> list[int]:
    return [row * width + column for row in rows for column in columns]


def test_kfac_laplace_has_the_published_values():
    posterior = published()
    assert posterior.row_delta_f().tolist() == pytest.approx(
        [-0.737921, 2.333660, 1.498409, -2.630679], abs=1e-6
    )
    assert posterior.column_delta_f().tolist() == pytest.approx(
        [-0.143513, -1.915357, 0.286723, -0.498222, -0.933435, 1.700455], abs=1e-6
    )
    elements = posterior.element_delta_f()
    assert elements.sum().item() == pytest.approx(3.876503, abs=1e-6)
    # The elements of the first row say the opposite of the row.
    assert elements[0].sum().item() == pytest.approx(1.640364, abs=1e-6)
    assert posterior.joint_delta_f([0, 5, 11]).item() == pytest.approx(0.8998037956, abs=1e-9)


def test_removing_published_elements_one_by_one_is_the_same():
    posterior = published()
    mean, covariance = posterior.mean.reshape(-1), dense(posterior)
    left, total = list(range(24)), 0.0
    for index in (0, 5, 11):
        place = left.index(index)
        total += joint_delta_f(mean, covariance, [place], 0.5).item()
        mean, covariance = survivors(mean, covariance, [place])
        left.pop(place)
    assert total == pytest.approx(0.8998037956, abs=1e-9)


@given(seed=st.integers(0, 10**6), outputs=st.integers(1, 4), inputs=st.integers(1, 4))
def test_kfac_laplace_is_its_dense_inverse(seed, outputs, inputs):
    posterior = KroneckerPosterior.from_factors(*random_factors(seed, outputs, inputs), 0.7)
    mean, covariance = posterior.mean.reshape(-1), dense(posterior)
    std = 0.7**-0.5
    assert torch.allclose(posterior.element_std().reshape(-1), covariance.diagonal().sqrt())
    rows, columns = list(range(outputs)), list(range(inputs))
    assert posterior.row_delta_f().tolist() == close(
        [joint_delta_f(mean, covariance, flat([i], columns, inputs), std).item() for i in rows]
    )
    assert posterior.column_delta_f().tolist() == close(
        [joint_delta_f(mean, covariance, flat(rows, [j], inputs), std).item() for j in columns]
    )
    assert posterior.element_delta_f().reshape(-1).tolist() == close(
        [joint_delta_f(mean, covariance, [k], std).item() for k in range(len(mean))]
    )
    some = torch.randperm(len(mean), generator=torch.Generator().manual_seed(seed))
    some = some[: 1 + len(mean) // 2]
    assert torch.allclose(posterior.covariance(some), covariance[some][:, some])


@given(seed=st.integers(0, 10**6), removed=st.sampled_from([[0], [2], [0, 2], [3, 1]]))
def test_removing_rows_together_is_dense_and_survivors_move(seed, removed):
    posterior = KroneckerPosterior.from_factors(*random_factors(seed, 4, 3), 1.3)
    mean, covariance = posterior.mean.reshape(-1), dense(posterior)
    gone = flat(removed, [0, 1, 2], 3)
    slow = joint_delta_f(mean, covariance, gone, 1.3**-0.5)
    assert posterior.rows_delta_f(removed).item() == close(slow.item())
    rest = survivors(mean, covariance, gone)
    moved = posterior.without_rows(removed)
    assert torch.allclose(moved.mean.reshape(-1), rest.mean)
    assert torch.allclose(dense(moved), rest.covariance)
    # One row after the other is the same as all at once.
    first = posterior.row_delta_f()[removed[0]]
    if len(removed) == 2:
        second = removed[1] - (removed[1] > removed[0])
        total = first + posterior.without_rows([removed[0]]).row_delta_f()[second]
        assert total.item() == close(slow.item())
    # Columns are rows of the transposed matrix.
    turned = posterior.transposed().without_columns(removed)
    assert torch.allclose(turned.mean.mT, moved.mean)
    assert torch.allclose(dense(turned.transposed()), dense(moved))


def test_any_variance_in_the_eigenbasis_is_scored():
    random = torch.Generator().manual_seed(3)
    mean, outputs, inputs = random_factors(3, 3, 4)
    left, right = torch.linalg.eigh(outputs)[1], torch.linalg.eigh(inputs)[1]
    variance = torch.rand(3, 4, generator=random, dtype=torch.float64) * 0.2
    posterior = KroneckerPosterior(mean, left, right, variance, 2.0, "fc")
    basis = torch.kron(left, right)
    covariance = basis @ torch.diag(variance.reshape(-1)) @ basis.T
    slow = joint_delta_f(mean.reshape(-1), covariance, [4, 5, 6, 7], 2.0**-0.5)
    assert posterior.row_delta_f()[1].item() == close(slow.item())
    rest = survivors(mean.reshape(-1), covariance, [4, 5, 6, 7])
    assert torch.allclose(posterior.moved_mean([1]).reshape(-1), rest.mean)
    with pytest.raises(BayespareError, match=r"fc: .*moved_mean"):
        posterior.without_rows([1])


@given(seed=st.integers(0, 10**6))
def test_matrix_normal_is_its_dense_covariance(seed):
    mean, rows, columns = random_factors(seed, 3, 4)
    rows = rows + 0.1 * torch.eye(3, dtype=torch.float64)
    columns = columns + 0.1 * torch.eye(4, dtype=torch.float64)
    posterior = MatrixNormal(mean, rows, columns)
    covariance = torch.kron(rows, columns)
    scales = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
    prior = scales.reshape(3, 4)
    vector = mean.reshape(-1)
    assert torch.allclose(posterior.element_std().reshape(-1), covariance.diagonal().sqrt())
    for row in range(3):
        slow = joint_delta_f(vector, covariance, flat([row], [0, 1, 2, 3], 4), scales).item()
        assert posterior.row_delta_f(prior)[row].item() == close(slow)
    for column in range(4):
        slow = joint_delta_f(vector, covariance, flat([0, 1, 2], [column], 4), scales).item()
        assert posterior.column_delta_f(prior)[column].item() == close(slow)
    gone = flat([0, 2], [0, 1, 2, 3], 4)
    slow = joint_delta_f(vector, covariance, gone, scales).item()
    assert posterior.rows_delta_f([0, 2], prior).item() == close(slow)
    rest, moved = survivors(vector, covariance, gone), posterior.without_rows([0, 2])
    assert torch.allclose(moved.mean.reshape(-1), rest.mean)
    assert torch.allclose(torch.kron(moved.rows, moved.columns), rest.covariance)
    gone = flat([0, 1, 2], [1], 4)
    rest, moved = survivors(vector, covariance, gone), posterior.without_columns([1])
    assert torch.allclose(moved.mean.reshape(-1), rest.mean)
    assert torch.allclose(torch.kron(moved.rows, moved.columns), rest.covariance)


@given(seed=st.integers(0, 10**6))
def test_the_conditional_cost_is_the_quadratic_form_of_the_precision(seed):
    mean, outputs, inputs = random_factors(seed, 3, 4)
    precision = torch.kron(outputs, inputs) + 0.7 * torch.eye(12, dtype=torch.float64)
    slow = []
    for row in range(3):
        step = torch.zeros(3, 4, dtype=torch.float64)
        step[row] = mean[row]
        slow.append((0.5 * step.reshape(-1) @ precision @ step.reshape(-1)).item())
    assert conditional_row_cost(mean, outputs, inputs, 0.7).tolist() == close(slow)


def test_a_factor_of_low_rank_is_accepted_in_single_precision():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, generator=random)
    posterior = KroneckerPosterior.from_factors(
        torch.randn(4, 50, generator=random), torch.eye(4), x.T @ x, 1.0
    )
    assert bool(torch.isfinite(posterior.row_delta_f()).all())
    # Directions that no datum has seen keep the prior's variance.
    assert posterior.element_std().max() <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": -torch.eye(2)}, "fc, eigenvalues of the output side: .*negative"),
        ({"inputs": torch.diag(torch.tensor([1.0, 1.0, -0.1]))}, "input side: .*negative"),
        ({"inputs": torch.full((3, 3), math.nan)}, "fc: the input-side curvature factor is not"),
        ({"prior_precision": 0.0}, "fc: the prior precision is zero"),
        ({"mean": torch.full((2, 3), math.nan)}, "fc: the posterior mean is not finite"),
        ({"outputs": torch.eye(3)}, "fc: the row basis has shape"),
    ],
)
def test_bad_factors_are_named_and_refused(change, message):
    good = {
        "mean": torch.ones(2, 3),
        "outputs": torch.eye(2),
        "inputs": torch.eye(3),
        "prior_precision": 1.0,
    }
    with pytest.raises(BayespareError, match=message):
        KroneckerPosterior.from_factors(**{**good, **change}, name="fc")


def test_a_bad_matrix_normal_is_named_and_refused():
    with pytest.raises(BayespareError, match="fc: the row covariance has shape"):
        MatrixNormal(torch.ones(2, 3), torch.eye(3), torch.eye(3), "fc")
    flat_posterior = MatrixNormal(torch.ones(2, 3), torch.zeros(2, 2), torch.eye(3), "fc")
    with pytest.raises(BayespareError, match="fc: the row covariance is not positive definite"):
        flat_posterior.row_delta_f(1.0)
    good = MatrixNormal(torch.ones(2, 3), torch.eye(2), torch.eye(3), "fc")
    with pytest.raises(BayespareError, match="infinite evidence"):
        good.row_delta_f(math.inf)
    with pytest.raises(BayespareError, match="variance is zero"):
        KroneckerPosterior(torch.ones(2, 3), torch.eye(2), torch.eye(3), torch.zeros(2, 3), 1.0)
