"""Transport along an axis without noise at second order: what is added to the upwind rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers.grid import Grid

SCHEMES = ("upwind", "second-order")


def second_order_correction(grid: Grid, faces: Any, periodic: list[bool]) -> sps.csr_array | None:
    """Signed transport that turns upwind fluxes through faces without diffusion into second-order ones.

    The density on a face is 2/3 of the linear interpolation between its cells plus 1/3 of the linear
    extrapolation from the two cells upwind (the kappa = 1/3 scheme, third order on equal cells with constant
    speed; van Leer 1985), and the plain interpolation where a wall leaves no second cell upwind. No linear
    scheme above first order is positive (Godunov 1959), so the result has negative off-diagonal entries.

    Parameters
    ----------
    grid : Grid
    faces : sequence of Faces
        Per axis, with drift and diffusion on the faces.
    periodic : list of bool
        Per axis.

    Returns
    -------
    sparse array or None
        On cell masses; columns sum to zero. None if every face has diffusion.
    """
    rows, columns, entries = [], [], []
    for axis, face in enumerate(faces):
        chosen = (face.diffusion == 0) & (face.lift != 0)
        if not chosen.any():
            continue
        name, n = grid.names[axis], grid.shape[axis]
        stride = int(np.prod(grid.shape[axis + 1 :]))
        first, second = face.first[chosen], face.second[chosen]
        speed = (face.lift / face.distance)[chosen]
        rightward = speed > 0
        up, down = np.where(rightward, first, second), np.where(rightward, second, first)
        number = (up // stride) % n
        before = number + np.where(rightward, -1, 1)
        exists = periodic[axis] | ((before >= 0) & (before < n))
        further = np.where(exists, up + (before % n - number) * stride, up)
        width = grid.widths[name]
        half = 0.5 * width[number]  # from the upwind centre to the face
        ahead = half + 0.5 * width[(down // stride) % n]
        behind = half + 0.5 * width[before % n]
        interpolated = half / ahead * np.where(exists, 2 / 3, 1.0)
        extrapolated = np.where(exists, half / behind / 3, 0.0)
        area = (grid.volumes / _along(width, axis, grid.d)).ravel()[up]
        for cell, weight in (
            (down, interpolated),
            (up, extrapolated - interpolated),
            (further, -extrapolated),
        ):
            flux = np.abs(speed) * area * weight / grid.volumes.ravel()[cell]  # from `up` to `down`, per mass
            rows += [down, up]
            columns += [cell, cell]
            entries += [flux, -flux]
    if not rows:
        return None
    data = (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns)))
    return sps.csr_array(data, shape=(grid.size, grid.size))


def _along(values: np.ndarray, axis: int, d: int) -> np.ndarray:
    return values.reshape((1,) * axis + (-1,) + (1,) * (d - axis - 1))
