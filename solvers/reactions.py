"""Transition path theory: how often, how fast and where a process goes from one region to another."""

from __future__ import annotations

import numpy as np
import xarray as xr

from solvers.currents import current_dataset, pair_flows
from solvers.elimination import Elimination
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.regions import (
    Exits,
    Region,
    checked_grid,
    disjoint_cells,
    killed,
    place,
    refuse_unreachable,
)


def reaction_rate(fp: FokkerPlanck, source: Region, target: Region) -> xr.Dataset:
    """Rate, duration, density and current of the transitions from one region to another.

    Parameters
    ----------
    fp : FokkerPlanck
        With a stationary density; reversible or not.
    source, target : callable
        Predicates on coordinate arrays, as for `committor`; disjoint, and not touching.

    Returns
    -------
    Dataset
        In the stationary state, for trajectories that left the source last and reach the target next
        ("reactive"):

        ``rate``: their number per unit of time, the same from target to source; ``transition_time``: mean
        duration of one; ``source_residence``: mean time from reaching the source (coming from the target) to
        reaching the target, whose inverse is the rate constant source -> target; ``target_residence``: the
        same with the roles exchanged. ``forward_committor(*names)``: probability to reach the target before
        the source; ``backward_committor(*names)``: probability to have come from the source rather than the
        target; ``reactive_density(*names)``: density of reactive trajectories, whose integral is the share of
        time spent on them. ``reactive_current(component, *names)`` at centres and
        ``reactive_face_current_<name>`` through faces: their net probability current, in 1/time per area.

    Raises
    ------
    InvalidInput
        If the regions overlap, touch, are empty or not reached from everywhere, if there is no stationary
        density, or with correlated noise beyond the positive stencil.
    ConvergenceFailure
        As for `stationary_density`, or if the rate is below the range of floats.

    Notes
    -----
    E and Vanden-Eijnden, Annu. Rev. Phys. Chem. 61 (2010) 391; Metzner, Schuette and Vanden-Eijnden, Multiscale
    Model. Simul. 7 (2009) 1192 for chains. The backward committor is that of the time-reversed chain, whose rates
    are m_j k_ji / m_i; both come from one elimination without subtractions, so that for reversible operators
    exponentially small rates keep their relative accuracy. Edges of regions are found between cell centres:
    the flow out of an edge is what the stationary current and the flow into it leave.
    """
    grid = checked_grid(fp)
    in_source, in_target = disjoint_cells(grid, source, target)
    _refuse_touching(fp, in_source, in_target)
    if fp.chain.extra is not None:
        raise InvalidInput(
            "correlated noise is discretised by signed central differences on this grid, which is no Markov chain; "
            "use cells with h1/h2 = sqrt(D11/D22)"
        )
    masses = np.maximum(stationary_masses(fp.chain), 0.0)
    free = ~(in_source | in_target)
    chain, rates, exits = killed(fp, [source, target], [in_source, in_target])
    refuse_unreachable(grid, chain, free)
    inflow = _inflow(fp, exits, masses)
    elimination = Elimination(chain)
    forward, from_source = in_target.astype(float), np.where(in_source, masses, 0.0)
    backward = in_source.astype(float)
    forward[free] = np.minimum(elimination.solve(rates[1][free]), 1.0)
    if fp.reversible:
        backward[free] = np.minimum(elimination.solve(rates[0][free]), 1.0)
        from_source = masses * backward
    else:
        entering = np.bincount(exits.cell, np.where(exits.region == 0, inflow, 0.0), grid.size)
        from_source[free] = np.minimum(elimination.solve_transposed(entering[free]), masses[free])
        carrying = free & (masses > 0)
        backward[carrying] = from_source[carrying] / masses[carrying]
    leaving = exits.rate * from_source[exits.cell]
    rate = float(leaving[exits.region == 1].sum())
    if not rate > 0:
        raise ConvergenceFailure("the reaction rate is below the smallest float; use more noise")
    reactive = from_source * forward
    net = _net_flows(fp, free, exits, from_source, forward, inflow, leaving)
    currents = current_dataset(grid, pair_flows(fp, net), convention=fp.sde.convention)
    names = {f"face_current_{name}": f"reactive_face_current_{name}" for name in grid.names}
    result = currents.rename({"current": "reactive_current", **names})
    for name in result.data_vars:
        result[name].attrs["long_name"] = f"reactive {result[name].attrs['long_name']}"
    share = float(from_source.sum())
    numbers = {
        "rate": (rate, "1/time", "transitions from source to target per unit of time"),
        "transition_time": (reactive.sum() / rate, "time", "mean duration of a transition"),
        "source_residence": (
            share / rate,
            "time",
            "mean time from reaching the source to reaching the target",
        ),
        "target_residence": (
            float((masses - from_source).sum()) / rate,
            "time",
            "mean time from reaching the target to reaching the source",
        ),
    }
    fields = {
        "forward_committor": (forward, "probability of target before source"),
        "backward_committor": (backward, "probability of coming from source rather than target"),
        "reactive_density": (reactive / grid.volumes.ravel(), "density of reactive trajectories"),
    }
    return result.assign(
        {name: ((), float(v), {"units": u, "long_name": text}) for name, (v, u, text) in numbers.items()}
    ).assign(
        {
            name: (grid.names, values.reshape(grid.shape), {"units": "1", "long_name": text})
            for name, (values, text) in fields.items()
        }
    ).assign_attrs(provenance(convention=fp.sde.convention))  # fmt: skip


def _refuse_touching(fp: FokkerPlanck, in_source: np.ndarray, in_target: np.ndarray) -> None:
    first, second = fp.chain.first, fp.chain.second
    touching = (in_source[first] & in_target[second]) | (in_target[first] & in_source[second])
    if touching.any():
        where = place(fp.grid, int(first[np.argmax(touching)]))
        raise InvalidInput(
            f"source and target touch at {where}, so that the rate of transitions is infinite; leave cells between"
        )


def _inflow(fp: FokkerPlanck, exits: Exits, masses: np.ndarray) -> np.ndarray:
    """Stationary flow from each region's edge into the free cell, per exit."""
    flow = exits.rate * masses[exits.cell]
    if fp.reversible:
        return flow
    chain, outwards = fp.chain, _outwards(fp, exits)
    net = chain.forward * masses[chain.first] - chain.backward * masses[chain.second]
    return np.maximum(flow - outwards * net[exits.pair], 0.0)


def _outwards(fp: FokkerPlanck, exits: Exits) -> np.ndarray:
    """1 where the free cell is the pair's first one, -1 where it is the second."""
    return np.where(fp.chain.first[exits.pair] == exits.cell, 1.0, -1.0)


def _net_flows(
    fp: FokkerPlanck,
    free: np.ndarray,
    exits: Exits,
    from_source: np.ndarray,
    forward: np.ndarray,
    inflow: np.ndarray,
    leaving: np.ndarray,
) -> np.ndarray:
    """Net reactive flow first -> second on every pair."""
    chain = fp.chain
    first, second = chain.first, chain.second
    there = from_source[first] * chain.forward * forward[second]
    back = from_source[second] * chain.backward * forward[first]
    net = np.where(free[first] & free[second], there - back, 0.0)
    flow = np.where(exits.region == 1, leaving, -inflow * forward[exits.cell])
    return net + np.bincount(exits.pair, _outwards(fp, exits) * flow, len(net))
