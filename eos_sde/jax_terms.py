"""The JAX reading of a model: diffrax terms on given Brownian paths, and gradients of expectations."""

from __future__ import annotations

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

from eos_sde.jax_gradient import expectation_and_gradient, stack
from solvers.errors import InvalidInput
from solvers.sde import SDE

__all__ = ["GivenBrownian", "diffrax_terms", "expectation_and_gradient"]


def diffrax_terms(sde: SDE, brownian: Any, *, solver: Any = None) -> diffrax.MultiTerm:
    """The model as ``MultiTerm(ODETerm, ControlTerm)`` for `diffrax.diffeqsolve`.

    The state is one array of shape (d,). What a diffrax solver converges to is fixed by the solver, not
    by the terms: `Euler` and `ItoMilstein` solve the Ito equation; `Heun`, `EulerHeun`, `Midpoint`,
    `StratonovichMilstein`, `SRA1`, `ShARK` and the other Stratonovich solvers solve the Stratonovich one (the
    same for additive noise, which is all that some of them take). Convert the
    model first, ``sde.to("ito")`` or ``sde.to("stratonovich")``, and pass `solver` to have the match checked.

    Parameters
    ----------
    sde : SDE
        In the Ito or Stratonovich convention, that of the solver to be used.
    brownian : diffrax.AbstractPath
        Drives the noise; its values have shape (m,), m = ``sde.noise_dimension``. For example
        ``diffrax.VirtualBrownianTree(t0, t1, tol, (m,), key)``.
    solver : diffrax.AbstractSolver, optional
        The solver to be used; only checked.

    Returns
    -------
    diffrax.MultiTerm
        Parameters are read from the ``args`` of ``diffeqsolve``, or from ``sde.params`` where args is None:
        gradients with respect to parameters come from passing them as args.

    Raises
    ------
    InvalidInput
        If the Brownian path has another shape, the convention is Klimontovich (which no diffrax solver
        reads), or it is not the solver's.

    Examples
    --------
    >>> import diffrax, jax
    >>> from eos_sde.models import flip_normal_form
    >>> sde = flip_normal_form(0.1, 1.0, 0.05)
    >>> path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (1,), jax.random.key(0))
    >>> terms = diffrax_terms(sde, path, solver=diffrax.Euler())
    >>> solution = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 0.01, jax.numpy.ones(1))
    >>> solution.ys.shape
    (1, 1)
    """
    _check_convention(sde.convention, solver)
    shape = getattr(getattr(brownian, "shape", None), "shape", None)
    m = sde.noise_dimension
    if shape is not None and tuple(shape) != (m,):
        raise InvalidInput(
            f"brownian has shape {tuple(shape)}; the model has {m} Wiener processes: give {(m,)}"
        )

    def drift(t, y, args):
        p = sde.params if args is None else args
        return stack(sde.drift(t, tuple(y), p, jnp), y)

    def diffusion(t, y, args):
        p = sde.params if args is None else args
        rows = sde.diffusion(t, tuple(y), p, jnp)
        if sde.noise == "diagonal":
            return lx.DiagonalLinearOperator(stack(rows, y))
        return jnp.stack([stack(row, y) for row in rows])

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian))


