"""The Gram matrix of per-example curvature factors, known by its products, and its leading eigenspace.

With H_i = A_i^T A_i (A_i: c x d, output Jacobian times root of the output curvature) and A all A_i stacked, everything
that a mean-square threshold needs from the network is in G = A A^T / n, of side N = n c: its nonzero eigenvalues are
those of H. A block Lanczos process with full orthogonalisation finds an orthonormal basis and the residuals of its
Ritz pairs, at one product with G per column, each a transposed and a forward Jacobian product. Nothing of side d^2 or
N^2 is formed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh

from solvers import memory
from solvers.errors import InvalidInput

_EXHAUSTED = 1e-10  # new directions below this share of the leading eigenvalue are rounding
_DEPENDENT = 1e-12  # Ritz values below this share of the largest are taken as zero
_CONVERGED = (
    0.1  # residual of a Ritz pair over its value: more, and its shift costs more than resolving it brings
)


@dataclass(frozen=True)
class GramOperator:
    """G = A A^T / n of n examples with c outputs, as products.

    Attributes
    ----------
    examples, outputs : int
        n and c.
    product : callable
        G times the columns of an (n c, k) float64 array, in the same shape. Symmetric positive semi-definite.
    blocks : array, shape (n, c, c)
        Its diagonal blocks A_i A_i^T / n.
    """

    examples: int
    outputs: int
    product: Callable[[np.ndarray], np.ndarray]
    blocks: np.ndarray

    @property
    def side(self) -> int:
        """N = n c."""
        return self.examples * self.outputs

    @classmethod
    def of_factors(cls, factors: np.ndarray) -> GramOperator:
        """From explicit factors A_i, shape (n, c, d)."""
        n, c, d = factors.shape
        flat = factors.reshape(n * c, d)

        def product(z: np.ndarray) -> np.ndarray:
            return flat @ (flat.T @ z) / n

        return cls(n, c, product, np.matmul(factors, factors.transpose(0, 2, 1)) / n)


class Head(NamedTuple):
    """Part of G that is resolved, and what is known of the rest.

    G is U diag(x) U^T + E, with E U = 0.

    Attributes
    ----------
    vectors : array, shape (N, k)
        U, orthonormal.
    values : array, shape (k,)
        x > 0.
    tail : array, shape (n, c, c) or None
        Diagonal blocks of E; None where there is no rest.
    top : float
        Upper bound of the eigenvalues of E.
    examples : int
        n.
    """

    vectors: np.ndarray
    values: np.ndarray
    tail: np.ndarray | None
    top: float
    examples: int

    def leading(self, count: int) -> Head:
        """Its `count` largest values, alone."""
        order = np.argsort(self.values)[::-1][:count]
        return Head(
            np.ascontiguousarray(self.vectors[:, order]), self.values[order], None, 0.0, self.examples
        )


class GramBasis:
    """An orthonormal Krylov basis of G that grows on demand.

    Parameters
    ----------
    gram : GramOperator
        What is resolved.
    seed : int
        Of the random start; the same seed gives the same basis.
    block : int
        Columns per product.
    """

    def __init__(self, gram: GramOperator, *, seed: int = 0, block: int = 64) -> None:
        self.gram = gram
        self.trace = float(np.trace(gram.blocks, axis1=1, axis2=2).sum())
        if not np.isfinite(self.trace) or self.trace <= 0:
            raise InvalidInput(
                f"the trace of the curvature is {self.trace}; give finite weights at which some output has a gradient"
            )
        start = np.random.default_rng(seed).standard_normal((gram.side, min(block, gram.side)))
        self._columns = np.linalg.qr(start)[0]
        self._projected = np.zeros((0, 0))
        self._next: np.ndarray = self._columns
        self._coupling = np.zeros((0, 0))
        self._last = 0

    @property
    def rank(self) -> int:
        """Columns that have been multiplied by G."""
        return len(self._projected)

    @property
    def complete(self) -> bool:
        """Whether the basis holds all of the range of G."""
        return self._next.shape[1] == 0

    def grow(self, rank: int) -> None:
        """Extend the basis to at least `rank` columns, or to all of G."""
        side = self.gram.side
        memory.require(3 * 8 * side * rank, f"a basis of {rank} vectors of {side}", "give a smaller rank")
        while self.rank < rank and not self.complete:
            self._step()

    def _step(self) -> None:
        done, fresh = self.rank, self._next
        image = self.gram.product(fresh)
        basis = self._columns[:, : done + fresh.shape[1]]
        share = basis.T @ image
        image -= basis @ share
        again = basis.T @ image  # twice is enough
        image -= basis @ again
        share += again
        projected = np.zeros((basis.shape[1],) * 2)
        projected[:done, :done] = self._projected
        projected[:, done:] = share
        projected[done:, :] = share.T
        projected[done:, done:] = (share[done:] + share[done:].T) / 2
        self._projected = projected
        room = self.gram.side - basis.shape[1]
        self._next, self._coupling = _orthonormal(image, _EXHAUSTED * self.trace / self.gram.side, room)
        self._next -= basis @ (basis.T @ self._next)
        self._last = fresh.shape[1]
        self._columns = np.concatenate([basis, self._next], axis=1)

    def ritz(self) -> Ritz:
        """Eigenpairs of G on the basis, ascending."""
        values, rotation = eigh(self._projected)
        return Ritz(self, values, rotation, self._coupling @ rotation[self.rank - self._last :])

    def combine(self, rotation: np.ndarray, dtype: Any) -> np.ndarray:
        """Basis (with the next block, if the rotation has rows for it) times a small matrix."""
        return self._columns[:, : len(rotation)].astype(dtype, copy=False) @ rotation.astype(dtype)

    @property
    def following(self) -> np.ndarray:
        """The next block, in which all residuals lie, shape (N, b)."""
        return self._next


class Ritz(NamedTuple):
    """Ritz pairs of a `GramBasis`: G u = x u + Q s, Q the next block.

    Attributes
    ----------
    basis : GramBasis
        Where they were found.
    values : array, shape (k,)
        x, ascending.
    rotation : array, shape (k, k)
        Their vectors in the basis.
    residuals : array, shape (b, k)
        s of each.
    """

    basis: GramBasis
    values: np.ndarray
    rotation: np.ndarray
    residuals: np.ndarray

    def inner(self, dtype: Any) -> Head:
        """G with the weights confined to a subspace and its complement: thresholds from it are upper bounds.

        The subspace is A^T times the basis: its part of G is G Q (Q^T G Q)^-1 Q^T G, below G in the order of
        positive semi-definite matrices.
        """
        kept = self.values > 1e-8 * self.values[-1]
        root = np.sqrt(self.values[kept])
        coupled = self.residuals[:, kept] / root
        values, small = eigh(np.diag(root**2) + coupled.T @ coupled)
        keep = values > _DEPENDENT * values[-1]
        values, small = values[keep], small[:, keep] / np.sqrt(values[keep])
        rows = np.concatenate([self.rotation[:, kept] @ (root[:, None] * small), coupled @ small])
        vectors = self.basis.combine(rows, dtype)
        return self._head(vectors, values, extra=0.0)

    def outer(self, dtype: Any) -> Head:
        """A matrix above G that leaves a subspace invariant: thresholds from it are lower bounds.

        With R the residual of the kept pairs and any diagonal D > 0, R U^T + U R^T <= U D U^T + R D^-1 R^T; D is the
        norm of each residual; pairs that have not converged go to the rest.
        """
        size = np.linalg.norm(self.residuals, axis=0)
        keep = (size <= _CONVERGED * self.values) & (self.values > _DEPENDENT * self.values[-1])
        keep[-1] = True
        values, shift, couple = self.values[keep], size[keep], self.residuals[:, keep]
        vectors = self.basis.combine(self.rotation[:, keep], dtype)
        if self.basis.complete:
            return Head(vectors, values, None, 0.0, self.basis.gram.examples)
        scaled = couple / np.sqrt(np.where(shift > 0, shift, 1.0))
        spread = scaled @ scaled.T
        left = values if np.all(keep) else (self.values + size)[~keep]
        top = float(np.min(left) if np.all(keep) else np.max(left)) + float(np.linalg.eigvalsh(spread)[-1])
        return self._head(vectors, values, extra=top, shift=shift, couple=couple, spread=spread)

    def _head(
        self, vectors: np.ndarray, values: np.ndarray, *, extra: float,
        shift: np.ndarray | float = 0.0, couple: np.ndarray | None = None, spread: np.ndarray | None = None,
    ) -> Head:  # fmt: skip
        gram = self.basis.gram
        n, c = gram.examples, gram.outputs
        if self.basis.complete:
            return Head(vectors, values, None, 0.0, n)
        tail = gram.blocks - block_products(vectors * values.astype(vectors.dtype), vectors, n)
        if couple is not None and spread is not None:
            following = self.basis.following
            cross = block_products(following @ couple, vectors, n)
            tail = tail - cross - cross.transpose(0, 2, 1)
            tail += block_products(following @ spread, following, n)
        tail = positive_part(tail)
        mean = float(np.trace(tail, axis1=1, axis2=2).sum()) / (n * c)
        return Head(vectors, values + shift, tail, max(extra, mean, float(np.finfo(float).tiny)), n)


def block_products(left: np.ndarray, right: np.ndarray, examples: int) -> np.ndarray:
    """Diagonal blocks of left @ right.T, shape (n, c, c), in double precision; left and right have n c rows."""
    c = len(left) // examples
    shape = (examples, c, -1)
    return np.matmul(left.reshape(shape), right.reshape(shape).transpose(0, 2, 1)).astype(float)


def positive_part(blocks: np.ndarray) -> np.ndarray:
    """Symmetric parts of blocks, with eigenvalues below zero, which is rounding, set to zero."""
    values, vectors = np.linalg.eigh((blocks + blocks.transpose(0, 2, 1)) / 2)
    return np.matmul(vectors * np.maximum(values, 0.0)[:, None, :], vectors.transpose(0, 2, 1))


def _orthonormal(block: np.ndarray, negligible: float, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Q and R with block = Q R up to columns below `negligible`; Q has at most `room` columns."""
    u, s, vt = np.linalg.svd(block, full_matrices=False)
    keep = min(int(np.sum(s > negligible)), room)
    return u[:, :keep], s[:keep, None] * vt[:keep]
