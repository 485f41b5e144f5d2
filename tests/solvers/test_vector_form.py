"""VectorSDE in simulate() and drive(): against the component form, linear theory, equal bits, refusals."""

import tracemalloc

import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov

from solvers import (
    SDE,
    AccuracyWarning,
    Grid,
    ImpureFunction,
    InvalidInput,
    apply_matrix,
    drive,
    estimate_order,
    memory,
    simulate,
    wiener,
)
from solvers.errors import MissingConvention
from solvers.vector_form import VectorSDE, reads_state
from solvers.vector_kernels import vector_advancing

LIMIT = 4.5
"""z-scores: a false alarm in 150 000 per number over all seeds; the seeds are fixed."""
RUN = {"t1": 0.4, "dt": 0.02, "paths": 300, "seed": 3}


def decay(t, y, p, out):
    for i in range(out.size):
        out[i] = -p.k * y[i]


def constant(t, y, p, out):
    for i in range(out.size):
        out[i] = p.s


def matrix_decay(t, y, p, out):
    apply_matrix(p.a, y, out)


def matrix_noise(t, y, p, out):
    out[:] = p.s


def turning(t, y, p, out):
    out[0] = -p.k * y[0] + y[1] * np.sin(t)
    out[1] = -y[1] + p.a[0, 1] * y[2]
    out[2] = -(y[2] ** 3)


def mixing(t, y, p, out):
    out[0, 0] = p.a[0, 0] * (1.0 + y[1])
    out[0, 1] = 0.2
    out[1, 0] = 0.1 * y[0]
    out[1, 1] = 0.3 + t
    out[2, 0] = 0.1
    out[2, 1] = 0.4 * y[2]


def growing(t, y, p, out):
    for i in range(out.size):
        out[i] = p.s * np.sqrt(1.0 + y[i] * y[i])


def blocked_turning(t, y, p, out):
    for n in range(out.shape[1]):
        out[0, n] = -p.k * y[0, n] + y[1, n] * np.sin(t)
        out[1, n] = -y[1, n] + p.a[0, 1] * y[2, n]
        out[2, n] = -(y[2, n] ** 3)


def blocked_mixing(t, y, p, out):
    for n in range(out.shape[2]):
        out[0, 0, n] = p.a[0, 0] * (1.0 + y[1, n])
        out[0, 1, n] = 0.2
        out[1, 0, n] = 0.1 * y[0, n]
        out[1, 1, n] = 0.3 + t
        out[2, 0, n] = 0.1
        out[2, 1, n] = 0.4 * y[2, n]


def blocked_decay(t, y, p, out):
    for i in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[i, n] = -p.k * y[i, n]


def blocked_growing(t, y, p, out):
    for i in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[i, n] = p.s * np.sqrt(1.0 + y[i, n] * y[i, n])


def ten(convention="ito", diffusion=constant, **settings):
    """Ten decaying components."""
    params = {"k": 1.5, "s": 0.6}
    return VectorSDE(
        settings.pop("drift", decay),
        diffusion,
        dimension=10,
        params=params,
        convention=convention,
        **settings,
    )


def ten_components():
    def drift(t, y, p, xp):
        a, b, c, d, e, f, g, h, i, j = y
        return (
            -p.k * a, -p.k * b, -p.k * c, -p.k * d, -p.k * e, -p.k * f, -p.k * g, -p.k * h, -p.k * i, -p.k * j,
        )  # fmt: skip

    def diffusion(t, y, p, xp):
        return (p.s, p.s, p.s, p.s, p.s, p.s, p.s, p.s, p.s, p.s)

    names = [f"x{k}" for k in range(10)]
    return SDE(drift, diffusion, params={"k": 1.5, "s": 0.6}, names=names, convention="ito")


