"""Whether a forecast of a central flow can be trusted, judged from the forecast alone, and why not."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

_SECOND_ORDER = (
    0.1  # relative error of the mean loss from which on the excess is too large for the second order
)
_MOST_OUTSIDE = 0.5  # share of the excess from outside the carried modes
_UNKNOWN = 0.25  # relative error of a reading of the sharpness from which on it says little
_OVERSHOT = 0.05  # beyond the edge: by more than this the swings after it matter
_MOMENTUM = ("sgdm", "nesterov")
_DESCENT = ("gd", "sgd")  # of these the swings of the curvature are known (`reduced_map`)


def cautions(rows: Sequence[Mapping[str, float]], *, rule: str, full_batch: bool, stopped: str) -> str:
    """Reasons against a forecast; nothing where there is none.

    The flow is of second order in the fluctuation: with e the share of the mean loss that the fluctuation makes up,
    what is left out is of relative order e^2. It says nothing beyond the mean-square edge, where its covariance grows
    from step to step. What is known to be missing of a rule is told where it matters.

    Parameters
    ----------
    rows : sequence of mappings
        The saved points: ``loss``, ``mean_loss``, ``radius``, ``critical_modes``; of batches ``unresolved_loss`` and
        ``iterate_sharpness`` with its ``_stderr``;
        ``effective_sharpness`` of full ones, and ``resting_growth`` of those with momentum.
    rule : str
        As for `make_rule`.
    full_batch : bool
        Whether the flow is that of an oscillation, not of noise.
    stopped : str
        Why it ended early, or nothing.

    Returns
    -------
    str
        Sentences.
    """
    found = [f"the flow ended early, at {stopped}"] if stopped else []
    if not rows:
        return "; ".join(found)
    shares = [1.0 - row["loss"] / row["mean_loss"] for row in rows if row["mean_loss"] > 0]
    worst = max(shares, default=0.0)
    if worst**2 > _SECOND_ORDER:
        found.append(
            f"the fluctuation makes up {100 * worst:.0f} % of the mean loss, so that what the second order leaves "
            f"out may be {100 * worst**2:.0f} % of it"
        )
    if full_batch:
        return "; ".join(found + _of_oscillation(rows, rule))
    beyond = sum(row["radius"] >= 1.0 for row in rows)
    if beyond:
        found.append(
            f"rule={rule!r} is mean-square unstable at {beyond} of {len(rows)} saved points, where fluctuations grow"
        )
    outside = [
        row["unresolved_loss"] / (row["mean_loss"] - row["loss"])
        for row in rows
        if row["mean_loss"] > row["loss"]
    ]
    if max(outside, default=0.0) > _MOST_OUTSIDE:
        found.append(
            f"{100 * max(outside):.0f} % of the excess loss comes from outside the carried modes, where the "
            "fluctuation is known by its spectrum and few draws only; raise modes"
        )
    far = sum(row["iterate_sharpness_stderr"] > _UNKNOWN * abs(row["iterate_sharpness"]) for row in rows)
    if far:
        found.append(
            f"the sharpness of iterates is uncertain by more than a quarter at {far} of {len(rows)} saved points: "
            "Gaussian draws lie where the network is far from quadratic and runs do not come; trust sharpness and loss"
        )
    return "; ".join(found)


def swing_after_overshoot(effective_sharpness: ArrayLike) -> float:
    """How far a run of descent swings about its edge after it went beyond it without oscillation.

    Parameters
    ----------
    effective_sharpness : array
        Along the averaged path of full batches, 1 at the edge.

    Returns
    -------
    float
        As far as it went beyond, relative to the edge; 0 as long as the overshoot has not ended.
    """
    over = np.asarray(effective_sharpness) - 1.0
    most = max(0.0, float(np.max(over)))
    return most if over[-1] < most / 2 else 0.0


def _of_oscillation(rows: Sequence[Mapping[str, float]], rule: str) -> list[str]:
    """What is missing where modes are at the edge of a full-batch rule."""
    if not any(row["critical_modes"] for row in rows):
        return []
    if rule in _MOMENTUM:
        growth = max((row["resting_growth"] for row in rows if row["resting_growth"] > 0.0), default=0.0)
        if growth == 0.0:
            return []
        return [
            f"full-batch rule={rule!r} does not rest at its edge as the flow does: a disturbance of the oscillation "
            f"grows e-fold in {1.0 / growth:.2g} steps, so that runs burst and fall below the edge"
        ]
    if rule == "adam":
        return ["full-batch Adam bursts at its edge, where the flow rests"]
    if rule in _DESCENT:
        beyond = swing_after_overshoot([row["effective_sharpness"] for row in rows])
        if beyond <= _OVERSHOT:
            return []
        return [
            f"descent comes to its edge without oscillation and overshoots it by {100 * beyond:.0f} %; after the burst "
            "that ends this a run swings about the edge by as much, and the flow rests there"
        ]
    return ["the curvature of a run swings about its edge, some 5 % beyond it in the largest eigenvalue"]
