"""The runaway of a rate capped by the sharpness, seen in the optimizer's own state: NumPy and JAX use this file."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

WINDOW = 32.0
"""Time constant of the running means, in updates."""

RISE = math.log(1.25)
"""Rise of the log sharpness that is called a runaway: the capped rate has lost a fifth."""

CLIMB = math.log(1.05)
"""Rise that is one where the sharpness is so far beyond the edge at the base rate that a fifth of it is lost."""

SIGNIFICANCE = 6.0
"""The rise must also be so many standard errors of a difference of two running means."""


class RunawayMonitor(NamedTuple):
    """What is remembered to see a runaway; scalars.

    Attributes
    ----------
    binding : float
        Running share of the updates at which the cap bound.
    measured : float
        Updates in the mean `level`, at most `WINDOW`.
    level : float
        Running mean of the log of the sharpness, over the updates at which the cap bound.
    scatter : float
        Running mean square deviation of the log of the sharpness from it.
    lowest : float
        Least value of `level` since the cap began to bind on most updates.
    rise : float
        ``level - lowest``: the log of the factor that the rate has lost. 0 while the cap binds on few updates.
    runaway : bool
        Whether that is a runaway.
    """

    binding: Any
    measured: Any
    level: Any
    scatter: Any
    lowest: Any
    rise: Any
    runaway: Any


def start(*, dtype: Any = np.float64, xp: Any = np) -> RunawayMonitor:
    """Return the monitor before the first update.

    Parameters
    ----------
    dtype : dtype
        Of its numbers.
    xp : module
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    RunawayMonitor
        With all numbers zero. Each leaf is an array of its own, so that a state can be donated.
    """
    numbers = [xp.zeros((), dtype) for _ in range(6)]
    return RunawayMonitor._make([*numbers, xp.zeros((), bool)])


def watch(
    monitor: RunawayMonitor, sharpness: Any, capped: Any, *, edge: Any = None, xp: Any = np
) -> RunawayMonitor:
    r"""Return the monitor after one more update.

    In the reduced model the sharpness obeys :math:`d\lambda/dt = \eta (\alpha - \beta x^2/2)`, with x the
    oscillation along the top direction: it rises if and only if the oscillation is below the
    :math:`x^2 = 2 \alpha/\beta` that stops it. So a rise of the sharpness *under a binding cap* is the runaway
    itself: it also shows an oscillation that is there, driven by noise, but too weak, which the alternation of the
    gradient would not. With :math:`\eta = (2 - \delta)/\lambda` the law is
    :math:`\lambda^2 = \lambda_0^2 + 2 (2 - \delta) \alpha t`, and the sharpness has risen by a quarter
    :math:`0.28\, \lambda_0^2/((2 - \delta) \alpha)` updates after the cap began to bind; the alarm comes about
    `WINDOW` later, the lag of a running mean.

    A run that starts far beyond the edge has lost its rate before the sharpness rises, and climbs so slowly, at a rate
    so low, that a quarter more takes thousands of updates. Where the running mean lies a quarter beyond the edge at
    the base rate, a significant rise by `CLIMB` is therefore enough.

    No alarm comes where the cap binds on less than half of the updates, as in training limited by gradient noise,
    which rests below the edge, nor while the sharpness falls from a start beyond the edge. Where the mean
    sharpness under a binding cap is constant and its log scatters by s, independently from update to update, the
    running mean has standard error :math:`e = s/\sqrt{2 w - 1}`, w the window, and takes about T/2w independent
    values in T updates. The least of them lies :math:`e \sqrt{2 \log(T/2w)}` below the mean, 3.7 e for
    T = 10^5; an alarm takes another :math:`6 \sqrt 2\, e - 3.7 e = 4.8 e` above it, of probability
    :math:`8 \cdot 10^{-7}` each, so that about one run of 10^5 updates in a thousand alarms in vain. A steady rise by
    r an update lags by :math:`r w` and passes for such a scatter, which it outgrows within
    :math:`6 w \sqrt{2/(2 w - 1)} = 1.1 w` updates: the condition delays a true alarm by about a window at most.

    Parameters
    ----------
    monitor : RunawayMonitor
        From `start` or the last call.
    sharpness : float or array
        The last estimate of the largest Hessian eigenvalue.
    capped : bool or array
        Whether the rate was below the base rate.
    edge : float or array, optional
        The sharpness at which the base rate is at its edge, 2/base for gradient descent. If left out, only a rise by
        a quarter counts.
    xp : module
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    RunawayMonitor
        A sharpness that is not a positive finite number changes nothing.

    Examples
    --------
    >>> monitor = start()
    >>> for step in range(200):
    ...     monitor = watch(monitor, (100 + step) ** 0.5, True)
    >>> bool(monitor.runaway), round(float(monitor.rise), 1)
    (True, 0.4)
    """
    sound = (sharpness > 0) & xp.isfinite(sharpness)
    counts = sound & capped
    toward = xp.where(capped, 1.0 - monitor.binding, -monitor.binding)
    binding = xp.where(sound, monitor.binding + toward / WINDOW, monitor.binding)
    measured = xp.where(counts, xp.minimum(monitor.measured + 1.0, WINDOW), monitor.measured)
    # a plain mean until the window is full, so that the first estimate does not weigh more than others
    gain = xp.where(counts, 1.0 / xp.maximum(measured, 1.0), 0.0)
    off = xp.log(xp.where(sound, sharpness, 1.0)) - monitor.level
    level = monitor.level + gain * off
    scatter = (1.0 - gain) * (monitor.scatter + gain * off * off)
    lowest = xp.where(binding > 0.5, xp.minimum(monitor.lowest, level), level)
    rise = level - lowest
    error = xp.sqrt(2.0 * scatter / (2.0 * WINDOW - 1.0))
    climbs = rise > RISE
    if edge is not None:
        climbs = climbs | ((rise > CLIMB) & (level - xp.log(edge) > RISE))
    runaway = climbs & (rise > SIGNIFICANCE * error)
    dtype = monitor.level.dtype
    numbers = [xp.asarray(number, dtype) for number in (binding, measured, level, scatter, lowest, rise)]
    return RunawayMonitor._make([*numbers, xp.asarray(runaway)])