def coupled(convention, block=False):
    """Three components driven by two Wiener processes through a matrix that depends on state and time."""
    functions = (blocked_turning, blocked_mixing) if block else (turning, mixing)
    return VectorSDE(
        *functions, dimension=3, noise_dimension=2, noise="general",
        params={"k": 1.0, "a": np.array([[0.3, 0.5], [0.1, 0.2]])}, convention=convention, block=block,
    )  # fmt: skip


def coupled_components(convention):
    return SDE(
        lambda t, y, p, xp: (-y[0] + y[1] * xp.sin(t), -y[1] + 0.5 * y[2], -(y[2] ** 3)),
        lambda t, y, p, xp: ((0.3 * (1 + y[1]), 0.2), (0.1 * y[0], 0.3 + t), (0.1, 0.4 * y[2])),
        names=("x0", "x1", "x2"),
        noise="general",
        convention=convention,
    )


CONVENTION = {"euler-maruyama": "ito", "heun": "stratonovich"}


def _assert_equal_to_rounding(one, other):
    """20 steps of a few operations each, on numbers of size 1 that contract: some 1e-14 at most."""
    for name in ("final", "mean", "variance"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12, atol=1e-13)


OTHERS = (("euler-maruyama", False), ("heun", True))
SLOW = pytest.mark.slow  # each combination compiles passes of its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "resolution"),
    [
        ("euler-maruyama", 32),
        ("heun", 53),
        pytest.param("euler-maruyama", 53, marks=SLOW),
        pytest.param("heun", 32, marks=SLOW),
    ],
)
def test_both_forms_give_the_same_paths(scheme, resolution):
    settings = RUN | {"scheme": scheme, "resolution": resolution}
    start = np.linspace(-1, 1, 10)
    _assert_equal_to_rounding(
        simulate(ten(), start, **settings), simulate(ten_components(), start, **settings)
    )
    convention = CONVENTION[scheme]
    alone = simulate(coupled(convention), [0.5, 0.2, 1.0], **settings)
    _assert_equal_to_rounding(alone, simulate(coupled_components(convention), [0.5, 0.2, 1.0], **settings))


def _by_numpy(scheme, start):
    """The steps of both schemes for `decay` and `growing`, written out over arrays."""
    dw = wiener.increments(3, 300, 20, 10, 0.02, resolution=32)
    x, h = np.broadcast_to(start, (300, 10)), 0.02
    for n in range(20):
        a, b = -1.5 * x, 0.6 * np.sqrt(1 + x * x)
        z = x + h * a + b * dw[:, n]
        if scheme == "heun":
            z = x + h / 2 * (a - 1.5 * z) + (b + 0.6 * np.sqrt(1 + z * z)) / 2 * dw[:, n]
        x = z
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "block"),
    [("euler-maruyama", True), ("heun", False), *OTHERS],
)
def test_state_dependent_noise_of_single_paths_and_blocks(scheme, block):
    functions = {"drift": blocked_decay, "diffusion": blocked_growing} if block else {"diffusion": growing}
    sde, start = ten(CONVENTION[scheme], block=block, **functions), np.linspace(-1, 1, 10)
    assert not sde.additive
    found = simulate(sde, start, scheme=scheme, **RUN)["final"]
    np.testing.assert_allclose(found, _by_numpy(scheme, start), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", CONVENTION)
def test_matrices_of_noise_for_blocks(scheme):
    found, truth = (
        simulate(coupled(CONVENTION[scheme], block=block), [0.5, 0.2, 1.0], scheme=scheme, **RUN)
        for block in (True, False)
    )
    _assert_equal_to_rounding(found, truth)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["heun", pytest.param("euler-maruyama", marks=SLOW)])
def test_driven_paths_are_the_simulated_ones(scheme):
    sde = coupled(CONVENTION[scheme])
    dw = wiener.increments(3, 300, 20, 2, 0.02)
    driven = drive(sde, [0.5, 0.2, 1.0], dw, dt=0.02, scheme=scheme)
    kept = simulate(sde, [0.5, 0.2, 1.0], scheme=scheme, resolution=53, save_paths=True, **RUN)
    np.testing.assert_allclose(kept["state"], driven, rtol=1e-12, atol=1e-14)
    with pytest.raises(InvalidInput, match=r"takes \(paths, steps, 2\)"):
        drive(sde, [0.5, 0.2, 1.0], dw[..., :1], dt=0.02, scheme=scheme)


