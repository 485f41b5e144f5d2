"""Expectations and their gradients through JAX: closed forms, finite differences, and the Numba schemes."""

import numpy as np
import pytest

from eos_sde.jax_terms import expectation_and_gradient
from solvers import SDE, ConvergenceFailure, InvalidInput, drive, simulate
from solvers.wiener import increments
from tests.problems import geometric_brownian, ornstein_uhlenbeck

DT, STEPS = 0.05, 20
RUN = {"t1": 1.0, "dt": DT, "seed": 3}


def first(t, y, p, xp):
    return y[0]


def square(t, y, p, xp):
    return y[0] ** 2


def slope(function, at):
    """Central difference of a closed form: relative error about 1e-9."""
    h = 1e-5
    return (function(at + h) - function(at - h)) / (2 * h)


def euler_ou_square(k, s, x0):
    """E X_n^2 of Euler's scheme for dX = -k X dt + s dW: exact, so that only sampling error is left."""
    q = 1 - k * DT
    return x0**2 * q ** (2 * STEPS) + s**2 * DT * (1 - q ** (2 * STEPS)) / (1 - q**2)


def euler_gbm_square(mu, s, x0):
    return x0**2 * ((1 + mu * DT) ** 2 + s**2 * DT) ** STEPS


@pytest.mark.parametrize(
    ("problem", "exact", "values"),
    [
        (ornstein_uhlenbeck(), euler_ou_square, (1.5, 0.9, 2.0)),
        (geometric_brownian(s=0.3), euler_gbm_square, (0.5, 0.3, 1.0)),
    ],
    ids=["ou", "gbm"],
)
def test_second_moments_and_their_derivatives_are_exact(problem, exact, values):
    result = expectation_and_gradient(problem.sde, problem.y0, square, paths=20_000, **RUN)
    wanted = [
        slope(lambda v, i=i: exact(*(v if j == i else w for j, w in enumerate(values))), values[i])
        for i in range(3)
    ]
    found = np.concatenate([result.gradient, result.start_gradient])
    error = np.concatenate([result.gradient_stderr, result.start_gradient_stderr])
    # 4.5 standard errors of a mean: false alarm 7e-6 each
    assert abs(float(result.value) - exact(*values)) < 4.5 * float(result.stderr)
    assert (np.abs(found - wanted) < 4.5 * error).all()
    assert (error < 0.05 * np.abs(wanted)).all()
    # negative control: derivatives one twentieth too large would be seen in at least one
    assert (np.abs(found - 1.05 * np.array(wanted)) > 4.5 * error).any()


def test_means_have_the_derivatives_of_the_continuous_equation_to_first_order():
    problem = ornstein_uhlenbeck()
    result = expectation_and_gradient(problem.sde, 2.0, first, paths=2000, t1=1.0, dt=0.002, seed=1)
    # E X = x0 exp(-k): derivative -x0 exp(-k) in k; Euler's bias is of relative size k^2 dt/2 = 0.002
    exact = -2.0 * np.exp(-1.5)
    found = float(result.gradient.sel(parameter="k"))
    assert abs(found - exact) < 4.5 * float(result.gradient_stderr.sel(parameter="k")) + 0.004 * abs(exact)
    # the noise is added: its derivative has mean zero, that to the start is exp(-k) on every path
    assert abs(float(result.gradient.sel(parameter="s"))) < 4.5 * float(
        result.gradient_stderr.sel(parameter="s")
    )
    assert float(result.start_gradient[0]) == pytest.approx((1 - 1.5 * 0.002) ** 500, rel=1e-10)
    assert float(result.start_gradient_stderr[0]) < 1e-12


def nonlinear(convention, noise="general"):
    rows = (
        (lambda t, y, p, xp: ((p.s * y[1], 0.1), (0.2 * xp.cos(t), p.s * y[0])))
        if noise == "general"
        else (lambda t, y, p, xp: (p.s * xp.sqrt(1.0 + y[0] ** 2), 0.3 * y[1]))
    )
    return SDE(
        lambda t, y, p, xp: (-p.k * y[0] + xp.tanh(y[1]), -(y[1] ** 3)),
        rows,
        params={"k": 0.7, "s": 0.3},
        names=("x", "y"),
        noise=noise,
        convention=convention,
    )


