"""Least squares on supports and the costs of removal, against solving row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayespare.bayes import survivors
from bayespare.bayes.survivors import refit_rows, removal_costs, ridged, unit_removal_costs
from bayespare.errors import BayespareError


def problem(seed, inputs=9, rows=7, density=0.5, equal=0):
    """Inputs, a positive definite gram, weights, and a support per row (the first ones equal)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    support = torch.rand(rows, inputs, generator=generator) < density
    support[:equal] = support[0]
    return x, x.T @ x / 40, weight, support


@given(
    seed=st.integers(0, 10_000),
    density=st.floats(0, 1),
    equal=st.integers(0, 7),
    working=st.sampled_from([1, 100, 2**20]),
)
@settings(max_examples=60)
def test_each_row_is_its_own_least_squares(seed, density, equal, working):
    _, gram, weight, support = problem(seed, density=density, equal=equal)
    before, survivors._WORKING = survivors._WORKING, working
    try:
        found = refit_rows(gram, weight, support)
        costs = removal_costs(gram, weight, support)
    finally:
        survivors._WORKING = before
    for row in range(len(weight)):
        kept = support[row].nonzero().squeeze(1).numpy()
        expected = np.zeros(len(gram))
        prices = np.zeros(len(gram))
        if len(kept):
            block = gram[kept][:, kept].numpy()
            expected[kept] = np.linalg.solve(block, weight[row, kept].numpy())
            prices[kept] = 0.5 * weight[row, kept].numpy() ** 2 / np.diag(np.linalg.inv(block))
        np.testing.assert_allclose(found[row], expected, rtol=1e-6, atol=1e-8 * abs(expected).max())
        np.testing.assert_allclose(costs[row], prices, rtol=1e-6)


def test_a_weight_costs_what_the_error_rises_by():
    """The cost of a removal is the rise of the half squared error after numpy's own refit."""
    x, gram, weight, support = problem(3, rows=2, density=0.8)
    target = x.numpy() @ (weight * support).numpy().T
    costs = removal_costs(gram, weight * support, support, torch.tensor([1.0, 5.0]))
    for row, precision in ((0, 1.0), (1, 5.0)):
        for removed in support[row].nonzero().squeeze(1).tolist():
            left = support[row].clone()
            left[removed] = False
            _, error, _, _ = np.linalg.lstsq(x.numpy()[:, left.numpy()], target[:, row])
            assert float(costs[row, removed]) == pytest.approx(0.5 * precision * error[0] / 40)


def test_a_unit_costs_what_its_block_does():
    """By the full matrix B (x) A: conditional on the rest it is (H^-1)_JJ^-1, fixed H_JJ."""
    _, gram, weight, _ = problem(1, inputs=6, rows=3)
    root = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = root @ root.T + torch.eye(3)
    owner = torch.tensor([0, 1, 0, 2, -1, 2])
    for curvature in (output, output.diagonal(), None):
        square = torch.eye(3).double() if curvature is None else curvature
        square = square.diag() if square.ndim == 1 else square
        hessian = torch.kron(square, gram)
        inverse = hessian.inverse()
        for refit in (True, False):
            found = unit_removal_costs(gram, weight, owner, 4, curvature, refit=refit)
            for unit in range(3):
                index = (owner == unit).repeat(3).nonzero().squeeze(1)
                block = inverse[index][:, index].inverse() if refit else hessian[index][:, index]
                values = weight.flatten()[index]
                assert float(found[unit]) == pytest.approx(float(0.5 * values @ block @ values))
            assert found[3] == 0


def test_refitting_is_never_dearer_than_staying():
    _, gram, weight, _ = problem(5)
    owner = torch.arange(9) // 3
    conditional = unit_removal_costs(gram, weight, owner, 3)
    fixed = unit_removal_costs(gram, weight, owner, 3, refit=False)
    assert bool((conditional <= fixed).all())
    single = unit_removal_costs(gram, weight[:1], torch.arange(9), 9)
    torch.testing.assert_close(single, removal_costs(gram, weight[:1])[0])


def test_submatrices_are_those_of_rows_and_columns():
    """Filled up with the identity; whichever way the matrix lies in memory."""
    matrix = torch.arange(36.0).view(6, 6)
    indices = torch.tensor([[5, 0, 2], [1, 3, 0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.stack([matrix[row][:, row] for row in indices])
    expected[1, 2], expected[1, :, 2] = 0, 0
    expected[1, 2, 2] = 1
    for stored in (matrix, matrix.mT.contiguous().mT):
        assert torch.equal(survivors._gathered(stored, indices, valid), expected)


@pytest.mark.parametrize("refit", [True, False])
def test_units_of_one_input_are_judged_together(refit):
    """The same alone, with an input of nobody between them, and among larger ones."""
    _, gram, weight, _ = problem(2)
    curvature = weight @ weight.T
    owner = torch.tensor([3, 0, -1, 2, 2, 4, 1, 4, 4])
    found = unit_removal_costs(gram, weight, owner, 6, curvature, refit=refit)
    matrix = gram.inverse() if refit else gram
    for unit in range(6):
        inputs = (owner == unit).nonzero().squeeze(1)
        block = matrix[inputs][:, inputs]
        block = block.inverse() if refit else block
        part = weight[:, inputs]
        expected = 0.5 * (curvature @ part @ block @ part.T).trace()
        torch.testing.assert_close(found[unit], expected)


def test_bad_moments():
    gram = torch.eye(3)
    with pytest.raises(BayespareError, match="ridge=-1"):
        ridged(gram, -1)
    with pytest.raises(BayespareError, match="not finite"):
        ridged(gram / 0, 0.1)
    with pytest.raises(BayespareError, match="singular"):
        refit_rows(ridged(torch.ones(3, 3), 0), torch.ones(1, 3), torch.ones(1, 3) > 0)
    dead = ridged(torch.zeros(3, 3), 1e-3)
    assert not refit_rows(dead, torch.zeros(2, 3), torch.ones(2, 3) > 0).any()
