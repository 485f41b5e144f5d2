"""Whether CAEO rests at its plateau, runs away or diverges, over its margin, the batch size and the base rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from eos_sde.models.arguments import count, finite, non_negative, positive
from eos_sde.thresholds.capped_well import CappedWell
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput
from solvers.provenance import provenance

REGIMES = ("stable", "runaway", "diverging", "outside", "uncapped")
"""Meanings of the numbers 0, 1, ... in ``regime``.

stable: noise holds the sharpness for the horizon, from the plateau; runaway: it leaves upwards; diverging: the first
step is beyond the catapult edge; outside: the sharpness falls to where the reduced model ends, which then cannot say
whether the network lands flatter or diverges; uncapped: within the horizon the sharpness cannot reach the cap, and
CAEO is plain SGD."""
_SOURCE = "arXiv:2604.21016 (gap), with the cap of CAEO"
_FACTOR = 2.0  # of the averaged rate against the map's, for delta below the onset: tests/thresholds
_SMALLEST = 1e-6  # margin
_LARGEST = 1.9
_RUNS, _SEED = 64, 0  # of the map, to see whether it ends below


class Source(NamedTuple):
    """An independent source of error: by how much it moves log q and log e in one standard error."""

    noise: float
    speed: float


@dataclass(frozen=True)
class CaeoStability:
    """What the reduced model says of CAEO at one setting.

    Attributes
    ----------
    regime : str
        One of `REGIMES`.
    onset : Threshold
        delta_c, from which on averaged noise no longer holds the sharpness: where well and separatrix merge.
    small_noise_onset : Threshold
        The law eta_base^2 beta sigma^2/(4 alpha), to which `onset` tends where it is small.
    escape_onset : Threshold
        Margin at which one escape is expected within the horizon; what a run shows.
    escape_rate : float
        At the given margin, per step.
    plateau, separatrix : float
        Sharpness at which noise holds it, and beyond which the cap lets it rise.
    adiabaticity : float
        Rate of the sharpness over that of the oscillation, e/g^2 with g the plateau's distance from the edge: the
        averaged operator is exact where it is small.
    """

    regime: str
    onset: Threshold
    small_noise_onset: Threshold
    escape_onset: Threshold
    escape_rate: float
    plateau: float
    separatrix: float
    adiabaticity: float


def caeo_stability(
    *,
    alpha: float,
    beta: float,
    gradient_variance: float,
    sharpness: float,
    eta_base: float,
    delta: float,
    horizon: int,
    alpha_stderr: float = 0.0,
    beta_stderr: float = 0.0,
    gradient_variance_stderr: float = 0.0,
    catapult: float = 4.0,
) -> CaeoStability:
    """Regime, onset and escape rate of CAEO in the reduced model, for one direction and Gaussian noise.

    Parameters
    ----------
    alpha : float
        Progressive sharpening -grad L . grad S, > 0.
    beta : float
        |grad S|^2, > 0.
    gradient_variance : float
        Of the batch gradient along the top eigenvector.
    sharpness : float
        At the start, > 0.
    eta_base, delta : float
        Of the rule; delta < 2.
    horizon : int
        Steps of training.
    alpha_stderr, beta_stderr, gradient_variance_stderr : float
        Standard errors, taken as independent.
    catapult : float
        eta * sharpness from which on the first steps diverge: 4 of two-layer linear networks (`catapult`); about 12
        has been seen of ReLU networks (arXiv:2003.02218).

    Returns
    -------
    CaeoStability

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    a = positive("alpha", alpha, "without progressive sharpening nothing drives the sharpness to the cap")
    b = positive("beta", beta, "without feedback on the sharpness noise holds nothing")
    variance = non_negative("gradient_variance", gradient_variance)
    rate = positive("eta_base", eta_base)
    relative = [
        non_negative(f"{name}_stderr", error) / size if size > 0 else 0.0
        for name, error, size in (
            ("alpha", alpha_stderr, a),
            ("beta", beta_stderr, b),
            ("gradient_variance", gradient_variance_stderr, variance),
        )
    ]
    sources = [Source(-relative[0], relative[0]), Source(relative[1], 0.0), Source(relative[2], 0.0)]
    well = CappedWell(rate**2 * b * variance / (2 * a), rate**2 * a, _margin(delta))
    top = rate * positive("sharpness", sharpness)
    steps = count("horizon", horizon)
    onsets = _Onsets.of(well, sources, steps)
    left = float(share_left_below([well], steps)[0])
    regime = _regime(well, onsets, top, steps, positive("catapult", catapult), left)
    return CaeoStability(
        REGIMES[regime], onsets.fold, onsets.small_noise, onsets.escape,
        well.escape_rate() if well.noise < 1 else math.nan,
        well.plateau / rate, well.separatrix / rate, well.speed / (2 - well.plateau) ** 2 if well.noise else math.inf,
    )  # fmt: skip


