"""Expectations and their derivatives with respect to parameters and start, path by path through JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from solvers import schemes, wiener
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.exit_times import refuse_arity
from solvers.provenance import provenance
from solvers.purity import plain_function
from solvers.request import checked_start, checked_steps, refuse_other
from solvers.sde import SDE
from solvers.stability import refuse_unstable_step

_ENTRIES = 1 << 21
"""Increments held at once."""
_FORWARD = 8
"""Up to so many derivatives forward mode is faster; its memory never grows with the number of steps."""


def stack(components: Any, y: Any) -> Any:
    """Components of a model as one array of the dtype of the state y."""
    return jnp.stack([jnp.asarray(c, dtype=y.dtype) for c in components])


def expectation_and_gradient(
    sde: SDE,
    y0: Any,
    observable: Callable[..., Any],
    *,
    t1: float,
    dt: float,
    paths: int,
    seed: int,
    t0: float = 0.0,
    scheme: str = "euler-maruyama",
    mode: str = "auto",
) -> xr.Dataset:
    """E f(X) at t1 and its derivatives with respect to the parameters and the start, path by path, by JAX.

    Every path is differentiated through its time steps (pathwise or infinitesimal perturbation analysis;
    Glasserman 2004, Monte Carlo Methods in Financial Engineering, sec. 7.2), on the increments of
    `solvers.wiener.increments`: those of ``solvers.simulate(..., resolution=53)`` at the same seed.

    Parameters
    ----------
    sde : SDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float or array (d,)
        Start.
    observable : callable
        ``observable(t, y, p, xp)``: f, one real number from the d-tuple y, continuous in y and p: a jump, as of
        an indicator, contributes to the derivative of the mean but to that of no path.
    t0, t1, dt : float
        Start, end and step; dt must divide t1 - t0.
    paths : int
        At least 2.
    seed : int
        Path k uses the increments of path k at that seed.
    scheme : {"euler-maruyama", "heun", "milstein"}
        "milstein" for commutative noise only, derivatives by JAX.
    mode : {"auto", "forward", "reverse"}
        Forward mode costs one pass per parameter and component and no memory per step; reverse mode costs a
        few passes in all and remembers every step. "auto" takes forward up to 8 derivatives. The results
        agree to rounding.

    Returns
    -------
    Dataset
        ``value``, ``stderr``; ``gradient`` and ``gradient_stderr`` (parameter); ``start_gradient`` and
        ``start_gradient_stderr`` (component), with respect to y0.

    Raises
    ------
    InvalidInput
        If an argument cannot be used.
    ConvergenceFailure
        If the value or a derivative of some path is not finite.

    Examples
    --------
    >>> ou = SDE(lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (p.s,),
    ...          params={"k": 1.0, "s": 0.5}, convention="ito")
    >>> result = expectation_and_gradient(ou, 2.0, lambda t, y, p, xp: y[0], t1=1.0, dt=0.01, paths=1000, seed=1)
    >>> abs(float(result["gradient"].sel(parameter="k")) + 2 * math.exp(-1)) < 0.05
    True
    """
    refuse_other(sde, SDE, "sde")
    if scheme not in _STEPS:
        raise InvalidInput(f"scheme={scheme!r} has no JAX reading; available: {', '.join(_STEPS)}")
    if mode not in {"auto", "forward", "reverse"}:
        raise InvalidInput(f"mode={mode!r} is unknown; choose 'auto', 'forward' or 'reverse'")
    if wiener.checked_integer("paths", paths) < 2:
        raise InvalidInput(f"paths={paths} must be at least 2")
    seed = wiener.checked_seed(seed)
    t0, dt, steps = checked_steps(t0, t1, dt)
    start = checked_start(sde, y0, 1)
    found = schemes.find(scheme)
    schemes.stepper(found, sde)  # refuses noise that the scheme cannot treat
    refuse_unstable_step(sde, start, t0, dt, found)
    function = plain_function(observable, "observable")
    refuse_arity(function, 4, "observable", "(t, y, p, xp)")
    ready = sde.to(found.convention)
    if mode == "auto":
        mode = "forward" if len(sde.params) + sde.dimension <= _FORWARD else "reverse"
    with jax.enable_x64(True):
        work = _differentiated(ready, function, scheme, mode, (t0, dt, steps))
        moments = _moments(work, start[0], sde, seed, paths, dt, steps)
    return _gradient_dataset(
        moments,
        sde,
        paths,
        provenance(
            title="expectation and gradient",
            convention=sde.convention,
            scheme=scheme,
            mode=mode,
            t0=t0,
            t1=float(t1),
            dt=dt,
            seed=seed,
        ),
    )


def _euler(model: Any, t: Any, dt: float, y: jax.Array, dw: jax.Array) -> jax.Array:
    return y + dt * model.drift(t, y) + model.kick(t, y, dw)


def _heun(model: Any, t: Any, dt: float, y: jax.Array, dw: jax.Array) -> jax.Array:
    drift, kick = model.drift(t, y), model.kick(t, y, dw)
    predicted = y + dt * drift + kick
    return (
        y
        + 0.5 * dt * (drift + model.drift(t + dt, predicted))
        + 0.5 * (kick + model.kick(t + dt, predicted, dw))
    )


def _milstein(model: Any, t: Any, dt: float, y: jax.Array, dw: jax.Array) -> jax.Array:
    """Half the sum of (b_j . grad) b_k (dw_j dw_k - delta_jk dt); the noise commutes."""
    noise = partial(model.kick, t)
    kick = noise(y, dw)
    along = jax.jvp(lambda x: noise(x, dw), (y,), (kick,))[1]
    for unit in jnp.eye(dw.size, dtype=dw.dtype):
        along = along - dt * jax.jvp(lambda x, e=unit: noise(x, e), (y,), (noise(y, unit),))[1]
    return y + dt * model.drift(t, y) + kick + 0.5 * along


_STEPS = {"euler-maruyama": _euler, "heun": _heun, "milstein": _milstein}


class _Reading:
    """Drift and noise of a model with parameters p over JAX arrays (d,) and (m,)."""

    def __init__(self, sde: SDE, p: Any):
        self._sde, self._p = sde, p

    def drift(self, t: Any, y: jax.Array) -> jax.Array:
        """The drift, shape (d,)."""
        return stack(self._sde.drift(t, tuple(y), self._p, jnp), y)

    def kick(self, t: Any, y: jax.Array, dw: jax.Array) -> jax.Array:
        """The diffusion times dw, shape (d,)."""
        rows = self._sde.diffusion(t, tuple(y), self._p, jnp)
        if self._sde.noise == "diagonal":
            return stack(rows, y) * dw
        return jnp.stack([stack(row, y) for row in rows]) @ dw


def _differentiated(
    sde: SDE, observable: Callable[..., Any], scheme: str, mode: str, grid: tuple[float, float, int]
) -> Callable[..., Any]:
    """``(inputs, increments (paths, steps, m)) -> (values (paths,), derivatives (paths, inputs))``, compiled.

    The inputs are the parameters followed by the start.
    """
    t0, dt, steps = grid
    step, kind, count = _STEPS[scheme], type(sde.params), len(sde.params)
    times = t0 + dt * np.arange(steps)

    def value(inputs: jax.Array, increments: jax.Array) -> jax.Array:
        flat = tuple(inputs[:count])
        p = kind(*flat) if hasattr(kind, "_fields") else flat
        model = _Reading(sde, p)

        def move(y, here):
            return step(model, here[0], dt, y, here[1]), None

        end, _ = jax.lax.scan(move, inputs[count:], (times, increments))
        result = jnp.asarray(observable(t0 + dt * steps, tuple(end), p, jnp))
        if result.shape != () or jnp.iscomplexobj(result):
            raise InvalidInput("observable must return one real number, as in y[0] ** 2")
        return result.astype(float)

    if mode == "reverse":
        return jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))

    def both(inputs: jax.Array, increments: jax.Array) -> tuple[jax.Array, jax.Array]:
        def twice(x):
            result = value(x, increments)
            return result, result

        derivatives, result = jax.jacfwd(twice, has_aux=True)(inputs)
        return result, derivatives

    return jax.jit(jax.vmap(both, in_axes=(None, 0)))


def _moments(
    work: Callable[..., Any], start: np.ndarray, sde: SDE, seed: int, paths: int, dt: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of (value, derivatives), chunk by chunk (Chan, Golub, LeVeque 1983)."""
    inputs = np.concatenate([np.asarray(sde.params, dtype=float), start])
    m = sde.noise_dimension
    size = max(1, min(paths, _ENTRIES // (steps * m)))
    count, mean, second = 0, np.zeros(inputs.size + 1), np.zeros(inputs.size + 1)
    for first in range(0, paths, size):
        # the last chunk is computed in full too, so that nothing is compiled again
        table = wiener.increments(seed, size, steps, m, dt, first_path=first)
        number = min(size, paths - first)
        values, derivatives = (np.asarray(a)[:number] for a in work(inputs, table))
        sample = np.concatenate([values[:, None], derivatives], axis=1)
        bad = int((~np.isfinite(sample).all(axis=1)).sum())
        if bad:
            raise ConvergenceFailure(
                f"the value or a derivative of {bad} of the paths {first} to {first + number - 1} is not finite; "
                "use a smaller dt, or an observable with finite derivatives"
            )
        here = sample.mean(axis=0)
        shift, total = here - mean, count + number
        second += ((sample - here) ** 2).sum(axis=0) + shift**2 * count * number / total
        mean += shift * number / total
        count = total
    return mean, np.sqrt(second / (paths - 1) / paths)


def _gradient_dataset(
    moments: tuple[np.ndarray, np.ndarray], sde: SDE, paths: int, attrs: dict[str, Any]
) -> xr.Dataset:
    mean, stderr = moments
    count = len(sde.params)
    names = list(getattr(sde.params, "_fields", [f"p[{i}]" for i in range(count)]))

    def about(text: str) -> dict[str, str]:
        return {"units": "1", "long_name": text}

    inner, outer = slice(1, 1 + count), slice(1 + count, None)
    return xr.Dataset(
        {
            "value": ((), mean[0], about("expectation of the observable")),
            "stderr": ((), stderr[0], about("standard error of the expectation")),
            "gradient": ("parameter", mean[inner], about("derivative of the expectation")),
            "gradient_stderr": ("parameter", stderr[inner], about("standard error of the derivative")),
            "start_gradient": ("component", mean[outer], about("derivative with respect to the start")),
            "start_gradient_stderr": ("component", stderr[outer], about("standard error of that derivative")),
        },
        coords={
            "parameter": ("parameter", np.array(names, dtype=str), {"long_name": "parameter of the model"}),
            "component": ("component", list(sde.names), {"long_name": "component of the state"}),
        },
        attrs={**attrs, "paths": int(paths)},
    )
