"""The JAX reading of a model: diffrax terms, for accelerators and for gradients through the solver."""

from __future__ import annotations

from typing import Any

import diffrax
import jax.numpy as jnp
import lineax as lx

from solvers.errors import InvalidInput
from solvers.sde import SDE


def diffrax_terms(sde: SDE, brownian: Any, *, solver: Any = None) -> diffrax.MultiTerm:
    """The model as ``MultiTerm(ODETerm, ControlTerm)`` for `diffrax.diffeqsolve`.

    The state is one array of shape (d,). What a diffrax solver converges to is fixed by the solver, not
    by the terms: `Euler` and the Ito-type SRA and SRK solvers solve the Ito equation; `Heun`, `EulerHeun`,
    `Midpoint`, `ReversibleHeun` and the other Stratonovich solvers solve the Stratonovich one. Convert the
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
        return _stack(sde.drift(t, tuple(y), p, jnp), y)

    def diffusion(t, y, args):
        p = sde.params if args is None else args
        rows = sde.diffusion(t, tuple(y), p, jnp)
        if sde.noise == "diagonal":
            return lx.DiagonalLinearOperator(_stack(rows, y))
        return jnp.stack([_stack(row, y) for row in rows])

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian))


def _stack(components: Any, y: Any) -> Any:
    return jnp.stack([jnp.asarray(c, dtype=y.dtype) for c in components])


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