class GivenBrownian(diffrax.AbstractBrownianPath):
    """A Brownian path from a table of increments, such as `solvers.wiener.increments`, for diffrax.

    On the grid of the table, over steps of any whole number of `dt`, the increments are exactly those of the
    table; between grid points the path is joined by straight lines, which no Brownian path is: let the
    solver's steps be multiples of `dt`.

    Parameters
    ----------
    increments : array (steps, m)
        Of m Wiener processes.
    dt, t0 : float
        Step and start of the table.
    auxiliary : array (steps, m), optional
        Numbers U of variance dt, independent of the increments, that make the time integral of a step
        ``dt (dW + U / sqrt(3)) / 2``: what `sra1` and `sriw1` draw beside dW. Needed for diffrax solvers that
        use space-time Levy areas.

    Raises
    ------
    InvalidInput
        If a table does not have this shape, or dt is not positive.

    Examples
    --------
    >>> from solvers import wiener
    >>> path = GivenBrownian(wiener.increments(1, paths=1, steps=8, dt=0.125)[0], 0.125)
    >>> float(path.t1)
    1.0
    """

    t0: Any
    t1: Any
    dt: Any
    values: jax.Array
    integrals: jax.Array | None
    levy_area: Any = eqx.field(static=True)

    def __init__(self, increments: Any, dt: float, *, t0: float = 0.0, auxiliary: Any = None):
        table = jnp.asarray(increments)
        if table.ndim != 2 or 0 in table.shape:
            raise InvalidInput(
                f"increments has shape {table.shape}; give (steps, processes), of one path: one row of "
                "wiener.increments"
            )
        if isinstance(dt, (int, float)) and not dt > 0:
            raise InvalidInput(f"dt={dt} must be positive")
        start = jnp.zeros((1, table.shape[1]), table.dtype)
        self.t0, self.t1, self.dt = t0, t0 + dt * table.shape[0], dt
        self.values = jnp.concatenate([start, jnp.cumsum(table, axis=0)])
        self.integrals = None
        if auxiliary is not None:
            extra = jnp.asarray(auxiliary, table.dtype)
            if extra.shape != table.shape:
                raise InvalidInput(
                    f"auxiliary has shape {extra.shape}; give that of increments, {table.shape}"
                )
            within = self.values[:-1] + 0.5 * (table + extra / math.sqrt(3.0))
            self.integrals = jnp.concatenate([start, jnp.cumsum(dt * within, axis=0)])
        self.levy_area = diffrax.BrownianIncrement if auxiliary is None else diffrax.SpaceTimeLevyArea

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape (m,) and dtype of the values."""
        return jax.ShapeDtypeStruct(self.values.shape[1:], self.values.dtype)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """The path at t0, or its increment from t0 to t1; with `use_levy` as a diffrax increment type."""
        del left
        if t1 is None:
            return self._at(self.values, t0)
        change = self._at(self.values, t1) - self._at(self.values, t0)
        if not use_levy:
            return change
        if self.integrals is None:
            return diffrax.BrownianIncrement(dt=t1 - t0, W=change)
        length = t1 - t0
        area = self._at(self.integrals, t1) - self._at(self.integrals, t0)
        mean = area / length - self._at(self.values, t0)
        return diffrax.SpaceTimeLevyArea(dt=length, W=change, H=mean - 0.5 * change)

    def _at(self, table: jax.Array, t: Any) -> jax.Array:
        place = (t - self.t0) / self.dt
        nearest = jnp.round(place)
        place = jnp.where(jnp.abs(place - nearest) < 1e-6, nearest, place)  # grid times carry rounding
        row = jnp.clip(jnp.floor(place), 0, table.shape[0] - 2).astype(int)
        part = (place - row).astype(table.dtype)
        low, high = table[row], table[row + 1]
        return jnp.where(part == 1, high, low + part * (high - low))


def _check_convention(convention: str, solver: Any) -> None:
    if convention == "klimontovich":
        raise InvalidInput(
            "convention='klimontovich' is read by no diffrax solver; convert with sde.to('ito') or "
            "sde.to('stratonovich'), which keep the law"
        )
    if solver is None:
        return
    if isinstance(solver, diffrax.AbstractItoSolver):
        expected = "ito"
    elif isinstance(solver, diffrax.AbstractStratonovichSolver):
        expected = "stratonovich"
    else:
        raise InvalidInput(
            f"solver={type(solver).__name__} is no SDE solver; use diffrax.Euler or diffrax.Heun"
        )
    if expected != convention:
        raise InvalidInput(
            f"{type(solver).__name__} solves the {expected} equation, but the model's convention is "
            f"{convention!r}; pass sde.to({expected!r})"
        )
