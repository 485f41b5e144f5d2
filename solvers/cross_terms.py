"""Correlated noise in two or more dimensions: the mixed derivatives d_i d_j (D_ij p) on a grid."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy.sparse as sps

from solvers.boundary import Wall
from solvers.coefficients import Coefficients
from solvers.grid import Grid

Corners = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def needs_central(coefficients: Coefficients) -> str | None:
    """Why the positive stencil does not apply, with the place and the numbers; None if it does.

    It applies where D_ii >= sum_j |D_ij| h_i / h_j on every axis, at all centres and faces. Spacings h_i in
    proportion to sqrt(D_ii) turn this into sum_j |r_ij| <= 1 with the correlations r_ij of the noise, which in
    two dimensions always holds, in three not.
    """
    grid = coefficients.grid
    for name in grid.names:
        if not grid.is_uniform(name):
            return (
                f"correlated noise on the non-uniform axis {name} is discretised by central differences, "
                "which can make densities slightly negative; use a uniform axis for the positive stencil"
            )
    h = [float(w.mean()) for w in grid.widths.values()]
    for axis in (None, *range(grid.d)):
        lines = list(grid.centers.values())
        if axis is not None:
            lines[axis] = grid.edges[grid.names[axis]]
        coords = tuple(np.meshgrid(*lines, indexing="ij"))
        tensor = coefficients.tensor_at(coords)
        worst, i, place = 0.0, 0, 0
        for k in range(grid.d):
            carried = sum(np.abs(tensor[k][j]) * (h[k] / h[j]) for j in range(grid.d) if j != k)
            # a shortage within rounding is none
            lacking = np.asarray(carried - tensor[k][k] * (1 + 1e-12))
            if lacking.max() > worst:
                worst, i, place = float(lacking.max()), k, int(np.argmax(lacking))
        if worst > 0:
            where = ", ".join(f"{n}={c.flat[place]:g}" for n, c in zip(grid.names, coords, strict=True))
            return _reason(grid, np.array([[e.flat[place] for e in row] for row in tensor]), h, i, where)
    return None


def _reason(grid: Grid, d: np.ndarray, h: list[float], i: int, where: str) -> str:
    """What lacks at the worst place, and the spacings that suit the noise there."""
    scale = np.sqrt(np.maximum(np.diag(d), 1e-300))
    correlation = np.abs(d) / np.outer(scale, scale)
    row = float((correlation.sum(axis=1) - np.diag(correlation)).max())
    if grid.d == 2:
        bound = min(d[0, 0] * h[1] / h[0], d[1, 1] * h[0] / h[1])
        what = f"|D12| = {abs(d[0, 1]):.4g} at {where} exceeds min(D11 h2/h1, D22 h1/h2) = {bound:.4g}"
        advice = f"h1/h2 near {scale[0] / scale[1]:.3g} suits this noise"
    else:
        carried = sum(abs(d[i, j]) * h[i] / h[j] for j in range(grid.d) if j != i)
        what = (
            f"sum_j |D_ij| h_i/h_j = {carried:.4g} at {where} exceeds D_ii = {d[i, i]:.4g} for i = "
            f"{grid.names[i]}"
        )
        spacings = " : ".join(f"{s:.3g}" for s in scale / scale[0])
        advice = f"spacings in the ratio {spacings} suit this noise"
        if row > 1:
            advice = f"no spacing helps, since the correlations of one component sum to {row:.3g} > 1 there"
    return (
        f"{what}, so no positive stencil exists here and central differences are used: densities can become "
        f"slightly negative; {advice}"
    )


def corner_rates(coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]]) -> Corners:
    """Jumps between diagonal neighbours at rate |D_ij| / (h_i h_j), along the diagonal of D_ij's sign.

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
    cells = np.arange(grid.size).reshape(grid.shape)
    index = np.indices(grid.shape)
    stride = [int(np.prod(grid.shape[axis + 1 :])) for axis in range(grid.d)]
    h = [float(w.mean()) for w in grid.widths.values()]
    loss = np.zeros(grid.size)
    sources, targets, rates = [], [], []
    for i, j in combinations(range(grid.d), 2):
        for step in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            rate = np.maximum(coefficients.tensor[i][j] * (step[0] * step[1]), 0.0) / (h[i] * h[j])
            to_i, out_i = _step(index[i], step[0], grid.shape[i], boundary[grid.names[i]])
            to_j, out_j = _step(index[j], step[1], grid.shape[j], boundary[grid.names[j]])
            lost = out_i | out_j
            loss += np.where(lost, rate, 0.0).ravel()
            target = cells + (to_i - index[i]) * stride[i] + (to_j - index[j]) * stride[j]
            moves = (rate > 0) & ~lost & (target != cells)
            sources.append(cells[moves])
            targets.append(target[moves])
            rates.append(rate[moves])
    first, second, forward = (np.concatenate(part) for part in (sources, targets, rates))
    return first, second, forward, np.zeros_like(forward), loss


def central_cross_terms(coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]]) -> sps.csr_array:
    """Second-order central fluxes J_i = -sum_j d_j (D_ij p) through interior faces, as a matrix on cell masses."""
    grid = coefficients.grid
    result = sps.csr_array((grid.size, grid.size))
    for axis in range(grid.d):
        periodic = boundary[grid.names[axis]][0] == "periodic"
        _, difference = _faces_of_line(grid.shape[axis], periodic)
        spread = _line_operator(difference, axis, grid.shape)
        result = result - spread @ central_face_fluxes(coefficients, boundary, axis)
    return sps.csr_array(result)


def central_face_fluxes(
    coefficients: Coefficients, boundary: dict[str, tuple[Wall, Wall]], axis: int
) -> sps.csr_array:
    """Mass per time through the faces across an axis, towards larger coordinates: faces by cells."""
    grid = coefficients.grid
    periodic = [boundary[name][0] == "periodic" for name in grid.names]
    mean, _ = _faces_of_line(grid.shape[axis], periodic[axis])
    faces = _line_operator(mean, axis, grid.shape)
    # -(mean slope of D_ij p) * area, area = volume / width
    width = grid.widths[grid.names[axis]].reshape((1,) * axis + (-1,) + (1,) * (grid.d - axis - 1))
    area = sps.diags_array((grid.volumes / width).ravel())
    result = sps.csr_array((faces.shape[0], grid.size))  # pyright: ignore[reportOptionalSubscript]
    for other in range(grid.d):
        entry = coefficients.tensor[axis][other]
        if other == axis or not np.any(entry):
            continue
        slope = _line_operator(_derivative(grid, other, periodic[other]), other, grid.shape)
        weight = sps.diags_array((entry / grid.volumes).ravel())
        result = result - faces @ (area @ (slope @ weight))
    return sps.csr_array(result)


def _step(index: np.ndarray, step: int, n: int, kinds: tuple[Wall, Wall]) -> tuple[np.ndarray, np.ndarray]:
    moved = index + step
    beyond = (moved < 0) | (moved >= n)
    kind = kinds[0 if step < 0 else 1]
    if kind == "periodic":
        return moved % n, np.zeros_like(beyond)
    stay = np.where(beyond, index, moved)
    return stay, beyond if kind == "absorbing" else np.zeros_like(beyond)


def _line_operator(matrix: sps.csr_array, axis: int, shape: tuple[int, ...]) -> sps.csr_array:
    """Apply a one-dimensional matrix along one axis."""
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    return sps.csr_array(sps.kron(sps.kron(sps.eye_array(before), matrix), sps.eye_array(after)))


def _derivative(grid: Grid, axis: int, periodic: bool) -> sps.csr_array:
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
