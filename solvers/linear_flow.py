"""The compiled flow of dy = A y dt + sum_k B_k y o dW_k on blocks of paths: exact subflows, split symmetrically.

One step is exp(B_1 w_1) ... exp(B_m w_m) exp(A dt), with the order of the noises reversed in every other step.
Each factor is the exact flow of one part of the generator, A or B_k^2/2, so that two steps are a symmetric
(Strang) product of their semigroups, up to where in the cycle one looks: exponents have bias of order dt^2,
none if the noises commute with each other and with A, and no step is unstable (Talay and Tubaro 1990 for the
order of such products in expectation; Ninomiya and Victoir 2008 for splitting along the noises).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg as sl
from numba import njit

from solvers.errors import InvalidInput
from solvers.wiener import draw

WIDTH = 32
"""Paths per block: component j of column c of path i lies at ``x[(c * d + j) * WIDTH + i]``."""

_FLAGS = {"contract", "reassoc"}
_SERIES = 40
_TRUNCATION = 1e-9
"""Of the exponential series, relative to the noise's own rate, |B|^2 dt in a step."""


class Flow(NamedTuple):
    """A linear SDE made ready for steps of one length; arrays only, for the kernels.

    Attributes
    ----------
    d : int
    dt : float
    drift : (rows, columns, values)
        Nonzero entries of exp(A dt), A in the Stratonovich reading.
    noises : (rows, columns, values, starts)
        Nonzero entries of all B_k; those of B_k from starts[k] to starts[k + 1].
    orders : ndarray of int (m,)
        Terms of the series of exp(B_k w).
    pairs_per_norm : int
        Pairs of steps after which vectors are normalised.
    """

    d: int
    dt: float
    drift: tuple[np.ndarray, np.ndarray, np.ndarray]
    noises: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    orders: np.ndarray
    pairs_per_norm: int


def linear_flow(drift: np.ndarray, noises: np.ndarray, dt: float) -> Flow:
    """Prepare steps of length dt.

    Parameters
    ----------
    drift : ndarray (d, d)
        Of the Ito equation.
    noises : ndarray (m, d, d)
    dt : float

    Raises
    ------
    InvalidInput
        If the noise of one step is too strong for its exponential series.
    """
    d = len(drift)
    stratonovich = drift - 0.5 * np.einsum("kij,kjl->il", noises, noises)
    orders = np.array([_terms(b, dt) for b in noises], dtype=np.int64)
    entries = [_entries(b) for b in noises]
    starts = np.cumsum([0, *(len(e[0]) for e in entries)]).astype(np.int64)
    joined = tuple(np.concatenate([e[i] for e in entries] or [np.empty(0)]) for i in range(3))
    rows, columns = (joined[i].astype(np.int64) for i in range(2))
    speed = np.linalg.norm(stratonovich, 2) + sum(np.linalg.norm(b, 2) ** 2 for b in noises)
    # between normalisations vectors grow or shrink by about e^2, and directions part by no more
    pairs = int(min(max(2.0 / (2 * dt * max(speed, 1e-300)), 1), 64))
    step = np.asarray(sl.expm(stratonovich * dt))
    if not np.isfinite(step).all():
        raise InvalidInput(
            f"dt={dt:g} is too large: the drift grows beyond all numbers in one step; give less"
        )
    return Flow(d, dt, _entries(step), (rows, columns, joined[2], starts), orders, pairs)