@pytest.mark.slow
def test_weak_steps_have_a_vector_form():
    found = simulate(ten(), np.zeros(10), scheme="weak-euler", **RUN)
    truth = simulate(ten_components(), np.zeros(10), scheme="weak-euler", **RUN)
    _assert_equal_to_rounding(found, truth)


def _linear(d=20):
    """A stable matrix that is not normal, and noise of d - 3 Wiener processes."""
    rng = np.random.default_rng(8)
    a = -np.eye(d) + 0.4 * rng.normal(size=(d, d)) / np.sqrt(d)
    return a, rng.normal(size=(d, d - 3)) / np.sqrt(d)


@pytest.mark.parametrize("block", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.slow
def test_covariance_of_a_linear_system(block):
    """The solution of dX = A X dt + S dW from 0 has covariance C - e^{At} C e^{A^T t}, A C + C A^T = -S S^T.

    The scheme's own covariance is known too: with h = dt, Heun's step is X -> R X + B S dW, R = 1 + h A + h^2 A^2/2,
    B = 1 + h A/2; what it differs by is the truncation allowed. Of N paths the sample covariance has the variance
    (C_ii C_jj + C_ij^2) / N.
    """
    a, s = _linear()
    d, m, paths, steps, h = 20, 17, 20_000, 50, 0.02

    def noise_of_blocks(t, y, p, out):
        for i in range(out.shape[0]):
            for k in range(out.shape[1]):
                out[i, k] = p.s[i, k]

    sde = VectorSDE(
        matrix_decay, noise_of_blocks if block else matrix_noise, dimension=d, noise_dimension=m, noise="general",
        params={"a": a, "s": s}, convention="ito", block=block,
    )  # fmt: skip
    assert sde.additive
    settings = {"t1": steps * h, "dt": h, "paths": paths, "seed": 5, "scheme": "heun", "save_at": [steps * h]}
    found = simulate(sde, np.zeros(d), statistics="covariance", **settings)["covariance"][0].values
    stationary = solve_continuous_lyapunov(a, -s @ s.T)
    flow = expm(a * steps * h)
    truth = stationary - flow @ stationary @ flow.T
    own, r, b = np.zeros((d, d)), np.eye(d) + h * a + h * h * a @ a / 2, (np.eye(d) + h * a / 2) @ s
    for _ in range(steps):
        own = r @ own @ r.T + h * b @ b.T
    stderr = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / paths)
    assert (np.abs(found - truth) < LIMIT * stderr + np.abs(own - truth)).all()
    assert (np.abs(own - truth) < 0.2 * stderr).all()
    wrong = sde.replace(s=1.05 * s)  # negative control: noise 5 % too strong
    found = simulate(wrong, np.zeros(d), statistics="covariance", **settings)["covariance"][0].values
    assert (np.abs(found - truth) > LIMIT * stderr + np.abs(own - truth)).any()


STOP = {
    "none": None,
    "level": lambda t, y, p: (y[0] > 0.6) | (y[9] < -p.s),
    "region": lambda t, y, p: np.max(np.abs(y)) > 1.2,
}


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["region", "none", "level"])
def test_bits_do_not_depend_on_threads_or_chunks(stop):
    def run(threads, chunk):
        return simulate(
            ten(), np.linspace(-0.5, 0.5, 10), t1=0.3, dt=0.01, paths=700, seed=2, stop=STOP[stop],
            statistics=("mean", "covariance"), threads=threads, chunk=chunk,
        )  # fmt: skip

    one = run(1, None)
    assert one.identical(run(2, 128))
    assert one.identical(run(2, 400))


