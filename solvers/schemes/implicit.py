"""Drift-implicit Euler for stiff drift: Newton's method with the exact Jacobian, a small dense solve written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solvers import tangent
from solvers.schemes.algebra import compiled, row
from solvers.schemes.claims import Draws, Scheme

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model
    from solvers.sde import SDE

ITERATIONS = 12
"""Newton steps. Quadratic convergence needs four; the others bring in starts far out, by 4/5 each on a quintic wall."""
TOLERANCE = 1e-8
"""Largest last move, relative to 1 + |y|: the move after it would be of the order of its square."""
_WRITTEN_OUT = 3
"""Up to so many components the iterations are written one after another, so that LLVM vectorises over paths."""


def _jacobian(sde: SDE) -> tuple[Any, ...]:
    symbolic = sde.symbolic()
    return (tangent.compiled_components(tangent.drift_jacobian(symbolic), symbolic),)


def _implicit_euler(ops: Algebra, model: Model) -> Any:
    """Solve Y = c + dt a(t + dt, Y), c = y + b(t, y) dW; not converged gives NaN, a path reported as diverged."""
    d = model.d
    newton = compiled(
        _newton_source(d), drift=model.drift, jacobian=model.derivatives[0], larger=_larger, pick=_pick
    )
    repeat = (
        "    x, move = newton(x, c, s, dt, p)\n" * ITERATIONS
        if d <= _WRITTEN_OUT
        else f"    for _ in range({ITERATIONS}):\n        x, move = newton(x, c, s, dt, p)\n"
    )
    settled = row(
        f"pick(abs(move[{i}]) <= {TOLERANCE!r} * (1.0 + abs(x[{i}])), x[{i}], NAN)" for i in range(d)
    )
    return compiled(
        "def step(p, t, dt, y, dw):\n"
        "    c = kick(y, diffusion(t, y, p), dw)\n"
        "    s, x, move = t + dt, c, c\n"
        f"{repeat}"
        f"    return {settled}\n",
        kick=ops.kick,
        diffusion=model.diffusion,
        newton=newton,
        pick=_pick,
        NAN=float("nan"),
    )


_pick = compiled("def pick(condition, a, b):\n    return a if condition else b\n")
_larger = compiled("def larger(a, b):\n    return abs(a) > abs(b)\n")


def _newton_source(d: int) -> str:
    """One iteration: solve (1 - dt J) move = c + dt a - x by elimination, pivots brought up by selects."""
    lines = [
        "def newton(x, c, s, dt, p):",
        "    a = drift(s, x, p)",
        "    j = jacobian(s, x, p)",
    ]
    for i in range(d):
        lines += [f"    m{i}_{k} = {float(i == k)} - dt * j[{i}][{k}]" for k in range(d)]
        lines.append(f"    m{i}_{d} = c[{i}] + dt * a[{i}] - x[{i}]")
    for k in range(d):
        for i in range(k + 1, d):
            lines.append(f"    swap = larger(m{i}_{k}, m{k}_{k})")
            for q in range(k, d + 1):
                lines += [
                    f"    u, v = m{k}_{q}, m{i}_{q}",
                    f"    m{k}_{q}, m{i}_{q} = pick(swap, v, u), pick(swap, u, v)",
                ]
        lines.append(f"    r{k} = 1.0 / m{k}_{k}")
        for i in range(k + 1, d):
            lines.append(f"    f = m{i}_{k} * r{k}")
            lines += [f"    m{i}_{q} = m{i}_{q} - f * m{k}_{q}" for q in range(k + 1, d + 1)]
    for k in reversed(range(d)):
        known = "".join(f" - m{k}_{q} * z{q}" for q in range(k + 1, d))
        lines.append(f"    z{k} = (m{k}_{d}{known}) * r{k}")
    new, move = row(f"x[{i}] + z{i}" for i in range(d)), row(f"z{i}" for i in range(d))
    lines.append(f"    return {new}, {move}")
    return "\n".join(lines) + "\n"


IMPLICIT_EULER = Scheme(
    name="implicit-euler",
    convention="ito",
    strong=0.5,
    strong_special=1.0,
    special=frozenset({"additive"}),
    weak=1.0,
    build=_implicit_euler,
    amplification=lambda z: 1 / (1 - z),
    source=(
        "Kloeden and Platen 1992, eq. (12.2.2); strong order 0.5 also for one-sided Lipschitz drift: Higham, Mao "
        "and Stuart 2002, SIAM J. Numer. Anal. 40, 1041. A step has one solution while dt times the largest "
        "growth rate of the drift is below 1"
    ),
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
    differentiate=_jacobian,
)
