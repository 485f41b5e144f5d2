"""Heavy-tailed and resampled increments: laws against closed forms, keys, use in simulate, refusals."""

import math

import numpy as np
import pytest
from numba import njit
from scipy import stats

from solvers import SDE, AlphaStable, InvalidInput, Resampled, StudentT, simulate
from solvers.heavy_tails import stable_of, student_of, two_uniforms

FREE = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
PAIR = SDE(
    lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
    lambda t, y, p, xp: (1.0, 1.0),
    names=("x", "z"),
    convention="ito",
)
N = 100_000


def _one_step(increments, sde=FREE, dt=0.25, paths=N, seed=3, **more):
    """The increments of one step, (paths, d): the end of paths that start at 0 and only make noise."""
    start = [0.0] * sde.dimension
    result = simulate(
        sde, start, t1=dt, dt=dt, paths=paths, seed=seed, increments=increments, save_at=[dt], **more
    )
    return result["final"].values


@pytest.mark.parametrize("nu", [1.0, 3.0, 30.0])
def test_student_increments_have_their_law(nu):
    """Kolmogorov-Smirnov at 1e-4; half again as many degrees of freedom are rejected (negative control).

    At 1e5 numbers the test resolves distances of 0.005; t(3) and t(4.5) are 0.017 apart, t(1) and t(1.5)
    more. For 30 the control is a scale error of 3 %, a distance of 0.007.
    """
    drawn = _one_step(StudentT(nu, standardised=False))[:, 0] / 0.5
    assert stats.kstest(drawn, stats.t(nu).cdf).pvalue > 1e-4
    wrong = stats.t(nu, scale=1.03).cdf if nu == 30 else stats.t(1.5 * nu).cdf
    assert stats.kstest(drawn, wrong).pvalue < 1e-4


def test_standardised_student_increments_have_unit_variance():
    """With nu = 10 the kurtosis is 4, so that the variance of 1e5 squares is known to sqrt(3/1e5); 4 of them."""
    drawn = _one_step(StudentT(10.0))[:, 0]
    assert abs(drawn.var() / 0.25 - 1) < 4 * math.sqrt(3 / N)


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.5, 2.0])
def test_stable_increments_have_their_characteristic_function(alpha):
    """E cos(k X) = exp(-dt |k|^alpha / 2), known to sqrt(1/(2 N)) each; 4.5 of them at 4 k: false alarms 3e-5.

    Negative control: alpha off by 0.1 is rejected at some k.
    """
    drawn = _one_step(AlphaStable(alpha))[:, 0]
    k = np.array([0.3, 1.0, 3.0, 10.0])
    found = np.cos(k[:, None] * drawn).mean(axis=1)
    allowed = 4.5 * math.sqrt(0.5 / N)
    assert (np.abs(found - np.exp(-0.125 * k**alpha)) < allowed).all()
    assert (np.abs(found - np.exp(-0.125 * k ** (alpha - 0.1))) > allowed).any()


def test_alpha_two_is_the_wiener_process():
    drawn = _one_step(AlphaStable(2.0))[:, 0]
    assert stats.kstest(drawn, stats.norm(0, 0.5).cdf).pvalue > 1e-4


def test_sums_of_stable_increments_are_stable_in_dt():
    """Levy motion: 8 steps of 1/32 have the law of one step of 1/4."""
    result = simulate(
        FREE, 0.0, t1=0.25, dt=1 / 32, paths=N, seed=5, increments=AlphaStable(1.5), save_at=[0.25]
    )
    k = np.array([0.3, 1.0, 3.0, 10.0])
    found = np.cos(k[:, None] * result["final"].values[:, 0]).mean(axis=1)
    assert (np.abs(found - np.exp(-0.125 * k**1.5)) < 4.5 * math.sqrt(0.5 / N)).all()


def test_extreme_uniforms_give_finite_numbers():
    """The ends of the range of the uniforms, 2^-53 and 1."""

    @njit
    def both(u, v, nu, alpha):
        return student_of(u, v, nu), stable_of(u, v, alpha)

    for u in (2.0**-53, 0.5, 1.0):
        for v in (2.0**-53, 0.5, 1.0):
            for nu, alpha in ((0.5, 0.2), (3.0, 1.0), (100.0, 2.0)):
                assert np.isfinite(both(u, v, nu, alpha)).all()