def test_paths_do_not_depend_on_how_many_there_are():
    many, few = (simulate(ten(), np.zeros(10), **RUN | {"paths": n})["final"] for n in (300, 7))
    np.testing.assert_array_equal(many[:7], few)


@pytest.mark.slow
def test_levels_are_found_inside_steps_as_in_the_component_form():
    found = simulate(ten(), np.linspace(-0.5, 0.5, 10), stop=STOP["level"], **RUN)
    truth = simulate(
        ten_components(),
        np.linspace(-0.5, 0.5, 10),
        stop=lambda t, y, p, xp: (y[0] > 0.6) | (y[9] < -p.s),
        **RUN,
    )
    assert 0 < int(found["exited"].sum()) < 300
    np.testing.assert_array_equal(found["exited"], truth["exited"])
    np.testing.assert_allclose(found["exit_time"], truth["exit_time"], rtol=1e-9)
    assert found["exit_time"].attrs["found"] == "inside steps by a Brownian bridge"
    _assert_equal_to_rounding(found, truth)


@pytest.mark.slow
def test_state_dependent_matrices_give_the_bridge_its_variance():
    settings = RUN | {"scheme": "heun", "stop": lambda t, y, p: y[1] > 0.4}
    found = simulate(coupled("stratonovich"), [0.5, 0.2, 1.0], **settings)
    truth = simulate(
        coupled_components("stratonovich"),
        [0.5, 0.2, 1.0],
        **settings | {"stop": lambda t, y, p, xp: y[1] > 0.4},
    )
    assert 20 < int(found["exited"].sum()) < 280
    np.testing.assert_allclose(found["exit_time"], truth["exit_time"], rtol=1e-9)


def test_regions_are_found_at_the_ends_of_steps():
    kept = simulate(ten(), np.linspace(-0.5, 0.5, 10), save_paths=True, **RUN)
    found = simulate(ten(), np.linspace(-0.5, 0.5, 10), stop=STOP["region"], **RUN)
    inside = np.abs(kept["state"]).max("component") <= 1.2
    first = np.where(inside.all("time"), np.nan, kept["time"].values[np.argmin(inside.values, axis=1)])
    np.testing.assert_allclose(found["exit_time"], first, rtol=1e-12)
    assert found["exit_time"].attrs["found"] == "at the end of a step"
    starts = np.zeros((300, 10))
    starts[::3, 4] = 2.0
    at_once = simulate(ten(), starts, stop=STOP["region"], **RUN)
    assert (at_once["exit_time"][::3] == 0).all()
    assert (at_once["exit_time"][1::3] != 0).all()


@pytest.mark.slow
def test_sweeps_and_new_values_compile_nothing():
    start = np.zeros(10)
    swept = simulate(ten(), start, sweep={"k": [0.5, 1.5], "s": [0.2, 0.6]}, **RUN)
    made = vector_advancing.cache_info().misses
    for k in (0.5, 1.5):
        alone = simulate(ten().replace(k=k), start, **RUN)
        np.testing.assert_array_equal(swept["mean"].sel(k=k, s=0.6), alone["mean"])
        np.testing.assert_array_equal(swept["final"].sel(k=k, s=0.6), alone["final"])
    assert vector_advancing.cache_info().misses == made
    a, s = np.diag([-1.0, -2.0]), np.ones(2)
    sde = VectorSDE(matrix_decay, matrix_noise, dimension=2, params={"a": a, "s": s}, convention="ito")
    first = simulate(sde, [1.0, 1.0], **RUN)
    made = vector_advancing.cache_info().misses
    second = simulate(sde.replace(a=a[::-1, ::-1].copy()), [1.0, 1.0], **RUN)
    assert vector_advancing.cache_info().misses == made
    assert abs(first["mean"][-1, 0] - second["mean"][-1, 0]) > 0.05


