"""VectorSDE: models of many components in vector form, whose functions write into arrays in place."""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from solvers import vector_reading
from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.exit_times import refuse_arity
from solvers.purity import plain_function, purity_key
from solvers.reading import checked_names
from solvers.sde import checked_reading, refuse_unknown_convention
from solvers.vector_parameters import as_array_params, flattened, shapes_of
from solvers.vector_reading import VectorModel, compile_and_compare, probed, vector_dispatcher

Function = Callable[..., None]


class VectorSDE:
    """A stochastic differential equation dY = a(t, Y) dt + sigma(t, Y) dW of many components, in a stated convention.

    Parameters
    ----------
    drift : callable
        ``drift(t, y, p, out)`` writes the drift at ``y``, a float64 array (d,), into every entry of ``out``
        (d,), and returns nothing. It is compiled by Numba. Loops are fastest, with the functions of
        `solvers.scalar` for single numbers and `solvers.matrix_product.apply_matrix` for matrices; NumPy's
        functions work too, but ``@`` and ``np.dot`` call a BLAS, which has threads and bits of its own. y and
        the arrays of p cannot be written. Pure: no mutable globals.
    diffusion : callable
        The same, writing standard deviations per square root of time into ``out`` (d,) (``noise="diagonal"``:
        one independent Wiener process per component) or a matrix (d, m) (``noise="general"``). A diffusion
        that does not read y (only its size, if that) is additive noise: it is evaluated once a step and means
        the same in every convention.
    dimension : int
        d.
    noise_dimension : int, optional
        m, for ``noise="general"``.
    params : mapping or NamedTuple, optional
        Real numbers and arrays, read as ``p.name``; new values of the same shapes compile nothing.
    names : sequence of str, optional
        Names of the components; x0, x1, ... if not given.
    convention : {"ito", "stratonovich", "klimontovich"}
        As for `SDE`; no default.
    noise : {"diagonal", "general"}
        Structure of sigma.
    block : bool
        The functions take n paths at once: y and out are (d, n), or out (d, m, n), contiguous, each column
        a path of its own. Loops over the columns become vector instructions and a matrix is read once for
        many paths: several times faster for dense drifts.

    Attributes
    ----------
    additive : bool
        Whether the diffusion does not read the state.

    Raises
    ------
    InvalidInput
        If an argument cannot be used: a function that leaves entries unwritten, writes elsewhere or beyond, or
        is nowhere finite; `MissingConvention` without a convention; `ImpureFunction` if a function reads a
        mutable global.

    Notes
    -----
    Functions in place have no derivatives here: state-dependent noise is solved in its own convention only,
    Ito by Euler-Maruyama and Stratonovich by Heun. The random numbers are those of the component form, and
    paths agree with it to rounding. `simulate` takes a stop condition ``stop(t, y, p)`` over the array y.

    Examples
    --------
    >>> def drift(t, y, p, out):
    ...     apply_matrix(p.hessian, y, out)
    ...     for i in range(out.size):
    ...         out[i] = -out[i]
    >>> def diffusion(t, y, p, out):
    ...     out[:] = p.s
    >>> sde = VectorSDE(drift, diffusion, dimension=50, params={"hessian": np.eye(50), "s": 0.1}, convention="ito")
    """

    def __init__(
        self,
        drift: Function,
        diffusion: Function,
        *,
        dimension: int,
        noise_dimension: int | None = None,
        params: Any = None,
        names: Sequence[str] | None = None,
        convention: str | None = None,
        noise: str = "diagonal",
        block: bool = False,
    ):
        convention = checked_reading(convention, noise)
        self.dimension = _positive("dimension", dimension)
        if noise == "diagonal" and noise_dimension not in {None, self.dimension}:
            raise InvalidInput(
                f"noise_dimension={noise_dimension} with noise='diagonal', which has one Wiener process per "
                "component; leave it out or pass noise='general'"
            )
        if noise == "general" and noise_dimension is None:
            raise InvalidInput(
                "noise_dimension is missing: noise='general' needs the number of Wiener processes"
            )
        self.noise_dimension = (
            self.dimension if noise_dimension is None else _positive("noise_dimension", noise_dimension)
        )
        self.names = checked_names([f"x{i}" for i in range(self.dimension)] if names is None else names)
        if len(self.names) != self.dimension:
            raise InvalidInput(
                f"names has {len(self.names)} entries, but dimension={dimension}; make them agree"
            )
        self.drift, self.diffusion = _function(drift, "drift"), _function(diffusion, "diffusion")
        self.params = as_array_params(params)
        self.convention, self.noise, self.block = convention, noise, bool(block)
        self._compared: Any = None
        self._keys()
        self.additive = not reads_state(self.diffusion)
        probed(self)

    def _keys(self) -> tuple[Any, Any]:
        """What the functions are now: a global number that they read may have been given another value."""
        return purity_key(self.drift, "drift"), purity_key(self.diffusion, "diffusion")

    def __repr__(self) -> str:
        return (
            f"VectorSDE(dimension={self.dimension}, noise_dimension={self.noise_dimension}, "
            f"convention={self.convention!r}, noise={self.noise!r}, params={self.params})"
        )

    @property
    def flat_parameters(self) -> np.ndarray:
        """All numbers of the parameters, one after the other, as the kernels take them."""
        return flattened(self.params)

    def compiled(self) -> VectorModel:
        """The model for Numba; the same functions and shapes give the same one, whatever the values.

        Raises
        ------
        InvalidInput
            If Numba cannot compile a function, or reads it differently from Python.
        """
        if self._compared != self._keys():
            compile_and_compare(self, self.model())
            self._compared = self._keys()
        return self.model()

    def model(self) -> VectorModel:
        """The same before anything is compiled."""
        drift_key, diffusion_key = self._keys()
        return VectorModel(
            self.dimension,
            self.noise_dimension,
            self.noise,
            self.additive,
            self.block,
            type(self.params),
            shapes_of(self.params),
            vector_dispatcher(Keyed(drift_key, self.drift)),
            vector_dispatcher(Keyed(diffusion_key, self.diffusion)),
        )

    def drift_at(self, t: float, y: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """The drift on arrays: y holds d broadcastable arrays; d float64 arrays of their shape."""
        return vector_reading.drift_at(self, t, y)

    def symbolic(self) -> Any:
        """Refused: a function in place has no symbolic form."""
        raise InvalidInput(
            "a VectorSDE cannot be traced symbolically; write the model in component form, as an SDE"
        )

    def to(self, convention: str) -> VectorSDE:
        """The SDE of the same law in another convention, which only additive noise has without derivatives.

        Raises
        ------
        InvalidInput
            If the diffusion reads the state.
        """
        refuse_unknown_convention(convention)
        if convention == self.convention:
            return self
        if not self.additive:
            solver = {"ito": "'euler-maruyama'", "stratonovich": "'heun'"}.get(self.convention)
            other = f"use scheme={solver}, which needs no conversion, or " if solver else ""
            raise InvalidInput(
                f"the diffusion reads y and is meant in convention={self.convention!r}; turning it into "
                f"{convention!r} takes derivatives, which functions in place do not have: {other}give the drift of "
                f"convention={convention!r}, or write a diffusion that does not depend on y without reading y"
            )
        return self._copy(convention=convention)

    def replace(self, **params: Any) -> VectorSDE:
        """The same model with some parameters changed, in the same shapes; nothing is compiled again.

        Raises
        ------
        InvalidInput
            For an unknown name or another shape.
        """
        held = self.params._asdict() if self.params else {}
        for name, value in params.items():
            if name not in held:
                known = ", ".join(held) or "none"
                raise InvalidInput(f"parameter {name!r} does not exist; the model's parameters are {known}")
            if np.shape(value) != np.shape(held[name]):
                raise InvalidInput(
                    f"parameter {name!r} has shape {np.shape(held[name])} and was given {np.shape(value)}; give "
                    "the same shape or make a new model"
                )
        return self._copy(params=held | params)

    def _copy(self, **changed: Any) -> VectorSDE:
        settings = {
            "dimension": self.dimension,
            "noise_dimension": self.noise_dimension,
            "params": self.params,
            "names": self.names,
            "convention": self.convention,
            "noise": self.noise,
            "block": self.block,
        }
        return VectorSDE(self.drift, self.diffusion, **(settings | changed))


def reads_state(function: Callable[..., Any]) -> bool:
    """Whether the code of a model function reads its second argument, other than for its size.

    Judged by the instructions, not by values: False is certain, True may be said of ``0 * y[0]``.
    """
    code = function.__code__
    name = code.co_varnames[1]
    if name in code.co_cellvars:
        return True
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        loaded = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if "LOAD_FAST" not in instruction.opname or name not in loaded:
            continue
        following = instructions[place + 1]
        size = following.opname == "LOAD_ATTR" and following.argval in {"size", "shape", "ndim"}
        if not (size and loaded[-1] == name and loaded.count(name) == 1):
            return True
    return False


def _function(function: Any, role: str) -> Callable[..., Any]:
    if not isinstance(getattr(function, "py_func", function), types.FunctionType):
        raise InvalidInput(
            f"{role} must be a plain Python function of (t, y, p, out), got {type(function).__name__!r}; wrap it "
            "in a def and pass its data through params"
        )
    function = plain_function(function, role)
    refuse_arity(function, 4, role, "(t, y, p, out)")
    if function.__code__.co_argcount < 4:
        raise InvalidInput(f"{role} takes *arguments; write it as {role}(t, y, p, out)")
    return function


def _positive(name: str, value: Any) -> int:
    from solvers.wiener import checked_integer

    number = checked_integer(name, value)
    if number < 1:
        raise InvalidInput(f"{name}={value} must be at least 1")
    return number
