"""Heavy-tailed increments in place of Gaussian ones: Student t and symmetric alpha-stable.

For studies of SGD noise, where a step of Euler-Maruyama with dt equal to the learning rate is an update and
its noise need not be Gaussian. Numbers are a function of (seed, path, step, component), on a stream of
their own: Threefry-2x64 with counter (step, stream and component), two 53-bit uniforms per number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from solvers import scalar
from solvers.errors import InvalidInput
from solvers.sources import FILL, Source
from solvers.wiener import ROUNDS, threefry2x64, uniform_of

STREAM = 4
_WORD = np.uint64(STREAM << 32)
_FLAGS = {"contract"}
_HALF_PI = 0.5 * math.pi


@njit(fastmath=_FLAGS, error_model="numpy", forceinline=True)
def two_uniforms(seed, path, step, component):
    """Two uniforms in (0, 1], multiples of 2^-53."""
    first, second = threefry2x64(
        np.uint64(step), _WORD | np.uint64(component), np.uint64(seed), np.uint64(path)
    )
    return uniform_of(first), uniform_of(second)


@dataclass(frozen=True)
class StudentT:
    """Independent Student t increments: sqrt(dt) times a t variable, of unit variance where it has one.

    A discrete-time model: as dt -> 0 at fixed degrees of freedom > 2 the sum tends to the Wiener process, and
    only the law of a few steps is heavy-tailed. Sampled by Bailey's transformation (Bailey 1994, Math. Comp.
    62, 779): ``sqrt(nu (u^(-2/nu) - 1)) cos(2 pi v)``.

    Parameters
    ----------
    degrees : float
        Degrees of freedom nu > 0; moments of order nu and above are infinite.
    standardised : bool
        Divide by the standard deviation sqrt(nu / (nu - 2)); needs nu > 2.

    Raises
    ------
    InvalidInput
        If nu is not positive and finite, or has no variance to divide by.
    """

    degrees: float
    standardised: bool = True

    def __post_init__(self):
        if not (isinstance(self.degrees, (int, float, np.number)) and 0 < self.degrees < math.inf):
            raise InvalidInput(f"degrees={self.degrees!r} must be positive and finite")
        if self.standardised and self.degrees <= 2:
            raise InvalidInput(
                f"degrees={self.degrees} has no variance to standardise; pass standardised=False or degrees > 2"
            )

    def source(self, numbers: int, width: int) -> Source:
        """The numbers for blocks of a width, `numbers` per path and step."""
        nu = float(self.degrees)
        scale = math.sqrt((nu - 2) / nu) if self.standardised else 1.0
        about = {
            "generator": f"threefry2x64-{ROUNDS}, Bailey's transformation",
            "increments": f"Student t with {nu:g} degrees of freedom, scale {scale:.6g} sqrt(dt)",
        }
        table = np.array([[nu, scale]])
        return Source("student-t", _student(numbers, width), 1, "ready", 0, about, table)


@dataclass(frozen=True)
class AlphaStable:
    """Increments of symmetric alpha-stable Levy motion, independent per component.

    The characteristic function of an increment is exp(-dt |k|^alpha / 2), so that alpha = 2 is the Wiener
    process; as `scipy.stats.levy_stable` the scale is (dt/2)^(1/alpha). Euler-Maruyama then solves the SDE
    driven by the Levy motion in the Ito sense. Sampled after Chambers, Mallows and Stuck 1976 (J. Amer.
    Statist. Assoc. 71, 340).

    Parameters
    ----------
    alpha : float
        0 < alpha <= 2; moments of order alpha and above are infinite for alpha < 2.

    Raises
    ------
    InvalidInput
        For other values.
    """

    alpha: float

    def __post_init__(self):
        if not (isinstance(self.alpha, (int, float, np.number)) and 0 < self.alpha <= 2):
            raise InvalidInput(f"alpha={self.alpha!r} must lie in (0, 2]")

    def source(self, numbers: int, width: int) -> Source:
        """The numbers for blocks of a width, `numbers` per path and step."""
        about = {
            "generator": f"threefry2x64-{ROUNDS}, Chambers-Mallows-Stuck",
            "increments": f"alpha-stable, alpha {self.alpha:g}, characteristic function exp(-dt |k|^alpha / 2)",
        }
        table = np.array([[float(self.alpha)]])
        return Source("alpha-stable", _stable(numbers, width), 1, "ready", 0, about, table)


@njit(fastmath=_FLAGS, error_model="numpy", forceinline=True)
def student_of(u, v, nu):
    """A Student t variable with nu degrees of freedom from two uniforms."""
    return math.sqrt(nu * scalar.expm1(-2.0 / nu * scalar.log(u))) * scalar.cos(2.0 * math.pi * v)


@njit(fastmath=_FLAGS, error_model="numpy", forceinline=True)
def stable_of(u, v, alpha):
    """A symmetric alpha-stable variable, characteristic function exp(-|k|^alpha), from two uniforms."""
    angle = math.pi * (u - 0.5)  # never -pi/2; at pi/2 the cosine is 6e-17, not 0
    waiting = max(-scalar.log(v), 1.1e-16)
    inner = scalar.cos((1.0 - alpha) * angle) / waiting
    power = scalar.exp((1.0 - alpha) / alpha * scalar.log(inner) - scalar.log(scalar.cos(angle)) / alpha)
    return scalar.sin(alpha * angle) * power


@lru_cache(maxsize=64)
def _student(numbers: int, width: int) -> Any:
    @cfunc(FILL, fastmath=_FLAGS, error_model="numpy")
    def fill(seed, start, step, _fresh, dt, at_z, _unit, _words, at_table, _rows, _columns):
        z, table = carray(at_z, (numbers * width,)), carray(at_table, (2,))
        nu, scale = table[0], table[1] * math.sqrt(dt)
        for c in range(numbers):
            out = z[c * width : (c + 1) * width]
            for i in range(width):
                u, v = two_uniforms(seed, start + i, step, c)
                out[i] = scale * student_of(u, v, nu)

    return fill


@lru_cache(maxsize=64)
def _stable(numbers: int, width: int) -> Any:
    @cfunc(FILL, fastmath=_FLAGS, error_model="numpy")
    def fill(seed, start, step, _fresh, dt, at_z, _unit, _words, at_table, _rows, _columns):
        z, table = carray(at_z, (numbers * width,)), carray(at_table, (1,))
        alpha = table[0]
        scale = (0.5 * dt) ** (1.0 / alpha)
        for c in range(numbers):
            out = z[c * width : (c + 1) * width]
            for i in range(width):
                u, v = two_uniforms(seed, start + i, step, c)
                out[i] = scale * stable_of(u, v, alpha)

    return fill
