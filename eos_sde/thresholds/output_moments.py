"""The learning rate at which the output moments of all examples reproduce themselves: a symmetric eigenproblem in eta.

The unknown is one c x c matrix per example, P_i = A_i S A_i^T, the second moment of its outputs (n c^2 numbers, not
d^2). With G = U diag(x) U^T and the kernel W of the rule (`moment_kernel`), one step of the noise feeds back as

    K(P)_j = n [U (W o (U^T P U)) U^T]_jj,    P block-diagonal,

and the threshold is where the largest eigenvalue of K is 1. K is symmetric, <P, K P> = n sum_ab W_ab (u_a^T P u_b)^2,
and grows with eta, so that any P gives an upper bound of the threshold, wrong in the second order of the error of P.

Where only part of G is resolved, G = U diag(x) U^T + E, the rest enters by the diagonal blocks E_jj alone. W may be
bounded entry by entry, because the sum above has positive weights:

- from below: the rest contributes at least lower/2 <E, P>^2/(tr E + mu m), by Cauchy's inequality over its own
  eigenvectors (m of them);
- from above: W(x, y) <= upper (x + y)/4 makes it at most upper/2 sum_j tr(P_j^2 E_jj), tight where P is a multiple of
  the identity; pairs of a resolved and an unresolved direction add sum_a e_a sum_b (u_a^T P u_b)^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import brentq

from eos_sde.thresholds.gram import Head, block_products
from eos_sde.thresholds.moment_kernel import MomentKernel
from solvers.errors import ConvergenceFailure

_MAX_ITERATIONS = 300
_REFRESH = 8  # steps after which the projection of the moments is taken anew, against the drift of its sums
_INDEPENDENT = 0.01  # part of a direction that must be new: less, and its projection would be rounding
_STEP = 1e-4  # relative step of the slope in eta
_CACHED = 1 << 15  # pairs of directions whose kernel is worked on at once: more leave the cache
_ALL = slice(None)
_ROOT = 1e-13  # relative accuracy of the root in eta on a span


class Feedback:
    """K of a resolved spectrum, with its rest left out or bounded from either side.

    Parameters
    ----------
    head : Head
        What is resolved, and the blocks of the rest.
    kernel : MomentKernel
        Of the rule.
    side : {"below", "above"}
        Which bound of K the rest enters by.
    ceiling : float, optional
        A learning rate that is surely not below the threshold; the full-batch edge if left out.
    """

    def __init__(self, head: Head, kernel: MomentKernel, *, side: str, ceiling: float | None = None) -> None:
        self.head, self.kernel, self.side = head, kernel, side
        self.examples = head.examples
        self.edge = kernel.edge(float(np.max(head.values)))
        self.ceiling = self.edge if ceiling is None else min(ceiling, self.edge)
        self._excess, self._shares = None, None
        if head.tail is not None:
            self._trace = float(np.trace(head.tail, axis1=1, axis2=2).sum())
            if side == "above" and head.top <= 0.5 * np.max(head.values):
                upper, _ = kernel.tail_weights(self.ceiling, head.top)
                self._excess = kernel.tail_excess(head.values, self.ceiling, head.top, upper)
                scaled = head.vectors * self._excess.astype(head.vectors.dtype)
                self._shares = block_products(scaled, head.vectors, self.examples)

    @property
    def bounded(self) -> bool:
        """Whether the bound of the rest leaves room for a threshold: not where most of G is unresolved."""
        if self.side == "below" or self.head.tail is None:
            return True
        if self._shares is None:
            return False
        image = self.rest(self.starts()[0], 0.5 * self.ceiling)
        return bool(np.max(np.linalg.eigvalsh(image)) < 1.0)

    def project(self, p: np.ndarray) -> np.ndarray:
        """U^T P U, symmetric, in double precision."""
        u = self.head.vectors
        n, c, _ = p.shape
        left = np.matmul(p.astype(u.dtype), u.reshape(n, c, -1)).reshape(u.shape)
        m = (u.T @ left).astype(float)
        return (m + m.T) / 2

    def weights(self, eta: float, rows: slice = _ALL, columns: slice = _ALL) -> np.ndarray:
        """The kernel times n on pairs of resolved directions, less what the rest has counted."""
        x, n = self.head.values, self.examples
        w = self.kernel(x[rows, None], x[None, columns], eta)
        if self._excess is not None:
            w = w - (self._excess[rows, None] + self._excess[None, columns]) / 2
        return n * w

    def forms(self, projections: list[np.ndarray], eta: float) -> np.ndarray:
        """sum_ab weights_ab m_ab m'_ab for all pairs of symmetric projections m, m'; (k, k) for a list of k."""
        r, k = len(self.head.values), len(projections)
        total = np.zeros((k, k))
        rows = max(1, _CACHED // r)
        for first in range(0, r, rows):
            # both triangles are alike: the columns from the block's own on, those beyond it twice
            part = slice(first, min(first + rows, r))
            weights = self.weights(eta, part, slice(first, r))
            weights[:, rows:] *= 2
            blocks = [m[part, first:] for m in projections]
            for i, one in enumerate(blocks):
                weighted = weights * one
                for j in range(i + 1):
                    total[i, j] += np.einsum("ab,ab->", weighted, blocks[j])
        return total + np.tril(total, -1).T

    def rest(self, p: np.ndarray, eta: float) -> np.ndarray | float:
        """What the unresolved part adds to K(P)."""
        tail = self.head.tail
        if tail is None or self._trace == 0:
            return 0.0
        n = self.examples
        upper, lower = self.kernel.tail_weights(eta, self.head.top)
        if self._shares is None:
            unresolved = max(self.head.vectors.shape[0] - self.head.vectors.shape[1], 1)
            share = lower / (2 * (self._trace + self.kernel.decay * unresolved))
            return n * share * float(np.sum(tail * p)) * tail
        local = upper / 4 * tail + self._shares / 2
        return n * (np.matmul(local, p) + np.matmul(p, local))

    def apply(self, p: np.ndarray, m: np.ndarray, eta: float) -> np.ndarray:
        """K(P), given also m = U^T P U."""
        u = self.head.vectors
        image = block_products(u @ (self.weights(eta) * m).astype(u.dtype), u, self.examples)
        return (image + image.transpose(0, 2, 1)) / 2 + self.rest(p, eta)

    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The identity, and the moments of the sharpest direction, for which K is at least 1 at the edge.

        All blocks are positive semi-definite, as those of the leading eigenvector, and none is orthogonal to it.
        """
        u = self.head.vectors
        identity = np.tile(np.eye(len(u) // self.examples), (self.examples, 1, 1))
        sharpest = u[:, [int(np.argmax(self.head.values))]]
        return identity, block_products(sharpest, sharpest, self.examples)


class Solution(NamedTuple):
    """Where the largest eigenvalue of K is 1.

    Attributes
    ----------
    eta : float
        Root of the Rayleigh quotient: not below the root of K.
    slack : float
        eta - slack is not above the root of the eigenvalue that was found: its residual over its slope in eta.
    moments : array, shape (n, c, c)
        The eigenvector, of norm 1.
    iterations : int
        Applications of K.
    """

    eta: float
    slack: float
    moments: np.ndarray
    iterations: int


@dataclass(frozen=True)
class _Direction:
    """A direction in the space of output moments with its projection."""

    p: np.ndarray
    m: np.ndarray


def critical_rate(feedback: Feedback, start: np.ndarray | None = None, *, tolerance: float) -> Solution:
    """Find where the largest eigenvalue of K is 1, by locally optimal steps in P with the root in eta solved in each.

    Parameters
    ----------
    feedback : Feedback
        K.
    start : array, shape (n, c, c), optional
        Where to start, e.g. the solution for a neighbouring batch size.
    tolerance : float
        Relative slack at which to stop.

    Returns
    -------
    Solution
        The root and its slack; a slack of the size of the root where the bound of the rest leaves no room for one.

    Raises
    ------
    ConvergenceFailure
        If the slack does not fall below the tolerance.
    """
    identity, sharpest = feedback.starts()
    first = identity if start is None else start
    if not feedback.bounded:
        return Solution(feedback.ceiling, feedback.ceiling, first / np.linalg.norm(first), 0)
    basis = _orthonormal([_Direction(first, feedback.project(first))])
    if start is None or _quotients(feedback, basis, feedback.edge)[0, 0] < 1:
        basis = _orthonormal([*basis, _Direction(sharpest, feedback.project(sharpest))])
    eta, slack, last = feedback.edge, np.inf, None
    for iteration in range(1, _MAX_ITERATIONS + 1):
        eta, value, mix = _root(feedback, basis, eta)
        current = _combination(mix, basis)
        if iteration > 1:
            last = _combination(mix[1:], basis[1:]) if len(basis) > 1 else None
        if iteration % _REFRESH == 0:
            current = _Direction(current.p, feedback.project(current.p))
        residual = feedback.apply(current.p, current.m, eta) - current.p
        below = _quotients(feedback, [current], (1 - _STEP) * eta)[0, 0]
        slope = (value - below) / (_STEP * eta)
        size = float(np.linalg.norm(residual))
        slack = size / slope
        if slack <= tolerance * eta:
            return Solution(eta, slack, current.p, iteration)
        residual /= size
        spanned = [current, _Direction(residual, feedback.project(residual))]
        basis = _orthonormal(spanned if last is None else [*spanned, last])
    raise ConvergenceFailure(
        f"the leading moments were found to {slack / eta:.1e} in {_MAX_ITERATIONS} steps, above "
        f"tolerance={tolerance:.1e}: the two largest eigenvalues lie too close; raise the tolerance"
    )


def _combination(mix: np.ndarray, basis: list[_Direction]) -> _Direction:
    """Sum of directions, whose norm is 1 where they are orthonormal and mix has norm 1."""
    p, m = mix[0] * basis[0].p, mix[0] * basis[0].m
    for share, one in zip(mix[1:], basis[1:], strict=True):
        p += share * one.p
        m += share * one.m
    return _Direction(p, m)


def _orthonormal(directions: list[_Direction]) -> list[_Direction]:
    """Orthonormal directions of the same span, in the same order; dependent ones are left out."""
    basis: list[_Direction] = []
    for candidate in directions:
        scale = float(np.linalg.norm(candidate.p))
        p, m = candidate.p, candidate.m
        for _ in range(2):
            for one in basis:
                share = float(np.sum(p * one.p))
                p, m = p - share * one.p, m - share * one.m
        norm = float(np.linalg.norm(p))
        if norm > _INDEPENDENT * scale:
            basis.append(_Direction(p / norm, m / norm))
    return basis


def _quotients(feedback: Feedback, basis: list[_Direction], eta: float) -> np.ndarray:
    """K on the span of an orthonormal basis."""
    matrix = feedback.forms([one.m for one in basis], eta)
    for i, one in enumerate(basis):
        rest = feedback.rest(one.p, eta)
        for j in range(i + 1):
            share = np.sum(rest * basis[j].p)
            matrix[i, j] += share
            if j < i:
                matrix[j, i] += share
    return matrix


def _root(feedback: Feedback, basis: list[_Direction], high: float) -> tuple[float, float, np.ndarray]:
    """Where the largest eigenvalue of K on the span is 1, at most `high`; that eigenvalue there and its vector."""
    seen: dict[float, tuple[float, np.ndarray]] = {}

    def excess(eta: float) -> float:
        values, vectors = eigh(_quotients(feedback, basis, eta))
        seen[eta] = float(values[-1]), vectors[:, -1]
        return seen[eta][0] - 1.0

    eta = high
    if excess(high) > 0:
        step = _STEP  # late roots lie close to the one before, early ones far
        low = high * (1 - step)
        while excess(low) > 0:
            high, step = low, min(8 * step, 0.1)
            low = high * (1 - step)
        eta = float(brentq(excess, low, high, xtol=_ROOT * high, rtol=_ROOT))  # pyright: ignore[reportArgumentType]
        if eta not in seen:
            excess(eta)
    value, vector = seen[eta]
    return eta, value, vector
