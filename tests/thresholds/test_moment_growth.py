"""Moment Lyapunov exponents of SGD against closed forms and the exact second moments."""

import math

import numpy as np
import pytest

from eos_sde import thresholds
from solvers import AccuracyWarning, InvalidInput

PAIR = np.sqrt([[1.0], [3.0]])  # curvatures 1 and 3


@pytest.mark.slow
def test_one_weight_has_the_logarithm_of_the_mean_power():
    # Batches of 1: Lambda(p) = log((|1 - eta|^p + |1 - 3 eta|^p) / 2), here 1/10 and 1.7 at eta = 0.9.
    orders = np.array([-0.5, 0.0, 0.5, 1.0, 2.0])
    found = thresholds.sgd_moment_exponents(
        PAIR, 0.9, orders, batch_size=1, seed=1, replacement=True, clones=512, steps=600
    )
    exact = np.log((0.1**orders + 1.7**orders) / 2)
    # 4 standard errors from 8 populations (t with 7 degrees of freedom: 0.5 % each), and the bias allowed for.
    allowed = 5.5 * found["stderr"] + 2 * abs(found["bias"])
    assert np.all(abs(found - exact) <= allowed + 1e-12)
    assert float(found.sel(p=0.0)) == 0.0
    assert float(allowed.max()) < 0.03 * abs(exact).max()
    assert found.attrs["units"] == "1/step"


@pytest.mark.slow
def test_second_moments_are_the_exact_ones():
    jacobian = np.random.default_rng(0).normal(size=(10, 2, 4))
    eta = 1.1 * float(thresholds.sgd_mean_square(jacobian, batch_size=2))
    exact = math.log(thresholds.mean_square_growth(jacobian, eta, batch_size=2))
    # the bias of 512 clones, some -0.002, is told of by a warning, or just not, from machine to machine
    found = thresholds.sgd_moment_exponents(jacobian, eta, 2.0, batch_size=2, seed=4, steps=1000, clones=2048)
    allowed = 5.5 * found["stderr"] + 2 * abs(found["bias"])  # t with 7 degrees of freedom: 1e-3
    assert abs(float(found[0]) - exact) < float(allowed[0])
    assert float(allowed[0]) < 0.5 * exact  # zero would be rejected


@pytest.mark.slow
def test_between_the_thresholds_typical_runs_shrink_and_second_moments_grow():
    mean_square = float(thresholds.sgd_mean_square(PAIR, batch_size=1))  # 0.8
    almost_sure = 4 / 3
    for eta, slope, second in (
        (0.9 * mean_square, -1, -1),
        (0.5 * (mean_square + almost_sure), -1, 1),
        (1.1 * almost_sure, 1, 1),
    ):
        found = thresholds.sgd_moment_exponents(PAIR, eta, [0.1, 2.0], batch_size=1, seed=5)
        assert np.all(np.sign(found) == [slope, second])
        assert np.all(abs(found) > 5.5 * found["stderr"])
        assert float(found[1]) >= 20 * float(found[0]) - 30 * float(found["stderr"].max())  # convexity


@pytest.mark.slow
def test_threads_change_no_bit():
    runs = [
        thresholds.sgd_moment_exponents(
            PAIR, 0.9, [1.0], batch_size=1, seed=2, clones=64, steps=500, threads=threads
        )
        for threads in (1, 2)
    ]
    assert runs[0].identical(runs[1])


def test_too_few_clones_are_told():
    # Lambda(12) rests on runs of the larger factor alone; 16 clones have few of them.
    with pytest.warns(AccuracyWarning, match="use more clones"):
        thresholds.sgd_moment_exponents(
            PAIR, 0.4, 12.0, batch_size=1, seed=2, clones=16, populations=32, steps=2000, replacement=True
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eta": 0.0}, "eta=0"),
        ({"orders": [1.0, math.nan]}, "orders=nan"),
        ({"clones": 2}, "clones=2"),
        ({"populations": 2}, "populations=2"),
        ({"steps": 20}, "steps=20"),
        ({"batch_size": 3}, "batch_size=3"),
    ],
)
def test_refusals(settings, sentence):
    arguments = {"eta": 0.5, "orders": 2.0, "batch_size": 1, "seed": 0} | settings
    with pytest.raises(InvalidInput, match=sentence):
        thresholds.sgd_moment_exponents(PAIR, **arguments)
