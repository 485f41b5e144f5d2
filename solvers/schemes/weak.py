"""Platen's explicit scheme of weak order 2, for any noise, with three-point increments.

With h = dt, b^j the j-th column of the noise, u = y + a h (at the end of the step) and v = y (at its start):

    Y = y + h (a(u + sum_j b^j W_j) + a) / 2
          + sum_j (b^j(u + b^j sqrt h) + b^j(u - b^j sqrt h) + 2 b^j) W_j / 4
          + sum_j (b^j(u + b^j sqrt h) - b^j(u - b^j sqrt h)) (W_j^2 - h) / (4 sqrt h)
          + sum over r != j of (b^j(v + b^r sqrt h) + b^j(v - b^r sqrt h) - 2 b^j) W_j / 4
          + sum over r != j of (b^j(v + b^r sqrt h) - b^j(v - b^r sqrt h)) (W_j W_r + V_rj) / (4 sqrt h)

W_j are three-point numbers and V_rj = -V_jr two-point ones, +-h, one for each pair of processes. The sums over
r != j vanish for diagonal noise whose amplitudes depend on their own component, and for additive noise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from solvers.schemes.algebra import compiled, row
from solvers.schemes.claims import Draws, Scheme

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model


def _mixed(m: int, diagonal: bool, kind: str) -> bool:
    """Whether the noise of one process may vary along that of another."""
    alone = kind in {"additive", "uncoupled", "scalar"} or (diagonal and kind == "commuting")
    return m > 1 and not alone


def _draws(m: int, kind: str) -> Draws:
    return Draws(three_point=m, two_point=m * (m - 1) // 2 if _mixed(m, False, kind) else 0)


def _weak_platen(ops: Algebra, model: Model) -> Any:
    lines = [
        "def step(p, t, dt, y, dw):",
        "    h = sqrt(dt)",
        "    a, b = drift(t, y, p), diffusion(t, y, p)",
        "    u = plus(y, dt, a)",
        "    end = drift(t + dt, kick(u, b, dw), p)",
        "    moved = plus(plus(y, 0.5 * dt, a), 0.5 * dt, end)",
    ]
    joint = model.noise == "diagonal" and not _mixed(model.m, True, model.kind)
    lines += _all_at_once(model) if joint else _one_by_one(model)
    return compiled(
        "\n".join(lines) + "\n",
        plus=ops.plus,
        kick=ops.kick,
        drift=model.drift,
        diffusion=model.diffusion,
        sqrt=math.sqrt,
    )


def _all_at_once(model: Model) -> list[str]:
    """Diagonal noise, no amplitude depending on another noisy component: two probes serve all processes."""
    d = model.d
    moves = (
        f"moved[{i}] + 0.25 * ((up[{i}] + down[{i}] + 2.0 * b[{i}]) * dw[{i}]"
        f" + (up[{i}] - down[{i}]) * (dw[{i}] * dw[{i}] - dt) / h)"
        for i in range(d)
    )
    return [
        f"    up = diffusion(t + dt, {row(f'u[{i}] + h * b[{i}]' for i in range(d))}, p)",
        f"    down = diffusion(t + dt, {row(f'u[{i}] - h * b[{i}]' for i in range(d))}, p)",
        f"    return {row(moves)}",
    ]


def _one_by_one(model: Model) -> list[str]:
    """Any noise: two probes along each process, and two more where processes mix."""
    d, m = model.d, model.m
    diagonal = model.noise == "diagonal"
    mixed = _mixed(m, diagonal, model.kind)

    def column(name: str, i: int, j: int) -> str:
        if diagonal:
            return f"{name}[{i}]" if i == j else "0.0"
        return f"{name}[{i}][{j}]"

    def probe(name: str, time: str, base: str, sign: str, j: int) -> str:
        place = row(f"{base}[{i}] {sign} h * {column('b', i, j)}" for i in range(d))
        return f"    {name} = diffusion({time}, {place}, p)"

    lines = []
    for j in range(m):
        lines += [probe(f"up{j}", "t + dt", "u", "+", j), probe(f"down{j}", "t + dt", "u", "-", j)]
        if mixed:
            lines += [probe(f"over{j}", "t", "y", "+", j), probe(f"under{j}", "t", "y", "-", j)]
    pairs = [(r, j) for r in range(m) for j in range(r + 1, m)]
    if mixed:
        lines += [f"    v{r}_{j} = dw[{m + q}] * h" for q, (r, j) in enumerate(pairs)]
    moves: list[list[str]] = [[] for _ in range(d)]
    for i in range(d):
        for j in [i] if diagonal else range(m):
            up, down, here = column(f"up{j}", i, j), column(f"down{j}", i, j), column("b", i, j)
            moves[i] += [
                f"({up} + {down} + 2.0 * {here}) * dw[{j}]",
                f"({up} - {down}) * (dw[{j}] * dw[{j}] - dt) / h",
            ]
            for r in range(m) if mixed else ():
                if r != j:
                    over, under = column(f"over{r}", i, j), column(f"under{r}", i, j)
                    area = f"+ v{r}_{j}" if r < j else f"- v{j}_{r}"
                    moves[i] += [
                        f"({over} + {under} - 2.0 * {here}) * dw[{j}]",
                        f"({over} - {under}) * (dw[{j}] * dw[{r}] {area}) / h",
                    ]
    sums = [" + ".join(terms) for terms in moves]
    return [*lines, f"    return {row(f'moved[{i}] + 0.25 * ({sums[i]})' for i in range(d))}"]


WEAK_PLATEN = Scheme(
    name="weak-platen",
    convention="ito",
    strong=None,
    strong_special=None,
    special=frozenset(),
    weak=2.0,
    build=_weak_platen,
    amplification=lambda z: 1 + z + z * z / 2,
    source="Kloeden and Platen 1992, eqs. (15.1.3) and (14.2.8)-(14.2.10), Theorem 14.2.4",
    draws=_draws,
    asks=True,
)