def caeo_stability_map(
    *,
    alpha: float,
    beta: float,
    per_example_variance: float,
    examples: int,
    sharpness: float,
    horizon: int,
    delta: ArrayLike,
    batch_size: Sequence[int],
    eta_base: ArrayLike,
    alpha_stderr: float = 0.0,
    beta_stderr: float = 0.0,
    per_example_variance_stderr: float = 0.0,
    catapult: float = 4.0,
) -> xr.Dataset:
    """The stability map: `caeo_stability` over margins, batch sizes and base rates.

    Parameters
    ----------
    alpha, beta, sharpness, horizon, alpha_stderr, beta_stderr, catapult
        As for `caeo_stability`.
    per_example_variance, per_example_variance_stderr : float
        Variance over the examples of the gradient along the top eigenvector, and its error.
    examples : int
        n: batches are drawn from them without replacement.
    delta, batch_size, eta_base : array_like
        One axis each.

    Returns
    -------
    Dataset
        Over (delta, batch_size, eta_base): ``regime`` (an index of `REGIMES`), ``escape_rate`` (per step), ``left``
        (share of runs of the map that reach sharpness 0 within the horizon). Over (batch_size, eta_base):
        ``delta_c``, ``delta_escape``, each with ``*_stderr``, ``delta_c_small_noise``, ``adiabaticity``; inf where
        there is no onset.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    a, b = positive("alpha", alpha), positive("beta", beta)
    spread = positive("per_example_variance", per_example_variance)
    n = count("examples", examples, least=2)
    sizes = [count("batch_size", size, most=n) for size in batch_size]
    rates = np.array([positive("eta_base", rate) for rate in np.atleast_1d(eta_base)])
    fraction = np.array([noise_fraction(n, size) for size in sizes])
    noise = rates**2 * b * spread * fraction[:, None] / (2 * a)
    relative = [
        non_negative("alpha_stderr", alpha_stderr) / a,
        non_negative("beta_stderr", beta_stderr) / b,
        non_negative("per_example_variance_stderr", per_example_variance_stderr) / spread,
    ]
    sources = [Source(-relative[0], relative[0]), Source(relative[1], 0.0), Source(relative[2], 0.0)]
    return map_of_wells(
        noise, rates**2 * a, [[sources] * rates.size] * len(sizes), delta=delta, batch_size=sizes, eta_base=rates,
        sharpness=positive("sharpness", sharpness), horizon=horizon, catapult=catapult,
    )  # fmt: skip


def map_of_wells(
    noise: NDArray, speed: NDArray, sources: Sequence[Sequence[Sequence[Source]]], *, delta: ArrayLike,
    batch_size: Sequence[int], eta_base: NDArray, sharpness: float, horizon: int, catapult: float = 4.0,
) -> xr.Dataset:  # fmt: skip
    """The stability map of wells that are given by their own numbers.

    Parameters
    ----------
    noise : ndarray (batch_size, eta_base)
        q of `CappedWell`.
    speed : ndarray (eta_base,)
        e of it.
    sources : nested sequence (batch_size, eta_base)
        Sources of error of each.
    delta, batch_size, eta_base, sharpness, horizon, catapult
        As for `caeo_stability_map`.

    Returns
    -------
    Dataset

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    margins = np.array([_margin(value) for value in np.atleast_1d(delta)])
    steps, edge = count("horizon", horizon), positive("catapult", catapult)
    shape = (margins.size, *noise.shape)
    cells = [CappedWell(float(noise[j, k]), float(speed[k]), float(d)) for d in margins for j, k in np.ndindex(noise.shape)]  # fmt: skip  # noqa: E501
    left = share_left_below(cells, steps).reshape(shape)
    escape, regime = np.full(shape, np.nan), np.empty(shape, int)
    names = ("delta_c", "delta_c_stderr", "delta_c_small_noise", "delta_escape", "delta_escape_stderr")
    columns = {name: np.empty(noise.shape) for name in names}
    for j, k in np.ndindex(noise.shape):
        well = CappedWell(float(noise[j, k]), float(speed[k]), 0.0)
        onsets = _Onsets.of(well, sources[j][k], steps)
        values = (onsets.fold, onsets.fold.stderr, onsets.small_noise, onsets.escape, onsets.escape.stderr)
        for name, value in zip(names, values, strict=True):
            columns[name][j, k] = float(value)
        for i, margin in enumerate(margins):
            here = well._replace(delta=float(margin))
            top = float(eta_base[k]) * sharpness
            regime[i, j, k] = _regime(here, onsets, top, steps, edge, left[i, j, k])
            if here.noise < 1:
                escape[i, j, k] = here.escape_rate()
    gap = 1 - np.sqrt(np.maximum(1 - noise, 0))
    adiabaticity = np.divide(speed, gap**2, out=np.full(noise.shape, np.inf), where=gap > 0)
    every, pair = ("delta", "batch_size", "eta_base"), ("batch_size", "eta_base")
    meanings = {"flag_values": np.arange(len(REGIMES)), "flag_meanings": " ".join(REGIMES)}
    texts = {
        "delta_c": "margin from which averaged noise no longer holds the sharpness",
        "delta_c_stderr": "standard error of delta_c",
        "delta_c_small_noise": "small-noise law of delta_c",
        "delta_escape": "margin at which one escape is expected within the horizon",
        "delta_escape_stderr": "its error, with that of the averaged rate",
    }
    return xr.Dataset(
        {
            "regime": (every, regime, {"units": "1", "long_name": "regime", **meanings}),
            "escape_rate": (every, escape, {"units": "1/step", "long_name": "escape rate from the plateau"}),
            "left": (
                every,
                left,
                {"units": "1", "long_name": "share of runs of the map that reach sharpness 0"},
            ),
            "adiabaticity": (
                pair,
                adiabaticity,
                {"units": "1", "long_name": "slowness of the sharpness, e/g^2"},
            ),
        }
        | {name: (pair, columns[name], {"units": "1", "long_name": texts[name]}) for name in names},
        coords={
            "delta": ("delta", margins, {"units": "1", "long_name": "margin delta"}),
            "batch_size": ("batch_size", np.asarray(batch_size), {"units": "1", "long_name": "batch size"}),
            "eta_base": ("eta_base", eta_base, {"units": "time", "long_name": "base learning rate"}),
        },
        attrs=provenance(sharpness=sharpness, horizon=steps, catapult=edge, seed=_SEED),
    )


