"""Mean-square stability of mini-batch SGD at an interpolating minimum, in factored form.

With per-example curvatures H_i = J_i^T W_i J_i, the second moments of w+ = (I - eta H_batch) w evolve by
Q(eta) = I - 2 eta C + eta^2 D, where for a symmetric matrix X

    C X = (H X + X H)/2,    D X = (1 - p) H X H + p mean_i H_i X H_i,    H = mean_i H_i.

Everything is done on the range of H, in its eigenbasis, where C is diagonal and D needs the factors only.
Its largest object is r x r, r the rank of H; the null space of H is left in peace by every batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq

from eos_sde.models.arguments import count, fraction, non_negative, positive
from eos_sde.thresholds.curvature_factors import (
    curvature_factors,
    example_count,
    factors_and_noise,
    noise_fraction,
    rounding,
    weighted_jacobian,
)
from eos_sde.thresholds.gram import GramBasis, GramOperator, Head
from eos_sde.thresholds.mean_square_factored import DENSE_SIDE, BracketedThreshold, factored_mean_square
from eos_sde.thresholds.moment_kernel import MomentKernel
from eos_sde.thresholds.result import Threshold
from eos_sde.thresholds.symmetric_maps import largest_eigenvalue, second_moment_edge
from solvers.errors import InvalidInput

_SOURCE = "Mulayoff and Michaeli 2024, arXiv:2306.07850, Theorem 3"


def sgd_mean_square(
    jacobian: Any,
    *,
    batch_size: int,
    weights: Any = None,
    replacement: bool = False,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    tolerance: float = 0.01,
    max_rank: int = 2048,
    start: BracketedThreshold | None = None,
) -> Threshold:
    """Largest learning rate at which SGD is mean-square stable at an interpolating minimum; exact.

    Parameters
    ----------
    jacobian : array, shape (n, d) or (n, c, d), or GramOperator, or GramBasis
        Derivative of the c outputs with respect to the d weights, for each of n examples. The loss is the
        mean over examples of half the squared residual summed over the outputs. For networks whose Jacobian is
        large, its Gram matrix as products (`bridge.curvature_gram`), or a `GramBasis` of it, which serves several
        calls: exact up to n c = 3000, then with a bracket.
    batch_size : int
        B, from 1 to n (any B >= 1 with replacement).
    weights : array, shape (c, c) or (n, c, c), optional
        Curvature of the loss in the outputs, symmetric positive semi-definite; the identity if left out.
    replacement : bool
        Batches drawn with replacement, p = 1/B, instead of without, p = (n - B)/(B (n - 1)).
    momentum : float
        b in [0, 1), of v+ = b v + g, w+ = w - eta v+.
    nesterov : bool
        Gradient at the look-ahead point.
    weight_decay : float
        mu >= 0, added to the gradient as mu w (w: the distance from the minimum).
    tolerance : float
        Relative width of the bracket to reach, where there is one.
    max_rank : int
        Directions of a large Gram matrix resolved at most, one product with it each.
    start : BracketedThreshold, optional
        Result for a neighbouring batch size or network of the same shape, to start from.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "mean-square"; its stderr is a bound from residual and
        rounding, not a statistical error. A `BracketedThreshold`, with lower and upper bounds, where momentum,
        weight decay or a Gram matrix is given, or the smaller of n c and d is above 3000.

    Raises
    ------
    InvalidInput
        If the factors are not finite, of the wrong shape or all zero, the batch size is out of range, or the
        rank is so large that r x r matrices do not fit in memory.
    ConvergenceFailure
        If Lanczos does not converge.

    Notes
    -----
    Eigenvalues of H below ``max(n c, d) * 2^-52`` of the largest are taken as zero.
    """
    p = noise_fraction(example_count(jacobian), batch_size, replacement)
    b, mu = fraction("momentum", momentum), non_negative("weight_decay", weight_decay)
    gram = _gram(jacobian, weights, plain=b == 0 and mu == 0)
    if gram is not None:
        return factored_mean_square(
            gram, MomentKernel(p, b, nesterov, mu),
            tolerance=positive("tolerance", tolerance), max_rank=count("max_rank", max_rank),
            start=_moments(start, gram), source=_SOURCE,
        )  # fmt: skip
    factors = curvature_factors(jacobian, weights)
    h = factors.curvatures
    if p == 0:
        method = "2/lambda_max, a batch is the whole set; error: rounding"
        return Threshold(2 / h[-1], rounding(factors) * 2 / h[-1], "mean-square", method, _SOURCE)
    return second_moment_edge(factors, p, mean=1.0, criterion="mean-square", source=_SOURCE)


def mean_square_growth(
    jacobian: Any, eta: float, *, batch_size: int, weights: Any = None, replacement: bool = False
) -> float:
    """Factor by which the second moments of the iterate grow per SGD step in the long run.

    The spectral radius of Q(eta) on the range of H (on the null space it is 1, whatever eta): below 1 exactly
    when eta is below `sgd_mean_square`. E|w|^2 ~ growth^k, so log(growth)/2 per step is Lambda(2)/2.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.
    eta : float
        Learning rate, > 0.

    Returns
    -------
    float
        Per step, >= 0.

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if eta is not positive.
    """
    eta = positive("eta", eta)
    factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
    h = factors.curvatures
    decay = eta * (h[:, None] + h[None, :])
    # Q X = (1 + s) X reads eta^2 D X = (s + decay) X. The largest eigenvalue of D over (s + decay)/eta^2
    # falls with s and is 1 at the answer; unlike those of Q, its eigenvalues do not crowd together at the
    # slow modes. A diagonal entry of Q bounds s from below, the traces of the H_i from above.

    def excess(s: float) -> float:
        scale = 1.0 / np.sqrt(s + decay)

        def apply(x: np.ndarray) -> np.ndarray:
            return eta**2 * scale * factors.second_order(scale * x, p)

        return largest_eigenvalue(apply, np.diag(1.0 / np.diag(scale))).value - 1.0

    low = float(np.max(eta**2 * factors.second_order_diagonal(p) - 2 * eta * h))
    high = eta**2 * ((1 - p) * h[-1] ** 2 + p * float(np.mean(np.sum(factors.rows**2, axis=(1, 2)) ** 2)))
    if low < 0:
        if excess(0.0) > 0:
            low = 0.0
        else:
            high = 0.0
    if excess(low) <= 0:  # one mode alone: its diagonal entry is the eigenvalue
        return 1.0 + low
    step = 1e-14 * max(abs(low), high)
    return 1.0 + float(brentq(excess, low, high, xtol=step))  # pyright: ignore[reportArgumentType]


def _gram(jacobian: Any, weights: Any, *, plain: bool) -> Head | GramOperator | GramBasis | None:
    """What the factored method works on; None where the second moments of the weights are smaller."""
    if isinstance(jacobian, GramOperator | GramBasis):
        if weights is not None:
            raise InvalidInput(
                "weights is given with a Gram matrix; put them in it (`bridge.curvature_gram`)"
            )
        return jacobian
    rows = weighted_jacobian(jacobian, weights)
    n, c, d = rows.shape
    if min(n * c, d) > DENSE_SIDE:
        return GramOperator.of_factors(rows)
    if plain:
        return None
    factors = curvature_factors(jacobian, weights)
    vectors = factors.rows.reshape(n * c, -1) / np.sqrt(n * factors.curvatures)
    return Head(vectors, factors.curvatures, None, 0.0, n)


def _moments(start: Any, gram: Head | GramOperator | GramBasis) -> np.ndarray | None:
    """The moments to start from."""
    moments = getattr(start, "moments", None)
    if moments is None or not np.any(moments):
        return None
    gram = gram.gram if isinstance(gram, GramBasis) else gram
    side = len(gram.vectors) if isinstance(gram, Head) else gram.side
    if moments.shape[0] != gram.examples or moments.shape[0] * moments.shape[1] != side:
        raise InvalidInput(
            f"start has moments of shape {moments.shape}; give a result for {gram.examples} examples and {side} outputs"
        )
    return moments
