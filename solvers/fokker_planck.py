"""The Fokker-Planck operator of an SDE as a finite-volume generator on a grid."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sps

from solvers import accuracy_warnings, fluxes, memory
from solvers import boundary as boundaries
from solvers.advection import SCHEMES, second_order_correction
from solvers.chain import Chain, Place, reversible_weights
from solvers.coefficients import Coefficients
from solvers.cross_terms import central_cross_terms, corner_rates, needs_central
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.faces import Faces, along, in_one_piece, part
from solvers.grid import Grid
from solvers.request import refuse_other
from solvers.sde import SDE

_SIDES = (0, -1)
# Per cell, measured: faces and generator, while they are assembled.
_BYTES, _BYTES_PER_AXIS = 60, 210


class FokkerPlanck:
    """Generator of the density of an SDE, in the SDE's own convention.

    Unknowns are cell masses m (density times volume), dm/dt = L m. Face fluxes are exponentially fitted
    (`solvers.fluxes`), so L is the rate matrix of a Markov chain: no negative off-diagonal entry, columns
    that sum to zero between reflecting or periodic walls. State-dependent D enters through face differences
    of D itself, no derivative is asked for. With a = drift, D = sigma^2 / 2, the current along one axis is

        J = (a - c D') p - D p',    c = 1 (Ito), 1/2 (Stratonovich), 0 (Klimontovich),

    and D' over a face is D log(D_right / D_left) / h, which keeps p D^c = const exactly without drift.
    A drift from a potential (`from_potential`) enters through potential differences: with constant D the
    stationary weights are exp(-U / D) to rounding. With ``flux="chang-cooper"`` a and D' are read on the face
    itself; neither is exact then, the order is the same. The error is second order in the cell size; on an
    axis without noise it is first order (upwind), unless ``advection="second-order"``.

    Correlated noise (``noise="general"`` in two or more dimensions) adds jumps between diagonal neighbours
    (Kushner and Dupuis 2001, sec. 5.3) and hybrid central fluxes across faces. All rates are nonnegative
    where D_ii >= sum_j |D_ij| h_i / h_j on every axis; spacings h_i in proportion to sqrt(D_ii) leave most
    to the faces and are most accurate. Elsewhere, or on non-uniform axes, cross terms are second-order
    central differences, with a warning. Diagonal jumps out of an absorbing wall are killed a full cell away,
    which is first order.

    Parameters
    ----------
    sde : SDE
        Autonomous: drift and diffusion must not depend on t.
    grid : Grid
        Its names must be the SDE's names, in the same order.
    boundary : str or mapping
        "reflecting", "absorbing" (density zero on the face), "periodic", or ``{axis: (low, high)}``.
    flux : {"scharfetter-gummel", "chang-cooper"}
    advection : {"upwind", "second-order"}
        Fluxes across faces where D vanishes. "upwind" is positive and adds the diffusion |a| h / 2 (`resolution`
        gives the number); "second-order" adds none at that order, but no such scheme is positive: where the
        density is not smooth on the scale of a cell it can become slightly negative.
    allow_wall_mass : bool
        Accept a reflecting wall against which the drift presses the density along its whole length, and one
        without which the density would not be normalisable.

    Attributes
    ----------
    generator, adjoint : scipy.sparse.csr_array
        L on cell masses, and its transpose (the backward operator on functions of the state).
    reversible : bool
        Whether the discrete operator keeps detailed balance exactly: always in one dimension without a
        periodic axis (unless D vanishes on a face), otherwise decided by Kolmogorov's criterion on all faces.
    grid, sde, boundary

    Raises
    ------
    InvalidInput
        If names differ, coefficients depend on time or are not finite on the grid, a word is unknown, a
        periodic axis does not close, the grid misses the mass, or the operator would not fit in memory.

    Warns
    -----
    AccuracyWarning
        If correlated noise is too strong for the positive stencil.

    References
    ----------
    Scharfetter and Gummel, IEEE Trans. Electron Devices 16 (1969) 64; Chang and Cooper, J. Comput. Phys. 6
    (1970) 1.

    Examples
    --------
    >>> from solvers import SDE, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> FokkerPlanck(ou, Grid.uniform(x=(-4, 4, 100))).reversible
    True
    """

    def __init__(
        self,
        sde: Any,
        grid: Grid,
        *,
        boundary: boundaries.Boundary = "reflecting",
        flux: str = "scharfetter-gummel",
        advection: str = "upwind",
        allow_wall_mass: bool = False,
    ):
        refuse_other(sde, SDE, "sde")
        refuse_other(grid, Grid, "grid")
        self.sde, self.grid = sde, grid
        self.boundary = boundaries.walls(boundary, grid.names)
        if flux not in fluxes.FLUXES:
            raise InvalidInput(f"flux={flux!r} is unknown; choose one of {', '.join(fluxes.FLUXES)}")
        if advection not in SCHEMES:
            raise InvalidInput(f"advection={advection!r} is unknown; choose one of {', '.join(SCHEMES)}")
        self.flux, self.advection, self.allow_wall_mass = flux, advection, allow_wall_mass
        memory.require(
            (_BYTES + _BYTES_PER_AXIS * grid.d) * grid.size,
            f"an operator on {grid.size} cells",
            "use fewer cells",
        )
        self._coefficients = Coefficients(sde, grid)
        self._corners = self._choose_cross_terms()
        self.face_flux, self._excess, self._coefficients.pointwise = fluxes.FLUXES[flux]
        if self._corners == "positive":
            self.face_flux, self._excess = fluxes.hybrid, fluxes.hybrid_excess_diffusion
        self.faces, self._rates = in_one_piece([self._interior_faces(axis) for axis in range(grid.d)])
        self._wall_loss = np.zeros(grid.size)
        self.wall_rates: dict[tuple[int, int], np.ndarray] = {}  # (axis, side): into an absorbing wall
        self.wall_pressure: dict[tuple[str, str], np.ndarray] = {}  # drift out of a reflecting wall
        for axis in range(grid.d):
            self._add_walls(axis, allow_wall_mass)

    @cached_property
    def chain(self) -> Chain:
        """The operator as pairs of rates; what spectra and observables work on."""
        grid = self.grid
        pairs = [(f.first, f.second) for f in self.faces]
        forward, backward = self._rates
        loss, extra, log_weights = self._wall_loss.copy(), None, None
        if self._corners == "positive":
            first, second, ahead, back, corner_loss = corner_rates(self._coefficients, self.boundary)
            pairs.append((first, second))
            forward, backward = np.concatenate([forward, ahead]), np.concatenate([backward, back])
            loss += corner_loss
        elif self._corners == "central":
            extra = central_cross_terms(self._coefficients, self.boundary)
        else:
            density = reversible_weights(grid.shape, [(f.first, f.second, f.peclet) for f in self.faces])
            if density is not None:
                log_weights = (density + np.log(grid.volumes)).ravel()
                log_weights -= log_weights.max()
        if self.advection == "second-order":
            periodic = [self.boundary[name][0] == "periodic" for name in grid.names]
            correction = second_order_correction(grid, self.faces, periodic)
            if correction is not None:
                extra = correction if extra is None else sps.csr_array(extra + correction)
        first, second = (np.concatenate([np.ravel(pair[k]) for pair in pairs]) for k in range(2))
        return Chain(
            size=grid.size,
            first=first,
            second=second,
            forward=forward,
            backward=backward,
            loss=loss,
            log_weights=log_weights,
            rate_scale=self._rate_scale(),
            linear=grid.d == 1 and self.boundary[grid.names[0]][0] != "periodic",
            joined=not any(np.isnan(f.peclet).any() for f in self.faces),
            widths=tuple(grid.widths.values()) if self._corners == "none" else (),
            extra=extra,
            place=Place(grid.shape, tuple(self.boundary[n][0] == "periodic" for n in grid.names)),
        )

    @property
    def generator(self) -> sps.csr_array:
        """L on cell masses, dm/dt = L m, CSR of shape (size, size)."""
        return self.chain.generator

    @cached_property
    def adjoint(self) -> sps.csr_array:
        """Transpose of the generator: the backward operator on functions of the state."""
        return sps.csr_array(self.generator.T)

    @property
    def reversible(self) -> bool:
        """Whether detailed balance is exact in the discrete operator."""
        return self.chain.reversible

    @property
    def coefficients(self) -> Coefficients:
        """Drift and diffusion as read on the grid."""
        return self._coefficients

    def __repr__(self) -> str:
        return f"FokkerPlanck({self.grid!r}, convention={self.sde.convention!r}, boundary={self.boundary})"

    # ---- assembly ----------------------------------------------------------------------------------------

    def _choose_cross_terms(self) -> str:
        if not self._coefficients.correlated:
            return "none"
        reason = needs_central(self._coefficients)
        if reason is None:
            self._coefficients.split_diagonal = True
            return "positive"
        warnings.warn(AccuracyWarning(reason), stacklevel=3)
        return "central"

    def _interior_faces(self, axis: int) -> Faces:
        grid, name = self.grid, self.grid.names[axis]
        centers, edges, widths = grid.centers[name], grid.edges[name], grid.widths[name]
        cells = np.arange(grid.size).reshape(grid.shape)
        low, high, position = centers[:-1], centers[1:], edges[1:-1]
        first, second = part(cells, axis, slice(None, -1)), part(cells, axis, slice(1, None))
        width_low, width_high = widths[:-1], widths[1:]
        if self.boundary[name][0] == "periodic":
            period = edges[-1] - edges[0]
            low, high = np.append(low, centers[-1]), np.append(high, centers[0] + period)
            position = np.append(position, edges[-1])
            first = np.concatenate([first, part(cells, axis, slice(-1, None))], axis)
            second = np.concatenate([second, part(cells, axis, slice(0, 1))], axis)
            width_low, width_high = np.append(width_low, widths[-1]), np.append(width_high, widths[0])
            self._coefficients.refuse_unclosed(axis)
        diffusion, lift = self._coefficients.face_arguments(axis, position, low, high, periodic=True)
        distance = np.broadcast_to(along(high - low, axis, grid.d), diffusion.shape)
        forward, backward = self.face_flux(diffusion, distance, lift)
        return Faces(
            axis=axis,
            first=first,
            second=second,
            start=np.broadcast_to(along(low, axis, grid.d), diffusion.shape),
            distance=distance,
            diffusion=diffusion,
            lift=lift,
            split=self._coefficients.split_part(axis, position),
            forward=forward / along(width_low, axis, grid.d),
            backward=backward / along(width_high, axis, grid.d),
        )

    def _add_walls(self, axis: int, allow_wall_mass: bool) -> None:
        grid, name = self.grid, self.grid.names[axis]
        cells = np.arange(grid.size).reshape(grid.shape)
        for side, word, kind in zip(_SIDES, ("low", "high"), self.boundary[name], strict=True):
            if kind == "periodic":
                continue
            wall, center = grid.edges[name][side], grid.centers[name][side]
            # counted outwards: from the centre of the last cell to the wall, half a cell away
            diffusion, lift = self._coefficients.face_arguments(
                axis, np.array([wall]), np.array([center]), np.array([wall])
            )
            distance = abs(wall - center)
            if kind == "absorbing":
                outward, _ = self.face_flux(diffusion, np.full_like(lift, distance), lift)
                edge_cells = part(cells, axis, slice(0, 1) if side == 0 else slice(-1, None))
                self.wall_rates[axis, side] = outward / grid.widths[name][side]
                self._wall_loss[edge_cells.ravel()] += self.wall_rates[axis, side].ravel()
                continue
            # the next face inwards must agree: where D vanishes on the wall itself, the wall alone misleads
            inner = part(self.faces[axis].lift, axis, slice(0, 1) if side == 0 else slice(-1, None))
            pressed = np.where(inner * (-1.0 if side == 0 else 1.0) > 0, lift / distance, 0.0)
            self.wall_pressure[name, word] = pressed
            if np.all(pressed > 0) and not allow_wall_mass:
                speed = float(np.median(pressed))
                raise InvalidInput(
                    f"the grid misses the mass: along the whole {word} wall {name}={wall:g} the effective "
                    f"drift is {speed:.4g} out of the grid, so probability piles up there; widen the grid "
                    f"{'below' if side == 0 else 'above'} {name}={wall:g}, or pass allow_wall_mass=True if "
                    "the wall is part of the model"
                )

    def _rate_scale(self) -> float:
        total = 0.0
        for face, edges in zip(self.faces, self.grid.edges.values(), strict=True):
            extent = edges[-1] - edges[0]
            diffusive = float(face.diffusion.mean()) / extent**2
            total += diffusive or float(np.abs(face.lift / face.distance).mean()) / extent
        return total or 1.0

    # ---- accuracy that depends on where the mass is ------------------------------------------------------

    def warn_if_unresolved(self, masses: np.ndarray, stacklevel: int = 3) -> None:
        """Warn if cells are too coarse, or the grid too narrow, for where the stationary mass lies.

        Parameters
        ----------
        masses : ndarray of shape (size,)
            Stationary masses, summing to 1.
        stacklevel : int
            As for `warnings.warn`.
        """
        accuracy_warnings.warn_if_unresolved(self, masses, stacklevel + 1)

    def warn_if_tail_is_heavy(self, stacklevel: int = 3) -> None:
        """Warn if the density, in one dimension, would not be normalisable without its reflecting walls.

        Parameters
        ----------
        stacklevel : int
            As for `warnings.warn`.
        """
        accuracy_warnings.warn_if_tail_is_heavy(self, stacklevel + 1)

    def mean_excess(self, masses: np.ndarray, axis: int) -> tuple[float, float, bool]:
        """Root mean square Peclet number and mean relative excess diffusion on the faces across an axis.

        Parameters
        ----------
        masses : ndarray of shape (size,)
        axis : int

        Returns
        -------
        peclet, excess : float
            Averaged over the mass at faces with noise.
        noisy : bool
            Whether there are any.
        """
        face = self.faces[axis]
        diffusive = face.diffusion > 0
        if not diffusive.any():
            return 0.0, 0.0, False
        weight = np.where(diffusive, masses[face.first] + masses[face.second], 0.0)
        peclet = np.where(diffusive, face.peclet, 0.0)
        model = 1.0 + face.split / np.where(diffusive, face.diffusion, 1.0)
        total = max(float(weight.sum()), 1e-300)
        square = float(np.sum(weight * np.minimum(np.abs(peclet / model), 1e150) ** 2)) / total
        return np.sqrt(square), float(np.sum(weight * (self._excess(peclet) / model)) / total), True

    def upwind_diffusion(self, masses: np.ndarray, axis: int) -> tuple[float, float]:
        """Mean diffusion |a| h / 2 added on faces without noise, and over spread times speed along the axis.

        Parameters
        ----------
        masses : ndarray of shape (size,)
        axis : int

        Returns
        -------
        added, share : float
            In length^2 / time, and relative to (variance * mean a^2)^1/2; zero with second-order advection.
        """
        face, name = self.faces[axis], self.grid.names[axis]
        still = (face.diffusion + face.split) == 0
        if self.advection != "upwind" or not still.any():
            return 0.0, 0.0
        weight = 0.5 * (masses[face.first] + masses[face.second]) * still
        speed = np.abs(face.lift) / face.distance
        added = float(np.sum(weight * 0.5 * speed * face.distance))
        center, others = self.grid.centers[name], tuple(j for j in range(self.grid.d) if j != axis)
        marginal = masses.reshape(self.grid.shape).sum(axis=others)
        variance = float((marginal * (center - (marginal * center).sum()) ** 2).sum())
        motion = np.sqrt(variance * float(np.sum(weight * speed**2)))
        return added, added / motion if motion > 0 else 0.0
