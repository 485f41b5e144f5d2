"""Mean-square stability of mini-batch SGD at an interpolating minimum, in factored form.

With per-example curvatures H_i = J_i^T W_i J_i, the second moments of w+ = (I - eta H_batch) w evolve by
Q(eta) = I - 2 eta C + eta^2 D, where for a symmetric matrix X

    C X = (H X + X H)/2,    D X = (1 - p) H X H + p mean_i H_i X H_i,    H = mean_i H_i.

Everything is done on the range of H, in its eigenbasis, where C is diagonal and D needs the factors only.
Its largest object is r x r, r the rank of H; the null space of H is left in peace by every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import brentq
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from eos_sde.models.arguments import count, fraction, non_negative, positive
from eos_sde.thresholds.gram import GramBasis, GramOperator, Head
from eos_sde.thresholds.mean_square_factored import DENSE_SIDE, BracketedThreshold, factored_mean_square
from eos_sde.thresholds.moment_kernel import MomentKernel
from eos_sde.thresholds.result import Threshold
from solvers import memory
from solvers.errors import ConvergenceFailure, InvalidInput

_SOURCE = "Mulayoff and Michaeli 2024, arXiv:2306.07850, Theorem 3"
_DENSE_RANK = (
    12  # below this the operator on symmetric matrices has at most 78 entries a side: solve it whole
)
_TOLERANCE = 1e-7  # relative residual; the eigenvalue itself is then good to about its square
_MAX_RESTARTS = 500
_KRYLOV = 12


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
    p = noise_fraction(_examples(jacobian), batch_size, replacement)
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
        return Threshold(2 / h[-1], _rounding(factors) * 2 / h[-1], "mean-square", method, _SOURCE)
    scale = 1.0 / np.sqrt((h[:, None] + h[None, :]) / 2)

    def apply(x: np.ndarray) -> np.ndarray:
        return scale * factors.second_order(scale * x, p)

    # The operator maps positive semi-definite matrices to such, so its leading eigenmatrix is one of them and
    # the identity is never orthogonal to it.
    leading = _largest_eigenvalue(apply, np.diag(np.sqrt(h)))
    eta, residual = 2 / leading.value, leading.residual / leading.value
    method = f"{leading.how}, rank {len(h)}, residual {residual:.1e}; error: bound"
    return Threshold(eta, eta * (residual + _rounding(factors)), "mean-square", method, _SOURCE)


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
    factors, p = _prepare(jacobian, weights, batch_size, replacement)
    h = factors.curvatures
    decay = eta * (h[:, None] + h[None, :])
    # Q X = (1 + s) X reads eta^2 D X = (s + decay) X. The largest eigenvalue of D over (s + decay)/eta^2
    # falls with s and is 1 at the answer; unlike those of Q, its eigenvalues do not crowd together at the
    # slow modes. A diagonal entry of Q bounds s from below, the traces of the H_i from above.

    def excess(s: float) -> float:
        scale = 1.0 / np.sqrt(s + decay)

        def apply(x: np.ndarray) -> np.ndarray:
            return eta**2 * scale * factors.second_order(scale * x, p)

        return _largest_eigenvalue(apply, np.diag(1.0 / np.diag(scale))).value - 1.0

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


@dataclass(frozen=True)
class Factors:
    """Per-example curvature factors on the range of H, in its eigenbasis.

    Attributes
    ----------
    curvatures : array, shape (r,)
        Nonzero eigenvalues of H, ascending.
    rows : array, shape (n, c, r)
        A_i with H_i = A_i^T A_i.
    """

    curvatures: np.ndarray
    rows: np.ndarray

    def second_order(self, x: np.ndarray, p: float) -> np.ndarray:
        """D X for an r x r matrix X."""
        h = self.curvatures
        return (1 - p) * (h[:, None] * x * h) + p * self.mean_sandwich(x)

    def mean_sandwich(self, x: np.ndarray) -> np.ndarray:
        """The mean of H_i X H_i: two products with all factors, and c x c blocks between."""
        n, c, r = self.rows.shape
        flat = self.rows.reshape(n * c, r)
        right = (flat @ x).reshape(n, c, r)
        inner = np.matmul(right, self.rows.transpose(0, 2, 1))
        return flat.T @ np.matmul(inner, self.rows).reshape(n * c, r) / n

    def second_order_diagonal(self, p: float) -> np.ndarray:
        """The r entries of D that map e_k e_k^T to itself."""
        own = np.sum(self.rows**2, axis=1)  # (H_i)_kk
        return (1 - p) * self.curvatures**2 + p * np.mean(own**2, axis=0)

    def mean_square(self) -> np.ndarray:
        """The mean of H_i^2."""
        n, c, r = self.rows.shape
        inner = np.matmul(self.rows, self.rows.transpose(0, 2, 1))
        return self.rows.reshape(n * c, r).T @ np.matmul(inner, self.rows).reshape(n * c, r) / n


def weighted_jacobian(jacobian: Any, weights: Any = None) -> np.ndarray:
    """A_i with H_i = A_i^T A_i, shape (n, c, d), from what `sgd_mean_square` takes; refuses what cannot be used."""
    if np.iscomplexobj(jacobian):
        raise InvalidInput("jacobian is complex; give the real derivatives of the outputs")
    j = np.asarray(jacobian, dtype=float)
    if j.ndim == 2:
        j = j[:, None, :]
    if j.ndim != 3 or 0 in j.shape:
        raise InvalidInput(
            f"jacobian has shape {np.shape(jacobian)}; give (n, d) or (n, c, d), none of them 0"
        )
    if not np.all(np.isfinite(j)):
        raise InvalidInput("jacobian contains NaN or infinity; recompute it at finite weights")
    n, c, _ = j.shape
    if weights is not None:
        j = np.matmul(_root(weights, n, c), j)
    return j


def curvature_factors(jacobian: Any, weights: Any = None) -> Factors:
    """Factors of the per-example curvatures, from their Gram matrix or from H, whichever is smaller.

    Parameters
    ----------
    jacobian, weights
        As for `sgd_mean_square`.

    Returns
    -------
    Factors
        On the range of H.

    Raises
    ------
    InvalidInput
        If shapes or values cannot be used.
    """
    j = weighted_jacobian(jacobian, weights)
    n, c, d = j.shape
    flat = j.reshape(n * c, d)
    wide = n * c <= d
    side = min(n * c, d)
    memory.require(4 * 8 * side**2, f"a Gram matrix of side {side}", "give fewer examples or outputs")
    h, vectors = eigh((flat @ flat.T if wide else flat.T @ flat) / n)
    keep = h > h[-1] * max(n * c, d) * np.finfo(float).eps
    if h[-1] <= 0 or not np.any(keep):
        raise InvalidInput(
            "jacobian is zero: no learning rate is unstable in a flat direction; give nonzero factors"
        )
    h, vectors = h[keep], vectors[:, keep]
    rows = vectors * np.sqrt(n * h) if wide else flat @ vectors
    return Factors(h, rows.reshape(n, c, -1))


def _examples(jacobian: Any) -> int:
    if isinstance(jacobian, GramBasis):
        return jacobian.gram.examples
    if isinstance(jacobian, GramOperator):
        return jacobian.examples
    shape = np.shape(jacobian)
    if len(shape) not in {2, 3}:
        raise InvalidInput(f"jacobian has shape {shape}; give (n, d) or (n, c, d)")
    return shape[0]


def _gram(jacobian: Any, weights: Any, *, plain: bool) -> Head | GramOperator | GramBasis | None:
    """What the factored method works on; None where the second moments of the weights are smaller."""
    if isinstance(jacobian, GramOperator | GramBasis):
        if weights is not None:
            raise InvalidInput("weights is given with a Gram matrix; put them in it (`bridge.curvature_gram`)")
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
    if moments is None:
        return None
    gram = gram.gram if isinstance(gram, GramBasis) else gram
    side = len(gram.vectors) if isinstance(gram, Head) else gram.side
    if moments.shape[0] != gram.examples or moments.shape[0] * moments.shape[1] != side:
        raise InvalidInput(
            f"start has moments of shape {moments.shape}; give a result for {gram.examples} examples, {side} outputs in all"
        )
    return moments


def noise_fraction(n: int, batch_size: Any, replacement: bool) -> float:
    """Variance of a batch mean over that of one example: p."""
    batch = count("batch_size", batch_size, most=None if replacement else n)
    if replacement:
        return 1.0 / batch
    return 0.0 if batch == n else (n - batch) / (batch * (n - 1))


def _prepare(jacobian: Any, weights: Any, batch_size: Any, replacement: bool) -> tuple[Factors, float]:
    p = noise_fraction(_examples(jacobian), batch_size, replacement)
    return curvature_factors(jacobian, weights), p


def _root(weights: Any, n: int, c: int) -> np.ndarray:
    """Square roots of the output curvatures, (c, c) or (n, c, c)."""
    w = np.asarray(weights, dtype=float)
    if w.shape not in {(c, c), (n, c, c)}:
        raise InvalidInput(f"weights has shape {w.shape}; give {(c, c)} or {(n, c, c)}")
    if not np.all(np.isfinite(w)):
        raise InvalidInput("weights contains NaN or infinity; give finite output curvatures")
    size = np.max(np.abs(w), initial=0.0)
    if np.max(np.abs(w - np.swapaxes(w, -1, -2))) > 1e-10 * size:
        raise InvalidInput("weights is not symmetric; give the Hessian of the loss in the outputs")
    values, vectors = np.linalg.eigh((w + np.swapaxes(w, -1, -2)) / 2)
    if np.min(values) < -1e-10 * size:
        raise InvalidInput(
            f"weights has the negative eigenvalue {np.min(values):.3g}; give a loss convex in the outputs"
        )
    return np.sqrt(np.maximum(values, 0.0))[..., :, None] * np.swapaxes(vectors, -1, -2)


def _rounding(factors: Factors) -> float:
    """Relative rounding error allowed for: each entry of D is a sum over the examples."""
    n, c, r = factors.rows.shape
    return float(np.finfo(float).eps * 4 * np.sqrt(n * c + r))


class _Leading(NamedTuple):
    """Largest eigenvalue, its residual norm, and how it was found."""

    value: float
    residual: float
    how: str


def _largest_eigenvalue(apply: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> _Leading:
    """Largest eigenvalue of a symmetric operator on symmetric r x r matrices."""
    r = len(start)
    if r <= _DENSE_RANK:
        upper = np.triu_indices(r)
        norm = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))
        columns = []
        for i, j, size in zip(*upper, norm, strict=True):
            unit = np.zeros((r, r))
            unit[i, j] = unit[j, i] = 1.0 / size if i != j else 1.0
            columns.append(apply(unit)[upper] * norm)
        matrix = np.array(columns)
        value = float(eigh((matrix + matrix.T) / 2, eigvals_only=True)[-1])
        return _Leading(value, 0.0, "2/lambda_max, dense")
    memory.require(
        8 * (_KRYLOV + 8) * r**2, f"Lanczos on matrices of side {r}", "give fewer examples or outputs"
    )
    calls = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return apply(v.reshape(r, r)).ravel()

    operator = LinearOperator((r * r, r * r), matvec=matvec, dtype=float)  # pyright: ignore[reportCallIssue]
    try:
        values, vectors = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start.ravel(),
            tol=_TOLERANCE,  # pyright: ignore[reportArgumentType]
            ncv=_KRYLOV,
            maxiter=_MAX_RESTARTS,
        )
    except ArpackNoConvergence as error:
        raise ConvergenceFailure(
            f"Lanczos did not reach {_TOLERANCE:g} in {calls} products: the leading eigenvalues lie too close"
        ) from error
    value, matrix = float(values[0]), vectors[:, 0].reshape(r, r)
    residual = float(np.linalg.norm(apply(matrix) - value * matrix))
    return _Leading(value, residual, f"2/lambda_max, Lanczos with {calls} products")
