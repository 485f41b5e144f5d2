"""Probability currents of a density, face by face as the scheme carries them, and entropy production."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sps
import xarray as xr

from solvers.cross_terms import central_face_fluxes
from solvers.densities import cell_masses
from solvers.eigensolvers import transfer_modes
from solvers.errors import InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.regions import checked_grid
from solvers.transfer import TransferOperator


def probability_current(operator: Any, density: Any = None) -> xr.Dataset:
    """The probability current J of a density, in the stationary state if none is given.

    Parameters
    ----------
    operator : FokkerPlanck or TransferOperator
    density : DataArray over the axes, or array of the grid's shape, optional
        Nonnegative; the current is that of its mass as given.

    Returns
    -------
    Dataset
        ``current(component, *names)``: the components of J at cell centres, each the mean of the two faces;
        for a density of integral 1 in 1/time per unit of area across. ``face_current_<name>`` for each axis,
        over ``<name>_edge`` and the other axes: J through every face, walls included, from which the change
        of every cell's mass follows exactly. ``density(*names)``.

    Raises
    ------
    InvalidInput
        For an unusable density, without a stationary density if none is given, or for a transfer operator
        with absorbing walls.
    ConvergenceFailure
        As for `stationary_density`.

    Warns
    -----
    AccuracyWarning
        In the stationary state of an irreversible operator, if cells are too coarse where the mass lies.

    Notes
    -----
    The faces carry the scheme's own fluxes, so that the sum of what leaves a cell, (L m) of that cell, is
    zero in the stationary state to rounding, eps times the exchange between neighbours. A reversible operator
    between closed walls has the stationary current 0. A jump between diagonal neighbours (correlated noise)
    goes half by either way round the corner, and so does, for a transfer operator, every jump of a step,
    divided by the step; on periodic axes the shorter way.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ring = SDE(lambda t, y, p, xp: (0.7 - xp.sin(y[0]),), lambda t, y, p, xp: (0.6**0.5,), convention="ito")
    >>> fp = FokkerPlanck(ring, Grid.uniform(x=(0, 6.283185307179586, 200)), boundary="periodic")
    >>> [round(v, 4) for v in probability_current(fp).current.values[0, :3].tolist()]
    [0.0325, 0.0325, 0.0325]
    """
    if not isinstance(operator, (FokkerPlanck, TransferOperator)):
        raise InvalidInput(
            f"operator is a {type(operator).__name__}; pass a FokkerPlanck or TransferOperator"
        )
    grid = operator.grid
    masses = None if density is None else cell_masses(grid, density)
    if isinstance(operator, TransferOperator):
        if any("absorbing" in pair for pair in operator.boundary.values()):
            raise InvalidInput(
                "a transfer operator does not say through which wall a step leaves; use reflecting or periodic "
                "walls, or a FokkerPlanck"
            )
        if masses is None:
            masses = np.abs(transfer_modes(operator.matrix, 1, "auto", 1e-10).right[:, 0])
            masses /= masses.sum()
        flows = [flow / operator.step for flow in _jump_flows(operator, masses)]
    elif masses is None:
        masses = stationary_masses(operator.chain)
        if not operator.reversible:
            operator.warn_if_unresolved(masses, stacklevel=3)
        flows = _flows(operator, masses, balanced=operator.reversible)
    else:
        flows = _flows(operator, masses, balanced=False)
    return current_dataset(grid, flows, convention=operator.sde.convention).assign(
        density=(
            grid.names,
            masses.reshape(grid.shape) / grid.volumes,
            {"units": "1", "long_name": "density"},
        )
    )


def entropy_production(fp: FokkerPlanck) -> xr.Dataset:
    """Rate at which the stationary process produces entropy: how far it is from its time reversal.

    Parameters
    ----------
    fp : FokkerPlanck
        With noise along every axis.

    Returns
    -------
    Dataset
        ``rate`` in 1/time (in units of Boltzmann's constant), and where it arises, ``local(*names)``, whose
        integral it is.

    Raises
    ------
    InvalidInput
        If there is no stationary density, or a current flows where there is no noise, so that the rate is
        infinite.
    ConvergenceFailure
        As for `stationary_density`.

    Warns
    -----
    AccuracyWarning
        If cells are too coarse where the mass lies.

    Notes
    -----
    For independent noise it is Schnakenberg's sum over all pairs of cells of (a - b) log(a / b), a and b the
    probabilities per time of going there and back (Rev. Mod. Phys. 48 (1976) 571): exact for the Markov chain
    on the grid, never negative, 0 for a reversible operator. With correlated noise the jumps of the chain are
    more than the directions of the noise, and the sum over them would exceed the entropy production of the
    diffusion on any grid; there it is the integral of J . D^-1 J / p from the currents at cell centres (Seifert,
    Rep. Prog. Phys. 75 (2012) 126001, eq. 34).
    """
    grid = checked_grid(fp)
    masses = stationary_masses(fp.chain)
    if fp.reversible:
        shares, method = np.zeros(grid.size), "detailed balance"
    elif fp.coefficients.correlated:
        shares, method = _current_shares(fp, masses), "current"
    else:
        shares, method = _pair_shares(fp, masses), "pairs"
    if not fp.reversible:
        fp.warn_if_unresolved(masses, stacklevel=3)
    return xr.Dataset(
        {
            "rate": ((), float(shares.sum()), {"units": "1/time", "long_name": "entropy production rate"}),
            "local": (
                grid.names,
                shares.reshape(grid.shape) / grid.volumes,
                {"units": "1/time", "long_name": "entropy production rate per volume"},
            ),
        },
        coords=grid.coordinates(),
        attrs=provenance(convention=fp.sde.convention, method=method),
    )


# ---- flows through faces, in mass per time ----------------------------------------------------------------


def pair_flows(fp: FokkerPlanck, net: np.ndarray) -> list[np.ndarray]:
    """Flows through faces from net flows first -> second on all pairs of the chain.

    Parameters
    ----------
    fp : FokkerPlanck
    net : ndarray
        One entry per pair of ``fp.chain``, in mass per time.

    Returns
    -------
    list of ndarray
        Per axis, of the grid's shape with one more entry along the axis, walls first and last: the flow
        towards larger coordinates. The walls of a periodic axis carry the same flow.
    """
    grid, flows, offset = fp.grid, [], 0
    for face in fp.faces:
        flow = np.zeros(tuple(n + (a == face.axis) for a, n in enumerate(grid.shape)))
        inner = net[offset : offset + face.first.size].reshape(face.first.shape)
        n = grid.shape[face.axis]
        flow[_at(face.axis, slice(1, 1 + inner.shape[face.axis]))] = inner
        if fp.boundary[grid.names[face.axis]][0] == "periodic":
            flow[_at(face.axis, 0)] = flow[_at(face.axis, n)]
        flows.append(flow)
        offset += face.first.size
    if offset < len(net):
        _add_paths(
            fp.grid, fp.boundary, flows, fp.chain.first[offset:], fp.chain.second[offset:], net[offset:]
        )
    return flows


def current_dataset(grid: Grid, flows: list[np.ndarray], *, convention: str) -> xr.Dataset:
    """Flows through faces as current densities on faces and at centres."""
    centred, variables, coords = [], {}, dict(grid.coordinates())
    for axis, (name, flow) in enumerate(zip(grid.names, flows, strict=True)):
        area = np.ones(())
        for other, width in grid.widths.items():
            area = np.multiply.outer(area, np.ones(len(width) + 1) if other == name else width)
        current = flow / area
        dims = tuple(f"{name}_edge" if other == name else other for other in grid.names)
        variables[f"face_current_{name}"] = (
            dims,
            current,
            {"units": "1/time", "long_name": f"probability current through faces across {name}"},
        )
        coords[f"{name}_edge"] = xr.DataArray(
            grid.edges[name],
            dims=f"{name}_edge",
            attrs={"long_name": f"{name}, cell edge", "units": "1"},
        )
        centred.append(0.5 * (current[_at(axis, slice(None, -1))] + current[_at(axis, slice(1, None))]))
    variables["current"] = (
        ("component", *grid.names),
        np.array(centred),
        {"units": "1/time", "long_name": "probability current"},
    )
    coords["component"] = xr.DataArray(
        list(grid.names), dims="component", attrs={"units": "1", "long_name": "component"}
    )
    return xr.Dataset(variables, coords=coords, attrs=provenance(convention=convention))


def _flows(fp: FokkerPlanck, masses: np.ndarray, *, balanced: bool) -> list[np.ndarray]:
    chain = fp.chain
    net = np.zeros(len(chain.first))
    if not balanced:
        net = chain.forward * masses[chain.first] - chain.backward * masses[chain.second]
    flows = pair_flows(fp, net)
    if chain.extra is not None:
        for axis, flow in enumerate(flows):
            inner = (central_face_fluxes(fp.coefficients, fp.boundary, axis) @ masses).reshape(
                fp.faces[axis].first.shape
            )
            flow[_at(axis, slice(1, 1 + inner.shape[axis]))] += inner
            if fp.boundary[fp.grid.names[axis]][0] == "periodic":
                flow[_at(axis, 0)] = flow[_at(axis, fp.grid.shape[axis])]
    _add_wall_flows(fp, flows, masses)
    return flows


def _add_wall_flows(fp: FokkerPlanck, flows: list[np.ndarray], masses: np.ndarray) -> None:
    """What absorbing walls take, diagonal jumps out of a cell shared among the walls it touches."""
    grid = fp.grid
    mass, remaining = masses.reshape(grid.shape), fp.chain.loss.reshape(grid.shape).copy()
    touching = np.zeros(grid.shape)
    for (axis, side), rate in fp.wall_rates.items():
        cells = _at(axis, slice(0, 1) if side == 0 else slice(-1, None))
        remaining[cells] -= rate
        touching[cells] += 1
    for (axis, side), rate in fp.wall_rates.items():
        cells = _at(axis, slice(0, 1) if side == 0 else slice(-1, None))
        taken = mass[cells] * (rate + np.maximum(remaining[cells], 0.0) / touching[cells])
        flows[axis][cells] += taken if side == -1 else -taken


def _jump_flows(operator: TransferOperator, masses: np.ndarray) -> list[np.ndarray]:
    grid = operator.grid
    matrix = sps.coo_array(operator.matrix)
    flows = [np.zeros(tuple(n + (a == axis) for a, n in enumerate(grid.shape))) for axis in range(grid.d)]
    moved = matrix.row != matrix.col
    source, target = matrix.col[moved], matrix.row[moved]
    _add_paths(grid, operator.boundary, flows, source, target, matrix.data[moved] * masses[source])
    return flows


def _add_paths(
    grid: Grid,
    boundary: dict[str, Any],
    flows: list[np.ndarray],
    source: np.ndarray,
    target: np.ndarray,
    amount: np.ndarray,
) -> None:
    """Add jumps from cell to cell to the flows through faces: axis after axis, in either order of the axes."""
    orders = [range(grid.d)] if grid.d == 1 else [range(grid.d), range(grid.d - 1, -1, -1)]
    begin = np.array(np.unravel_index(source, grid.shape))
    end = np.array(np.unravel_index(target, grid.shape))
    for order in orders:
        at = begin.copy()
        for axis in order:
            periodic = boundary[grid.names[axis]][0] == "periodic"
            _add_leg(flows[axis], axis, at, end[axis], amount / len(orders), periodic)
            at[axis] = end[axis]


def _add_leg(
    flow: np.ndarray, axis: int, at: np.ndarray, end: np.ndarray, amount: np.ndarray, periodic: bool
) -> None:
    n = flow.shape[axis] - 1
    shape = tuple(n if a == axis else size for a, size in enumerate(flow.shape))
    size = int(np.prod(shape))
    stop = at.copy()
    stop[axis] = end
    # leaves at the start, arrives at the end: the running sum is what passes the faces between
    change = np.bincount(np.ravel_multi_index(tuple(at), shape), amount, size)
    change -= np.bincount(np.ravel_multi_index(tuple(stop), shape), amount, size)
    inner = np.cumsum(change.reshape(shape), axis=axis)
    flow[_at(axis, slice(1, n))] += inner[_at(axis, slice(0, n - 1))]
    if not periodic:
        return
    step = end - at[axis]
    turns = np.where(step < -n / 2, 1.0, np.where(step > n / 2, -1.0, 0.0))  # across the seam, and which way
    line = at.copy()
    line[axis] = 0
    around = np.bincount(np.ravel_multi_index(tuple(line), shape), amount * turns, size).reshape(shape)
    flow += around[_at(axis, slice(0, 1))]


def _at(axis: int, piece: Any) -> tuple[Any, ...]:
    return (slice(None),) * axis + (piece,)


# ---- entropy ---------------------------------------------------------------------------------------------


def _pair_shares(fp: FokkerPlanck, masses: np.ndarray) -> np.ndarray:
    """Each cell's half of the entropy production of its pairs."""
    grid, shares = fp.grid, np.zeros(fp.grid.size)
    density = masses / grid.volumes.ravel()
    for face in fp.faces:
        first, second, peclet = face.first.ravel(), face.second.ravel(), face.peclet.ravel()
        net = face.forward.ravel() * masses[first] - face.backward.ravel() * masses[second]
        exchange = face.forward.ravel() * masses[first] + face.backward.ravel() * masses[second]
        one_way = np.isinf(peclet) & (np.abs(net) > 1e-12 * exchange.max(initial=0.0))
        if one_way.any():
            raise InvalidInput(
                f"the entropy production is infinite: along {grid.names[face.axis]} a current flows without noise; "
                "give every axis noise"
            )
        # below the rounding of the stationary density a cell's mass may be 0 or less; nothing flows there
        carrying = (density[first] > 0) & (density[second] > 0) & np.isfinite(peclet)
        a, b = first[carrying], second[carrying]
        # log(a / b) from the exponent: the rates themselves may underflow
        share = 0.5 * net[carrying] * (peclet[carrying] + np.log(density[a]) - np.log(density[b]))
        shares += np.bincount(a, share, grid.size) + np.bincount(b, share, grid.size)
    return shares


def _current_shares(fp: FokkerPlanck, masses: np.ndarray) -> np.ndarray:
    """The integral of J . D^-1 J / p over each cell."""
    grid = fp.grid
    flows = _flows(fp, masses, balanced=False)
    current = current_dataset(grid, flows, convention=fp.sde.convention)["current"].values
    tensor = np.array(fp.coefficients.tensor).reshape(grid.d, grid.d, -1)
    current = current.reshape(grid.d, -1)
    carrying = masses > 1e-14 * masses.max()
    determinant = np.linalg.det(np.moveaxis(tensor, 2, 0))
    scale = np.prod([tensor[i, i] for i in range(grid.d)], axis=0)
    if np.any(carrying & (determinant <= 1e-12 * scale)):
        raise InvalidInput(
            "the diffusion tensor is singular, so a current across the noise would produce infinite entropy; "
            "give noise in every direction"
        )
    shares = np.zeros(grid.size)
    solved = np.linalg.solve(np.moveaxis(tensor[:, :, carrying], 2, 0), current[:, carrying].T[:, :, None])
    volume = grid.volumes.ravel()[carrying]
    shares[carrying] = np.sum(current[:, carrying].T * solved[:, :, 0], axis=1) * volume**2 / masses[carrying]
    return shares
