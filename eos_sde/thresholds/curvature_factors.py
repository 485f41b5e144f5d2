"""Per-example curvature factors from explicit Jacobians, on the range of the mean curvature H."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh

from eos_sde.models.arguments import count
from eos_sde.thresholds.gram import GramBasis, GramOperator
from eos_sde.thresholds.mean_square_factored import DENSE_SIDE, diagonalised
from solvers import memory
from solvers.errors import InvalidInput


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

    def second_order(self, x: np.ndarray, p: float, mean: float = 1.0) -> np.ndarray:
        """D X = (mean - p) H X H + p mean_i H_i X H_i for an r x r matrix X."""
        h = self.curvatures
        return (mean - p) * (h[:, None] * x * h) + p * self.mean_sandwich(x)

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
    if isinstance(jacobian, GramOperator | GramBasis):
        return _gram_factors(jacobian.gram if isinstance(jacobian, GramBasis) else jacobian, weights)
    j = _array(jacobian)
    if np.iscomplexobj(j):
        raise InvalidInput("jacobian is complex; give the real derivatives of the outputs")
    j = j.astype(float, copy=False)
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


def example_count(jacobian: Any) -> int:
    """Number of examples of a Jacobian, (n, d) or (n, c, d), or of its Gram matrix."""
    if isinstance(jacobian, GramBasis):
        return jacobian.gram.examples
    if isinstance(jacobian, GramOperator):
        return jacobian.examples
    shape = _array(jacobian).shape
    if len(shape) not in {2, 3}:
        raise InvalidInput(f"jacobian has shape {shape}; give (n, d) or (n, c, d)")
    return shape[0]


def _array(jacobian: Any) -> np.ndarray:
    """As an array of numbers, complex or not, without a copy where it is one."""
    try:
        j = np.asarray(jacobian)
    except ValueError:  # rows of different lengths
        j = np.empty(0, object)
    if j.ndim > 0 and j.dtype.kind not in "biufc":
        raise InvalidInput("jacobian is no array of numbers; give (n, d) or (n, c, d)")
    return j


def _gram_factors(gram: GramOperator, weights: Any) -> np.ndarray:
    """Factors (n, c, r) with a given Gram matrix, on as many weights as its rank."""
    if weights is not None:
        raise InvalidInput("weights is given with a Gram matrix; put them in it (`bridge.curvature_gram`)")
    if gram.side > DENSE_SIDE:
        raise InvalidInput(
            f"jacobian is a Gram matrix of side {gram.side}, above {DENSE_SIDE}; give fewer examples, or the factors"
        )
    head = diagonalised(gram)
    return (head.vectors * np.sqrt(gram.examples * head.values)).reshape(gram.examples, gram.outputs, -1)


def noise_fraction(n: int, batch_size: Any, replacement: bool = False) -> float:
    """Variance of a batch mean over that of one example: p."""
    batch = count("batch_size", batch_size, most=None if replacement else n)
    if replacement:
        return 1.0 / batch
    return 0.0 if batch == n else (n - batch) / (batch * (n - 1))


def factors_and_noise(
    jacobian: Any, weights: Any, batch_size: Any, replacement: bool
) -> tuple[Factors, float]:
    """Curvature factors, and the noise fraction p of a batch."""
    p = noise_fraction(example_count(jacobian), batch_size, replacement)
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


def rounding(factors: Factors) -> float:
    """Relative rounding error allowed for: each entry of D is a sum over the examples."""
    n, c, r = factors.rows.shape
    return float(np.finfo(float).eps * 4 * np.sqrt(n * c + r))