class _Onsets(NamedTuple):
    """Where a well is lost, along delta."""

    fold: Threshold
    small_noise: Threshold
    escape: Threshold

    @classmethod
    def of(cls, well: CappedWell, sources: Sequence[Source], steps: int) -> _Onsets:
        q = well.noise
        relative = math.sqrt(sum(source.noise**2 for source in sources))
        small = Threshold(q / 2, q / 2 * relative, "fold", "small-noise law", _SOURCE)
        if q >= 1:
            text = "noise alone lowers the sharpness: no onset"
            none = Threshold(math.inf, 0.0, "fold", text, _SOURCE)
            return cls(none, small, Threshold(math.inf, 0.0, "escape", text, _SOURCE))
        value = q / (1 + math.sqrt(1 - q))  # 1 - sqrt(1 - q), without cancellation
        fold = Threshold(
            value,
            q * relative / (2 * math.sqrt(1 - q)),
            "fold",
            "well meets separatrix; error: inputs",
            _SOURCE,
        )
        return cls(fold, small, _escape_onset(well, value, sources, steps))


def _escape_onset(well: CappedWell, fold: float, sources: Sequence[Source], steps: int) -> Threshold:
    """Margin at which the rate times the horizon is 1, with the errors of the inputs and of the averaged rate."""
    method = "Fokker-Planck, averaged; error: inputs, and a factor 2 in the rate"

    def excess(log_delta: float, noise: float = 0.0, speed: float = 0.0) -> float:
        near = CappedWell(
            min(well.noise * math.exp(noise), 0.5 * (1 + well.noise)),
            well.speed * math.exp(speed),
            math.exp(log_delta),
        )
        return math.log(max(near.escape_rate() * steps, 1e-290))

    if fold == 0:
        return Threshold(0.0, 0.0, "escape", "without noise nothing holds the sharpness", _SOURCE)
    low, evaluations = math.log(max(0.02 * fold, _SMALLEST)), 0
    if excess(low) > 0:  # the swings of the sharpness are wider than the well
        return Threshold(math.exp(low), math.exp(low), "escape", "below the margins searched", _SOURCE)
    high = low
    for margin in np.geomspace(fold, max(_LARGEST, 1.01 * fold), 9):
        low, high = high, math.log(margin)
        if excess(high) > 0:
            break
    else:
        return Threshold(math.inf, 0.0, "escape", "the horizon is too short for a runaway", _SOURCE)
    place, report = brentq(excess, low, high, xtol=1e-3, full_output=True)  # pyright: ignore[reportGeneralTypeIssues]
    evaluations = report.function_calls
    step = 0.02
    slope = (excess(place + step) - excess(place - step)) / (2 * step)
    of_noise = (excess(place, noise=step) - excess(place, noise=-step)) / (2 * step)
    of_speed = (excess(place, speed=step) - excess(place, speed=-step)) / (2 * step)
    moved = [of_noise * source.noise + of_speed * source.speed for source in sources]
    relative = math.hypot(math.log(_FACTOR) if place < math.log(fold) else 0.0, *moved) / abs(slope)
    value = math.exp(place)
    return Threshold(value, value * relative, "escape", method, _SOURCE, evaluations + 6)


