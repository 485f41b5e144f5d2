"""Lyapunov and moment Lyapunov exponents of noisy maps: products of independent Gaussian matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.special import dawsn, gammaln, hyp1f1

from eos_sde.models.maps import NoisyMap
from solvers import InvalidInput
from solvers.linearisation import linearised

_BURN_IN = 0.2
# Copies advanced at once: normals of this many steps are drawn together.
_BLOCK = 256


class MapProduct:
    """y+ = (M + sum_k xi_k N_k) y with independent standard normal xi_k: a noisy map at its fixed point.

    Parameters
    ----------
    model : NoisyMap
    at : number or sequence of d numbers
        The fixed point of map and noise.

    Attributes
    ----------
    mean, noises : ndarray (d, d), (m, d, d)
    dt : float
        Time of one step; exponents are per time.
    """

    def __init__(self, model: NoisyMap, at: Any):
        drift, noises = linearised(model.as_sde(), at)
        self.dt = model.dt
        self.mean = np.eye(len(drift)) + self.dt * drift
        self.noises = math.sqrt(self.dt) * noises

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)

    def noise_free(self) -> float:
        """Log of the spectral radius of M per time, what there is without noise."""
        radius = float(np.abs(np.linalg.eigvals(self.mean)).max())
        return math.log(max(radius, np.finfo(float).tiny)) / self.dt

    def exponent(self) -> float:
        """E log|M + N xi| per time, of one component.

        Raises
        ------
        InvalidInput
            If there are several: their exponent has no closed form.
        """
        if not np.any(self.noises):
            return self.noise_free()
        if self.dimension > 1:
            raise InvalidInput(
                f"the exponent of a map in {self.dimension} components has no closed form; give method='simulation' "
                "and a seed"
            )
        spread = self._spread()
        ratio = abs(float(self.mean[0, 0])) / spread
        return (math.log(spread) + mean_log_shifted_normal(ratio)) / self.dt

    def moment(self, p: float) -> float:
        """Log E|y+|^p / |y|^p per time: in one component, or for p = 2 in any number.

        Raises
        ------
        InvalidInput
            If there is no closed form, or the moment is infinite (p <= -1).
        """
        if not np.any(self.noises):
            return p * self.noise_free()
        if p == 2:
            second = np.kron(self.mean, self.mean) + sum(np.kron(b, b) for b in self.noises)
            return (
                math.log(max(float(np.abs(np.linalg.eigvals(second)).max()), np.finfo(float).tiny)) / self.dt
            )
        if self.dimension > 1:
            raise InvalidInput(
                f"p={p:g} of a map in {self.dimension} components has no closed form; give p=2, or the SDE of the map"
            )
        if p <= -1:
            raise InvalidInput(
                f"p={p:g}: E|1 + N|^p is infinite for p <= -1 with Gaussian noise; give p > -1"
            )
        spread = self._spread()
        ratio = abs(float(self.mean[0, 0])) / spread
        return (p * math.log(spread) + log_moment_shifted_normal(ratio, p)) / self.dt

    def simulated_exponent(self, seed: int, steps: int, copies: int) -> tuple[float, float]:
        """Top exponent of the product and its standard error; the same normals for every parameter."""
        generator = np.random.Generator(np.random.Philox(key=[seed, 2]))
        vectors = generator.standard_normal((copies, self.dimension))
        burn, growth = int(_BURN_IN * steps), np.zeros(copies)
        for begin in range(0, steps, _BLOCK):
            block = min(_BLOCK, steps - begin)
            normals = generator.standard_normal((block, copies, len(self.noises)))
            for k in range(block):
                kicked = np.einsum("ck,kij,cj->ci", normals[k], self.noises, vectors)
                vectors = vectors @ self.mean.T + kicked
                size = np.linalg.norm(vectors, axis=1)
                vectors /= size[:, None]
                if begin + k >= burn:
                    growth += np.log(size)
        rates = growth / ((steps - burn) * self.dt)
        return float(rates.mean()), float(rates.std(ddof=1)) / math.sqrt(copies)

    def _spread(self) -> float:
        return float(np.sqrt(np.sum(self.noises**2)))


def mean_log_shifted_normal(a: float) -> float:
    """E log|a + N| for a standard normal N and a >= 0.

    Its derivative, the principal value of E 1/(a + N), is sqrt(2) Dawson(a / sqrt(2)).
    """
    integral = quad(
        lambda v: math.sqrt(2) * dawsn(v / math.sqrt(2)), 0, a, epsabs=1e-13, epsrel=1e-13, limit=200
    )[0]
    return integral - (np.euler_gamma + math.log(2)) / 2


def log_moment_shifted_normal(a: float, p: float) -> float:
    """Log E|a + N|^p, p > -1: 2^(p/2) Gamma((1 + p)/2) / sqrt(pi) 1F1(-p/2; 1/2; -a^2/2)."""
    front = 0.5 * p * math.log(2) + float(gammaln(0.5 * (1 + p))) - 0.5 * math.log(math.pi)
    return front + math.log(float(hyp1f1(-0.5 * p, 0.5, -0.5 * a * a)))
