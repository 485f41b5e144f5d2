"""Transition path theory."""

import numpy as np
import pytest
from scipy.integrate import cumulative_simpson, quad

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    committor,
    eigenmodes,
    escape_rate,
    mean_first_passage_time,
    reaction_rate,
    stationary_density,
)
from tests.operators import double_well, separable_wells, tilted_cosine

CIRCLE = 2 * np.pi


def rotating_wells(D, turning):
    """Drift -(1 + turning R) grad U, U = (x^2 - 1)^2 + 2 y^2: exp(-U / D) stays stationary, but it turns."""

    def drift(t, y, p, xp):
        ux, uy = 4 * y[0] * (y[0] * y[0] - 1), 4 * y[1]
        return -ux + p.turning * uy, -uy - p.turning * ux

    return SDE(
        drift,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D), xp.sqrt(2 * p.D)),
        params={"D": D, "turning": turning},
        names=("x", "y"),
        convention="ito",
    )


def disc(center, radius=0.4):
    return lambda x, y: (x - center) ** 2 + y**2 < radius**2


def test_transitions_of_the_double_well_by_quadrature():
    # rate D / (Z int e^(U/D)) between the edges; duration: the integral of p q (1 - q) over the rate
    D, edge = 0.1, 0.83

    def weight(x, sign=-1):
        return np.exp(sign * (x**4 / 4 - x**2 / 2) / D)

    z = quad(weight, -4, 4, epsabs=0, epsrel=1e-12)[0]
    barrier = quad(lambda x: weight(x, 1), -edge, edge, epsrel=1e-12)[0]
    rate = D / barrier / z

    def q(x):
        return quad(lambda s: weight(s, 1), -edge, x)[0] / barrier

    duration = quad(lambda x: weight(x) / z * q(x) * (1 - q(x)), -edge, edge)[0] / rate
    errors = []
    for n in (202, 404):
        fp = FokkerPlanck(double_well(D), Grid.uniform(x=(-3, 3, n)))
        found = reaction_rate(fp, lambda x: x < -edge, lambda x: x > edge)
        errors.append(float(found.rate) / rate - 1)
        assert abs(float(found.transition_time) / duration - 1) < 1e-4
        # one round trip: from source to target and back
        round_trip = float(found.source_residence) + float(found.target_residence)
        np.testing.assert_allclose(round_trip, 1 / float(found.rate), rtol=1e-10)
        np.testing.assert_allclose(found.forward_committor + found.backward_committor, 1, atol=1e-12)
        between = found.reactive_face_current_x.sel(x_edge=slice(-0.7, 0.7)).values
        np.testing.assert_allclose(between, float(found.rate), rtol=1e-10)
        assert found.reactive_current.values[0, [0, -1]].tolist() == [0, 0]
    assert abs(errors[1]) < 1e-4
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)
    assert found.rate.attrs["units"] == "1/time"


def test_transitions_around_a_tilted_ring_by_quadrature():
    # both arcs between the regions carry transitions; the reversed process has drift -b + 2 D p' / p, so that
    # q+' ~ e^phi and q-' ~ e^-phi / p^2 with phi = -int b / D
    force, D = 0.7, 0.3
    x = np.linspace(0, CIRCLE, 20001)

    def phi(y):
        return -(force * y + np.cos(y) - 1) / D

    turns = np.concatenate([x, x[1:] + CIRCLE])
    grown = cumulative_simpson(np.exp(phi(turns)), x=turns, initial=0)
    p = np.exp(-phi(x)) * (grown[len(x) - 1 :] - grown[: len(x)])
    p /= np.trapezoid(p, x)
    current = np.mean((force - np.sin(x)) * p - D * np.gradient(p, x, edge_order=2))

    def flow(low, high, source_at_low):
        y = np.linspace(low, high, 4001)
        density = np.interp(np.mod(y, CIRCLE), x, p)
        values = []
        for slope in (np.exp(phi(y) - phi(low)), np.exp(phi(low) - phi(y)) / density**2):
            grown = cumulative_simpson(slope, x=y, initial=0)
            values.append((grown / grown[-1], slope / grown[-1]))
        (forward, d_forward), (backward, d_backward) = values
        if source_at_low:
            backward, d_backward = 1 - backward, -d_backward
        else:
            forward, d_forward = 1 - forward, -d_forward
        result = forward * backward * current
        result = result + D * density * (backward * d_forward - forward * d_backward)
        assert np.ptp(result) < 1e-4 * np.abs(result).mean()  # the quadrature itself: constant along an arc
        return result.mean()

    rate = flow(1.0, 3.5, True) - flow(4.0, 0.5 + CIRCLE, False)
    errors = []
    for n in (150, 300):
        fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, CIRCLE, n)), boundary="periodic")
        assert not fp.reversible
        found = reaction_rate(fp, lambda x: (x >= 0.5) & (x <= 1.0), lambda x: (x >= 3.5) & (x <= 4.0))
        errors.append(float(found.rate) / rate - 1)
    assert abs(errors[1]) < 1e-3
    assert abs(errors[0] / errors[1]) > 2.5