def _entries(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(matrix)
    return rows.astype(np.int64), columns.astype(np.int64), np.ascontiguousarray(matrix[rows, columns])


def _terms(b: np.ndarray, dt: float) -> int:
    """Terms of exp(B w) y for w ~ N(0, dt): the mean of the first left out is negligible beside dt."""
    power, size = np.eye(len(b)), float(np.linalg.norm(b, 2))
    for n in range(1, _SERIES):
        power = power @ b * (math.sqrt(dt) / n)
        # E|w|^k is at most dt^(k/2) sqrt(k!)
        following = np.linalg.norm(power @ b, 2) * math.sqrt(dt) / (n + 1) * math.sqrt(math.factorial(n + 1))
        if following <= _TRUNCATION * dt * size**2:
            return n
    raise InvalidInput(
        f"dt={dt:g} is too large for a noise matrix of norm {size:.3g}; give a dt under {4 / size**2:.2g}"
    )


@njit(fastmath=_FLAGS, error_model="numpy")
def _apply(rows, columns, values, first, last, x, out):
    """Out = M x for the entries [first, last) of M."""
    for i in range(out.size):
        out[i] = 0.0
    for e in range(first, last):
        target = out[rows[e] * WIDTH : (rows[e] + 1) * WIDTH]
        source = x[columns[e] * WIDTH : (columns[e] + 1) * WIDTH]
        value = values[e]
        for i in range(WIDTH):
            target[i] += value * source[i]


@njit(fastmath=_FLAGS, error_model="numpy")
def _kick(noises, k, order, w, x, term, moved):
    """X becomes exp(B_k w) x, w one number per path."""
    rows, columns, values, starts = noises
    d = x.size // WIDTH
    for i in range(x.size):
        term[i] = x[i]
    for n in range(1, order + 1):
        _apply(rows, columns, values, starts[k], starts[k + 1], term, moved)
        share = 1.0 / n
        for j in range(d):
            for i in range(WIDTH):
                value = moved[j * WIDTH + i] * w[i] * share
                term[j * WIDTH + i] = value
                x[j * WIDTH + i] += value


@njit(fastmath=_FLAGS, error_model="numpy")
def move(flow, w, backwards, x, term, moved):
    """One step of all columns; w holds WIDTH increments per noise, `backwards` reverses the noises."""
    m = flow.orders.size
    size = flow.d * WIDTH
    rows, columns, values = flow.drift
    for c in range(x.size // size):
        column = x[c * size : (c + 1) * size]
        for n in range(m):
            k = m - 1 - n if backwards else n
            _kick(flow.noises, k, flow.orders[k], w[k * WIDTH : (k + 1) * WIDTH], column, term, moved)
        _apply(rows, columns, values, 0, values.size, column, moved)
        for i in range(size):
            column[i] = moved[i]


@njit(fastmath=_FLAGS, error_model="numpy")
def normalise(x, d, logs, scratch):
    """Gram-Schmidt on the columns of each path; the logs of their lengths are added to ``logs[c * WIDTH + i]``."""
    size = d * WIDTH
    for c in range(x.size // size):
        column = x[c * size : (c + 1) * size]
        for before in range(c):
            other = x[before * size : (before + 1) * size]
            for i in range(WIDTH):
                scratch[i] = 0.0
            for j in range(d):
                for i in range(WIDTH):
                    scratch[i] += column[j * WIDTH + i] * other[j * WIDTH + i]
            for j in range(d):
                for i in range(WIDTH):
                    column[j * WIDTH + i] -= scratch[i] * other[j * WIDTH + i]
        for i in range(WIDTH):
            scratch[i] = 0.0
        for j in range(d):
            for i in range(WIDTH):
                scratch[i] += column[j * WIDTH + i] * column[j * WIDTH + i]
        for i in range(WIDTH):
            logs[c * WIDTH + i] += 0.5 * math.log(scratch[i])
            scratch[i] = 1.0 / math.sqrt(scratch[i])
        for j in range(d):
            for i in range(WIDTH):
                column[j * WIDTH + i] *= scratch[i]


@njit(fastmath=_FLAGS, error_model="numpy")
def begin(flow, seed, first_path, x, logs, scratch):
    """Random orthonormal columns; their numbers are those of processes beyond the m of the model."""
    m = flow.orders.size
    for q in range(x.size // WIDTH):
        draw(seed, first_path, 0, m + q, 1.0, x[q * WIDTH : (q + 1) * WIDTH], scratch)
    normalise(x, flow.d, logs, scratch)
    for i in range(logs.size):
        logs[i] = 0.0
