"""Correlated noise in two dimensions: the mixed derivative d_x d_y (D12 p) on a grid."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps

from solvers.boundary import Wall
from solvers.coefficients import Coefficients


def needs_central(coefficients: Coefficients) -> str | None:
    """Why the positive stencil does not apply, with the place and the numbers; None if it does."""
    grid = coefficients.grid
    for name in grid.names:
        if not grid.is_uniform(name):
            return (
                f"correlated noise on the non-uniform axis {name} is discretised by central differences, "
                "which can make densities slightly negative; use a uniform axis for the positive stencil"
            )
    h1, h2 = (float(w.mean()) for w in grid.widths.values())
    for axis in (None, 0, 1):
        lines = list(grid.centers.values())
        if axis is not None:
            lines[axis] = grid.edges[grid.names[axis]]
        coords = tuple(np.meshgrid(*lines, indexing="ij"))
        (d11, d12), (_, d22) = coefficients.tensor_at(coords)
        size = np.abs(d12)
        bound = np.minimum(d11 * h2 / h1, d22 * h1 / h2)
        if np.any(size > bound * (1 + 1e-12)):
            worst = int(np.argmax(size - bound))
            place = ", ".join(f"{n}={c.flat[worst]:g}" for n, c in zip(grid.names, coords, strict=True))
            advice = float(np.sqrt(d11.flat[worst] / max(d22.flat[worst], 1e-300)))
            return (
                f"|D12| = {size.flat[worst]:.4g} at {place} exceeds min(D11 h2/h1, D22 h1/h2) = "
                f"{bound.flat[worst]:.4g}, so no positive stencil exists here and central differences are "
                f"used: densities can become slightly negative; h1/h2 near {advice:.3g} suits this noise"
            )
    return None


def corner_rates(
    coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Jumps between diagonal neighbours at rate |D12| / (h1 h2), along the diagonal of D12's sign.

    At a reflecting wall the jump loses its normal part and keeps the tangential one, which leaves the
    variance along the wall right; at an absorbing wall it is a loss.

    Returns
    -------
    first, second, forward, backward : ndarray
        Pairs of cells with both rates.
    loss : ndarray
        Rate of removal per cell.
    """
    grid = coefficients.grid
    (n1, n2), cells = grid.shape, np.arange(grid.size).reshape(grid.shape)
    h1, h2 = (float(w.mean()) for w in grid.widths.values())
    d12 = coefficients.tensor[0][1]
    i, j = np.meshgrid(np.arange(n1), np.arange(n2), indexing="ij")
    loss = np.zeros(grid.size)
    sources, targets, rates = [], [], []
    for step1 in (1, -1):
        for step2 in (1, -1):
            rate = np.maximum(d12 * (step1 * step2), 0.0) / (h1 * h2)
            to1, out1 = _step(i, step1, n1, boundary[grid.names[0]])
            to2, out2 = _step(j, step2, n2, boundary[grid.names[1]])
            lost = out1 | out2
            loss += np.where(lost, rate, 0.0).ravel()
            target = to1 * n2 + to2
            moves = (rate > 0) & ~lost & (target != cells)
            sources.append(cells[moves])
            targets.append(target[moves])
            rates.append(rate[moves])
    first, second, forward = (np.concatenate(part) for part in (sources, targets, rates))
    return first, second, forward, np.zeros_like(forward), loss


def central_cross_terms(coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]]) -> sps.csr_array:
    """Second-order central fluxes J_i = -d_j (D12 p) through interior faces, as a matrix on cell masses."""
    grid = coefficients.grid
    result = sps.csr_array((grid.size, grid.size))
    for axis in (0, 1):
        periodic = boundary[grid.names[axis]][0] == "periodic"
        _, difference = _faces_of_line(grid.shape[axis], periodic)
        spread = _line_operator(difference, axis, grid.shape)
        result = result - spread @ central_face_fluxes(coefficients, boundary, axis)
    return sps.csr_array(result)


def central_face_fluxes(
    coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]], axis: int
) -> sps.csr_array:
    """Mass per time through the faces across an axis, towards larger coordinates: faces by cells."""
    grid, other = coefficients.grid, 1 - axis
    periodic = [boundary[name][0] == "periodic" for name in grid.names]
    weight = sps.diags_array((coefficients.tensor[0][1] / grid.volumes).ravel())
    slope = _line_operator(_derivative(grid, other, periodic[other]), other, grid.shape)
    mean, _ = _faces_of_line(grid.shape[axis], periodic[axis])
    # -(mean slope of D12 p) * area, area = volume / width
    area = sps.diags_array((grid.volumes / _expand(grid.widths[grid.names[axis]], axis)).ravel())
    faces = _line_operator(mean, axis, grid.shape)
    return sps.csr_array(-(faces @ (area @ (slope @ weight))))


def _step(index: np.ndarray, step: int, n: int, kinds: tuple[Wall, Wall]) -> tuple[np.ndarray, np.ndarray]:
    moved = index + step
    beyond = (moved < 0) | (moved >= n)
    kind = kinds[0 if step < 0 else 1]
    if kind == "periodic":
        return moved % n, np.zeros_like(beyond)
    stay = np.where(beyond, index, moved)
    return stay, beyond if kind == "absorbing" else np.zeros_like(beyond)


def _expand(values: np.ndarray, axis: int) -> np.ndarray:
    return values[:, None] if axis == 0 else values[None, :]


def _line_operator(matrix: sps.csr_array, axis: int, shape: tuple[int, ...]) -> sps.csr_array:
    """Apply a one-dimensional matrix along one of two axes."""
    if axis == 0:
        return sps.csr_array(sps.kron(matrix, sps.eye_array(shape[1])))
    return sps.csr_array(sps.kron(sps.eye_array(shape[0]), matrix))


def _derivative(grid, axis: int, periodic: bool) -> sps.csr_array:
    """First derivative at centres: central inside, one-sided at walls."""
    name = grid.names[axis]
    x, n = grid.centers[name], grid.shape[axis]
    period = grid.edges[name][-1] - grid.edges[name][0]
    below, above = np.arange(n) - 1, np.arange(n) + 1
    if periodic:
        position_below = np.where(below < 0, x[-1] - period, x[below])
        position_above = np.where(above >= n, x[0] + period, x[above % n])
        below, above = below % n, above % n
    else:
        below, above = np.maximum(below, 0), np.minimum(above, n - 1)
        position_below, position_above = x[below], x[above]
    inverse = 1.0 / (position_above - position_below)
    rows = np.arange(n)
    return sps.csr_array(
        (np.concatenate([inverse, -inverse]), (np.concatenate([rows, rows]), np.concatenate([above, below]))),
        shape=(n, n),
    )


def _faces_of_line(n: int, periodic: bool) -> tuple[sps.csr_array, sps.csr_array]:
    """Mean over the two cells of a face, and the effect of a unit flux -(...) on both cells."""
    count = n if periodic else n - 1
    face = np.arange(count)
    low, high = face, (face + 1) % n
    half = np.full(2 * count, 0.5)
    mean = sps.csr_array(
        (half, (np.concatenate([face, face]), np.concatenate([low, high]))), shape=(count, n)
    )
    sign = np.concatenate([np.ones(count), -np.ones(count)])  # J = -slope: the low cell gains +slope
    spread = sps.csr_array(
        (sign, (np.concatenate([low, high]), np.concatenate([face, face]))), shape=(n, count)
    )
    return mean, spread
