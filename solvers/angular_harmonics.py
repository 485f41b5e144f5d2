"""The tilted generator of the direction of a linear SDE in harmonics of the circle and of the sphere.

A linear vector field M y, acting on |y|^p g(y/|y|), becomes X_M = T_M + p q_M on g, where q_M = u.M u is a
quadratic form of the direction u and T_M the derivative along the tangential part of M u. With the commutator
of the Laplacian, T_S = ([Laplacian, q_S] + 2 d q_S)/4 for symmetric S without trace, so that in harmonics of
degree l the whole of gl(d) is known from products of coordinates: the factor of q_S from degree l is -l
upwards, d/2 sideways and l + d - 2 downwards. Hence X_M maps degrees up to p into themselves for even p: the
closed moment equations. The generator is X_A + (1/2) sum_k X_{B_k}^2 with A in the Stratonovich reading.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sps


class TiltedGenerator(NamedTuple):
    """L_p = plain + p first + p^2 second on orthonormal real harmonics of even degree; number 0 is constant.

    Attributes
    ----------
    plain, first, second : csc_array (n, n)
    forms : tuple of csc_array
        Products of coordinates u_i u_j, i <= j, as multiplications.
    """

    plain: Any
    first: Any
    second: Any
    forms: tuple[Any, ...]

    def at(self, p: float) -> Any:
        """L_p."""
        return sps.csc_array(self.plain + p * self.first + p * p * self.second)

    def slope(self, p: float) -> Any:
        """The derivative of L_p in p."""
        return sps.csc_array(self.first + 2 * p * self.second)


def tilted_generator(drift: np.ndarray, noises: np.ndarray, harmonics: int) -> TiltedGenerator:
    """Galerkin matrices of dy = A y dt + sum_k B_k y dW_k (Ito) on even degrees up to ``2 harmonics``.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
        d = 2 or 3.
    harmonics : int

    Returns
    -------
    TiltedGenerator
        Of size ``2 harmonics + 1`` (d = 2) or ``(harmonics + 1) (2 harmonics + 1)`` (d = 3). Products are formed
        with one more degree, so that it is the exact projection of L_p.
    """
    d = len(drift)
    fields = _fields(d, harmonics + 1)
    n = _size(d, harmonics)
    stratonovich = drift - 0.5 * np.sum(noises @ noises, axis=0)
    # at most d^2 independent combinations of the noises act
    root = np.linalg.svd(noises.reshape(len(noises), d * d), full_matrices=False)
    merged = [(s * row).reshape(d, d) for s, row in zip(root[1], root[2], strict=True) if s > 0]
    turn, form = _combined(fields, stratonovich)
    plain, first = turn[:n, :n], form[:n, :n]
    second = sps.csr_array((n, n))
    if merged:
        parts = [_combined(fields, b) for b in merged]
        turn_from, turn_to = _stacked([t for t, _ in parts], n)
        form_from, form_to = _stacked([q for _, q in parts], n)
        plain = plain + 0.5 * (turn_to @ turn_from)
        first = first + 0.5 * (turn_to @ form_from + form_to @ turn_from)
        second = 0.5 * (form_to @ form_from)
    products = tuple(
        sps.csc_array(fields.filled(fields.forms[i * d + j])[:n, :n]) for i in range(d) for j in range(i, d)
    )
    return TiltedGenerator(sps.csc_array(plain), sps.csc_array(first), sps.csc_array(second), products)


class _Fields(NamedTuple):
    """T and q of the d^2 matrices with a single 1, as rows of values on one sparsity pattern."""

    pattern: Any
    turns: np.ndarray
    forms: np.ndarray

    def filled(self, values: np.ndarray) -> Any:
        return sps.csr_array((values, self.pattern.indices, self.pattern.indptr), shape=self.pattern.shape)


def _combined(fields: _Fields, matrix: np.ndarray) -> tuple[Any, Any]:
    return fields.filled(matrix.ravel() @ fields.turns), fields.filled(matrix.ravel() @ fields.forms)


def _stacked(parts: list[Any], n: int) -> tuple[Any, Any]:
    return (
        sps.csc_array(sps.vstack([p[:, :n] for p in parts])),
        sps.csr_array(sps.hstack([p[:n, :] for p in parts])),
    )


def _size(d: int, harmonics: int) -> int:
    return 2 * harmonics + 1 if d == 2 else (harmonics + 1) * (2 * harmonics + 1)


@lru_cache(maxsize=24)
def _fields(d: int, harmonics: int) -> _Fields:
    """Vector fields of single entries on even degrees up to ``2 harmonics``."""
    top = 2 * harmonics
    coordinates, rotations, degree = (_circle if d == 2 else _sphere)(top + 1)
    even = np.flatnonzero((degree % 2 == 0) & (degree <= top))
    l = degree[even]  # noqa: E741 - the usual letter
    forms: list[list[Any]] = [[None] * d for _ in range(d)]
    turns: list[list[Any]] = [[None] * d for _ in range(d)]
    identity = sps.eye_array(len(even), format="csr")
    for i in range(d):
        for j in range(i, d):
            product = sps.csr_array(sps.csr_array(coordinates[i] @ coordinates[j])[even][:, even])
            product.data[np.abs(product.data) < 1e-15] = 0.0
            product.eliminate_zeros()
            forms[i][j] = forms[j][i] = product
    for i in range(d):
        for j in range(i, d):
            traceless = sps.coo_array(forms[i][j] - (identity / d if i == j else 0.0 * identity))
            to, source = l[traceless.row], l[traceless.col]
            factor = np.select([to > source, to < source], [-1.0 * source, source + d - 2.0], 0.5 * d)
            symmetric = sps.csr_array(
                (factor * traceless.data, (traceless.row, traceless.col)), shape=identity.shape
            )
            if i == j:
                turns[i][i] = symmetric
                continue
            rotation = sps.csr_array(rotations[i, j][even][:, even])
            turns[i][j] = symmetric + 0.5 * rotation
            turns[j][i] = symmetric - 0.5 * rotation
    return _aligned([turn for row in turns for turn in row], [form for row in forms for form in row])


def _aligned(turns: list[Any], forms: list[Any]) -> _Fields:
    pattern = sps.csr_array(sum(abs(operator) for operator in (*turns, *forms)))
    pattern.sort_indices()
    n = pattern.shape[1]  # pyright: ignore[reportOptionalSubscript]
    places = np.repeat(np.arange(n), np.diff(pattern.indptr)) * n + pattern.indices

    def values(operators: list[Any]) -> np.ndarray:
        rows = np.zeros((len(operators), len(places)))
        for row, operator in zip(rows, operators, strict=True):
            entries = sps.coo_array(operator)
            row[np.searchsorted(places, entries.row.astype(np.int64) * n + entries.col)] = entries.data
        return rows

    return _Fields(pattern, values(turns), values(forms))


def _circle(top: int) -> tuple[list[Any], dict[tuple[int, int], Any], np.ndarray]:
    """Coordinates, y_j d/dy_i - y_i d/dy_j, and degrees, on cos and sin up to a frequency."""
    order = np.arange(-top, top + 1)
    up = sps.eye_array(2 * top + 1, k=-1)
    places = [(abs(m), m) for m in order.tolist()]
    return _real(
        [0.5 * (up + up.T), -0.5j * (up - up.T)],
        {(0, 1): sps.diags_array(-1j * order)},
        places,
        lambda m: 1.0,  # noqa: ARG005 - e^(-i m phi) is the conjugate of e^(i m phi)
    )


def _sphere(top: int) -> tuple[list[Any], dict[tuple[int, int], Any], np.ndarray]:
    """The same on spherical harmonics (recurrences: Varshalovich et al. 1988, ch. 5)."""
    places = [(l, m) for l in range(top + 1) for m in range(-l, l + 1)]  # noqa: E741
    l, m = np.array(places).T  # noqa: E741
    n = len(places)
    here = np.arange(n)

    def moved(dl: int, dm: int, values: np.ndarray) -> Any:
        to_l, to_m = l + dl, m + dm
        inside = (to_l >= 0) & (to_l <= top) & (np.abs(to_m) <= to_l)
        target = (to_l**2 + to_l + to_m)[inside]
        return sps.csr_array((values[inside], (target, here[inside])), shape=(n, n))

    def root(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(over, 0) / np.maximum(under, 1))

    z = moved(1, 0, root((l + 1) ** 2 - m**2, (2 * l + 1) * (2 * l + 3)))
    z = z + z.T
    plus = moved(1, 1, -root((l + m + 1) * (l + m + 2), (2 * l + 1) * (2 * l + 3)))
    plus = plus + moved(-1, 1, root((l - m) * (l - m - 1), (2 * l - 1) * (2 * l + 1)))
    raising = moved(0, 1, root((l - m) * (l + m + 1), np.ones(n)))
    about_x, about_y = 0.5 * (raising + raising.T), -0.5j * (raising - raising.T)
    return _real(
        [0.5 * (plus + plus.T), -0.5j * (plus - plus.T), z],
        {(0, 1): sps.diags_array(-1j * m), (0, 2): 1j * about_y, (1, 2): -1j * about_x},
        places,
        lambda m: (-1.0) ** m,
    )


def _real(coordinates: Any, rotations: Any, places: list[tuple[int, int]], sign: Any) -> Any:
    """Change to real harmonics, in the order of degree."""
    number = {place: k for k, place in enumerate(places)}
    rows, columns, values, degree = [], [], [], []
    for l, m in sorted(places):  # noqa: E741
        column = len(degree)
        degree.append(l)
        if m == 0:
            entries = [(number[l, 0], 1.0)]
        elif m > 0:
            entries = [(number[l, m], sign(m) / 2**0.5), (number[l, -m], 1 / 2**0.5)]
        else:
            entries = [(number[l, -m], -1j * sign(m) / 2**0.5), (number[l, m], 1j / 2**0.5)]
        for row, value in entries:
            rows.append(row)
            columns.append(column)
            values.append(value)
    change = sps.csr_array((np.array(values, dtype=complex), (rows, columns)), shape=(len(places),) * 2)

    def real(operator: Any) -> Any:
        return sps.csr_array((change.conj().T @ operator @ change).real)

    return [real(c) for c in coordinates], {key: real(r) for key, r in rotations.items()}, np.array(degree)
