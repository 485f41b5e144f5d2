"""Operators of chains on large lattices with cycles for them, and where iterations beat factorisations."""

from __future__ import annotations

import copy

import numpy as np

from solvers.chain import Chain
from solvers.davidson import Map
from solvers.lattice_rates import has_lattice, rates_of
from solvers.lattice_transfer import Form
from solvers.lattice_weights import balancing_weights
from solvers.multigrid import Level, Multigrid, coarser_lattices, operator

# Beyond this many cells in three dimensions elimination fills in: 1e9 numbers at 64^3.
_LARGE = 20000
# A smaller balance is as good as none.
_FLOOR = 1e-140


def prefers_cycles(chain: Chain) -> bool:
    """Whether equations of a chain are solved by iterations: three dimensions, many cells, a grid of faces."""
    return has_lattice(chain) and len(chain.widths) == 3 and chain.size > _LARGE


class LatticeOperator:
    """A = -L^T of a chain on a lattice (form "backward") or its transpose ("forward"), and cycles for it."""

    def __init__(self, chain: Chain, form: Form, *, shift: float = 0.0):
        self._cells = chain.cells
        self.precondition = Multigrid(chain, form, shift=shift)
        self.level: Level = operator(self.precondition.rates[0], form, float, shift)
        self.precondition.rates.clear()
        self._whole = np.zeros(self.level.diagonal.shape)
        self._out = np.empty(self.level.diagonal.shape)

    def shifted(self, shift: float) -> LatticeOperator:
        """The operator plus a multiple of the identity; most arrays are shared."""
        other = copy.copy(self)
        other.precondition = self.precondition.shifted(shift)
        other.level = self.level.shifted(shift)
        return other

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """A x over the states of the chain."""
        if self._cells is None:
            return self.level.apply(x.reshape(self._out.shape), self._out).ravel().copy()
        self._whole.ravel()[self._cells] = x
        return self.level.apply(self._whole, self._out).ravel()[self._cells]


class BalancedOperator:
    """The backward operator balanced, w^1/2 (-L^T) w^-1/2 with weights w, and cycles for it.

    The weights are the stationary ones with detailed balance, otherwise near them; `balance` is their root, at
    most 1. Cycles leave slow modes out.
    """

    def __init__(self, chain: Chain):
        if chain.log_weights is None:
            weights = balancing_weights(*coarser_lattices(rates_of(chain), "forward"))
        else:
            weights = np.full([len(w) for w in rates_of(chain).widths], chain.log_weights.min())
            weights.ravel()[slice(None) if chain.cells is None else chain.cells] = chain.log_weights
        self.precondition = Multigrid(chain, "backward", follow_slow=False, log_weights=weights)
        self._apply = on_states(operator(self.precondition.rates[0], "backward", float), chain.cells)
        self.precondition.rates.clear()
        over_states = weights.ravel() if chain.cells is None else weights.ravel()[chain.cells]
        with np.errstate(under="ignore"):
            self.balance = np.exp(0.5 * (over_states - over_states.max()))

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """The operator on balanced functions."""
        return self._apply(z).copy()

    def functions(self, q: np.ndarray) -> np.ndarray:
        """Functions balanced."""
        return self.balance * q

    def masses(self, m: np.ndarray) -> np.ndarray:
        """Masses balanced; 0 where the balance is."""
        return np.divide(m, self.balance, out=np.zeros_like(m), where=self.balance > _FLOOR)


def on_states(level: Level, cells: np.ndarray | None) -> Map:
    """The operator of a lattice on vectors over the states in `cells` (None: all).

    Without `cells` a result is overwritten by the next.
    """
    shape = level.diagonal.shape
    out = np.zeros(shape)
    if cells is None:
        return lambda x: level.apply(x.reshape(shape), out).ravel()
    whole = np.zeros(shape)

    def apply(x: np.ndarray) -> np.ndarray:
        whole.ravel()[cells] = x
        return level.apply(whole, out).ravel()[cells]

    return apply
