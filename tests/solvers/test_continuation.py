"""Eigenpairs along a parameter, and derivatives of eigenvalues."""

import numpy as np
import pytest

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    continuation,
    eigenmodes,
    eigenvalue_derivative,
    from_potential,
)
from tests.operators import double_well, ornstein_uhlenbeck, tilted_cosine


def _ou(k, cells=400, **settings):
    return FokkerPlanck(ornstein_uhlenbeck(k, 0.5), Grid.uniform(x=(-6, 6, cells)), **settings)


def _square(a):
    """Two independent linear processes with rates a and 1: eigenvalues -(n a + m)."""
    model = SDE(
        lambda t, y, p, xp: (-p.a * y[0], -y[1]),
        lambda t, y, p, xp: (xp.sqrt(p.a), 1.0),
        params={"a": a},
        names=("x", "y"),
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-3.5, 3.5, 30), y=(-3.5, 3.5, 30)))


def test_derivative_of_the_linear_process():
    """d(-n k)/dk = -n, up to the second order of the cells, of both eigenvalue and derivative."""
    errors = []
    for cells in (200, 400):
        moved = eigenvalue_derivative(lambda k, cells=cells: _ou(k, cells), 1.3, k=5)
        errors.append(np.abs(moved.values + np.arange(5))[1:])
    assert errors[1].max() < 0.02
    assert np.all(np.abs(errors[0] / errors[1] - 4) < 0.3)


@pytest.mark.parametrize("noise", [0.03, 0.2])
def test_derivative_agrees_with_differences_of_eigenvalues(noise):
    """Central differences over h = 1e-4 D: their error is h^2/6 of a third derivative of about (dV / D^2)^3."""

    def build(D):
        return FokkerPlanck(double_well(D, potential=True), Grid.uniform(x=(-2.5, 2.5, 500)))

    moved = eigenvalue_derivative(build, noise, k=3)
    h = 1e-4 * noise
    ends = [eigenmodes(build(noise + s * h), 3).eigenvalue.values for s in (-1, 1)]
    differences = (ends[1] - ends[0]) / (2 * h)
    size = np.abs(moved.eigenvalue.values[1:])
    # Arrhenius: the n-th derivative is the eigenvalue times (0.25 / D^2)^n at most for the first, D^-n beyond
    third = size * np.maximum(0.25 / noise**2, 10 / noise) ** 3
    assert np.all(np.abs(moved.values - differences)[1:] < h**2 / 6 * third + 1e-10 * size / h * 1e-2)
    assert moved.values[0] == pytest.approx(0, abs=1e-9)


def test_derivative_of_complex_and_killed_modes():
    def rotating(D):
        model = SDE(
            lambda t, y, p, xp: (0.7 - xp.sin(y[0]),),
            lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
            params={"D": D},
            convention="ito",
        )
        return FokkerPlanck(model, Grid.uniform(x=(0, 2 * np.pi, 120)), boundary="periodic")

    def killed(D):
        return FokkerPlanck(ornstein_uhlenbeck(1, D), Grid.uniform(x=(-1, 1, 120)), boundary="absorbing")

    for build in (rotating, killed):
        moved = eigenvalue_derivative(build, 0.3, k=3)
        h = 1e-4
        ends = [eigenmodes(build(0.3 + s * h), 3).eigenvalue.values for s in (-1, 1)]
        # third derivatives of size |lambda| / D^3 times a few: 1e-8 / 6 * 37 * 30
        np.testing.assert_allclose(moved.values, (ends[1] - ends[0]) / (2 * h), rtol=0, atol=2e-6)
    assert np.iscomplexobj(eigenvalue_derivative(rotating, 0.3, k=3).values)


def test_derivative_of_a_transfer_operator():
    """X -> (1 - s k) x + noise has eigenvalues (1 - s k)^n."""

    def build(k):
        model = SDE(
            lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (0.5,), params={"k": k}, convention="ito"
        )
        return TransferOperator(model, Grid.uniform(x=(-4, 4, 80)), step=0.4)

    moved = eigenvalue_derivative(build, 0.8, k=3)
    # cells of 0.1 against noise of 0.32: (h / s)^2 / 12, about 0.8 percent of each
    np.testing.assert_allclose(moved.values, [0, -0.4, -2 * 0.4 * 0.68], atol=1e-2)
    followed = continuation(build, [0.8, 0.9], k=3)
    np.testing.assert_allclose(followed.eigenvalue_derivative.values[0], moved.values, rtol=1e-9, atol=1e-9)


def test_modes_are_followed_through_crossings():
    """Rates a and 1 cross at a = 1, 2a and 1 at a = 1/2, also where a value sits on the crossing itself."""
    values = np.array([0.7, 0.85, 1.0, 1.2, 1.5])
    followed = continuation(_square, values, k=4, name="a")
    rates = -followed.eigenvalue.values
    # modes at 0.7: 0, a, 1, 2a
    expected = np.column_stack([0 * values, values, 1 + 0 * values, 2 * values])
    # second order in cells of 0.23 against a width of 0.7: about h^2 / (4 * 0.5) of the rate
    assert np.abs(rates - expected).max() < 0.1
    order = np.argsort(rates, axis=1, kind="stable")
    assert np.array_equal(order[0], [0, 1, 2, 3])
    assert np.array_equal(order[-1], [0, 2, 1, 3])
    assert followed["rank"].values[-1, 1] > followed["rank"].values[0, 1]
    assert followed.overlap.values.min() > 0.99
    slopes = -followed.eigenvalue_derivative.values
    assert np.abs(slopes - [0, 1, 0, 2]).max() < 0.2
    # without tracking mode 1 would jump to the other branch
    assert abs(-eigenmodes(_square(1.5), 2).eigenvalue.values[1] - rates[-1, 1]) > 0.3
    # signs go on along the way, and left and right stay a pair
    first, last = followed.right[1, 1].values, followed.right[-1, 1].values
    assert np.sum(first * last) > 0
    grid = _square(1.0).grid
    for step in followed.transpose("a", ...).right.values * grid.volumes:
        assert step.shape == (4, 30, 30)
    pair = np.einsum("amxy,anxy->amn", followed.left.values, followed.right.values * grid.volumes)
    np.testing.assert_allclose(pair, np.broadcast_to(np.eye(4), pair.shape), atol=1e-7)


