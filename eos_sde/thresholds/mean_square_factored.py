"""Mean-square thresholds from the Gram matrix of the curvature factors: exact where it is small, bracketed where large.

The threshold is where the feedback K of the output moments has the eigenvalue 1 (`output_moments`). A Gram matrix of
side N = n c up to a few thousand is diagonalised. Of a larger one a leading eigenspace is resolved, two problems
that bound the true one from either side are solved on it, and it grows until they agree:

- the weights are confined to a subspace and its complement, each on its own (`Ritz.inner`): the maximum of
  <X, D X>/<X, C X> over fewer second moments X is lower, and the threshold eta* = 2/max is higher;
- G is replaced by a larger matrix that leaves the resolved space invariant (`Ritz.outer`). For SGD the form
  <P, K P>/(n eta p) = inf { 2 tr(Y^T G' Y) : Y + Y^T = P }, with G' = G (1 - (1 - p) eta G/2)^-1, grows with G.

With momentum the second monotonicity is not proved, and only well converged directions are relied on: there the
bracket is an estimate of the error, of the same construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.linalg import eigh

from eos_sde.thresholds.gram import GramBasis, GramOperator, Head
from eos_sde.thresholds.moment_kernel import MomentKernel
from eos_sde.thresholds.output_moments import Feedback, Solution, critical_rate
from eos_sde.thresholds.result import Threshold
from solvers import memory
from solvers.errors import InvalidInput

DENSE_SIDE = 3000  # a Gram matrix of this side is diagonalised in seconds
_FIRST_RANK = 256
_COARSE_RANK = 200
_MARGIN = 1.05  # over the rank at which the widths so far, as a power of the rank, reach the one asked for
_SINGLE_PRECISION = (
    5_000_000  # entries of the resolved space from which products with it are in single precision
)
_SINGLE_ROUNDING = 1e-5  # relative: 1e-7 per entry, summed with random signs; what the bracket is widened by
_EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class BracketedThreshold(Threshold):
    """A threshold with bounds from both sides, and the moments that lose stability there.

    Attributes
    ----------
    lower, upper : float
        Bounds of the threshold.
    moments : array, shape (n, c, c)
        Second moments of the outputs, weighted by the root of the output curvature, that neither grow nor decay at
        the threshold, of norm 1: which examples go first. Also the warm start for a neighbouring problem. None or
        zero for the full batch.
    rank : int
        Directions that were resolved.
    """

    lower: float = 0.0
    upper: float = np.inf
    moments: np.ndarray | None = field(default=None, repr=False)
    rank: int = 0


def factored_mean_square(
    gram: Head | GramOperator | GramBasis,
    kernel: MomentKernel,
    *,
    tolerance: float,
    max_rank: int,
    start: np.ndarray | None,
    source: str,
) -> BracketedThreshold:
    """Mean-square threshold of a rule, from products with the Gram matrix.

    Parameters
    ----------
    gram : Head, GramOperator or GramBasis
        The network at its minimum: all of its spectrum, products, or a basis, which keeps what was resolved for the
        next call.
    kernel : MomentKernel
        Of the rule.
    tolerance : float
        Relative width of the bracket at which to stop.
    max_rank : int
        Directions resolved at most.
    start : array, shape (n, c, c), or None
        Moments to start from.
    source : str
        For the result.

    Returns
    -------
    BracketedThreshold
        Criterion "mean-square". From a whole spectrum the value is exact and stderr the residual; otherwise they are
        the middle and half the width of the bracket, which is wider than asked for where `max_rank` did not suffice.
    """
    if isinstance(gram, GramOperator) and gram.side <= DENSE_SIDE:
        gram = diagonalised(gram)
    if isinstance(gram, Head):
        return _exact(gram, kernel, start, source)
    basis = gram if isinstance(gram, GramBasis) else GramBasis(gram)
    rank, widths = max(basis.rank, min(_FIRST_RANK, max_rank)), []
    while True:
        basis.grow(rank)
        result = _bracket(basis, kernel, start, tolerance, source)
        start = result.moments if kernel.noise > 0 else None
        widths.append((basis.rank, (result.upper - result.lower) / result.upper))
        if widths[-1][1] <= tolerance or basis.complete or basis.rank >= max_rank:
            return result
        rank = min(_next_rank(widths, tolerance), max_rank)


def _next_rank(widths: list[tuple[int, float]], goal: float) -> int:
    """Twice the rank at first, then what the last two of (rank, width) promise, from 1.25 to 4 times it."""
    (rank, width), steepness = widths[-1], 0.0
    if len(widths) > 1:
        fewer, wider = widths[-2]
        steepness = np.log(wider / width) / np.log(rank / fewer)
    if steepness <= 0:
        return 2 * rank
    promised = np.log(_MARGIN) + np.log(width / goal) / steepness
    return int(rank * np.exp(np.clip(promised, np.log(1.25), np.log(4.0))))


def diagonalised(gram: GramOperator) -> Head:
    """All of the spectrum of a Gram matrix, formed from its products; refused where it is zero or does not fit."""
    side = gram.side
    memory.require(4 * 8 * side**2, f"a Gram matrix of side {side}", "give fewer examples or outputs")
    matrix = gram.product(np.eye(side))
    values, vectors = eigh((matrix + matrix.T) / 2)
    if values[-1] <= 0:
        raise InvalidInput(
            "the Gram matrix is zero: no output has a gradient; give weights at which some output does"
        )
    keep = values > values[-1] * side * np.finfo(float).eps
    return Head(vectors[:, keep], values[keep], None, 0.0, gram.examples)


def _exact(head: Head, kernel: MomentKernel, start: np.ndarray | None, source: str) -> BracketedThreshold:
    if kernel.noise == 0:
        eta = kernel.edge(float(np.max(head.values)))
        slack, moments, how = 1e-13 * eta, None, "full-batch edge"
    else:
        eta, slack, moments, steps = critical_rate(
            Feedback(head, kernel, side="below"), start, tolerance=_EXACT
        )
        slack = max(slack, 1e-12 * eta)
        how = f"eigenvalue 1 of the output moments, {steps} steps"
    method = f"{how}, rank {len(head.values)}; error: bound"
    # the Rayleigh quotient is wrong in the second order of the residual, so the upper end is the value
    return BracketedThreshold(
        eta, slack, "mean-square", method, source,
        lower=eta - slack, upper=eta, moments=moments, rank=len(head.values),
    )  # fmt: skip


def _bracket(
    basis: GramBasis, kernel: MomentKernel, start: np.ndarray | None, tolerance: float, source: str
) -> BracketedThreshold:
    dtype = np.float32 if basis.gram.side * basis.rank > _SINGLE_PRECISION else np.float64
    ritz = basis.ritz()
    if kernel.noise == 0:
        top = float(ritz.values[-1])
        residual = float(np.linalg.norm(ritz.residuals[:, -1]))
        none = np.zeros_like(basis.gram.blocks)
        high, low = (
            Solution(kernel.edge(top), 0.0, none, 0),
            Solution(kernel.edge(top + residual), 0.0, none, 0),
        )
    else:
        high, low = _either_side(ritz.inner(dtype), ritz.outer(dtype), kernel, start, tolerance)
    return _between(high, low, dtype, f"{basis.rank} of {basis.gram.side} directions", basis.rank, source)


def head_bracket(head: Head, kernel: MomentKernel, *, tolerance: float, source: str) -> BracketedThreshold:
    """Bounds from exact leading eigenvectors of G and the diagonal blocks of the rest.

    Parameters
    ----------
    head : Head
        Leading eigenpairs, with the rest.
    kernel : MomentKernel
        Of the rule; its noise is not 0.
    tolerance : float
        Relative accuracy of each bound.
    source : str
        For the result.

    Returns
    -------
    BracketedThreshold
        As from `factored_mean_square`; with a lower bound of 0 where too little of G is resolved for one, and the
        upper bound as its value.
    """
    high, low = _either_side(head, head, kernel, None, tolerance)
    rank = len(head.values)
    found = _between(high, low, np.float64, f"{rank} of {len(head.vectors)} directions", rank, source)
    if found.lower > 0:
        return found
    method = found.method.partition("; error")[0] + "; an upper bound, without a lower one; error: unknown"
    return replace(found, value=found.upper, stderr=found.upper, method=method)


def _either_side(
    inner: Head, outer: Head, kernel: MomentKernel, start: np.ndarray | None, tolerance: float
) -> tuple[Solution, Solution]:
    """The problem bounded from above and from below in eta."""
    if start is None:
        coarse = Feedback(inner.leading(_COARSE_RANK), kernel, side="below")
        start = critical_rate(coarse, tolerance=tolerance).moments
    high = critical_rate(Feedback(inner, kernel, side="below"), start, tolerance=0.5 * tolerance)
    above = Feedback(outer, kernel, side="above", ceiling=high.eta)
    return high, critical_rate(above, high.moments, tolerance=0.1 * tolerance)


def _between(
    high: Solution, low: Solution, dtype: Any, resolved: str, rank: int, source: str
) -> BracketedThreshold:
    rounding = _SINGLE_ROUNDING if dtype == np.float32 else 1e-12
    upper, lower = high.eta * (1 + rounding), max(low.eta - low.slack, 0.0) * (1 - rounding)
    method = (
        f"eigenvalue 1 of the output moments, {resolved} resolved, "
        f"{high.iterations + low.iterations} steps; error: half the bracket [{lower:.6g}, {upper:.6g}]"
    )
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    return BracketedThreshold(
        middle, half, "mean-square", method, source,
        lower=lower, upper=upper, moments=high.moments, rank=rank,
    )  # fmt: skip
