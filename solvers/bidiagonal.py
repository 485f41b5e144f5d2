"""Eigenvalues of reversible chains on a line to full relative accuracy, however small."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sl

from solvers.chain import Chain


def line_values(chain: Chain, count: int) -> np.ndarray | None:
    """The smallest nonzero eigenvalues of -L.

    The symmetrised generator of a line is -S = E^T E with a bidiagonal E (rows: pairs of neighbours, and the
    losses at ends), so its eigenvalues are squared singular values, which the entries determine to high
    relative accuracy. Bisection on the path of rows and columns, a tridiagonal matrix with zero diagonal,
    finds them to it (Golub and Kahan 1965; Demmel and Kahan 1990, SIAM J. Sci. Stat. Comput. 11, 873).

    Parameters
    ----------
    chain : Chain
        Linear and reversible.
    count : int
        How many; fewer are returned if there are fewer.

    Returns
    -------
    ndarray or None
        Ascending; None if a state between two others has a loss.
    """
    n = chain.size
    forward, backward, paired = np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool)
    forward[chain.first], backward[chain.first] = chain.forward, chain.backward
    paired[chain.first] = (chain.forward > 0) | (chain.backward > 0)
    left_end = ~np.concatenate([[False], paired[:-1]])
    lossy = chain.loss > 0
    if np.any(lossy & ~left_end & paired):
        return None
    # per state: a row for a loss on its left (at left ends), the state, and the row on its right
    low = np.where(left_end & lossy, chain.loss, 0.0)
    high = np.where(paired, forward, np.where(left_end, 0.0, chain.loss))
    links = np.sqrt(np.column_stack([low, high, np.where(paired, backward, 0.0)]).ravel())
    kept = np.column_stack([left_end, np.ones(n, dtype=bool), np.ones(n, dtype=bool)]).ravel()
    links = links[kept][:-1]
    parts = np.diff(np.flatnonzero(np.concatenate([[True], links == 0, [True]])))
    positive = int(
        np.sum(parts // 2)
    )  # a path of m nodes has m // 2 positive eigenvalues, and as many negative
    count = min(count, positive)
    if count == 0:
        return np.zeros(0)
    nodes = len(links) + 1
    values = sl.eigh_tridiagonal(
        np.zeros(nodes),
        links,
        eigvals_only=True,
        select="i",
        select_range=(nodes - positive, nodes - positive + count - 1),
        lapack_driver="stebz",
        tol=1e-300,  # absolute: leave the relative criterion alone
    )
    with np.errstate(under="ignore"):
        return np.maximum(values, 0.0) ** 2
