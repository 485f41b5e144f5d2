"""Simulated growth of linear SDEs: Lyapunov exponents with a standard error."""

from __future__ import annotations

import numba
import numpy as np

from solvers.request import refuse_amplified


def refuse_unstable_step(drift: np.ndarray, noises: np.ndarray, dt: float) -> None:
    """Refuse a step whose truncated exponential amplifies a mode that the drift damps.

    Raises
    ------
    InvalidInput
        With the largest stable step.
    """
    refuse_amplified(
        np.linalg.eigvals(_stratonovich(drift, noises)),
        dt,
        lambda z: 1 + z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4))),
        what="the drift: its (Stratonovich) Jacobian at `at`",
        name="the fourth-order step",
    )


def simulated_exponent(
    drift: np.ndarray, noises: np.ndarray, settings: tuple[int, float, int, int]
) -> tuple[float, float]:
    """Growth rate of log|y| and its standard error.

    Parameters
    ----------
    drift, noises : ndarray
        A (d, d) and B (m, d, d) of the Ito equation.
    settings : tuple (seed, dt, steps, paths)

    Returns
    -------
    value, stderr : float
        Mean and standard error over the paths, the first tenth of the time left out.
    """
    seed, dt, steps, paths = settings
    stratonovich = _stratonovich(drift, noises)
    d = len(drift)
    start = np.random.Generator(np.random.Philox(seed)).standard_normal((paths, d))
    state = start / np.linalg.norm(start, axis=1, keepdims=True)
    burn = steps // 10
    # independent paths are the batches: after the burn-in their growths are identically distributed
    growth = np.zeros(paths)
    for begin in range(0, steps, 1024):
        count = min(1024, steps - begin)
        block = np.random.Generator(np.random.Philox(key=[seed, begin + 1]))
        increments = np.sqrt(dt) * block.standard_normal((count, paths, len(noises)))
        _grow(state, growth, stratonovich * dt, noises, increments, max(burn - begin, 0))
    rates = growth / ((steps - burn) * dt)
    return float(rates.mean()), float(rates.std(ddof=1) / np.sqrt(paths))


def cloned_exponent(
    drift: np.ndarray, noises: np.ndarray, p: float, settings: tuple[int, float, int, int]
) -> tuple[float, float]:
    """Mean log of the population's growth of |y|^p per unit time, over ten populations."""
    seed, dt, steps, paths = settings
    if p == 0:
        return 0.0, 0.0
    stratonovich = _stratonovich(drift, noises)
    populations, size = 10, max(paths // 10, 2)
    per_round = max(1, round(0.25 / dt))  # resample a few times per unit time: weights stay comparable
    rounds = max(2, steps // per_round)
    values = np.zeros(populations)
    for population in range(populations):
        rng = np.random.Generator(np.random.Philox(key=[seed, population]))
        state = rng.standard_normal((size, len(drift)))
        state /= np.linalg.norm(state, axis=1, keepdims=True)
        total, burn = 0.0, rounds // 10
        for turn in range(rounds):
            growth = np.zeros(size)
            increments = np.sqrt(dt) * rng.standard_normal((per_round, size, len(noises)))
            _grow(state, growth, stratonovich * dt, noises, increments, 0)
            exponents = p * growth
            weights = np.exp(exponents - exponents.max())
            if turn >= burn:
                total += np.log(weights.mean()) + exponents.max()
            # systematic resampling
            marks = (rng.random() + np.arange(size)) / size
            chosen = np.searchsorted(np.cumsum(weights / weights.sum()), marks)
            state = state[np.minimum(chosen, size - 1)]
        values[population] = total / ((rounds - burn) * per_round * dt)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(populations))


def _stratonovich(drift: np.ndarray, noises: np.ndarray) -> np.ndarray:
    return drift - 0.5 * np.einsum("kij,kjl->il", noises, noises)


@numba.njit
def _grow(state, growth, drift_step, noises, increments, skip):
    """Move unit vectors by exp(A dt + sum B_k dW_k), to fourth order, and add the logs of their lengths."""
    d = state.shape[1]
    exponent, term, moved, result = np.empty((d, d)), np.empty(d), np.empty(d), np.empty(d)
    for path in range(state.shape[0]):
        for step in range(increments.shape[0]):
            for i in range(d):
                for j in range(d):
                    value = drift_step[i, j]
                    for k in range(noises.shape[0]):
                        value += noises[k, i, j] * increments[step, path, k]
                    exponent[i, j] = value
                result[i] = state[path, i]
            for i in range(d):
                term[i] = result[i]
            for order in range(1, 5):
                for i in range(d):
                    moved[i] = 0.0
                    for j in range(d):
                        moved[i] += exponent[i, j] * term[j] / order
                for i in range(d):
                    term[i] = moved[i]
                    result[i] += moved[i]
            norm = 0.0
            for i in range(d):
                norm += result[i] * result[i]
            norm = np.sqrt(norm)
            for i in range(d):
                state[path, i] = result[i] / norm
            if step >= skip:
                growth[path] += np.log(norm)
