"""The kernel of second moments against the four-dimensional moment map of two directions."""

import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.thresholds.moment_kernel import MomentKernel

RULES = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.9},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.3, "nesterov": True, "weight_decay": 0.2},
    {"momentum": 0.9, "gain": 0.1},
    {"momentum": 0.9, "gain": 0.1, "decoupled": 0.2},
    {"momentum": 0.5, "decoupled": 0.1, "weight_decay": 0.2},
]


def settled_moment(kernel, x, y, eta):
    """S/N from the stationary moments of (w, w_last) in two directions, driven by unit N, with its feedback."""
    b, mu = kernel.momentum, kernel.weight_decay
    maps = []
    for curvature in (x, y):
        kept = 1 - eta * kernel.gain * (curvature + mu)
        shrunk = 1 - eta * kernel.decoupled  # w+ = shrunk w - eta v+, b v = b (shrunk w_last - w) / eta
        heavy_ball = [shrunk + b + kept - 1, -b * shrunk]
        first = [kept * (1 + b), -kept * b] if kernel.nesterov else heavy_ball
        maps.append(np.array([first, [1.0, 0.0]]))
    look = np.array([1 + b, -b]) if kernel.nesterov else np.array([1.0, 0.0])
    read = np.kron(look, look)
    unit = np.eye(4)[0] * kernel.noise * (eta * kernel.gain) ** 2
    moments = np.linalg.solve(np.eye(4) - np.kron(*maps) + x * y * np.outer(unit, read), unit)
    return read @ moments


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.01, 0.4, 0.95])
def test_against_the_moment_map(rule, share):
    kernel = MomentKernel(0.2, **rule)
    for x, y in ((1.3, 0.4), (1.3, 1.3), (0.7, 1e-3)):
        eta = share * kernel.edge(max(x, y))
        # rounding of a 4 x 4 solve with a condition number up to 1/(eta y) ~ 1e5
        assert kernel(x, y, eta) == pytest.approx(x * y * settled_moment(kernel, x, y, eta), rel=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_one_at_the_edge_and_growing(rule):
    kernel = MomentKernel(0.05, **rule)
    x = np.geomspace(1e-4, 1.0, 9)
    edge = kernel.edge(1.0)
    assert kernel(1.0, 1.0, edge) == pytest.approx(1.0, rel=1e-10)
    values = np.array([kernel(x[:, None], x[None, :], share * edge) for share in np.linspace(0.05, 1.0, 12)])
    assert np.all(np.diff(values, axis=0) > 0)
    assert np.all(values > 0)


@pytest.mark.parametrize("rule", RULES)
def test_bounds_on_the_unresolved_part(rule):
    kernel = MomentKernel(0.1, **rule)
    top, eta = 0.02, 0.8 * kernel.edge(1.0)
    upper, lower = kernel.tail_weights(eta, top)
    rng = np.random.default_rng(0)
    x, y = top * rng.random((2, 1000)) ** 3
    slack = 1 + 1e-3  # the grid of 33 points, where the ratio changes by some percent in all
    assert np.all(kernel(x, y, eta) <= slack * upper * (x + y) / 4)
    assert np.all(kernel(y, y, eta) * slack >= lower * y**2 / (y + kernel.decay) / 2)
    excess = kernel.tail_excess(np.array([1.0, 0.1]), eta, top, upper)
    for one, above in zip((1.0, 0.1), excess, strict=True):
        assert np.all(2 * kernel(one, y, eta) <= upper * y / 2 + slack * above)


def test_scalar_momentum_threshold():
    # T7: one output, one weight; curvatures h_i with mean h and variance s2
    rows = np.array([[0.5], [1.0], [2.0], [1.5]])
    curvatures = rows[:, 0] ** 2
    for momentum in (0.3, 0.9):
        found = thresholds.sgd_mean_square(rows, batch_size=1, momentum=momentum)
        expected = thresholds.momentum_sgd_scalar(curvatures.mean(), curvatures.var(), momentum=momentum)
        assert float(found) == pytest.approx(float(expected), rel=1e-8)
