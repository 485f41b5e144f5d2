"""Models with known spectra and densities, shared by the Fokker-Planck tests."""

from solvers import SDE, FokkerPlanck, Grid, from_potential


def _double_well_drift(t, y, p, xp):
    return (y[0] - y[0] ** 3,)


def _constant_noise(t, y, p, xp):
    return (xp.sqrt(2.0 * p.D),)


def double_well(D, *, potential=False, convention="ito"):
    if potential:
        return from_potential(
            lambda t, y, p, xp: y[0] ** 4 / 4 - y[0] ** 2 / 2,
            _constant_noise,
            params={"D": D},
            convention=convention,
        )
    return SDE(_double_well_drift, _constant_noise, params={"D": D}, convention=convention)


def ornstein_uhlenbeck(theta, D):
    return SDE(
        lambda t, y, p, xp: (-p.theta * y[0],),
        _constant_noise,
        params={"theta": theta, "D": D},
        convention="ito",
    )


def multiplicative(convention):
    return SDE(
        _double_well_drift,
        lambda t, y, p, xp: (xp.sqrt(0.2 * (1 + y[0] ** 2)),),
        convention=convention,
    )


def tilted_cosine():
    return SDE(
        lambda t, y, p, xp: (0.7 - xp.sin(y[0]),),
        lambda t, y, p, xp: (0.6**0.5,),
        convention="ito",
    )


def separable_wells(D=0.2):
    return from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2,
        lambda t, y, p, xp: (xp.sqrt(2 * p.D), xp.sqrt(2 * p.D)),
        params={"D": D},
        names=("x", "y"),
        convention="ito",
    )


def rotating_ou():
    """D = [[.5, .3], [.3, .4]], A = [[1, 2], [-2, 1]]."""
    return SDE(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1]),
        lambda t, y, p, xp: ((1.0, 0.0), (0.6, 0.44**0.5)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )


def brownian_square():
    return SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
        lambda t, y, p, xp: (2.0**0.5, 2.0**0.5),
        names=("x", "y"),
        convention="ito",
    )


def discrete_ou(step):
    """One Euler step of size `step` is x -> (1 - step) x + 0.5 step xi."""
    return SDE(
        lambda t, y, p, xp: (-y[0],),
        lambda t, y, p, xp: (0.5 * xp.sqrt(p.step),),
        params={"step": step},
        convention="ito",
    )


def stirred_wells(cells, D):
    """Minus a gradient, plus a current along the level lines: stationary exp(-U / D), no detailed balance."""
    sde = SDE(
        lambda t, y, p, xp: (
            -4 * y[0] * (y[0] ** 2 - 1) - y[1],
            -2 * y[1] + 2 * y[0] * (y[0] ** 2 - 1),
            -2 * y[2],
        ),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=("x", "y", "z"),
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(**dict.fromkeys(("x", "y", "z"), (-2, 2, cells))))
