"""Least squares on what survives a removal, and what removing more would cost.

Each output row of a layer is refitted on its own surviving inputs. With ``A`` the second moments
of the inputs and ``R`` those of the residual (target minus what the row gives now) with the inputs,
the change of a row on its support S solves ``A_SS d = R_S``. It is the survivor move of Bayesian
model reduction (its card, section 2.7) with the input second moment as row precision, and Optimal
Brain Surgeon (Hassibi & Stork 1993) for many weights at once; the same factors give the cost of
removing one weight, ``w^2 / (2 [A_SS^-1]_qq)``, or one unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bayespare.errors import BayespareError

# Entries of a batch of gathered matrices.
_WORKING = 2**20


def ridged(gram: Tensor, ridge: float) -> Tensor:
    """Add ``ridge`` times the mean of the diagonal to the diagonal, in float64.

    Args:
        gram: Second moments, shape ``(d, d)``.
        ridge: 0 or more.

    Raises:
        BayespareError: If the moments are not finite or the ridge is negative.
    """
    if ridge < 0:
        raise BayespareError(f"ridge={ridge:g}: must be 0 or more")
    gram = gram.double()
    if not bool(torch.isfinite(gram).all()):
        raise BayespareError("the second moments of a layer's inputs are not finite")
    mean = float(gram.diagonal().mean())
    return gram + (ridge * mean if mean > 0 else 1.0) * torch.eye(len(gram)).to(gram)


def refit_rows(gram: Tensor, residual: Tensor, support: Tensor) -> Tensor:
    """Change of each row that fits its residual best by the inputs it has.

    Rows of equal support share one factorisation; the others are solved in batches, on their
    support or on its complement, whichever is smaller.

    Args:
        gram: Second moments of the inputs, positive definite, shape ``(d, d)``.
        residual: Moments of residual and inputs, shape ``(rows, d)``.
        support: Which inputs each row has, boolean, shape ``(rows, d)``.

    Returns:
        Zero outside of the support, shape ``(rows, d)``, the dtype of ``gram``.
    """
    change = torch.zeros_like(residual, dtype=gram.dtype)
    residual = residual.to(gram.dtype)
    whole: _Whole | None = None
    for some, inputs, complement in _sharing(support):
        if not complement:
            factor = _cholesky(gram[inputs[:, None], inputs])
            found = torch.cholesky_solve(residual[some][:, inputs].t(), factor).t()
            change[some[:, None], inputs] = found
            continue
        whole = whole or _Whole(gram)
        change[some] = whole.solve(residual[some], inputs)
    for some, indices, valid, complement in _apart(support):
        if complement:
            whole = whole or _Whole(gram)
            change[some] = whole.solve_each(residual[some], indices, valid)
            continue
        factor = _cholesky(_gathered(gram, indices, valid))
        right = residual[some].gather(1, indices) * valid
        found = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1) * valid
        change[some] = change[some].scatter_add(1, indices, found)
    return change


def removal_costs(
    gram: Tensor, weight: Tensor, support: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """What removing each weight costs when the rest of its row is refitted.

    Args:
        gram: Second moments of the inputs (mean over data), positive definite, shape ``(d, d)``.
        weight: Shape ``(rows, d)``.
        support: Which weights there are; None for all.
        rows: Curvature of the loss in each output, summed over data, shape ``(rows,)``: with it
            the costs are nats; without it half squared errors of the row per example.

    Returns:
        ``rows * w^2 / (2 [A_SS^-1]_qq)``, shape ``(rows, d)``, zero outside of the support.
    """
    weight = weight.to(gram.dtype)
    if support is None:
        support = torch.ones_like(weight, dtype=torch.bool)
    spread = torch.ones_like(weight)
    whole: _Whole | None = None
    for some, inputs, complement in _sharing(support):
        if complement:
            whole = whole or _Whole(gram)
            spread[some] = whole.variances(inputs)
        else:
            inverse = torch.cholesky_inverse(_cholesky(gram[inputs[:, None], inputs]))
            spread[some[:, None], inputs] = inverse.diagonal()
    for some, indices, valid, complement in _apart(support):
        if complement:
            whole = whole or _Whole(gram)
            spread[some] = whole.variances_each(indices, valid)
        else:
            inverse = torch.cholesky_inverse(_cholesky(_gathered(gram, indices, valid)))
            found = inverse.diagonal(dim1=-2, dim2=-1) * valid
            here = torch.zeros_like(weight[some]).scatter_add(1, indices, found)
            spread[some] = torch.where(support[some], here, 1)
    costs = 0.5 * weight.square() / spread
    if rows is not None:
        costs = costs * rows.to(costs).unsqueeze(1)
    return costs.masked_fill(~support, 0)


def unit_removal_costs(
    gram: Tensor,
    weight: Tensor,
    owner: Tensor,
    units: int,
    output: Tensor | None = None,
    *,
    refit: bool = True,
) -> Tensor:
    """What removing each unit, with all the inputs it owns and for all rows at once, costs.

    Args:
        gram: Second moments of the inputs (mean over data), positive definite, shape ``(d, d)``.
        weight: Of the layer that reads the units, shape ``(rows, d)``.
        owner: int64, shape ``(d,)``: the unit each input belongs to, or -1.
        units: How many there are.
        output: Curvature of the loss in the layer's outputs, summed over data, shape
            ``(rows, rows)`` or ``(rows,)``: with it the costs are nats; None for the identity.
        refit: Let the rest of the layer be refitted, ``1/2 tr(B V [A^-1]_JJ^-1 V')``; otherwise it
            stays as it is, ``1/2 tr(B V A_JJ V')``.

    Returns:
        Shape ``(units,)``; zero for a unit that owns nothing.
    """
    weight = weight.to(gram.dtype)
    if refit:
        gram = torch.cholesky_inverse(_cholesky(gram))
    if output is None:
        left = weight
    elif output.ndim == 1:
        left = output.to(weight).unsqueeze(1) * weight
    else:
        left = output.to(weight) @ weight
    costs = weight.new_zeros(units)
    owned = torch.bincount(owner[owner >= 0], minlength=units)
    alone = (owner >= 0) & (owned[owner] == 1)
    values = gram.diagonal().reciprocal() if refit else gram.diagonal()
    costs[owner[alone]] = 0.5 * ((left * weight).sum(0) * values)[alone]
    for unit in (owned > 1).nonzero().squeeze(1).tolist():
        inputs = (owner == unit).nonzero().squeeze(1)
        # tr(B V M V') = sum of (V'BV) * M
        inner = left[:, inputs].t() @ weight[:, inputs]
        block = gram[inputs[:, None], inputs]
        if refit:
            block = torch.cholesky_inverse(_cholesky(block))
        costs[unit] = 0.5 * (inner * block).sum()
    return costs


class _Whole:
    """The inverse over all inputs, from which rows that lose few of them are solved.

    With K the inverse and C the inputs a row lacks, its solution is the full one corrected so that
    it is zero there, and ``A_SS^-1 = K_SS - K_SC K_CC^-1 K_CS``.
    """

    def __init__(self, gram: Tensor) -> None:
        self.inverse = torch.cholesky_inverse(_cholesky(gram)).contiguous()

    def solve(self, residual: Tensor, lacking: Tensor) -> Tensor:
        full = residual @ self.inverse
        if not len(lacking):
            return full
        factor = _cholesky(self.inverse[lacking[:, None], lacking])
        correction = torch.cholesky_solve(full[:, lacking].t(), factor).t()
        found = full - correction @ self.inverse[lacking]
        found[:, lacking] = 0
        return found

    def solve_each(self, residual: Tensor, lacking: Tensor, valid: Tensor) -> Tensor:
        full = residual @ self.inverse
        factor = _cholesky(_gathered(self.inverse, lacking, valid))
        right = (full.gather(1, lacking) * valid).unsqueeze(-1)
        correction = torch.cholesky_solve(right, factor).squeeze(-1) * valid
        placed = torch.zeros_like(full).scatter_add(1, lacking, correction)
        found = full - placed @ self.inverse
        there = torch.zeros_like(full).scatter_add(1, lacking, valid.to(full))
        return found.masked_fill(there > 0, 0)

    def variances(self, lacking: Tensor) -> Tensor:
        spread = self.inverse.diagonal()
        if not len(lacking):
            return spread
        factor = _cholesky(self.inverse[lacking[:, None], lacking])
        half = torch.linalg.solve_triangular(factor, self.inverse[lacking], upper=False)
        return _positive(spread - half.square().sum(0))

    def variances_each(self, lacking: Tensor, valid: Tensor) -> Tensor:
        factor = _cholesky(_gathered(self.inverse, lacking, valid))
        rows = self.inverse[lacking] * valid.unsqueeze(-1)
        half = torch.linalg.solve_triangular(factor, rows, upper=False)
        return _positive(self.inverse.diagonal() - half.square().sum(1))


def _positive(spread: Tensor) -> Tensor:
    # Inputs that are lacking have none; what is rounded to zero must not divide.
    return spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()):
        raise BayespareError(
            "the second moments of a layer's inputs are singular: give more examples or a larger "
            "ridge"
        )
    return factor


def _gathered(matrix: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
    """Submatrices over index lists of unequal length, filled up with the identity."""
    # By one number an entry: several times as fast as by row and column.
    places = (indices * len(matrix)).unsqueeze(2) + indices.unsqueeze(1)
    found = matrix.reshape(-1).index_select(0, places.flatten()).view(places.shape)
    if not bool(valid.all()):
        filling = ~valid
        found.masked_fill_(filling.unsqueeze(2) | filling.unsqueeze(1), 0)
        found.diagonal(dim1=-2, dim2=-1).add_(filling)
    return found


def _groups(support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct supports, the one each row has, and how many rows have it."""
    kinds, kind, count = torch.unique(support, dim=0, return_inverse=True, return_counts=True)
    return kinds, kind, count


def _sharing(support: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Rows that have one support together: the rows, its inputs (or those it lacks), which."""
    kinds, kind, count = _groups(support)
    for number in (count > 1).nonzero().squeeze(1).tolist():
        inputs = kinds[number]
        if not bool(inputs.any()):
            continue
        complement = int(inputs.sum()) * 2 > len(inputs)
        listed = (~inputs if complement else inputs).nonzero().squeeze(1)
        yield (kind == number).nonzero().squeeze(1), listed, complement


def _apart(support: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Rows with a support of their own, in batches of like size.

    Yields:
        The rows; for each the inputs it has (or lacks), filled up with zeros; which of those
        count; whether they are the ones it lacks.
    """
    _, kind, count = _groups(support)
    single = (count[kind] == 1).nonzero().squeeze(1)
    sizes = support[single].sum(1)
    for complement in (False, True):
        chosen = sizes * 2 > support.shape[1] if complement else sizes * 2 <= support.shape[1]
        chosen &= sizes > 0
        rows = single[chosen]
        lists = ~support[rows] if complement else support[rows]
        lengths = lists.sum(1)
        order = lengths.argsort()
        start = 0
        while start < len(order):
            # In order of size, so that little of a batch is filling.
            stop = start + 1
            while stop < len(order):
                width = int(lengths[order[stop]])
                entries = width * (support.shape[1] if complement else width)
                if (stop + 1 - start) * entries > _WORKING:
                    break
                stop += 1
            some = order[start:stop]
            width = max(1, int(lengths[some[-1]]))
            ranked = lists[some].to(torch.int8).argsort(dim=1, descending=True, stable=True)
            indices = ranked[:, :width]
            valid = lists[some].gather(1, indices)
            yield rows[some], indices.where(valid, 0), valid, complement
            start = stop
