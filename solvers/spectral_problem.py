"""What an eigen-solve works on: the chain or the stochastic matrix of an operator, killed in a region if asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sps

from solvers.chain import Chain
from solvers.eigensolvers import Modes, conserves, generator_modes, transfer_modes
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.killed_maps import killed_steps
from solvers.regions import Region, killed, region_cells
from solvers.spectrum import verify
from solvers.starts import Start
from solvers.transfer import TransferOperator

Operator = FokkerPlanck | TransferOperator
Build = Callable[[float], Operator]


@dataclass(frozen=True)
class Problem:
    """An operator on the states that are left of it.

    Attributes
    ----------
    operator : FokkerPlanck or TransferOperator
    chain : Chain or None
    matrix : sparse array or None
        Of a transfer operator.
    """

    operator: Operator
    chain: Chain | None
    matrix: sps.csr_array | None

    @property
    def zeros(self) -> int:
        """Number of stationary modes."""
        if self.chain is not None:
            return len(self.chain.closed_classes)
        assert self.matrix is not None
        return int(conserves(self.matrix))

    @property
    def size(self) -> int:
        """Number of states."""
        return self.chain.size if self.chain is not None else self.matrix.shape[0]  # type: ignore[union-attr]

    def modes(self, k: int, tol: float = 1e-10, start: Start | None = None) -> Modes:
        """The k slowest modes, their residuals checked.

        Raises
        ------
        ConvergenceFailure
            As for `eigenmodes`.

        Warns
        -----
        AccuracyWarning
            As for `eigenmodes`.
        """
        if self.chain is not None:
            modes = generator_modes(self.chain, k, "auto", tol, start)
            if modes.zeros and isinstance(self.operator, FokkerPlanck):
                masses = np.real(modes.right[:, 0])
                self.operator.warn_if_unresolved(masses / masses.sum(), stacklevel=4)
        else:
            assert self.matrix is not None
            modes = transfer_modes(self.matrix, k, "auto", tol, start)
        for doubt in modes.doubts:
            warnings.warn(AccuracyWarning(doubt), stacklevel=3)
        verify(modes, tol, relative=self.chain is None)
        return modes


def problem_of(operator: Operator, absorbed: Region | None = None) -> Problem:
    """The problem of an operator; with a region, of the process that is removed there."""
    if absorbed is None:
        if isinstance(operator, FokkerPlanck):
            return Problem(operator, operator.chain, None)
        return Problem(operator, None, operator.matrix)
    inside = region_cells(operator.grid, absorbed, "absorbed region")
    if isinstance(operator, FokkerPlanck):
        return Problem(operator, killed(operator, [absorbed], [inside])[0], None)
    return Problem(operator, None, killed_steps(operator, [absorbed]).matrix)


def built(build: Build, value: float) -> Operator:
    """The operator at a value.

    Raises
    ------
    InvalidInput
        If build is no function, or returns something else.
    """
    if not callable(build):
        raise InvalidInput(f"build={build!r} is not callable; give a function that returns a FokkerPlanck")
    operator = build(value)
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(
            f"build returned a {type(operator).__name__} at {value:g}; it must return a FokkerPlanck or a "
            "TransferOperator"
        )
    return operator