def test_a_continued_run_is_the_whole_run():
    stop = {"stop": STOP["level"]}
    whole = simulate(ten(), np.zeros(10), **RUN | stop)
    first = simulate(ten(), np.zeros(10), **RUN | stop | {"t1": 0.14})
    second = simulate(ten(), first, **RUN | stop)
    np.testing.assert_array_equal(second["final"], whole["final"])
    np.testing.assert_array_equal(second["mean"], whole["mean"].sel(time=second["time"], method="nearest"))
    np.testing.assert_array_equal(second["exit_time"], whole["exit_time"])


@pytest.mark.slow
@pytest.mark.parametrize("grows", [True, pytest.param(False, marks=SLOW)])
def test_orders_are_those_of_the_component_form(grows):
    """The same equation on the same numbers: the same fit to rounding."""
    p = {"k": 1.0, "s": 0.5}
    vector = VectorSDE(decay, growing if grows else constant, dimension=1, params=p, convention="ito")
    component = SDE(
        lambda t, y, p, xp: (-p.k * y[0],),
        (lambda t, y, p, xp: (p.s * xp.sqrt(1.0 + y[0] * y[0]),)) if grows else (lambda t, y, p, xp: (p.s,)),
        params=p,
        convention="ito",
    )
    settings = {"scheme": "euler-maruyama", "paths": 400, "steps": (8, 16, 32, 64)}
    found, same = (estimate_order(sde, **settings) for sde in (vector, component))
    for name in ("order", "order_low", "order_high"):
        assert float(found[name]) == pytest.approx(float(same[name]), abs=1e-9)
    assert found.attrs["stated_order"] == same.attrs["stated_order"] == (0.5 if grows else 1.0)


@pytest.mark.slow
def test_checkpoints_are_bound_to_every_entry_of_a_matrix(tmp_path):
    a = -np.eye(40)  # more entries than an array shows
    sde = VectorSDE(matrix_decay, matrix_noise, dimension=40, params={"a": a, "s": 0.1}, convention="ito")
    file = tmp_path / "run.npz"
    first = simulate(sde, np.ones(40), checkpoint=file, **RUN)
    assert simulate(sde, np.ones(40), checkpoint=file, **RUN).identical(first)
    other = a.copy()
    other[17, 3] = 0.01
    with pytest.raises(InvalidInput, match="another model"):
        simulate(sde.replace(a=other), np.ones(40), checkpoint=file, **RUN)


def test_divergence_is_reported_by_path():
    def cubic(t, y, p, out):
        for i in range(out.size):
            out[i] = y[i] ** 3

    sde = VectorSDE(cubic, constant, dimension=4, params={"s": 1.0}, convention="ito")
    with pytest.warns(AccuracyWarning, match="paths diverged"):
        result = simulate(sde, np.full(4, 0.5), t1=3.0, dt=0.05, paths=200, seed=1)
    bad = ~np.isfinite(result["final"]).all("component")
    assert int(bad.sum()) > 0
    np.testing.assert_array_equal(result["diverged"], bad)


def test_unstable_steps_are_refused():
    with pytest.raises(InvalidInput, match=r"the eigenvalue -1\.5"):
        simulate(ten(), np.zeros(10), t1=4.0, dt=2.0, paths=10, seed=1)
    simulate(ten(), np.zeros(10), t1=4.0, dt=2.0, paths=10, seed=1, allow_unstable_step=True)


def test_additive_noise_is_the_same_in_every_convention():
    results = [
        simulate(ten(c), np.zeros(10), **RUN)["final"] for c in ("ito", "stratonovich", "klimontovich")
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("convention", "scheme", "remedy"),
    [
        ("stratonovich", "euler-maruyama", "use scheme='heun'"),
        ("ito", "heun", "use scheme='euler-maruyama'"),
        ("klimontovich", "euler-maruyama", "give the drift of convention='ito'"),
        ("klimontovich", "auto", "give the drift of convention='ito'"),
    ],
)
def test_other_conventions_of_state_dependent_noise_are_refused(convention, scheme, remedy):
    with pytest.raises(InvalidInput, match="takes derivatives") as refusal:
        simulate(ten(convention, growing), np.zeros(10), scheme=scheme, **RUN)
    assert remedy in str(refusal.value)


