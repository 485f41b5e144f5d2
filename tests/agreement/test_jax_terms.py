"""The four readings of one model agree: Numba, arrays, JAX terms under diffrax, on one Brownian path."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde import models
from eos_sde.jax_terms import GivenBrownian, diffrax_terms
from eos_sde.models import maps
from eos_sde.optimizers.rule import learning_rate
from solvers import SDE, InvalidInput
from solvers.given_noise import drive
from solvers.wiener import increments

DT, STEPS = 0.02, 50


def rotating():
    """Two components, three Wiener processes, state-dependent."""
    return SDE(
        lambda t, y, p, xp: (-p.k * y[0] + xp.tanh(y[1]), -y[0] - p.k * y[1]),
        lambda t, y, p, xp: ((0.3 * y[1], 0.1, 0.0), (0.0, 0.2 * y[0], p.k * 0.1)),
        params={"k": 0.7},
        names=("x", "y"),
        noise="general",
        convention="ito",
    )


def multiplicative():
    return models.gradient_flow(
        models.landscapes.double_well, eta=0.3, noise=lambda t, y, p, xp: (xp.sqrt(1.0 + y[0] ** 2),)
    )


EVERY = [
    multiplicative(),
    models.sme2(curvature=(1.0, 2.0), eta=0.1, noise=0.3, names=("a", "b")),
    models.matched_linear(15.0, eta=0.1, noise=0.2),
    models.flip_normal_form(0.4, 1.0, 0.2),
    models.self_stabilization(1.0, 2.0, 0.2, 0.3),
    maps.caeo_map(0.2, alpha=1.0, beta=2.0, noise=0.3).as_sde(),
    rotating(),
]


def solve(sde, solver, table, start, args=None):
    return end(diffrax_terms(sde, GivenBrownian(table, DT), solver=solver), solver, start, args)


def end(terms, solver, start, args=None):
    states = diffrax.diffeqsolve(terms, solver, 0.0, DT * STEPS, DT, jnp.asarray(start), args=args).ys
    assert states is not None
    return states[0]


@pytest.mark.parametrize("sde", EVERY, ids=lambda sde: ",".join(sde.names) + str(len(sde.params)))
def test_fields_agree_in_every_reading(sde):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, sde.dimension))
    terms = diffrax_terms(sde, GivenBrownian(jnp.zeros((1, sde.noise_dimension)), 1.0))
    ode, control = terms.terms
    drift, diffusion, p = sde.compiled()
    for y in points:
        matrix = control.vector_field(0.0, jnp.asarray(y), None)
        if sde.noise == "diagonal":
            matrix = matrix.as_matrix()
            scalar = np.diag(diffusion(0.0, tuple(y), p))
        else:
            scalar = np.array(diffusion(0.0, tuple(y), p))
        field = ode.vector_field(0.0, jnp.asarray(y), None)
        for other in (drift(0.0, tuple(y), p), np.ravel(sde.drift_at(0.0, tuple(y)))):
            np.testing.assert_allclose(field, other, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(matrix, scalar, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "sde", [EVERY[0], EVERY[4], EVERY[6]], ids=["multiplicative", "degenerate", "general"]
)
def test_euler_on_one_brownian_path(sde):
    start = 0.3 + 0.1 * np.arange(sde.dimension)
    table = increments(7, 1, STEPS, sde.noise_dimension, DT)
    ours = drive(sde, start, table, dt=DT, every_step=False)
    theirs = solve(sde, diffrax.Euler(), table[0], start)
    # The same arithmetic but for the order of operations: 50 steps of rounding.
    np.testing.assert_allclose(theirs, np.ravel(ours), rtol=1e-12)


@pytest.mark.slow
def test_heun_on_one_brownian_path_reads_stratonovich():
    sde, start = multiplicative().to("stratonovich"), np.array([0.8])
    table = increments(3, 1, STEPS, 1, DT)
    ours = float(np.ravel(drive(sde, start, table, dt=DT, scheme="heun", every_step=False))[0])
    theirs = float(solve(sde, diffrax.Heun(), table[0], start)[0])
    assert theirs == pytest.approx(ours, rel=1e-12)
    # Negative control: the Ito drift under the same solver is another process.
    wrong = solve(SDE(multiplicative().drift, sde.diffusion, params=sde.params, convention="stratonovich"),
                  diffrax.Heun(), table[0], start)  # fmt: skip
    assert abs(float(wrong[0]) - ours) > 0.01


def well(convention):
    """Diagonal state-dependent noise in one dimension."""
    return SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.4 * xp.sqrt(1.0 + y[0] ** 2),),
        convention=convention,
    )


def turning(convention):
    """General noise that commutes: one Wiener process turns, another stretches the plane."""
    return SDE(
        lambda t, y, p, xp: (-0.5 * y[0] + 0.2 * y[1], -0.3 * y[1]),
        lambda t, y, p, xp: ((-0.5 * y[1], 0.3 * y[0]), (0.5 * y[0], 0.3 * y[1])),
        names=("x", "y"),
        noise="general",
        convention=convention,
    )


SHARED = [
    (well, "klimontovich", "euler-maruyama", diffrax.Euler()),
    (well, "klimontovich", "heun", diffrax.Heun()),
    (well, "ito", "milstein", diffrax.ItoMilstein()),
    (well, "klimontovich", "milstein", diffrax.StratonovichMilstein()),
    (turning, "stratonovich", "euler-maruyama", diffrax.Euler()),
    (turning, "ito", "heun", diffrax.Heun()),
    (turning, "stratonovich", "milstein", diffrax.StratonovichMilstein()),
    (turning, "ito", "milstein", diffrax.ItoMilstein()),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "convention", "scheme", "solver"), SHARED, ids=lambda v: getattr(v, "__name__", None)
)
def test_schemes_of_one_name_agree_in_every_convention(build, convention, scheme, solver):
    # Ours takes the model as it is, diffrax the one converted to the solver's convention. The two Milstein
    # schemes are one scheme: (b.grad)b dt/2 is part of the drift here and of the noise there. 50 steps of
    # rounding, amplified by exp(2 T) at most.
    sde = build(convention)
    start = 0.7 + 0.2 * np.arange(sde.dimension)
    table = increments(11, 1, STEPS, sde.noise_dimension, DT)
    ours = np.ravel(drive(sde, start, table, dt=DT, scheme=scheme, every_step=False))
    needed = "ito" if isinstance(solver, diffrax.AbstractItoSolver) else "stratonovich"
    np.testing.assert_allclose(solve(sde.to(needed), solver, table[0], start), ours, rtol=1e-12)
    # negative control: read in another convention it is another process
    other = build("stratonovich" if convention == "ito" else "ito")
    wrong = np.ravel(drive(other, start, table, dt=DT, scheme=scheme, every_step=False))
    assert np.abs(wrong - ours).max() > 1e-3


def test_the_space_time_area_of_a_step_is_that_of_sra1():
    sde, start = models.self_stabilization(1.0, 2.0, 0.2, 0.3), np.array([0.4, 0.1])
    table = increments(13, 1, STEPS, 2 * sde.noise_dimension, DT)
    m = sde.noise_dimension
    ours = np.ravel(drive(sde, start, table, dt=DT, scheme="sra1", every_step=False))
    path = GivenBrownian(table[0, :, :m], DT, auxiliary=table[0, :, m:])
    terms = diffrax_terms(sde.to("stratonovich"), path, solver=diffrax.SRA1())
    np.testing.assert_allclose(end(terms, diffrax.SRA1(), start), ours, rtol=1e-12)


def test_a_given_path_over_several_steps():
    rng = np.random.default_rng(2)
    table, extra = rng.normal(size=(8, 2)), rng.normal(size=(8, 2))
    path = GivenBrownian(table, 0.1, t0=1.0, auxiliary=extra)
    np.testing.assert_allclose(path.evaluate(1.2, 1.5), table[2:5].sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(path.evaluate(1.8), table.sum(axis=0), rtol=1e-12)
    # H = mean of W - W(s) over the interval less half the increment, added up from the steps' integrals
    whole = path.evaluate(1.2, 1.5, use_levy=True)
    before = np.cumsum(table[2:5], axis=0) - table[2:5]
    integral = (0.1 * (before + 0.5 * (table[2:5] + extra[2:5] / np.sqrt(3)))).sum(axis=0)
    np.testing.assert_allclose(whole.H, integral / 0.3 - 0.5 * table[2:5].sum(axis=0), rtol=1e-10)
    with pytest.raises(InvalidInput, match=r"increments has shape \(8,\)"):
        GivenBrownian(table[:, 0], 0.1)
    with pytest.raises(InvalidInput, match=r"auxiliary has shape \(7, 2\)"):
        GivenBrownian(table, 0.1, auxiliary=extra[1:])
    with pytest.raises(InvalidInput, match=r"dt=0\.0"):
        GivenBrownian(table, 0.0)


def test_gradient_with_respect_to_parameters():
    # d x(T) / d mu of the flip form: reverse mode through diffrax against a central difference of our solver.
    sde, start = models.flip_normal_form(0.4, 1.0, 0.2), np.array([0.5])
    table = increments(5, 1, STEPS, 1, DT)[0]

    def final(mu):
        return solve(sde, diffrax.Euler(), table, start, args=sde.params._replace(mu=mu))[0]

    step = 1e-5  # truncation about step^2, rounding 1e-16/step
    high, low = (
        drive(sde.replace(mu=0.4 + change), start, table[None], dt=DT, every_step=False).item()
        for change in (step, -step)
    )
    assert float(jax.grad(final)(0.4)) == pytest.approx((high - low) / (2 * step), rel=1e-8)


@pytest.mark.parametrize("delta", [-0.05, 0.0, 0.1, 1.0])
def test_the_reduced_caeo_map_uses_the_optimizers_rule(delta):
    sharpness = np.array([-3.0, 0.0, 1.0, 9.4, 9.6, 50.0])
    sde = maps.caeo_map(0.2, delta=delta, alpha=1.0, beta=2.0, noise=1.0).as_sde()
    rate = sde.diffusion_at(0.0, (np.ones(6), sharpness))[0]  # eta_t times a unit noise
    np.testing.assert_allclose(rate, learning_rate(0.2, sharpness, delta), rtol=1e-14)


def test_refusals():
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), jax.random.key(0))
    sde = models.flip_normal_form(0.1, 1.0, 0.1)
    with pytest.raises(InvalidInput, match=r"shape \(2,\)"):
        diffrax_terms(sde, path)
    one = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (1,), jax.random.key(0))
    with pytest.raises(InvalidInput, match="Heun solves the stratonovich equation"):
        diffrax_terms(sde, one, solver=diffrax.Heun())
    with pytest.raises(InvalidInput, match="Euler solves the ito equation"):
        diffrax_terms(sde.to("stratonovich"), one, solver=diffrax.Euler())
    with pytest.raises(InvalidInput, match="convention='klimontovich'"):
        diffrax_terms(sde.to("klimontovich"), one)
    with pytest.raises(InvalidInput, match="no SDE solver"):
        diffrax_terms(sde, one, solver=diffrax.Dopri5())