def test_the_rates_of_an_irreversible_plane_agree_with_linear_algebra_and_the_spectrum():
    fp = FokkerPlanck(rotating_wells(0.2, 1.5), Grid.uniform(x=(-2, 2, 41), y=(-1.6, 1.6, 33)))
    assert not fp.reversible
    found = reaction_rate(fp, disc(-1), disc(1))
    # the flow around the source and around the target is the rate, and no free cell gains
    total = np.zeros(fp.grid.shape)
    for axis, name in enumerate(("x", "y")):
        across = fp.grid.widths["y" if name == "x" else "x"][0]
        total += np.diff(found[f"reactive_face_current_{name}"].values, axis=axis) * across
    x, y = fp.grid.coords()
    free = ~(disc(-1)(x, y) | disc(1)(x, y))
    rate = float(found.rate)
    assert np.abs(total[free]).max() < 1e-10 * rate
    np.testing.assert_allclose(total[disc(-1)(x, y)].sum(), rate, rtol=1e-9)
    np.testing.assert_allclose(total[disc(1)(x, y)].sum(), -rate, rtol=1e-9)
    # symmetric under a half turn, which exchanges the regions
    np.testing.assert_allclose(
        found.forward_committor.values[::-1, ::-1], 1 - found.forward_committor, atol=1e-9
    )
    # the backward committor is the forward one, roles exchanged, of the process that turns the other way; the
    # chain of the reversed drift is the reversed chain to second order in h (41 to 61 cells: 2.2)
    errors = []
    for n in (41, 61):
        grid = Grid.uniform(x=(-2, 2, n), y=(-1.6, 1.6, n))
        fp = FokkerPlanck(rotating_wells(0.2, 1.5), grid)
        x, y = grid.coords()
        masses = np.exp(-((x**2 - 1) ** 2 + 2 * y**2) / 0.2)
        masses /= masses.sum()
        found = reaction_rate(fp, disc(-1), disc(1))
        other = committor(FokkerPlanck(rotating_wells(0.2, -1.5), grid), disc(1), disc(-1))
        errors.append(float((masses * np.abs(other - found.backward_committor)).sum()))
        turned = float((masses * np.abs(1 - found.forward_committor - found.backward_committor)).sum())
    assert errors[1] < 0.1 * turned
    assert errors[0] / errors[1] > 1.7
    # in the metastable limit the two rate constants add up to the gap, within rate * relaxation time
    deep = FokkerPlanck(rotating_wells(0.1, 1.5), Grid.uniform(x=(-1.8, 1.8, 81), y=(-1.2, 1.2, 61)))
    found = reaction_rate(deep, disc(-1), disc(1))
    constants = 1 / float(found.source_residence) + 1 / float(found.target_residence)
    gap = float(eigenmodes(deep, 2).gap)
    assert gap < 2e-4 * 8  # against relaxation at a rate of 8 in the wells
    assert abs(constants / gap - 1) < 1e-3


def test_tiny_rates_keep_relative_accuracy():
    fp = FokkerPlanck(double_well(0.005, potential=True), Grid.uniform(x=(-2, 2, 400)))
    found = reaction_rate(fp, lambda x: x < -0.8, lambda x: x > 0.8)
    assert float(found.rate) < 1e-20
    # once the source is reached, the time to the target is that from the bottom of the well
    time = float(mean_first_passage_time(fp, lambda x: x > 0.8).interp(x=-1.0))
    assert abs(float(found.source_residence) / time - 1) < 1e-9
    escape = float(escape_rate(fp, target=lambda x: x > 0.8).rate)
    assert abs(escape * float(found.source_residence) - 1) < 1e-9


def test_reactive_trajectories_in_the_plane_cross_at_the_saddle():
    fp = FokkerPlanck(separable_wells(0.15), Grid.uniform(x=(-2, 2, 60), y=(-1.5, 1.5, 40)))
    found = reaction_rate(fp, disc(-1), disc(1))
    through = found.reactive_face_current_x.sel(x_edge=0, method="nearest")
    np.testing.assert_allclose(float(through.sum() * fp.grid.widths["y"][0]), float(found.rate), rtol=1e-9)
    assert abs(float(through.y[np.argmax(through.values)])) < 0.1
    spent = float((found.reactive_density * fp.grid.volumes).sum())
    np.testing.assert_allclose(spent, float(found.rate * found.transition_time), rtol=1e-12)
    assert float((stationary_density(fp) - found.reactive_density).min()) >= 0


def test_unusable_input_is_refused():
    line = Grid.uniform(x=(-2, 2, 40))
    fp = FokkerPlanck(double_well(0.2), line)
    walled = FokkerPlanck(double_well(0.2), line, boundary="absorbing")
    for call, words in [
        (lambda: reaction_rate(fp, lambda x: x < 0, lambda x: x > -1), "overlap"),
        (lambda: reaction_rate(fp, lambda x: x < 0, lambda x: x >= 0), "touch at x="),
        (lambda: reaction_rate(fp, lambda x: x < -5, lambda x: x > 1), "no cell centre"),
        (lambda: reaction_rate(walled, lambda x: x < -1, lambda x: x > 1), "absorbing wall"),
        (lambda: reaction_rate(fp.chain, lambda x: x < -1, lambda x: x > 1), "Chain"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3, -y[1]),
        lambda t, y, p, xp: ((0.9, 0.0), (0.8, 0.5)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )
    with pytest.warns(AccuracyWarning, match="D12"):
        central = FokkerPlanck(sde, Grid.uniform(x=(-3, 3, 20), y=(-3, 3, 60)))
    with pytest.raises(InvalidInput, match="signed central"):
        reaction_rate(central, lambda x, y: x < -1, lambda x, y: x > 1)
