"""Linear SDEs taken apart along invariant subspaces: block triangular form over the reals."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sl

Block = tuple[np.ndarray, np.ndarray]

_ROUNDING = 1e-11
"""Relative size below which a component that leads out of a subspace counts as rounding."""


def irreducible_blocks(drift: np.ndarray, noises: np.ndarray) -> list[Block]:
    """Diagonal blocks of the finest block triangular form of dy = A y dt + sum_k B_k y dW_k.

    Exponents of the whole are those of the blocks: the coupling of one block to another adds a convolution,
    which grows at the faster of the two rates.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)

    Returns
    -------
    list of (array (b, b), array (m, b, b))
        A single block, the input itself, if no subspace is invariant.
    """
    matrices = np.array([drift, *noises])
    parts = _connected(matrices)
    if len(parts) > 1:
        found = [matrices[:, part][:, :, part] for part in parts]
        return [block for m in found for block in irreducible_blocks(m[0], m[1:])]
    for dual in (False, True):
        line = _invariant_line(np.swapaxes(matrices, 1, 2) if dual else matrices)
        if line is not None and len(drift) > 1:
            # an orthonormal frame whose first vector spans the line, or is normal to an invariant hyperplane
            frame = np.column_stack([line, sl.null_space(line[None])])
            turned = frame.T @ matrices @ frame
            one, rest = turned[:, :1, :1], turned[:, 1:, 1:]
            return [(one[0], one[1:]), *irreducible_blocks(rest[0], rest[1:])]
    return [(drift, noises)]


def _connected(matrices: np.ndarray) -> list[np.ndarray]:
    """Components that feed each other, strongly connected: exact, without rotation of the coordinates."""
    from scipy.sparse.csgraph import connected_components

    number, labels = connected_components(np.any(matrices != 0, axis=0), directed=True, connection="strong")
    return [np.flatnonzero(labels == k) for k in range(number)]


def _invariant_line(matrices: np.ndarray) -> np.ndarray | None:
    """A common real eigenvector.

    It lies in a spectral subspace of a generic element of the algebra; each is cut down to its largest part that
    all matrices keep, where their eigenvalues are their means, and there it is a common null vector.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    size = np.linalg.norm(matrices, axis=(1, 2))
    if not size.any():
        return np.eye(matrices.shape[1])[0]
    scaled = matrices[size > 0] / size[size > 0, None, None]
    mixed = np.tensordot(rng.standard_normal((2, len(scaled))), scaled, 1)
    generic = mixed[0] + mixed[0] @ mixed[1]
    reach = 1e-4 * float(np.linalg.norm(generic))
    for value in np.linalg.eigvals(generic):
        if abs(value.imag) <= reach:
            space = _spectral_subspace(generic, float(value.real), reach)
            while space.shape[1]:
                inside = space.T @ scaled @ space
                kept = _null_space(np.vstack(scaled @ space - space @ inside))
                if kept.shape[1] == space.shape[1]:
                    means = np.trace(inside, axis1=1, axis2=2) / space.shape[1]
                    common = _null_space(np.vstack(inside - means[:, None, None] * np.eye(space.shape[1])))
                    if common.shape[1]:
                        return space @ common[:, 0]
                    break
                space = space @ kept
    return None


def _spectral_subspace(matrix: np.ndarray, value: float, reach: float) -> np.ndarray:
    schur: Any = sl.schur(matrix, output="complex", sort=lambda x: abs(x - value) <= 2 * reach)
    basis = schur[1][:, : schur[2]]
    return sl.orth(np.hstack([basis.real, basis.imag]), rcond=1e-6)


def _null_space(matrix: np.ndarray) -> np.ndarray:
    """Vectors mapped to rounding, the matrices being of norm 1."""
    values, rows = np.linalg.svd(matrix)[1:]
    return rows[values <= _ROUNDING].T
