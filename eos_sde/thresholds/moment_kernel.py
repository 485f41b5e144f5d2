"""How a rule's second moments answer to the noise of its batches: the kernel behind mean-square thresholds.

Near an interpolating minimum the gradient of a batch is H_B w. In two eigendirections of H = mean_i H_i, with
curvatures x and y, the moment S = E[w_x w_y] settles where

    S den(x, y) = eta^2 p (N - x y S),    N = (mean_i H_i E[w w^T] H_i)_xy,

p the noise fraction of a batch; den is what the mean map takes away per step. With u = eta (x + mu), v = eta (y + mu),
mu the weight decay:

    SGD          den = u + v - u v
    heavy ball   den = (1 - b)(u + v) + b (u - v)^2/(1 - b^2) - u v (1 - b)/(1 + b)
    Nesterov     den = 1/q - (1 - u)(1 - v), and S is the moment of the point where the gradient is taken

(heavy ball: w+ = w + b (w - w_last) - eta (g + mu w); the cross moments with w_last are (m_x - b m_y) S/(1 - b^2),
m = 1 + b - u). A moving average of gradients scales eta by its gain; decoupled decay w, w+ = (1 - eta w) w - eta v+, is
heavy ball with momentum b (1 - eta w) and u = eta (gain x + (1 - b) w). Moving the term x y S to the left,

    S = N W(x, y)/(x y),    W = p eta^2 x y/(den + p eta^2 x y).

For SGD and heavy ball W = eta A/(B + eta C) with A, B > 0: it grows with eta wherever den is positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MomentKernel:
    """The kernel W of a rule.

    Attributes
    ----------
    noise : float
        p, the variance of a batch mean over that of one example.
    momentum : float
        b in [0, 1); v+ = b v + g.
    nesterov : bool
        Gradient at the look-ahead point.
    weight_decay : float
        mu >= 0, added to the gradient as mu w.
    gain : float
        v+ = b v + gain g: 1, or 1 - b where v is a moving average.
    decoupled : float
        Decay >= 0 taken off the weights as eta times it; 0 with nesterov.
    """

    noise: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    gain: float = 1.0
    decoupled: float = 0.0

    @property
    def decay(self) -> float:
        """What the decay, of either kind, adds to a curvature in u."""
        return self.weight_decay + (1 - self.momentum) * self.decoupled / self.gain

    def edge(self, curvature: float) -> float:
        """Learning rate at which the mean map loses its stability at this curvature: the full-batch threshold."""
        b = self.momentum
        edge = (2 + 2 * b) / (1 + 2 * b) if self.nesterov else 2 + 2 * b
        return edge / (self.gain * (curvature + self.weight_decay) + (1 + b) * self.decoupled)

    def __call__(self, x: np.ndarray, y: np.ndarray, eta: float) -> np.ndarray:
        """W of two curvatures > 0, for a learning rate up to `edge` of the larger: shape of x y."""
        noise = self.noise * (eta * self.gain) ** 2 * (x * y)
        return noise / (self._drain(x, y, eta) + noise)

    def _drain(self, x: np.ndarray, y: np.ndarray, eta: float) -> np.ndarray:
        b = self.momentum * (1 - eta * self.decoupled)
        u, v = eta * self.gain * (x + self.decay), eta * self.gain * (y + self.decay)
        if not self.nesterov:
            rest = u * v * ((1 - b) / (1 + b))
            spread = 0.0 if b == 0 else (b / (1 - b**2)) * (u - v) ** 2
            return (1 - b) * (u + v) + spread - rest
        f, g = 1 - u, 1 - v
        # q = E[look-ahead pair]/E[pair]. 1/q - f g, over a common denominator that has no cancellation at small u, v:
        # with s = u + v, t = u v, f + g = 2 - s and f g = 1 - s + t.
        product = f * g
        base = 1 - b**2 * product
        q = ((1 + b) ** 2 + b**2) * base - b * (1 + b) ** 2 * (f + g - 2 * b * product)
        return (base - product * q) / q

    def tail_weights(self, eta: float, top: float) -> tuple[float, float]:
        """Bounds of W on curvatures up to `top`: W(x, y) <= upper (x + y)/4 and W(y, y) >= lower y^2/(y + decay)/2.

        Both ratios are smooth on the scale of `top`, and are taken at their extremes on a grid of it.
        """
        y = top * np.concatenate([np.geomspace(1e-6, 1.0, 25), np.linspace(0.1, 0.9, 9)])
        w = self(y[:, None], y[None, :], eta)
        lower = 2 * np.diagonal(w) * (y + self.decay) / y**2
        return float(np.max(4 * w / (y[:, None] + y[None, :]))), float(np.min(lower))

    def tail_excess(self, x: np.ndarray, eta: float, top: float, upper: float) -> np.ndarray:
        """The most by which 2 W(x, y) exceeds upper y/2 for y up to `top`, shape of x; never negative."""
        y = top * np.linspace(0.0, 1.0, 33)[1:]
        return np.max(np.maximum(2 * self(x[:, None], y[None, :], eta) - upper * y / 2, 0.0), axis=1)