def mixed(t, y, p, xp):
    return p.k * y[0] * xp.exp(-(y[1] ** 2))


@pytest.mark.parametrize(
    ("sde", "scheme"),
    [
        (nonlinear("klimontovich"), "euler-maruyama"),
        (nonlinear("stratonovich"), "heun"),
        (nonlinear("ito", "diagonal"), "milstein"),
    ],
    ids=["euler", "heun", "milstein"],
)
def test_values_and_gradients_are_those_of_the_numba_schemes_on_the_same_noise(sde, scheme):
    paths, start = 300, np.array([0.5, 0.8])
    table = increments(3, paths, STEPS, 2, DT)

    def mean(model, y0):
        x, y = drive(model, y0, table, dt=DT, scheme=scheme, every_step=False).values[:, 0].T
        return float(np.mean(mixed(1.0, (x, y), model.params, np)))

    results = [
        expectation_and_gradient(sde, start, mixed, paths=paths, scheme=scheme, mode=mode, **RUN)
        for mode in ("forward", "reverse")
    ]
    assert [r.attrs["mode"] for r in results] == ["forward", "reverse"]
    h = 1e-5  # truncation about h^2, rounding 1e-16 / h
    wanted = [
        (mean(sde.replace(**{n: v + h}), start) - mean(sde.replace(**{n: v - h}), start)) / (2 * h)
        for n, v in zip(("k", "s"), sde.params, strict=True)
    ]
    moved = [(mean(sde, start + h * e) - mean(sde, start - h * e)) / (2 * h) for e in np.eye(2)]
    for result in results:
        assert float(result.value) == pytest.approx(mean(sde, start), rel=1e-12)
        np.testing.assert_allclose(result.gradient, wanted, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(result.start_gradient, moved, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(results[0].gradient_stderr, results[1].gradient_stderr, rtol=1e-9)


@pytest.mark.slow
def test_the_value_is_the_mean_of_simulate_at_the_same_seed():
    sde = ornstein_uhlenbeck().sde
    found = expectation_and_gradient(sde, 2.0, first, paths=1000, **RUN)
    ensemble = simulate(sde, 2.0, paths=1000, resolution=53, save_at=[1.0], **RUN)
    assert float(found.value) == pytest.approx(float(ensemble["mean"][-1, 0]), rel=1e-12)
    assert float(found.stderr) ** 2 == pytest.approx(float(ensemble["variance"][-1, 0]) / 999, rel=1e-10)


def test_chunks_change_nothing_but_rounding(monkeypatch):
    problem = ornstein_uhlenbeck()
    whole = expectation_and_gradient(problem.sde, 2.0, square, paths=1000, **RUN)
    monkeypatch.setattr("eos_sde.jax_gradient._ENTRIES", 300 * STEPS)  # 300, 300, 300, 100
    parts = expectation_and_gradient(problem.sde, 2.0, square, paths=1000, **RUN)
    for name in whole.data_vars:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-11)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheme": "sra1"}, "no JAX reading"),
        ({"mode": "adjoint"}, "mode='adjoint'"),
        ({"paths": 1}, "paths=1"),
        ({"dt": 0.3}, "does not divide"),
        ({"dt": 1.0, "t1": 4.0}, "too large for the drift"),
        ({"seed": -1}, "seed=-1"),
        ({"observable": lambda y: y}, r"\(t, y, p, xp\)"),
        ({"observable": lambda t, y, p, xp: (y[0],)}, "one real number"),
    ],
)
def test_bad_arguments_are_refused(settings, words):
    given = {"observable": first, "paths": 10, **RUN, **settings}
    observable = given.pop("observable")
    with pytest.raises(InvalidInput, match=words):
        expectation_and_gradient(ornstein_uhlenbeck(k=2.5).sde, 1.0, observable, **given)


def test_noise_that_does_not_commute_is_refused_by_milsteins_scheme():
    with pytest.raises(InvalidInput, match="milstein"):
        expectation_and_gradient(nonlinear("ito"), (0.0, 0.0), first, paths=10, scheme="milstein", **RUN)


def test_derivatives_that_are_not_finite_are_reported():
    with pytest.raises(ConvergenceFailure, match="not finite"):
        expectation_and_gradient(
            ornstein_uhlenbeck().sde, 0.0, lambda t, y, p, xp: xp.log(y[0]), paths=10, **RUN
        )