def test_auto_says_what_it_chose():
    told = simulate(ten("stratonovich", growing), np.zeros(10), scheme="auto", **RUN).attrs
    assert told["scheme"] == "heun"
    assert "stratonovich" in told["scheme_reason"]


def test_whether_a_diffusion_reads_the_state():
    def sizes(t, y, p, out):
        for i in range(y.size):
            out[i] = p.s + y.shape[0]

    def through_a_helper(t, y, p, out):
        constant(t, y, p, out)

    def nested(t, y, p, out):
        for i in range(3):
            out[i] = sum(y[k] for k in range(2))

    assert not reads_state(constant)
    assert not reads_state(sizes)
    for function in (growing, through_a_helper, nested):
        assert reads_state(function)


def _two(drift, diffusion=constant, **settings):
    defaults = {"dimension": 2, "params": {"k": 1.0, "s": 0.5, "a": np.eye(2)}, "convention": "ito"}
    return VectorSDE(drift, diffusion, **(defaults | settings))


def _beyond(t, y, p, out):
    out[:] = y
    out[2] = 1.0


def _short(t, y, p, out):
    out[0] = y[0]


def _adding(t, y, p, out):
    out += y


def _returning(t, y, p, out):
    return -y


def _nowhere(t, y, p, out):
    out[:] = np.log(-1.0 - y * y)


def _writing(t, y, p, out):
    y *= 2.0
    out[:] = y


def _writing_a_parameter(t, y, p, out):
    p.a[0, 0] = 2.0
    out[:] = y


def _wrong_shape(t, y, p, out):
    out[:] = np.zeros(3)


def _unknown(t, y, p, out):
    out[:] = p.q


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_beyond, "drift reads or writes beyond an array"),
        (_short, r"drift does not set out\[1\]"),
        (_adding, r"drift does not set out\[0\]"),
        (_returning, "drift returns ndarray"),
        (_nowhere, r"drift is nan in out\[0\] at every probe"),
        (_writing, "drift writes into y or into a parameter"),
        (_writing_a_parameter, "drift writes into y or into a parameter"),
        (_wrong_shape, "drift failed: could not broadcast"),
        (_unknown, "no attribute 'q'"),
        (lambda t, y, p: None, "does not take"),
        (3, "must be a plain Python function"),
    ],
)
def test_bad_functions_are_refused(function, message):
    with pytest.raises(InvalidInput, match=message):
        _two(function)


TABLE = [1.0, 2.0]


def test_functions_with_state_are_refused():
    def drift(t, y, p, out):
        out[:] = TABLE[0] * y

    with pytest.raises(ImpureFunction, match="TABLE"):
        _two(drift)


def test_functions_that_numba_cannot_read_are_refused_before_work():
    def late(t, y, p, out):
        if t > 1.0:
            y[0] = 1.0
        out[:] = y

    def unknown_to_numba(t, y, p, out):
        out[:] = np.einsum("i->i", y)

    def other_in_numba(t, y, p, out):
        x = np.uint32(2) - np.uint32(3)  # wraps in NumPy, widens in Numba
        out[:] = float(x)

    with pytest.raises(InvalidInput, match="writes into y"):
        simulate(_two(late), [1.0, 1.0], **RUN)
    with pytest.raises(InvalidInput, match=r"cannot be compiled by Numba: .*einsum"):
        simulate(_two(unknown_to_numba), [1.0, 1.0], **RUN)
    with np.errstate(over="ignore"), pytest.raises(InvalidInput, match="other numbers when compiled"):
        simulate(_two(other_in_numba), [1.0, 1.0], **RUN)


