"""Functions given by a table: cubic splines that a model may call in every reading but JAX's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

from solvers.errors import InvalidInput
from solvers.grid import Grid
from solvers.purity import FROZEN

_OUTSIDE = ("nan", "linear")
_FEWEST = 4


class _Axis(NamedTuple):
    """One axis of a spline: node intervals, and a piece on either side.

    Attributes
    ----------
    nodes : ndarray of shape (n,)
    left, scale : ndarray of shape (n + 1,)
        u = (x - left) * scale on each piece.
    pieces : ndarray of shape (n + 1, 4, 4)
        Powers of u (last index) of the four basis functions that are not zero there.
    base : ndarray of int, shape (n + 1,)
        Number of the first of them.
    step : float
        Distance of equidistant nodes; 0 if they are not.
    """

    nodes: np.ndarray
    left: np.ndarray
    scale: np.ndarray
    pieces: np.ndarray
    base: np.ndarray
    step: float


def tabulated(nodes: Any, values: Any, *, outside: str = "nan") -> Callable[..., Any]:
    """A smooth function through tabulated values, for use in a drift, a diffusion or a potential.

    The interpolant is the cubic spline with not-a-knot ends (the tensor product of such splines in two and three
    dimensions): twice continuously differentiable, its error fourth order in the distance of the nodes. Arrays,
    compiled code and symbols see the same function, and derivatives of a model are those of the spline: a
    tabulated potential keeps Boltzmann weights exact, other conventions and Milstein terms need no formula.

    Parameters
    ----------
    nodes : Grid, array_like, or sequence of array_like
        Where the values are: the cell centres of a grid, one increasing sequence (one dimension), or one per
        axis. At least four each; equidistant nodes are found faster.
    values : array_like
        One axis per sequence of nodes. They are copied and can never change.
    outside : {"nan", "linear"}
        Beyond the nodes the function is not a number, which operators and runs report with the place, or
        continues with the slope at the edge.

    Returns
    -------
    callable
        ``f(x)``, ``f(x, y)`` or ``f(x, y, z)`` of components.

    Raises
    ------
    InvalidInput
        If nodes or values are not finite, do not fit together, or nodes do not increase. When called: for
        components that are neither numbers, arrays nor symbols.

    Examples
    --------
    >>> force = tabulated(np.linspace(-3, 3, 61), -np.linspace(-3, 3, 61), outside="linear")
    >>> float(force(np.array(5.0)).round(12))
    -5.0
    """
    lines = _checked_nodes(nodes)
    array = _checked_values(values, lines)
    if outside not in _OUTSIDE:
        raise InvalidInput(f"outside={outside!r} is unknown; choose one of {', '.join(_OUTSIDE)}")
    coefficients = array
    for axis, line in enumerate(lines):
        coefficients = np.moveaxis(
            make_interp_spline(line, np.moveaxis(coefficients, axis, 0), k=3).c, 0, axis
        )
    digest = hashlib.sha256(repr((outside, array.shape)).encode())
    for part in (*lines, array):
        digest.update(np.ascontiguousarray(part).tobytes())
    return _table(
        tuple(map(_frozen, lines)), _frozen(coefficients), outside, digest.hexdigest(), (0,) * array.ndim
    )


def _table(
    lines: tuple[np.ndarray, ...], coefficients: np.ndarray, outside: str, digest: str, order: tuple[int, ...]
) -> Callable[..., Any]:
    """The function, or one of its derivatives, in the form its dimension asks for."""
    axes = tuple(_axis(line, outside, nu) for line, nu in zip(lines, order, strict=True))

    @cache
    def derivative(axis: int) -> Any:
        """The SymPy function of the derivative along an axis."""
        higher = tuple(nu + (k == axis) for k, nu in enumerate(order))
        return symbol_of(_table(lines, coefficients, outside, digest, higher), higher)

    def symbol_of(function: Callable[..., Any], which: tuple[int, ...]) -> Any:
        return _symbolic(f"table_{digest[:16]}_{''.join(map(str, which))}", function, len(lines))

    def read(*components: Any) -> Any:
        if all(isinstance(c, (int, float, np.ndarray, np.generic)) for c in components):
            return _on_arrays(axes, coefficients, components)
        if any(type(c).__module__.partition(".")[0] == "sympy" for c in components):
            return symbol_of(table, order)(*components)
        kinds = ", ".join(type(c).__name__ for c in components)
        raise InvalidInput(
            f"a tabulated function was called with {kinds}; it reads numbers, arrays and symbols, in JAX write "
            "the function as a formula"
        )

    def one(x):
        return read(x)

    def two(x, y):
        return read(x, y)

    def three(x, y, z):
        return read(x, y, z)

    # Numba wants a fixed number of arguments
    table: Any = (one, two, three)[len(lines) - 1]
    setattr(table, FROZEN, ("table", digest, order))
    table.derivative = derivative
    _compile(table, axes, coefficients)
    return table


def _symbolic(name: str, function: Any, arity: int) -> Any:
    """A SymPy function that stands for a table and knows its derivatives."""
    import sympy as sp

    def fdiff(self, argindex=1):
        return function.derivative(argindex - 1)(*self.args)

    # equal names are equal functions: the name holds a hash of the values
    fields = {"fdiff": fdiff, "nargs": arity, "table": staticmethod(function), "is_real": True}
    return type(name, (sp.Function,), fields)


# ---- splines -----------------------------------------------------------------------------------------------


def _axis(nodes: np.ndarray, outside: str, order: int) -> _Axis:
    """Pieces of the basis functions, differentiated so many times."""
    spline = make_interp_spline(nodes, np.zeros(len(nodes)), k=3)
    width = np.diff(nodes)
    points = np.array([0.0, 0.3, 0.6, 0.9])
    places = nodes[:-1, None] + width[:, None] * points
    design = BSpline.design_matrix(places.ravel(), spline.t, 3)
    samples = design.data.reshape(len(width), 4, 4)  # interval, point, basis function
    base = design.indices.reshape(len(width), 4, 4)[:, 0, 0]
    inside = np.swapaxes(np.linalg.solve(np.vander(points, increasing=True), samples), 1, 2)
    pieces = np.concatenate([inside[:1], inside, inside[-1:]])
    left = np.concatenate([nodes[:1], nodes[:-1], nodes[-1:]])
    scale = 1.0 / np.concatenate([width[:1], width, width[-1:]])
    pieces[0, :, 2:] = 0.0
    powers = np.arange(4)
    at_end, slope = inside[-1].sum(axis=-1), (inside[-1] * powers).sum(axis=-1)
    pieces[-1] = np.stack([at_end, slope, 0 * slope, 0 * slope], axis=-1)
    for _ in range(order):
        lower = np.zeros_like(pieces)
        lower[..., :-1] = pieces[..., 1:] * powers[1:]
        pieces = lower * scale[:, None, None]
    if outside == "nan":
        pieces[[0, -1]] = np.nan
    step = float(width.mean())
    equal = np.abs(nodes - np.linspace(nodes[0], nodes[-1], len(nodes))).max() < 1e-12 * step * len(nodes)
    base = np.concatenate([base[:1], base, base[-1:]]).astype(np.int64)
    parts = [_frozen(part) for part in (nodes, left, scale, pieces, base)]
    return _Axis(parts[0], parts[1], parts[2], parts[3], parts[4], step if equal else 0.0)


def _on_arrays(axes: tuple[_Axis, ...], coefficients: np.ndarray, components: tuple[Any, ...]) -> np.ndarray:
    places = np.broadcast_arrays(*(np.asarray(c, dtype=float) for c in components))
    bases, firsts = [], []
    for axis, x in zip(axes, places, strict=True):
        n = len(axis.nodes)
        piece = np.clip(np.searchsorted(axis.nodes, x, side="right"), 0, n)
        piece = np.where(x == axis.nodes[-1], n - 1, piece)
        u = ((x - axis.left[piece]) * axis.scale[piece])[..., None]
        p = axis.pieces[piece]
        bases.append(((p[..., 3] * u + p[..., 2]) * u + p[..., 1]) * u + p[..., 0])
        firsts.append(axis.base[piece])
    result = np.zeros(places[0].shape)
    for shift in product(range(4), repeat=len(axes)):
        weight = np.ones(())
        for basis, k in zip(bases, shift, strict=True):
            weight = weight * basis[..., k]
        result = result + weight * coefficients[tuple(f + k for f, k in zip(firsts, shift, strict=True))]
    return result


def _compile(table: Any, axes: tuple[_Axis, ...], coefficients: np.ndarray) -> None:
    """Tell Numba what to compile where a model calls the table."""
    from numba import njit
    from numba.extending import overload

    options: Any = {"error_model": "numpy", "forceinline": True}
    locators = [_locator(axis, njit(**options)) for axis in axes]
    code = (_one, _two, _three)[len(axes) - 1](coefficients, *locators)
    chosen: tuple[Any, ...] = (lambda x: code, lambda x, y: code, lambda x, y, z: code)  # noqa: ARG005
    overload(table, jit_options=options)(chosen[len(axes) - 1])


def _one(coefficients: np.ndarray, first: Any) -> Any:
    def compiled(x):
        i, a = first(x)
        return (
            coefficients[i] * a[0]
            + coefficients[i + 1] * a[1]
            + coefficients[i + 2] * a[2]
            + coefficients[i + 3] * a[3]
        )

    return compiled


def _two(coefficients: np.ndarray, first: Any, second: Any) -> Any:
    def compiled(x, y):
        i, a = first(x)
        j, b = second(y)
        total = 0.0
        for k in range(4):
            row = coefficients[i + k]
            total += a[k] * (row[j] * b[0] + row[j + 1] * b[1] + row[j + 2] * b[2] + row[j + 3] * b[3])
        return total

    return compiled


def _three(coefficients: np.ndarray, first: Any, second: Any, third: Any) -> Any:
    def compiled(x, y, z):
        i, a = first(x)
        j, b = second(y)
        n, c = third(z)
        total = 0.0
        for k in range(4):
            for m in range(4):
                row = coefficients[i + k, j + m]
                total += (a[k] * b[m]) * (
                    row[n] * c[0] + row[n + 1] * c[1] + row[n + 2] * c[2] + row[n + 3] * c[3]
                )
        return total

    return compiled


def _locator(axis: _Axis, jitted: Any) -> Any:
    """Compiled: the number of the first basis function that is not zero at x, and the values of all four."""
    nodes, left, scale, pieces, base, step = axis
    low, high, last = float(nodes[0]), float(nodes[-1]), len(nodes) - 1
    inverse = 1.0 / step if step else 0.0

    @jitted
    def equidistant(x):
        # a NaN must not become an index: it goes through u instead
        place = (x - low) * inverse
        inside = place if (place > 0.0) & (place < last) else 0.0
        piece = int(inside) + 1
        piece = 0 if x < low else piece
        piece = last if x == high else piece
        return last + 1 if x > high else piece

    @jitted
    def anywhere(x):
        piece = min(np.searchsorted(nodes, x, side="right"), last + 1)
        return last if x == high else piece

    find = equidistant if step else anywhere

    @jitted
    def locate(x):
        piece = find(x)
        u = (x - left[piece]) * scale[piece]
        p = pieces[piece]
        return base[piece], (
            ((p[0, 3] * u + p[0, 2]) * u + p[0, 1]) * u + p[0, 0],
            ((p[1, 3] * u + p[1, 2]) * u + p[1, 1]) * u + p[1, 0],
            ((p[2, 3] * u + p[2, 2]) * u + p[2, 1]) * u + p[2, 0],
            ((p[3, 3] * u + p[3, 2]) * u + p[3, 1]) * u + p[3, 0],
        )

    return locate


# ---- input -------------------------------------------------------------------------------------------------


def _frozen(values: np.ndarray) -> np.ndarray:
    """A copy over immutable bytes, which nobody can make writeable again."""
    values = np.ascontiguousarray(values)
    return np.frombuffer(values.tobytes(), dtype=values.dtype).reshape(values.shape)


def _checked_nodes(nodes: Any) -> list[np.ndarray]:
    if isinstance(nodes, Grid):
        lines: list[Any] = list(nodes.centers.values())
    elif isinstance(nodes, Sequence) and len(nodes) and np.ndim(nodes[0]) == 1:
        lines = list(nodes)
    else:
        lines = [nodes]
    if len(lines) > 3:
        raise InvalidInput(f"nodes has {len(lines)} axes; tables have one, two or three")
    checked = []
    for number, given in enumerate(lines):
        try:
            line = np.array(given, dtype=float)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"nodes of axis {number} are not numbers: {given!r}") from error
        if line.ndim != 1 or line.size < _FEWEST:
            raise InvalidInput(
                f"nodes of axis {number} have shape {line.shape}; give at least {_FEWEST} in a row"
            )
        if not np.isfinite(line).all() or not (np.diff(line) > 0).all():
            raise InvalidInput(f"nodes of axis {number} must be finite and increase")
        checked.append(line)
    return checked


def _checked_values(values: Any, lines: list[np.ndarray]) -> np.ndarray:
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"values is a {type(values).__name__} and no array of numbers") from error
    shape = tuple(len(line) for line in lines)
    if array.shape != shape:
        raise InvalidInput(f"values has shape {array.shape}, but the nodes give {shape}")
    if not np.isfinite(array).all():
        raise InvalidInput(f"values contains {array[~np.isfinite(array)][0]}; give finite numbers")
    return array
