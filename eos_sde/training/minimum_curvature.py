"""Curvature of the examples at a minimum, and the mean-square threshold of a rule that follows from it."""

from __future__ import annotations

import dataclasses

import numpy as np

from eos_sde.thresholds.curvature_factors import curvature_factors
from eos_sde.thresholds.gram import GramBasis, GramOperator, Head, block_products, positive_part
from eos_sde.thresholds.mean_square_factored import BracketedThreshold, factored_mean_square, head_bracket
from eos_sde.thresholds.moment_kernel import MomentKernel
from eos_sde.thresholds.result import Threshold
from eos_sde.training.example_curvature import (
    ExampleFactors,
    Modes,
    example_factors,
    example_gram,
    example_hessians,
    find_sketch,
    leading_modes,
)
from eos_sde.training.linear_rules import LinearRule
from eos_sde.training.local_loss import Local
from eos_sde.training.second_moments import dense_curvatures, mean_square_limit
from solvers.errors import InvalidInput

_LARGEST_FACTORS = 2**27  # numbers: 1 GiB of factors (n, c, d); beyond, only their Gram matrix is held
_LARGEST_PIECE = 2**28  # numbers of single precision: 1 GiB of factors; two such are held to form it
_LARGEST_SIDE = 10_000  # outputs of all examples for which it is, 0.4 GB; beyond, modes of the factors
_SINGLE = 1e-5  # relative error of its products, of single precision
_LARGEST_RANK = 1500  # outputs of all examples up to which their Gram matrix is diagonalised
_FACTOR_MODES, _DENSE_MODES = 128, 32
_SKETCH_GOAL, _SKETCH_LIMIT = 1e-3, 1e-2
_BRACKET = 0.01  # relative width of a bracket to reach
_RESOLVED = 2048  # directions resolved for it at most
_SOURCE = "second-moment recursion; Mulayoff and Michaeli 2024, arXiv:2306.07850, without momentum"


class Minimum:
    """Curvatures of the examples at a minimum, in the form that the weights allow.

    Parameters
    ----------
    local : Local
        The loss about the minimum.
    seed : int
        Of the sketch.
    modes : int, optional
        Leading modes to which everything is restricted.
    """

    def __init__(self, local: Local, seed: int, modes: int | None) -> None:
        self.local, self.modes = local, modes
        self.sketch = find_sketch(local, seed, _SKETCH_GOAL)
        self.low_rank = self.sketch.error <= _SKETCH_LIMIT
        fits = local.n * self.sketch.rank * local.dimension <= _LARGEST_FACTORS
        self.whole = self.low_rank and fits and modes is None

    def leading(self, default: int) -> Modes:
        """The modes to which the criterion is restricted."""
        return leading_modes(self.local, min(self.modes or default, self.local.dimension))

    def factors(self) -> ExampleFactors:
        """Factors on all weights, or on leading modes; refused where there are none."""
        if not self.low_rank:
            raise InvalidInput(
                f"the examples' curvatures are not those of a fit (relative error {self.sketch.error:.2g} of low-rank "
                "factors); use criterion='mean-square', which takes them as they are"
            )
        basis = None if self.whole else self.leading(_FACTOR_MODES).vectors
        return example_factors(self.local, self.sketch, basis)

    def gram(self) -> GramOperator:
        """The Gram matrix of all factors, on all weights, where the factors themselves do not fit."""
        n, rank = self.local.n, self.sketch.rank
        matrix = example_gram(self.local, self.sketch, _LARGEST_PIECE)
        blocks = np.stack([matrix[i : i + rank, i : i + rank] for i in range(0, n * rank, rank)])

        def product(z: np.ndarray) -> np.ndarray:
            return (matrix @ z.astype(np.float32)).astype(float)

        return GramOperator(n, rank, product, blocks.astype(float))