def test_numbers_depend_on_seed_path_step_and_component_only():
    drawn = _one_step(StudentT(3.0), PAIR, paths=1900)
    again = _one_step(StudentT(3.0), PAIR, paths=1500, threads=2, chunk=1024)
    np.testing.assert_array_equal(drawn[:1500], again)
    assert (drawn != _one_step(StudentT(3.0), PAIR, paths=1900, seed=4)).all()
    assert abs(np.corrcoef(np.sign(drawn).T)[0, 1]) < 4 / math.sqrt(1900)
    u, v = two_uniforms(np.uint64(3), np.int64(17), np.int64(0), np.int64(1))
    assert drawn[17, 1] == pytest.approx(0.5 * student_of(u, v, 3.0) * math.sqrt(1 / 3), rel=1e-12)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    skewed = rng.exponential(size=(40, 1)) * np.array([[1.0, -0.5]])
    return skewed + 0.3 * rng.normal(size=(40, 2)) + 7.0


def test_resampled_single_rows_are_the_centred_rows(table):
    """All components of a row together, each row equally often: chi-square over 40 rows at 1e-4."""
    drawn = _one_step(Resampled(table), PAIR) / 0.5
    centred = table - table.mean(axis=0)
    distance = np.abs(drawn[:, None, :] - centred).max(axis=2)
    assert distance.min(axis=1).max() < 1e-14
    counts = np.bincount(distance.argmin(axis=1), minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("size", [3, 8])
def test_batches_have_the_exact_covariance(table, replacement, size):
    """Each entry within 4.5 of its own standard error, taken from the sample; false alarms 2e-5 in all.

    The negative control is the other way of drawing, whose variance differs by the factor (n - B)/(n - 1).
    """
    noise = Resampled(table, batch_size=size, replacement=replacement)
    drawn = _one_step(noise, PAIR) / 0.5
    products = drawn[:, :, None] * drawn[:, None, :]
    error = products.std(axis=0) / math.sqrt(N)
    assert (np.abs(products.mean(axis=0) - noise.covariance()) < 4.5 * error).all()
    other = Resampled(table, batch_size=size, replacement=not replacement).covariance()
    assert (np.abs(products.mean(axis=0) - other) > 4.5 * error).any()


def test_batches_without_replacement_hold_each_row_once():
    """All rows in one batch leave no noise at all; with replacement they do."""
    rows = np.arange(5.0)[:, None]
    assert np.abs(_one_step(Resampled(rows, batch_size=5, replacement=False), paths=500)).max() < 1e-15
    assert np.abs(_one_step(Resampled(rows, batch_size=5), paths=500)).max() > 0.1


def test_sgd_on_least_squares_has_its_stationary_variance():
    """x+ = x - eta (h x + noise): variance eta^2 s^2 / (1 - (1 - eta h)^2) = eta s^2 / (h (2 - eta h)).

    The relative standard error of a variance over N paths is sqrt((kurtosis - 1)/N) < 2/sqrt(N).
    """
    eta, h = 0.5, 1.3
    noise = Resampled(np.random.default_rng(1).exponential(size=(30, 1)), batch_size=2)
    sde = SDE(
        lambda t, y, p, xp: (-p.h * y[0],),
        lambda t, y, p, xp: (xp.sqrt(p.eta),),
        params={"h": h, "eta": eta},
        convention="ito",
    )
    result = simulate(sde, 0.0, t1=20.0, dt=eta, paths=N, seed=1, increments=noise, save_at=[20.0])
    exact = eta * noise.covariance()[0, 0] / (h * (2 - eta * h))
    assert abs(float(result["variance"][0, 0]) / exact - 1) < 4 * 2 / math.sqrt(N)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentT(0.0), "degrees=0.0 must be positive"),
        (lambda: StudentT(2.0), "no variance"),
        (lambda: AlphaStable(2.1), "alpha=2.1"),
        (lambda: Resampled([1.0, 2.0]), "shape \\(2,\\)"),
        (lambda: Resampled([[np.nan]]), "finite"),
        (lambda: Resampled([[1.0], [2.0]], batch_size=3, replacement=False), "at most the 2 rows"),
        (lambda: Resampled([[1.0]], batch_size=0), "at least 1"),
        (lambda: _one_step(Resampled([[1.0], [2.0]]), PAIR), "1 columns, but the model has 2"),
        (lambda: _one_step("levy"), "increments='levy'"),
        (lambda: _one_step(AlphaStable(1.5), scheme="heun"), "scheme='euler-maruyama'"),
        (
            lambda: _one_step(AlphaStable(1.5), SDE(FREE.drift, FREE.diffusion, convention="stratonovich")),
            "convention='ito'",
        ),
    ],
)
def test_bad_increments_are_refused(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