def _regime(well: CappedWell, onsets: _Onsets, top: float, steps: int, catapult: float, left: float) -> int:
    """Index of the regime: `top` is eta_base times the sharpness at the start."""
    cap = 2.0 - well.delta
    if min(top, cap) >= catapult:
        return REGIMES.index("diverging")
    if top + well.speed * steps < cap:
        return REGIMES.index("uncapped")
    if well.delta > 0 and well.delta >= float(onsets.escape):
        return REGIMES.index("runaway")
    if well.noise >= 1 or left > 0.5:
        return REGIMES.index("outside")
    return REGIMES.index("stable")


def share_left_below(wells: Sequence[CappedWell], steps: int) -> NDArray:
    """Share of runs of the map, from the plateau, whose sharpness reaches 0 within the steps.

    Parameters
    ----------
    wells : sequence of CappedWell
    steps : int

    Returns
    -------
    ndarray
        Of 64 runs each; from half the edge where there is no plateau.
    """
    columns = [np.array(values)[:, None] for values in zip(*wells, strict=True)]
    all_wells = CappedWell(*columns)  # pyright: ignore[reportArgumentType]
    generator = np.random.Generator(np.random.Philox(key=_SEED))
    x = generator.standard_normal((len(wells), _RUNS))
    z = 1 + np.sqrt(np.maximum(1 - columns[0], 0)) + 0 * x
    gone = np.zeros(x.shape, bool)
    for _ in range(steps):
        x, z = all_wells.step(x, z, generator.standard_normal(x.shape))
        gone |= z <= 0
        x, z = np.where(gone, 0.0, x), np.where(gone, 0.0, z)
    return gone.mean(axis=1)


def _margin(delta: float) -> float:
    value = finite("delta", delta)
    if value >= 2:
        raise InvalidInput(f"delta={value} makes the learning rate zero or negative; give delta < 2")
    return value