def mean_square(rule: LinearRule, minimum: Minimum, p: float, where: str) -> Threshold:
    """Mean-square threshold: exact from few whole factors, between bounds from many, on leading modes from Hessians.

    Parameters
    ----------
    rule : LinearRule
        The step.
    minimum : Minimum
        What it steps about.
    p : float
        Variance of a batch mean over that of one example, > 0.
    where : str
        For the method: where a preconditioner is from.

    Returns
    -------
    Threshold
        Its method says which.
    """
    if not minimum.low_rank:
        return _of_hessians(rule, minimum, p, where)
    kernel = MomentKernel(p, rule.momentum, rule.nesterov, gain=rule.gain, decoupled=rule.weight_decay)
    error = minimum.sketch.error
    how = join(f"curvature factors of rank {minimum.sketch.rank} from Hessian products", where)
    if minimum.modes is not None:
        rows = minimum.factors().rows

        def limit(k: int) -> Threshold:
            return _solved(_head(rows[:, :, :k]), kernel)

        return _restricted(limit, rows.shape[2], error, how)
    if minimum.whole:
        rows = minimum.factors().rows
        few = min(rows.shape[0] * rows.shape[1], rows.shape[2]) <= _LARGEST_RANK
        exact = _solved(_head(rows) if few else GramBasis(GramOperator.of_factors(rows)), kernel)
    elif minimum.local.n * minimum.sketch.rank <= _LARGEST_SIDE:
        exact, error = _solved(minimum.gram(), kernel), max(error, _SINGLE)
    else:
        exact = head_bracket(_with_rest(minimum.factors()), kernel, tolerance=_BRACKET, source=_SOURCE)
    method, _, reach = exact.method.partition("; ")
    stderr = float(np.hypot(exact.stderr, error * exact.value))
    return dataclasses.replace(exact, stderr=stderr, method=f"{method}, {how}; {reach}")


def _solved(gram: Head | GramOperator | GramBasis, kernel: MomentKernel) -> BracketedThreshold:
    return factored_mean_square(
        gram, kernel, tolerance=_BRACKET, max_rank=_RESOLVED, start=None, source=_SOURCE
    )


def _head(rows: np.ndarray) -> Head:
    """All of the Gram matrix of factors (n, c, d), resolved."""
    own = curvature_factors(rows)
    n, c, r = own.rows.shape
    return Head(own.rows.reshape(n * c, r) / np.sqrt(n * own.curvatures), own.curvatures, None, 0.0, n)


def _with_rest(found: ExampleFactors) -> Head:
    """The Gram matrix from factors on its leading modes and the blocks of the rest."""
    head = _head(found.rows)
    n = head.examples
    tail = found.blocks / n - block_products(head.vectors * head.values, head.vectors, n)
    return head._replace(tail=positive_part(tail), top=float(np.min(head.values)))


def _of_hessians(rule: LinearRule, minimum: Minimum, p: float, where: str) -> Threshold:
    """On leading modes, with the examples' Hessians as they are."""
    found = minimum.leading(_DENSE_MODES)
    positive_modes = found.values > 0
    values, vectors = found.values[positive_modes], found.vectors[:, positive_modes]
    each = example_hessians(minimum.local, vectors)

    def limit(k: int) -> Threshold:
        value = mean_square_limit(rule, dense_curvatures(values[:k], each[:, :k, :k]), p)
        return Threshold(value, 1e-7 * value, "mean-square", "noise kernel = 1", _SOURCE)

    return _restricted(limit, len(values), 0.0, join("Hessians of the examples", where))


def _restricted(limit, kept: int, error: float, how: str) -> Threshold:
    """An upper bound, with its change on halving the modes."""
    whole = limit(kept)
    stderr = abs(limit(max(1, kept // 2)).value - whole.value) + error * whole.value
    method = f"{whole.method.split('; error')[0]}, {how}"
    reach = f"on the {kept} leading modes: an upper bound; error: change on halving the modes"
    return Threshold(whole.value, stderr, "mean-square", f"{method}; {reach}", _SOURCE)


def join(*words: str) -> str:
    """What is there, with commas."""
    return ", ".join(word for word in words if word)
