"""CAEO's rate from the sharpness in component form: the one place where the rule is written."""

from typing import Any

from numba.extending import register_jitable


@register_jitable  # models call it from their drift, which Numba compiles
def capped_rate(base: Any, sharpness: Any, delta: Any, xp: Any) -> Any:
    """Return ``min(base, (2 - delta)/sharpness)``, and `base` wherever the sharpness is not positive.

    `base` itself, not a rounded copy, where it is allowed; NaN of a NaN sharpness.

    Parameters
    ----------
    base : float or array
        Learning rate that is never exceeded.
    sharpness : float or array
        Largest eigenvalue of the Hessian.
    delta : float or array
        Distance kept from the edge, below 2.
    xp : namespace
        Of a model (`solvers.namespaces`), or of arrays.

    Returns
    -------
    float or array
        Of the broadcast shape.
    """
    allowed = 2.0 - delta
    stable = base * sharpness <= allowed  # true at any sharpness <= 0, false at NaN
    return xp.where(stable, base, allowed / xp.where(stable, 1.0, sharpness))
