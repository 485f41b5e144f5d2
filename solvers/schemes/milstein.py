"""Strong order 1 for commutative noise: Milstein's scheme with exact derivatives, Platen's without any."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from solvers import tangent
from solvers.schemes.algebra import compiled, row
from solvers.schemes.claims import Draws, Scheme
from solvers.schemes.structure import COMMUTING

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model
    from solvers.sde import SDE

_REMEDY = (
    "use 'euler-maruyama' or 'heun' (strong order 0.5), or 'weak-platen' (weak order 2), which take any noise"
)


def _product(j: int, k: int) -> str:
    """The source of dW_j dW_k - delta_jk dt, twice the symmetric part of the double integral."""
    return f"(dw[{j}] * dw[{k}]{' - dt' if j == k else ''})"


def _derivatives(sde: SDE) -> tuple[Any, ...]:
    """The nonzero coefficients of the products, compiled, and the places (i, j, k) they belong to."""
    terms = tangent.milstein_terms(sde.symbolic())
    if not terms:
        return (None, ())
    return (tangent.compiled_components(list(terms.values()), sde.symbolic()), tuple(terms))


def _milstein(ops: Algebra, model: Model) -> Any:
    """Euler-Maruyama plus sum over j <= k of c_jk (dW_j dW_k - delta_jk dt), c by symbolic derivatives."""
    terms, places = model.derivatives
    corrections = [
        "".join(f" + c[{q}] * {_product(j, k)}" for q, (place, j, k) in enumerate(places) if place == i)
        for i in range(model.d)
    ]
    return compiled(
        "def step(p, t, dt, y, dw):\n"
        "    e = kick(plus(y, dt, drift(t, y, p)), diffusion(t, y, p), dw)\n"
        + ("    c = terms(t, y, p)\n" if places else "")
        + f"    return {row(f'e[{i}]{corrections[i]}' for i in range(model.d))}\n",
        plus=ops.plus,
        kick=ops.kick,
        drift=model.drift,
        diffusion=model.diffusion,
        terms=terms,
    )


def _platen(ops: Algebra, model: Model) -> Any:
    """Milstein's scheme with L^j b^k replaced by (b^k(y + b^j sqrt(dt)) - b^k(y)) / sqrt(dt)."""
    d, m = model.d, model.m
    lines = [
        "def step(p, t, dt, y, dw):",
        "    b = diffusion(t, y, p)",
        "    e = kick(plus(y, dt, drift(t, y, p)), b, dw)",
        "    h = sqrt(dt)",
        "    scale = 0.5 / h",
    ]
    if model.noise == "diagonal":
        # No amplitude depends on another noisy component, so all components are probed at once.
        lines += [
            f"    u = diffusion(t, {row(f'y[{i}] + h * b[{i}]' for i in range(d))}, p)",
            f"    return {row(f'e[{i}] + scale * (u[{i}] - b[{i}]) * {_product(i, i)}' for i in range(d))}",
        ]
    else:
        for j in range(m):
            probe = row(f"y[{i}] + h * b[{i}][{j}]" for i in range(d))
            lines.append(f"    u{j} = diffusion(t, {probe}, p)")
        moves = [
            " + ".join(
                f"(u{j}[{i}][{k}] - b[{i}][{k}]) * {_product(j, k)}" for j in range(m) for k in range(m)
            )
            for i in range(d)
        ]
        lines.append(f"    return {row(f'e[{i}] + scale * ({moves[i]})' for i in range(d))}")
    return compiled(
        "\n".join(lines) + "\n",
        plus=ops.plus,
        kick=ops.kick,
        drift=model.drift,
        diffusion=model.diffusion,
        sqrt=math.sqrt,
    )


MILSTEIN = Scheme(
    name="milstein",
    convention="ito",
    strong=1.0,
    strong_special=1.0,
    special=COMMUTING,
    weak=1.0,
    build=_milstein,
    amplification=lambda z: 1 + z,
    source="Kloeden and Platen 1992, eqs. (10.3.1) and (10.3.14), Theorem 10.3.5",
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
    differentiate=_derivatives,
    accepts=COMMUTING,
    remedy=_REMEDY,
)

PLATEN = Scheme(
    name="platen",
    convention="ito",
    strong=1.0,
    strong_special=1.0,
    special=COMMUTING,
    weak=1.0,
    build=_platen,
    amplification=lambda z: 1 + z,
    source="Kloeden and Platen 1992, eq. (11.1.7) for commutative noise, support points without drift",
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
    accepts=COMMUTING,
    remedy=_REMEDY,
)