def test_columns_that_mix_are_refused():
    def mixed(t, y, p, out):
        out[:] = -y / (1.0 + np.sum(y * y))

    _two(mixed)
    with pytest.raises(InvalidInput, match="treat each column"):
        _two(mixed, diffusion=lambda t, y, p, out: out.fill(p.s), block=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": 0}, "dimension=0 must be at least 1"),
        ({"dimension": 2.0}, "dimension=2.0 is not an integer"),
        ({"convention": "sratonovich"}, "is unknown"),
        ({"noise": "scalar"}, "noise='scalar' is unknown"),
        ({"noise": "general"}, "noise_dimension is missing"),
        ({"noise_dimension": 1}, "leave it out"),
        ({"names": ("x",)}, "names has 1 entries"),
        ({"params": 3}, "params is a int"),
        ({"params": {"k": 1.0, "s": np.nan}}, "parameter 's' contains nan"),
        ({"params": {"k": 1.0, "s": "a"}}, "parameter 's' is not made of real numbers"),
        ({"params": {"k": 1.0, "s": np.empty((0, 2))}}, "give an array with entries"),
        ({"params": {"k": 1.0, "s": -0.5}}, "negative constant -0.5"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        _two(decay, **settings)


def test_the_convention_must_be_stated():
    with pytest.raises(MissingConvention):
        VectorSDE(decay, constant, dimension=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "milstein"}, "takes euler-maruyama, weak-euler, heun"),
        ({"histogram": Grid.uniform(x0=(-1, 1, 4))}, "at most 3"),
        ({"statistics": "maximum"}, "step_maximum"),
        ({"stop": lambda t, y, p, xp: y[0] > 1}, r"stop does not take \(t, y, p\)"),
        ({"stop": lambda t, y, p: y > 1}, "no single condition"),
        ({"stop": lambda t, y, p: y[10] > 1}, "stop failed"),
        ({"stop": lambda t, y, p: p.s > 1e9}, "must depend on the state or the time"),
        ({"sweep": {"rate": [1.0]}}, "'rate' does not exist"),
    ],
)
def test_what_simulate_cannot_do_is_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        simulate(ten(), np.zeros(10), **RUN | settings)


def test_parameters_are_copies_that_cannot_be_written():
    a = -np.eye(9)
    sde = VectorSDE(matrix_decay, matrix_noise, dimension=9, params={"a": a, "s": 1}, convention="ito")
    a[0, 0] = 5.0
    assert sde.params.a[0, 0] == -1.0
    with pytest.raises(ValueError, match="read-only"):
        sde.params.a[0, 0] = 5.0
    assert "a=<9x9 sha256:" in repr(sde)
    assert sde.params.s == 1.0
    with pytest.raises(InvalidInput, match="was given"):
        sde.replace(a=1.0)
    drift = sde.drift_at(0.0, np.arange(9.0))
    np.testing.assert_allclose(drift, -np.arange(9.0))


@pytest.mark.slow
def test_a_histogram_of_few_components():
    sde = VectorSDE(decay, constant, dimension=1, names=("x",), params={"k": 1.0, "s": 0.5}, convention="ito")
    result = simulate(sde, [0.0], histogram=Grid.uniform(x=(-3, 3, 30)), **RUN)
    np.testing.assert_allclose(result["density"].sum("x") * 0.2, 1.0)


@pytest.mark.slow
def test_memory_of_a_hundred_components(monkeypatch):
    """No copy of the paths beside the result: blocks, saved sums and code are far below half of `final`."""
    sde = VectorSDE(decay, constant, dimension=100, params={"k": 1.0, "s": 0.5}, convention="ito")
    settings = {"t1": 0.02, "dt": 0.01, "seed": 1, "save_at": [0.02], "threads": 1}
    simulate(sde, np.zeros(100), paths=64, **settings)
    tracemalloc.start()
    simulate(sde, np.zeros(100), paths=20_000, chunk=640, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    final = 8 * 20_000 * 100
    assert peak < 1.5 * final
    monkeypatch.setattr(memory, "available", lambda: 10 * final)
    with pytest.raises(InvalidInput, match="use fewer paths"):
        simulate(sde, np.zeros(100), paths=220_000, **settings)
