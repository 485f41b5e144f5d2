"""Ensembles of a model of the catalogue, with steps and end in the model's own time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

import solvers
from eos_sde.models.registry import Model
from solvers import Grid, InvalidInput
from solvers.provenance import provenance

QUANTILES = (0.05, 0.5, 0.95)
_STEPS, _PATHS = 100, 10_000
_FINER = 10
_MOST_STEPS = 1e12


def simulate_model(
    model: Model,
    parameters: Mapping[str, float],
    *,
    start: Mapping[str, float] | None = None,
    t1: float | None = None,
    dt: float | None = None,
    paths: int | None = None,
    seed: int,
    scheme: str = "euler-maruyama",
    times: int = 200,
    histogram: Grid | None = None,
    save_paths: bool = False,
    threads: int | None = None,
    progress: Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """Simulate an ensemble of a model: mean, its error, variance and quantiles over time.

    Parameters
    ----------
    model : Model
    parameters : mapping of str to float
    start : mapping of str to float, optional
        Of each component; the model's own where left out.
    t1, dt : float, optional
        End and step in the model's time; 100 SGD steps, and a tenth of one, if left out. A map has its own step.
    paths : int, optional
        10 000, or 1 of a model without noise, if left out.
    seed, scheme, histogram, save_paths, threads, progress
        As for `solvers.simulate`.
    times : int
        About how many times are kept, besides the start.

    Returns
    -------
    Dataset
        That of `solvers.simulate`.

    Raises
    ------
    InvalidInput
        If an argument is unusable, or a step or scheme is given for a map.
    """
    whole = model.complete(**parameters)
    begin = {**model.start, **(start or {})}
    made = model.build(**whole)
    one = model.step_time(**whole)
    if paths is None:
        paths = _PATHS if any(whole[name] for name in model.kicks) else 1
    if model.discrete:
        if dt is not None:
            raise InvalidInput(f"dt={dt:g}: {model.name} has its own step, {one:g}; leave dt out")
        if scheme != "euler-maruyama":
            raise InvalidInput(
                f"scheme={scheme!r}: a step of {model.name} is one of euler-maruyama; leave it out"
            )
    step = one if model.discrete else one / _FINER if dt is None else dt
    end = _STEPS * one if t1 is None else t1
    if not (math.isfinite(step) and step > 0 and math.isfinite(end) and end > 0):
        raise InvalidInput(f"t1={end:g}, dt={step:g}: give an end and a step above 0")
    if end / step > _MOST_STEPS:
        raise InvalidInput(
            f"t1={end:g} takes {end / step:.2g} steps of dt={step:g}: give an earlier end or a longer step"
        )
    if times < 1:
        raise InvalidInput(f"times={times}: give at least 1")
    table = solvers.simulate(
        made,
        [begin[name] for name in made.names],
        t1=end,
        dt=step,
        paths=paths,
        seed=seed,
        scheme=scheme,
        save_every=max(1, round(end / step / times)),
        save_paths=save_paths,
        statistics=("mean", "mean_stderr", "variance"),
        quantiles=QUANTILES,
        histogram=histogram,
        threads=threads,
        progress=progress,
        allow_unstable_step=model.discrete,
    )
    return table.assign_attrs(
        provenance(
            kind="simulation", model=model.name, description=model.description, parameters=json.dumps(whole),
            start=json.dumps(begin), step_time=one,
        )
    )  # fmt: skip
