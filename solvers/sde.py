"""The SDE type: one model in component form, read over floats, arrays, symbols or JAX tracers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from solvers import namespaces, tangent
from solvers.compiling import Keyed, dispatcher
from solvers.errors import InvalidInput, MissingConvention
from solvers.purity import plain_function, purity_key
from solvers.reading import (
    PROBES,
    Components,
    as_arrays,
    as_components,
    as_params,
    check_numbers,
    checked_names,
    read_model,
    refuse_negative_constant,
)

CONVENTIONS = ("ito", "stratonovich", "klimontovich")
_REMEDY = (
    "choose 'ito', 'stratonovich' or 'klimontovich'; for state-dependent noise they are different models"
)


def refuse_unknown_convention(convention: Any) -> None:
    """Refuse a reading of the noise that does not exist."""
    if convention not in CONVENTIONS:
        raise InvalidInput(f"convention={convention!r} is unknown: {_REMEDY}")


def checked_reading(convention: str | None, noise: str) -> str:
    """The convention of a model, or a refusal of it or of the structure of its noise."""
    if convention is None:
        raise MissingConvention(f"convention is missing: {_REMEDY}")
    refuse_unknown_convention(convention)
    if noise not in {"diagonal", "general"}:
        raise InvalidInput(f"noise={noise!r} is unknown: choose 'diagonal' or 'general'")
    return convention


class SDE:
    """A stochastic differential equation dY = a(t, Y) dt + sigma(t, Y) dW in a stated convention.

    Parameters
    ----------
    drift : callable
        ``drift(t, y, p, xp)`` returns a d-tuple; y is a d-tuple of components, p the parameters and xp the
        namespace (NumPy's names) of the reading at hand. Pure: no mutable globals, no `if` on components.
    diffusion : callable
        The same, returning a d-tuple of standard deviations per square root of time (``noise="diagonal"``:
        one independent Wiener process per component) or d tuples of m entries (``noise="general"``).
    params : NamedTuple, mapping, tuple or None
        Real numbers, read as ``p.name`` or ``p[i]``; stored as floats so that new values compile nothing.
    names : sequence of str
        Names of the components, also of the axes of a `Grid`.
    convention : {"ito", "stratonovich", "klimontovich"}
        How ``sigma(Y) dW`` is read. There is no default. With D = sigma sigma^T / 2 the density obeys, for
        Ito, ``dp/dt = -d_i(a_i p) + d_i d_j (D_ij p)``; for Klimontovich (Hanggi's kinetic reading)
        ``dp/dt = -d_i(a_i p) + d_i (D_ij d_j p)``; Stratonovich lies half way (in one dimension).
    noise : {"diagonal", "general"}
        Structure of sigma.

    Attributes
    ----------
    dimension, noise_dimension : int
        d and m.
    potential : callable or None
        The potential, if the model was made by `from_potential`.

    Raises
    ------
    InvalidInput
        If an argument cannot be used; `MissingConvention` without a convention; `ImpureFunction` if a
        function reads a mutable global.

    Examples
    --------
    >>> ou = SDE(lambda t, y, p, xp: (-p.k * y[0],), lambda t, y, p, xp: (p.s,),
    ...          params={"k": 1.5, "s": 0.9}, convention="ito")
    >>> ou.drift_at(0.0, (2.0,))
    (array(-3.),)
    """

    def __init__(
        self,
        drift: Callable[..., Components],
        diffusion: Callable[..., Components],
        *,
        params: Any = None,
        names: Sequence[str] = ("x",),
        convention: str | None = None,
        noise: str = "diagonal",
    ):
        convention = checked_reading(convention, noise)
        self.drift = plain_function(drift, "drift")
        self.diffusion = plain_function(diffusion, "diffusion")
        self.names = checked_names(names)
        self.params = as_params(params)
        self.convention = convention
        self.noise = noise
        self.potential: Callable[..., Any] | None = None
        self._traced: tuple[Any, tangent.SymbolicSDE] | None = None
        self._keys()
        self.dimension = len(self.names)
        self.noise_dimension = self._probe()

    def _keys(self) -> tuple[Any, Any]:
        """What the functions are now: a global number that they read may have been given another value."""
        return purity_key(self.drift, "drift"), purity_key(self.diffusion, "diffusion")

    def _probe(self) -> int:
        """Read the model once on arrays: component counts, shapes, and a sign check of constant noise."""
        d = self.dimension
        y = tuple(PROBES + 0.1 * i for i in range(d))
        with np.errstate(all="ignore"):
            values, rows = (
                as_components(role, read_model(role, function, 0.0, y, self.params, namespaces.common), d)
                for role, function in (("drift", self.drift), ("diffusion", self.diffusion))
            )
        for name, value in zip(self.names, values, strict=True):
            check_numbers("drift", name, value)
        if self.noise == "diagonal":
            for name, value in zip(self.names, rows, strict=True):
                if isinstance(value, (tuple, list)):
                    raise InvalidInput(
                        f"diffusion returns a tuple for component {name!r}; pass noise='general' for a matrix"
                    )
                refuse_negative_constant(name, check_numbers("diffusion", name, value))
            return d
        widths = {len(row) if isinstance(row, (tuple, list)) else 0 for row in rows}
        if len(widths) != 1 or 0 in widths:
            raise InvalidInput(
                "diffusion with noise='general' must return one tuple of m entries per component, all of one "
                f"length; got lengths {sorted(widths)}"
            )
        for name, row in zip(self.names, rows, strict=True):
            for value in row:
                check_numbers("diffusion", name, value)
        return widths.pop()

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"SDE(({names}), convention={self.convention!r}, noise={self.noise!r}, params={self.params})"

    def drift_at(self, t: float, y: Components) -> tuple[np.ndarray, ...]:
        """The drift on arrays: y is a d-tuple of broadcastable arrays; d float64 arrays of their shape."""
        values, shape = as_arrays(y, self.dimension)
        result = as_components(
            "drift", read_model("drift", self.drift, t, values, self.params), self.dimension
        )
        return tuple(np.array(np.broadcast_to(v, shape), dtype=float) for v in result)

    def diffusion_at(self, t: float, y: Components) -> tuple[Any, ...]:
        """The diffusion on arrays: d arrays ("diagonal") or d tuples of m arrays ("general")."""
        values, shape = as_arrays(y, self.dimension)
        rows = as_components(
            "diffusion", read_model("diffusion", self.diffusion, t, values, self.params), self.dimension
        )
        if self.noise == "diagonal":
            return tuple(np.array(np.broadcast_to(v, shape), dtype=float) for v in rows)
        return tuple(tuple(np.array(np.broadcast_to(v, shape), dtype=float) for v in row) for row in rows)

    def compiled(self) -> tuple[Any, Any, Any]:
        """The model for Numba: ``(drift, diffusion, params)``.

        The two dispatchers take ``(t, y, p)`` with a d-tuple of floats and return tuples of floats. The
        same functions always give the same dispatchers, so code compiled over them is compiled once.
        """
        width = None if self.noise == "diagonal" else self.noise_dimension
        drift_key, diffusion_key = self._keys()
        return (
            dispatcher(Keyed(drift_key, self.drift), self.dimension, None),
            dispatcher(Keyed(diffusion_key, self.diffusion), self.dimension, width),
            self.params,
        )

    def symbolic(self) -> tangent.SymbolicSDE:
        """The model as SymPy expressions in its own convention.

        Raises
        ------
        InvalidInput
            If the functions cannot be traced.
        """
        keys = self._keys()
        if self._traced is None or self._traced[0] != keys:
            self._traced = keys, self._trace()
        return self._traced[1]

    def _trace(self) -> tangent.SymbolicSDE:
        import sympy as sp

        t = sp.Symbol("t", real=True)
        y = tuple(sp.Symbol(name, real=True) for name in self.names)
        p, flat = self._parameter_symbols()
        drift = tangent.trace(self.drift, (t, y, p), "drift")
        diffusion = tangent.trace(self.diffusion, (t, y, p), "diffusion")
        if self.noise == "general":
            sigma: tuple[Any, ...] = tuple(tuple(sp.sympify(v) for v in row) for row in diffusion)
        else:
            sigma = tuple(sp.sympify(v) for v in diffusion)
        return tangent.SymbolicSDE(t, y, flat, tuple(sp.sympify(v) for v in drift), sigma)

    def _parameter_symbols(self) -> tuple[Any, tuple[Any, ...]]:
        import sympy as sp

        fields = getattr(self.params, "_fields", None)
        if fields is None:
            flat = tuple(sp.Symbol(f"p[{i}]", real=True) for i in range(len(self.params)))
            return flat, flat
        flat = tuple(sp.Symbol(f"p.{name}", real=True) for name in fields)
        return type(self.params)(*flat), flat

    def to(self, convention: str) -> SDE:
        """The SDE of the same law in another convention, its drift corrected by exact derivatives."""
        refuse_unknown_convention(convention)
        if convention == self.convention:
            return self
        symbolic = self.symbolic()
        here = tangent.ito_correction(symbolic, self.convention)
        there = tangent.ito_correction(symbolic, convention)
        change = [a - b for a, b in zip(here, there, strict=True)]
        drift, potential = self.drift, self.potential
        if any(c != 0 for c in change):
            drift = tangent.lambdify_components(
                [a + c for a, c in zip(symbolic.drift, change, strict=True)], symbolic
            )
            potential = None
        return self._copy(drift=drift, convention=convention, potential=potential)

    def replace(self, **params: float) -> SDE:
        """The same model with some parameters changed; nothing is compiled again.

        Raises
        ------
        InvalidInput
            For an unknown name, or if the parameters have no names.
        """
        fields = getattr(self.params, "_fields", ())
        unknown = sorted(set(params) - set(fields))
        if unknown:
            known = ", ".join(fields) or "none: params is not a mapping or NamedTuple"
            raise InvalidInput(f"parameter {unknown[0]!r} does not exist; the model's parameters are {known}")
        return self._copy(params=self.params._replace(**params) if params else self.params)

    def _copy(self, *, drift=None, params=None, convention=None, potential=None) -> SDE:
        new = SDE(
            drift or self.drift,
            self.diffusion,
            params=self.params if params is None else params,
            names=self.names,
            convention=convention or self.convention,
            noise=self.noise,
        )
        new.potential = potential if drift is not None else self.potential
        return new


def from_potential(
    potential: Callable[..., Any],
    diffusion: Callable[..., Components],
    *,
    params: Any = None,
    names: Sequence[str] = ("x",),
    convention: str | None = None,
) -> SDE:
    """An SDE with drift -grad U, differentiated exactly, and diagonal noise.

    Parameters
    ----------
    potential : callable
        ``potential(t, y, p, xp)`` returns one number, U.
    diffusion, params, names, convention
        As for `SDE`.

    Returns
    -------
    SDE
        With ``sde.potential`` set, so that a Fokker-Planck operator can keep Boltzmann weights exact.

    Raises
    ------
    InvalidInput
        As for `SDE`, and if the potential cannot be traced symbolically.
    """
    import sympy as sp

    potential = plain_function(potential, "potential")
    purity_key(potential, "potential")

    def placeholder(t, y, p, xp):  # noqa: ARG001 - a model function's signature
        return tuple(0.0 * component for component in y)

    shell = SDE(placeholder, diffusion, params=params, names=names, convention=convention)
    p, flat = shell._parameter_symbols()
    t = sp.Symbol("t", real=True)
    y = tuple(sp.Symbol(name, real=True) for name in shell.names)
    value = sp.sympify(tangent.trace(potential, (t, y, p), "potential"))
    if not isinstance(value, sp.Expr):
        raise InvalidInput(f"potential must return one number, got {value!r}; return the value itself")
    symbols = tangent.SymbolicSDE(t, y, flat, (), ())
    drift = tangent.lambdify_components([-sp.diff(value, component) for component in y], symbols)
    sde = SDE(drift, diffusion, params=params, names=names, convention=convention)
    sde.potential = potential
    return sde