def test_complex_modes_are_followed():
    def build(force):
        model = SDE(
            lambda t, y, p, xp: (p.force - xp.sin(y[0]),),
            lambda t, y, p, xp: (0.6**0.5,),
            params={"force": force},
            convention="ito",
        )
        return FokkerPlanck(model, Grid.uniform(x=(0, 2 * np.pi, 80)), boundary="periodic")

    followed = continuation(build, [0.7, 0.8, 0.9], k=3, name="force")
    single = eigenmodes(
        FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 2 * np.pi, 80)), boundary="periodic"), 3
    )
    np.testing.assert_allclose(followed.eigenvalue.values[0], single.eigenvalue.values, rtol=1e-9, atol=1e-12)
    assert np.all(
        np.sign(followed.eigenvalue.values[:, 1].imag) == np.sign(followed.eigenvalue.values[0, 1].imag)
    )


def test_an_interrupted_run_keeps_its_values_and_goes_on():
    whole = continuation(_ou, [1.0, 1.2, 1.4, 1.6], k=3, name="k")
    assert whole.attrs["complete"] == 1
    seen = []

    def stop(fraction):
        seen.append(fraction)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.warns(AccuracyWarning, match="interrupted after 2 of 4 values"):
        part = continuation(_ou, [1.0, 1.2, 1.4, 1.6], k=3, name="k", progress=stop)
    assert seen == [0.25, 0.5]
    assert part.attrs["complete"] == 0
    assert part.sizes["k"] == 2
    done = continuation(_ou, [1.0, 1.2, 1.4, 1.6], k=3, name="k", resume=part)
    assert done.attrs["eigen_solves"] == 2
    for variable in whole.data_vars:
        np.testing.assert_allclose(done[variable].values, whole[variable].values, rtol=1e-9, atol=1e-12)


def test_a_failing_value_leaves_the_finished_ones():
    def build(k):
        if k > 1.3:
            raise InvalidInput("k too large for this laboratory")
        return _ou(k)

    with pytest.raises(InvalidInput, match="laboratory") as caught:
        continuation(build, [1.0, 1.2, 1.4], k=2)
    assert caught.value.finished.sizes["parameter"] == 2
    assert "2 of 3 values were finished" in caught.value.__notes__[0]


def test_a_mode_that_cannot_be_followed_is_told():
    """Two boxes behind a thin barrier: modes of one box mix as soon as the boxes are equal, and not before."""
    model = from_potential(
        lambda t, y, p, xp: 12 * xp.exp(-((y[0] - p.place) ** 2) / (2 * 0.02**2)),
        lambda t, y, p, xp: (2.0**0.5,),
        params={"place": 1.0},
        convention="ito",
    )

    def build(place):
        return FokkerPlanck(model.replace(place=place), Grid.uniform(x=(0, 2, 400)), allow_wall_mass=True)

    with pytest.warns(AccuracyWarning, match="could not be followed from"):
        lost = continuation(build, [0.9, 1.0], k=4)
    assert lost.overlap.values[1, 2:].min() < 0.6
    # across it, the modes keep to their boxes, which end where the barrier exceeds 1: 0.045 from its middle
    across = continuation(build, [0.9, 1.1], k=4)
    slow = -across.eigenvalue.values[:, 2:]
    np.testing.assert_allclose(slow[0], (np.pi / np.array([1.055, 0.855])) ** 2, rtol=0.05)
    np.testing.assert_allclose(slow[1], slow[0, ::-1], rtol=1e-6)
    assert across["rank"].values[1].tolist() == [0, 1, 3, 2]


def test_unusable_input_is_refused():
    for build, values, settings, words in [
        (3.0, [1.0], {}, "not callable"),
        (lambda k: k, [1.0], {}, "returned a float"),
        (_ou, [], {}, "strictly increasing"),
        (_ou, [1.0, 1.0], {}, "strictly increasing"),
        (_ou, [1.0, np.nan], {}, "finite numbers"),
        (_ou, [1.0], {"name": "x"}, "also an axis"),
        (_ou, [1.0], {"name": "no name"}, "give a name"),
        (_ou, [1.0], {"resume": 3}, "no result of continuation"),
        (lambda k: _ou(k, 100 if k == 1 else 120), [1.0, 2.0], {}, "another grid"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            continuation(build, values, k=2, **settings)
    with pytest.raises(InvalidInput, match="value=nan"):
        eigenvalue_derivative(_ou, np.nan)
    with pytest.raises(InvalidInput, match="scale=-1"):
        eigenvalue_derivative(_ou, 1.0, scale=-1)
    with pytest.raises(InvalidInput, match="another grid"):
        eigenvalue_derivative(lambda k: _ou(k, 100 if k <= 1 else 120), 1.0)
