"""Bounds of the mean-square threshold of SGD that are cheaper than the threshold itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from eos_sde.thresholds.curvature_factors import example_count, factors_and_noise, noise_fraction, rounding
from eos_sde.thresholds.gram import GramBasis, GramOperator
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

_RANK = 256  # resolved of a Gram matrix for its leading vector and its norm
_TOLERANCE = 1e-6
_WU = "Wu, Ma and E 2018, NeurIPS 31"
_MULAYOFF = "Mulayoff and Michaeli 2024, arXiv:2306.07850, necessary conditions after Theorem 3"


def sgd_sufficient_bound(
    jacobian: Any, *, batch_size: int, weights: Any = None, replacement: bool = False
) -> Threshold:
    """Learning rate below which SGD is surely mean-square stable; at most the exact threshold, and cheaper.

    The largest eta with lambda_max[(I - eta H)^2 + eta^2 p (mean H_i^2 - H^2)] <= 1.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square (sufficient)".

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`.

    Notes
    -----
    On the outputs, mean H_i^2 over H is the matrix of the diagonal blocks of n G, so that the bound is
    2/lambda_max[p n blocks(G) + (1 - p) G], on the range of G; of a Gram matrix given by products the whole space is
    taken, which is safe, and the same where the network can fit its examples.
    """
    criterion = "mean-square (sufficient)"
    if isinstance(jacobian, GramOperator | GramBasis):
        gram, p = _operator(jacobian, weights, batch_size, replacement)
        n, c = gram.examples, gram.outputs

        def product(z: np.ndarray) -> np.ndarray:
            local = np.matmul(n * gram.blocks, z.reshape(n, c, 1)).ravel()
            return p * local + (1 - p) * gram.product(z.reshape(-1, 1)).ravel()

        operator = LinearOperator((gram.side,) * 2, matvec=product, dtype=float)  # pyright: ignore[reportCallIssue]
        start = np.random.default_rng(0).standard_normal(gram.side)
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=_TOLERANCE)  # pyright: ignore[reportArgumentType]
        residual = float(np.linalg.norm(product(vectors[:, 0]) - values[0] * vectors[:, 0]))
        value = float(values[0])
        return Threshold(
            2 / value, 2 * residual / value**2, criterion, "2/lambda_max, Lanczos; error: residual", _WU
        )
    factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
    h = factors.curvatures
    square = p * factors.mean_square() + (1 - p) * np.diag(h**2)
    root = 1.0 / np.sqrt(h)
    value = float(eigh(root[:, None] * square * root, eigvals_only=True, subset_by_index=[len(h) - 1] * 2)[0])
    method = "2/lambda_max, dense; error: rounding"
    return Threshold(2 / value, rounding(factors) * 2 / value, criterion, method, _WU)


def sgd_necessary_bounds(
    jacobian: Any, *, batch_size: int, weights: Any = None, replacement: bool = False
) -> tuple[Threshold, Threshold]:
    """Two learning rates beyond which SGD is surely mean-square unstable; at least the exact threshold, and cheaper.

    The threshold is 2 over the maximum of <X, D X>/<X, C X> over second moments X; two of them are tried,

    - X = v v^T, v the sharpest direction: 2/(h + p Var_i(v^T H_i v)/h), h = lambda_max(H);
    - X = I: 2 tr H/((1 - p) |H|^2 + p mean_i |H_i|^2), Frobenius norms.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.

    Returns
    -------
    sharpest, isotropic : Threshold
        In the units of the learning rate; criterion "mean-square (necessary)".

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`.

    Notes
    -----
    Of a Gram matrix given by products, the part of |H|^2 outside its 256 leading directions is left out, which
    raises the second bound by a little.
    """
    if isinstance(jacobian, GramOperator | GramBasis):
        gram, p = _operator(jacobian, weights, batch_size, replacement)
        basis = jacobian if isinstance(jacobian, GramBasis) else GramBasis(gram)
        basis.grow(min(_RANK, gram.side))
        ritz = basis.ritz()
        n, h = gram.examples, float(ritz.values[-1])
        # any v = A^T u will do: v^T H_i v / v^T v = n |(G u)_i|^2/(u^T G u)
        along = gram.product(basis.combine(ritz.rotation[:, [-1]], float))
        own = n * np.sum(along.reshape(n, -1) ** 2, axis=1) / h
        trace, squares = basis.trace, np.maximum(ritz.values, 0.0)
        each = n**2 * np.sum(gram.blocks**2, axis=(1, 2))
        error = float(np.linalg.norm(ritz.residuals[:, -1])) / h + 1e-12
    else:
        factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
        squares = factors.curvatures
        h, trace = float(squares[-1]), float(np.sum(squares))
        own = np.sum(factors.rows[:, :, -1] ** 2, axis=1)
        each = np.sum(np.matmul(factors.rows, factors.rows.transpose(0, 2, 1)) ** 2, axis=(1, 2))
        error = rounding(factors)
    mean = float(np.mean(own))
    sharpest = 2 * mean / ((1 - p) * mean**2 + p * float(np.mean(own**2)))
    isotropic = 2 * trace / ((1 - p) * float(np.sum(squares**2)) + p * float(np.mean(each)))
    criterion = "mean-square (necessary)"
    return (
        Threshold(sharpest, sharpest * error, criterion, "moments along the sharpest direction", _MULAYOFF),
        Threshold(isotropic, isotropic * error, criterion, "isotropic moments", _MULAYOFF),
    )


def _operator(
    gram: GramOperator | GramBasis, weights: Any, batch_size: Any, replacement: bool
) -> tuple[GramOperator, float]:
    if weights is not None:
        raise InvalidInput("weights is given with a Gram matrix; put them in it (`bridge.curvature_gram`)")
    p = noise_fraction(example_count(gram), batch_size, replacement)
    return (gram.gram if isinstance(gram, GramBasis) else gram), p
