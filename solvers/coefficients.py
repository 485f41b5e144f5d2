"""Drift and diffusion of an SDE on the centres and faces of a grid, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np

from solvers.errors import InvalidInput
from solvers.grid import Grid

# share of the gradient of D in the current: J = (a - c D') p - D p'
_SHARE = {"ito": 1.0, "stratonovich": 0.5, "klimontovich": 0.0}
_OTHER_TIME = 0.7390851
# Cells at which a dependence on time is looked for at once.
_LOOKED_AT = 50_000


class Coefficients:
    """Reads an autonomous SDE on a grid.

    Parameters
    ----------
    sde : SDE
    grid : Grid

    Attributes
    ----------
    correlated : bool
        Whether D has off-diagonal entries somewhere on the grid.
    split_diagonal : bool
        Whether `diagonal` leaves sum_j |D_ij| h_i / h_j to jumps between diagonal neighbours.
    pointwise : bool
        Whether `face_arguments` reads drift and D' at the face, instead of differences of the potential and of
        log D between centres.

    Raises
    ------
    InvalidInput
        If names differ, a coefficient depends on time, or is not finite at a cell centre.
    """

    def __init__(self, sde: Any, grid: Grid):
        if tuple(grid.names) != tuple(sde.names):
            raise InvalidInput(
                f"the grid's axes are ({', '.join(grid.names)}) but the SDE's components are "
                f"({', '.join(sde.names)}); use the same names in the same order"
            )
        self.grid, self.split_diagonal, self.pointwise = grid, False, False
        self.sde = sde
        mesh = grid.coords()
        self._refuse_time(mesh)
        sigma = self._sigma(mesh)
        # D_ij = 0 everywhere and constant sigma need no derivative of sigma, whatever the convention
        if (
            sde.noise == "general"
            and sde.convention != "ito"
            and any(np.ptp(s) > 0 for row in sigma for s in row)
        ):
            self.sde = sde.to("ito")
        self.share = 1.0 if sde.noise == "general" else _SHARE[sde.convention]
        self.tensor = _tensor(sigma)
        self.correlated = any(
            not _absent(self.tensor[i][j]) and np.any(self.tensor[i][j] != 0)
            for i in range(grid.d)
            for j in range(i)
        )
        self._drift(mesh)

    def diagonal(self, axis: int, coords: tuple[np.ndarray, ...]) -> np.ndarray:
        """D_ii at points, less what diagonal jumps carry."""
        tensor = self.tensor_at(coords)
        # dominance was checked at centres and faces; clip rounding
        return np.maximum(tensor[axis][axis] - self._corner_share(axis, tensor), 0.0)

    def split_part(self, axis: int, position: np.ndarray) -> np.ndarray:
        """What diagonal jumps carry of D_ii on the faces at `position` along an axis."""
        tensor = self.tensor_at(self._mesh(axis, position))
        return np.broadcast_to(self._corner_share(axis, tensor), tensor[axis][axis].shape)

    def _corner_share(self, axis: int, tensor: list[list[np.ndarray]]) -> np.ndarray:
        if not self.split_diagonal:
            return np.zeros(())
        h = [w.mean() for w in self.grid.widths.values()]
        others = [j for j in range(self.grid.d) if j != axis]
        return sum((np.abs(tensor[axis][j]) * (h[axis] / h[j]) for j in others), np.zeros(()))

    def tensor_at(self, coords: tuple[np.ndarray, ...]) -> list[list[np.ndarray]]:
        """D = sigma sigma^T / 2 at points, as a d by d nested list of arrays."""
        return _tensor(self._sigma(coords))

    def face_arguments(
        self,
        axis: int,
        position: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        periodic: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arguments of a flux from `low` to `high` through faces at `position` along an axis.

        Parameters
        ----------
        axis : int
        position, low, high : ndarray
            Coordinates along the axis; the other axes are at cell centres. Below a grid's low wall `high`
            is less than `low`: the flux is counted from `low` to `high` all the same.
        periodic : bool
            Whether `high` may lie beyond the grid, by a period.

        Returns
        -------
        diffusion, lift : ndarray
            D on the face, and the effective drift from `low` to `high` times the distance.
        """
        at_face, at_low = self._mesh(axis, position), self._mesh(axis, low)
        at_high = self._mesh(axis, high)
        diffusion = self.diagonal(axis, at_face)
        if self.sde.potential is not None and not self.pointwise:
            lift = self._potential(at_low) - self._potential(at_high)
        else:
            signed = (high - low).reshape((1,) * axis + (-1,) + (1,) * (self.grid.d - axis - 1))
            lift = self._drift(at_face)[axis] * signed
        if self.share:
            wrapped = self._mesh(axis, self._wrap(axis, high)) if periodic else at_high
            before, after = self.diagonal(axis, at_low), self.diagonal(axis, wrapped)
            positive = (before > 0) & (after > 0) & (not self.pointwise)
            ratio = np.log(np.where(positive, after, 1.0)) - np.log(np.where(positive, before, 1.0))
            lift = lift - self.share * np.where(positive, diffusion * ratio, after - before)
        return diffusion, lift

    def refuse_unclosed(self, axis: int) -> None:
        """Refuse a periodic axis on which drift or diffusion differ at the two ends."""
        name = self.grid.names[axis]
        edges = self.grid.edges[name]
        low, high = self._mesh(axis, edges[:1]), self._mesh(axis, edges[-1:])
        scale = max(float(np.abs(v).max()) for v in self._drift(self.grid.coords()))
        for what, here, there in zip(
            ("drift", "diffusion"),
            *((self._drift(c)[axis], self.diagonal(axis, c)) for c in (low, high)),
            strict=True,
        ):
            size = scale if what == "drift" else float(np.abs(here).max())
            worst = int(np.argmax(np.abs(here - there)))
            if np.abs(here - there).max() > 1e-6 * max(size, 1e-12):
                raise InvalidInput(
                    f"axis {name} is periodic but the {what} is {here.ravel()[worst]:.6g} at "
                    f"{name}={edges[0]:g} and {there.ravel()[worst]:.6g} at {name}={edges[-1]:g}; "
                    "let the axis span one period"
                )

    # ---- reading the model -------------------------------------------------------------------------------

    def _mesh(self, axis: int, position: np.ndarray) -> tuple[np.ndarray, ...]:
        lines = list(self.grid.centers.values())
        lines[axis] = position
        return tuple(np.meshgrid(*lines, indexing="ij"))

    def _wrap(self, axis: int, position: np.ndarray) -> np.ndarray:
        edges = self.grid.edges[self.grid.names[axis]]
        return np.where(position > edges[-1], position - (edges[-1] - edges[0]), position)

    def _drift(self, coords: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            values = self.sde.drift_at(0.0, coords)
        for name, value in zip(self.grid.names, values, strict=True):
            self._refuse_nonfinite(f"the drift of {name}", value, coords)
        return values

    def _sigma(self, coords: tuple[np.ndarray, ...]) -> list[list[np.ndarray]]:
        with np.errstate(all="ignore"):
            rows = self.sde.diffusion_at(0.0, coords)
        if self.sde.noise == "diagonal":
            zero = np.broadcast_to(0.0, rows[0].shape)
            rows = [[row if i == j else zero for j in range(len(rows))] for i, row in enumerate(rows)]
        for name, row in zip(self.grid.names, rows, strict=True):
            for value in row:
                if not _absent(value):
                    self._refuse_nonfinite(f"the diffusion of {name}", value, coords)
        return [list(row) for row in rows]

    def _potential(self, coords: tuple[np.ndarray, ...]) -> np.ndarray:
        with np.errstate(all="ignore"):
            value = self.sde.potential(0.0, coords, self.sde.params, np)
        value = np.broadcast_to(np.asarray(value, dtype=float), coords[0].shape)
        self._refuse_nonfinite("the potential", value, coords)
        return value

    def _refuse_nonfinite(self, what: str, value: np.ndarray, coords: tuple[np.ndarray, ...]) -> None:
        if np.isfinite(value).all():
            return
        bad = int(np.argmin(np.isfinite(value)))
        place = ", ".join(f"{n}={c.flat[bad]:g}" for n, c in zip(self.grid.names, coords, strict=True))
        raise InvalidInput(
            f"{what} is {value.flat[bad]} at {place}; change the model or leave this point out of the grid"
        )

    def _refuse_time(self, mesh: tuple[np.ndarray, ...]) -> None:
        """In every cell, since only some may change, and in blocks of them, which takes little memory."""
        flat = [np.ascontiguousarray(m).ravel() for m in mesh]
        for begin in range(0, flat[0].size, _LOOKED_AT):
            some = tuple(m[begin : begin + _LOOKED_AT] for m in flat)
            with np.errstate(all="ignore"):
                for what, read in (("drift", self.sde.drift_at), ("diffusion", self.sde.diffusion_at)):
                    now, later = np.array(read(0.0, some)), np.array(read(_OTHER_TIME, some))
                    if not np.array_equal(now, later, equal_nan=True):
                        raise InvalidInput(
                            f"the {what} depends on time, and an operator on a grid needs an autonomous SDE; fix t "
                            "in the model's functions, or use TimeDependentFokkerPlanck with evolve"
                        )


def _tensor(sigma: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """D = sigma sigma^T / 2, entry by entry; absent entries take neither time nor memory."""

    def entry(i: int, j: int) -> np.ndarray:
        parts = [
            0.5 * a * b for a, b in zip(sigma[i], sigma[j], strict=True) if not (_absent(a) or _absent(b))
        ]
        return sum(parts[1:], parts[0]) if parts else np.broadcast_to(0.0, sigma[i][0].shape)

    return [[entry(i, j) for j in range(len(sigma))] for i in range(len(sigma))]


def _absent(values: np.ndarray) -> bool:
    """Whether an array is a single zero, broadcast."""
    return values.size > 0 and not any(values.strides) and values.flat[0] == 0
