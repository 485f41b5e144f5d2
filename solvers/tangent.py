"""Derivatives of a model by symbolic trace: code for expressions, Jacobians, convention corrections."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from solvers.errors import InvalidInput

if TYPE_CHECKING:
    from solvers.sde import SDE

_FUNCTIONS = {
    "Abs": "abs", "acos": "arccos", "asin": "arcsin", "atan": "arctan", "atan2": "arctan2", "cos": "cos",
    "cosh": "cosh", "exp": "exp", "log": "log", "sign": "sign", "sin": "sin", "sinh": "sinh", "tan": "tan",
    "tanh": "tanh",
}  # fmt: skip


class SymbolicSDE(NamedTuple):
    """A model as SymPy expressions.

    Attributes
    ----------
    t : sympy.Symbol
        Time.
    y : tuple of sympy.Symbol
        The d components.
    p : tuple of sympy.Symbol
        Parameters, in the order of `SDE.params`; their values are not substituted.
    drift : tuple of sympy.Expr
        d expressions.
    diffusion : tuple
        d expressions ("diagonal") or d tuples of m expressions ("general").
    """

    t: Any
    y: tuple[Any, ...]
    p: tuple[Any, ...]
    drift: tuple[Any, ...]
    diffusion: tuple[Any, ...]

    @property
    def sigma(self) -> tuple[tuple[Any, ...], ...]:
        """The diffusion as a full d by m matrix of expressions."""
        if isinstance(self.diffusion[0], tuple):
            return self.diffusion
        d = len(self.diffusion)
        return tuple(tuple(self.diffusion[i] if i == j else 0 for j in range(d)) for i in range(d))


def trace(function: Callable[..., Any], symbols: tuple[Any, tuple[Any, ...], Any], role: str) -> Any:
    """Evaluate a model function on symbols `(t, y, p)`.

    Raises
    ------
    InvalidInput
        If the function cannot be read symbolically: control flow on components, or functions of a module
        instead of `xp`.
    """
    from solvers.namespaces import symbolic

    try:
        return function(*symbols, symbolic)
    except (TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"{role} cannot be differentiated symbolically ({error}); use xp.where instead of if, and xp's "
            "functions instead of a module's"
        ) from error


def lambdify_components(expressions: Sequence[Any], symbolic: SymbolicSDE) -> Callable[..., Any]:
    """A function of `(t, y, p, xp)`, readable over every namespace, from SymPy expressions.

    Parameters
    ----------
    expressions : sequence of expressions, or of sequences of expressions
        What the function returns, in the same nesting, as tuples.
    symbolic : SymbolicSDE
        The symbols the expressions are written in.

    Returns
    -------
    callable
        A plain Python function; common subexpressions are computed once.
    """
    import sympy as sp

    nested = isinstance(expressions[0], (tuple, list))
    flat = [sp.sympify(e) for row in expressions for e in (row if nested else [row])]
    locals_ = {symbol: sp.Symbol(f"_y{i}") for i, symbol in enumerate(symbolic.y)}
    locals_[symbolic.t] = sp.Symbol("t")
    flat = [e.xreplace(locals_) for e in flat]
    shared, reduced = sp.cse(flat, symbols=sp.numbered_symbols("_s"))
    printer = _printer()
    lines = [f"    {', '.join(f'_y{i}' for i in range(len(symbolic.y)))}, = y"]
    lines += [f"    {symbol} = {printer.doprint(e)}" for symbol, e in shared]
    parts = [printer.doprint(e) for e in reduced]
    if nested:
        width = len(expressions[0])
        parts = [f"({', '.join(parts[i : i + width])},)" for i in range(0, len(parts), width)]
    lines.append(f"    return ({', '.join(parts)},)")
    source = "def traced(t, y, p, xp):\n" + "\n".join(lines) + "\n"
    filename = f"<traced model {hash(source) & 0xFFFFFFFFFFFF:x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    calls = set().union(*(e.atoms(sp.Function) for e in flat))
    scope: dict[str, Any] = {call.func.__name__: call.table for call in calls if hasattr(call, "table")}
    exec(compile(source, filename, "exec"), scope)
    return scope["traced"]


def _printer() -> Any:
    from sympy.printing.pycode import PythonCodePrinter

    class NamespacePrinter(PythonCodePrinter):
        """Python source whose functions are looked up on `xp`."""

        def _print_Function(self, expr):
            name = expr.func.__name__
            if hasattr(expr, "table"):  # `solvers.tables.tabulated`
                return f"{name}({', '.join(self._print(a) for a in expr.args)})"
            if name not in _FUNCTIONS:
                raise InvalidInput(f"the derivative of the model contains {name}, which no namespace offers")
            return f"xp.{_FUNCTIONS[name]}({', '.join(self._print(a) for a in expr.args)})"

        def _print_Pow(self, expr, rational=False):  # noqa: ARG002 - SymPy's signature
            import sympy as sp

            base, power = self._print(expr.base), expr.exp
            if power in (sp.S.Half, 0.5):  # a Rational and a Float are never equal in SymPy
                return f"xp.sqrt({base})"
            if power in (-sp.S.Half, -0.5):
                return f"(1.0/xp.sqrt({base}))"
            if power == -1:
                return f"(1.0/({base}))"
            # Whole and half powers as products and roots: a power with a float exponent is a call into the C
            # library, and one with a negative whole exponent can raise.
            if power.is_Integer and power < 0:
                return f"(1.0/(({base})**{-int(power)}))"
            if power.is_Rational and power.q == 2:
                whole, root = abs(int(power.p)) // 2, f"xp.sqrt({base})"
                product = root if whole == 0 else f"({base})**{whole}*{root}"
                return f"({product})" if power > 0 else f"(1.0/({product}))"
            return f"(({base})**({self._print(power)}))"

        def _print_Rational(self, expr):
            return f"({expr.p}.0/{expr.q}.0)"

        def _print_Exp1(self, expr):  # noqa: ARG002
            return "xp.e"

        def _print_Pi(self, expr):  # noqa: ARG002
            return "xp.pi"

        def _print_Max(self, expr):
            return self._fold("maximum", expr.args)

        def _print_Min(self, expr):
            return self._fold("minimum", expr.args)

        def _fold(self, name, args):
            text = self._print(args[0])
            for a in args[1:]:
                text = f"xp.{name}({text}, {self._print(a)})"
            return text

        def _print_Heaviside(self, expr):
            return f"xp.where({self._print(expr.args[0])} > 0.0, 1.0, 0.0)"

        def _print_DiracDelta(self, expr):  # noqa: ARG002 - derivative of a jump: zero almost everywhere
            return "0.0"

        def _print_Piecewise(self, expr):  # type: ignore[override]
            *cases, last = expr.args
            text = self._print(last.expr) if last.cond == True else "float('nan')"  # noqa: E712
            if last.cond != True:  # noqa: E712
                cases = list(expr.args)
            for case in reversed(cases):
                text = f"xp.where({self._print(case.cond)}, {self._print(case.expr)}, {text})"
            return text

        def _print_And(self, expr):
            return "(" + " & ".join(f"({self._print(a)})" for a in expr.args) + ")"

        def _print_Or(self, expr):
            return "(" + " | ".join(f"({self._print(a)})" for a in expr.args) + ")"

    # SymPy dispatches to _print_<name> before _print_Function, and knows functions that no namespace offers
    for name in {*_FUNCTIONS, *PythonCodePrinter._kf} - {"Max", "Min"}:
        setattr(NamespacePrinter, f"_print_{name}", NamespacePrinter._print_Function)
    return NamespacePrinter({"fully_qualified_modules": False, "strict": False})


def ito_correction(symbolic: SymbolicSDE, convention: str) -> tuple[Any, ...]:
    """What must be added to the drift so that the Ito equation has the same law.

    Stratonovich: (1/2) sum_jk sigma_jk d_j sigma_ik. Klimontovich: sum_j d_j D_ij with D = sigma sigma^T/2
    (Hanggi and Thomas 1982; Klimontovich 1990). Ito: zero.
    """
    import sympy as sp

    sigma, y = symbolic.sigma, symbolic.y
    d, m = len(y), len(sigma[0])
    if convention == "ito":
        return (sp.Integer(0),) * d
    if convention == "stratonovich":
        terms = [
            sum(sigma[j][k] * sp.diff(sigma[i][k], y[j]) for j in range(d) for k in range(m))
            for i in range(d)
        ]
    else:
        terms = [
            sum(sp.diff(sum(sigma[i][k] * sigma[j][k] for k in range(m)), y[j]) for j in range(d))
            for i in range(d)
        ]
    # Terms that cancel are found by multiplying out; sympy.simplify can take minutes and is not needed.
    return tuple(
        sp.Integer(0) if sp.expand_mul(term) == 0 else sp.Rational(1, 2) * term
        for term in map(sp.sympify, terms)
    )


def compiled_components(expressions: Sequence[Any], symbolic: SymbolicSDE) -> Any:
    """A Numba dispatcher ``f(t, y, p)`` of the expressions; equal expressions give the same dispatcher."""
    from solvers.compiling import Keyed, dispatcher
    from solvers.purity import purity_key

    function = lambdify_components(expressions, symbolic)
    width = len(expressions[0]) if isinstance(expressions[0], (tuple, list)) else None
    return dispatcher(Keyed(purity_key(function, "derivative"), function), len(expressions), width)


def slopes_of_noise(symbolic: SymbolicSDE) -> dict[tuple[int, int, int], Any]:
    """The derivatives d sigma_ik / d y_l that are not zero, by (i, k, l)."""
    import sympy as sp

    slopes = {
        (i, k, j): sp.diff(value, yj)
        for i, row in enumerate(symbolic.sigma)
        for k, value in enumerate(row)
        for j, yj in enumerate(symbolic.y)
    }
    return {place: slope for place, slope in slopes.items() if sp.expand_mul(slope) != 0}


def milstein_terms(symbolic: SymbolicSDE) -> dict[tuple[int, int, int], Any]:
    """Coefficients of dW_j dW_k - delta_jk dt in component i that are not zero, by (i, j, k) with j <= k.

    (L^j b_i^k + L^k b_i^j) / 2, once for j = k, with L^j = sum_l sigma_lj d/dy_l: half the double integrals of
    commutative noise (Kloeden and Platen 1992, eq. 10.3.14). In diagonal noise only i = j = k remains.
    """
    import sympy as sp

    sigma, y = symbolic.sigma, symbolic.y
    d, m = len(y), len(sigma[0])
    diagonal = not isinstance(symbolic.diffusion[0], tuple)
    quarter = sp.Rational(1, 4)

    def advanced(i, j, k):
        """Half of L^j b_i^k; b b' as (b^2)'/2, which stays finite where b is a root that vanishes."""
        own = (
            quarter * sp.diff(sigma[i][k] ** 2, y[i])
            if j == k
            else sigma[i][j] * sp.diff(sigma[i][k], y[i]) / 2
        )
        return own + sum(sigma[n][j] * sp.diff(sigma[i][k], y[n]) / 2 for n in range(d) if n != i)

    terms = {}
    for i in range(d):
        for j in [i] if diagonal else range(m):
            for k in range(j, j + 1 if diagonal else m):
                term = advanced(i, j, k) if j == k else advanced(i, j, k) + advanced(i, k, j)
                if sp.expand_mul(term) != 0:
                    terms[i, j, k] = term
    return terms


def drift_jacobian(symbolic: SymbolicSDE) -> list[list[Any]]:
    """D drift_i / d y_j as d rows of d expressions."""
    import sympy as sp

    return [[sp.diff(a, yj) for yj in symbolic.y] for a in symbolic.drift]


def jacobian(sde: SDE) -> Callable[[float, Any], np.ndarray]:
    """The Jacobian of the drift, exact by symbolic trace.

    Parameters
    ----------
    sde : SDE
        The model, in any convention; its own drift is differentiated.

    Returns
    -------
    callable
        ``jacobian(t, y)`` with y of d numbers returns the array (d, d) of d drift_i / d y_j.
    """
    symbolic = sde.symbolic()
    function = lambdify_components(drift_jacobian(symbolic), symbolic)

    def evaluate(t: float, y: Any) -> np.ndarray:
        values = tuple(np.asarray(v, dtype=float) for v in y)
        return np.array(function(t, values, sde.params, np), dtype=float)

    return evaluate
