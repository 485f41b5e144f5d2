"""How users of other packages compute the ensembles of sde_problems.py, each in that package's fastest way.

A builder ``(problem, paths, steps) -> run`` prepares whatever a user prepares once; ``run()`` returns the mean
and the variance of each component at every step, both (steps + 1, d). Where a package only returns paths they
are taken chunk by chunk, so that no peer pays for memory it need not touch.
"""
# ruff: noqa: ARG001, ARG002, ARG005 - model functions have a fixed signature

from __future__ import annotations

import contextlib
import importlib.util
import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import sde_c
from numba import njit
from sde_problems import DT, START, Problem

from solvers import simulate

ROOT = math.sqrt(DT)
Run = Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """One way to do the work.

    Attributes
    ----------
    name : str
    build : callable
        ``(problem, paths, steps) -> run``.
    needs : tuple of str
        Modules without which it is missing.
    most : float
        Path-step-components at most, so that slow peers end; they run with fewer paths.
    problems : tuple of str
        Where it applies; everywhere if empty.
    """

    name: str
    build: Callable[[Problem, int, int], Run]
    needs: tuple[str, ...] = ()
    most: float = math.inf
    problems: tuple[str, ...] = field(default=())

    def missing(self) -> str | None:
        """Why it cannot run here."""
        if self.name.startswith("C,"):
            return None if sde_c.compiler() else "there is no C compiler"
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


class _Sums:
    """Mean and variance from chunks of paths."""

    def __init__(self, steps: int, d: int):
        self.count, self.sums, self.squares = 0, np.zeros((steps + 1, d)), np.zeros((steps + 1, d))

    def add(self, states: np.ndarray, paths: int) -> None:
        """(steps + 1, d, paths) or whatever einsum calls that."""
        self.count += states.shape[paths]
        letters = "tdn" if paths == 2 else "tnd"
        self.sums += states.sum(axis=paths, dtype=float)
        self.squares += np.einsum(f"{letters},{letters}->td", states, states, dtype=float)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.sums / self.count
        return mean, self.squares / self.count - mean**2


def ours(**settings: Any) -> Callable[[Problem, int, int], Run]:
    """Simulate, on one thread."""

    def build(problem: Problem, paths: int, steps: int) -> Run:
        def run():
            result = simulate(
                problem.sde,
                [START] * problem.d,
                t1=steps * DT,
                dt=DT,
                paths=paths,
                seed=1,
                threads=1,
                **settings,
            )
            return result["mean"].values, result["variance"].values

        return run

    return build


def _sdeint(problem: Problem, paths: int, steps: int) -> Run:
    import sdeint

    start, times, identity = np.full(problem.d, START), np.arange(steps + 1) * DT, np.eye(problem.d)
    constant = identity * (problem.additive or 0.0)

    def drift(y, t):
        return problem.drift(y)

    def diffusion(y, t):
        return constant if problem.additive else np.diag(problem.diffusion(y))

    def run():
        generator, sums = np.random.default_rng(1), _Sums(steps, problem.d)
        for _ in range(paths):
            sums.add(sdeint.itoEuler(drift, diffusion, start, times, generator=generator)[:, :, None], 2)
        return sums.result()

    return run


def _sdepy(problem: Problem, paths: int, steps: int) -> Run:
    import sdepy

    @sdepy.integrate
    def process(t, x):
        return {"dt": problem.drift(x), "dw": problem.additive or problem.diffusion(x)}

    chunk, times = max(1, 20_000 // problem.d), np.arange(steps + 1) * DT

    def run():
        sums, generator = _Sums(steps, problem.d), np.random.default_rng(1)
        for low in range(0, paths, chunk):
            made = cast("Any", process)(
                x0=START, paths=min(chunk, paths - low), vshape=(problem.d,), steps=times, rng=generator
            )
            sums.add(np.asarray(made(times)), 2)
        return sums.result()

    return run


def _torchsde(problem: Problem, paths: int, steps: int) -> Run:
    import torch
    import torchsde

    torch.set_num_threads(1)

    class Model(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return problem.drift(y)

        def g(self, t, y):
            return torch.full_like(y, problem.additive) if problem.additive else problem.diffusion(y)

    model, chunk = Model(), max(1, 100_000 // problem.d)
    times = torch.arange(steps + 1, dtype=torch.float32) * DT

    def run():
        sums, torch_seed = _Sums(steps, problem.d), 1
        with torch.no_grad():
            for low in range(0, paths, chunk):
                size = (min(chunk, paths - low), problem.d)
                brownian = torchsde.BrownianInterval(
                    t0=0.0,
                    t1=float(times[-1]),
                    size=size,
                    dt=DT,
                    dtype=torch.float32,
                    entropy=torch_seed + low,
                )
                start = torch.full(size, START, dtype=torch.float32)
                states = torchsde.sdeint(model, start, times, bm=brownian, dt=DT, method="euler")
                sums.add(states.numpy(), 1)
        return sums.result()

    return run


def _torch_by_hand(problem: Problem, paths: int, steps: int) -> Run:
    import torch

    torch.set_num_threads(1)
    chunk = max(1, 32768 // problem.d)

    def run():
        generator = torch.Generator().manual_seed(1)
        sums, squares = torch.zeros(steps + 1, problem.d), torch.zeros(steps + 1, problem.d)
        total = np.zeros((2, steps + 1, problem.d))
        with torch.no_grad():
            for low in range(0, paths, chunk):
                x = torch.full((problem.d, min(chunk, paths - low)), START)
                z = torch.empty_like(x)
                for k in range(steps + 1):
                    sums[k] = x.sum(dim=1)
                    squares[k] = torch.linalg.vecdot(x, x)
                    if k < steps:
                        z.normal_(generator=generator)
                        if problem.additive:
                            x.add_(problem.drift(x), alpha=DT).add_(z, alpha=problem.additive * ROOT)
                        else:
                            noise = problem.diffusion(x).mul_(z)
                            x.add_(problem.drift(x), alpha=DT).add_(noise, alpha=ROOT)
                total += np.stack([sums.numpy(), squares.numpy()])
        mean = total[0] / paths
        return mean, total[1] / paths - mean**2

    return run


def _jax(x64: bool) -> AbstractContextManager:
    import jax

    return jax.enable_x64(x64)


def _jax_scan(problem: Problem, paths: int, steps: int) -> Run:
    import jax
    import jax.numpy as jnp

    noise: Any = problem.additive or problem.diffusion

    def step(x, key):
        z = jax.random.normal(key, x.shape, dtype=jnp.float32)
        amplitude = noise if isinstance(noise, float) else noise(x)
        new = x + problem.drift(x) * jnp.float32(DT) + amplitude * z * jnp.float32(ROOT)
        return new, (new.mean(axis=1), new.var(axis=1))

    @jax.jit
    def whole(key):
        start = jnp.full((problem.d, paths), START, dtype=jnp.float32)
        return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

    def run():
        with _jax(False):
            mean, variance = whole(jax.random.key(1))
            first = np.full((1, problem.d), START)
            return np.vstack([first, mean]), np.vstack([0 * first, variance])

    return run


def _diffrax(brownian: str, x64: bool) -> Callable[[Problem, int, int], Run]:
    def build(problem: Problem, paths: int, steps: int) -> Run:
        import diffrax
        import jax
        import jax.numpy as jnp
        import lineax

        dtype = jnp.float64 if x64 else jnp.float32
        chunk = min(paths, max(1, 20_000 // problem.d))
        paths = paths // chunk * chunk
        noise: Any = problem.additive or problem.diffusion

        def diffusion(t, y, args):
            return lineax.DiagonalLinearOperator(
                jnp.full_like(y, noise) if isinstance(noise, float) else noise(y)
            )

        def one(key):
            shape = jax.ShapeDtypeStruct((problem.d,), dtype)
            if brownian == "unsafe":
                path = diffrax.UnsafeBrownianPath(shape, key)
            else:
                path = diffrax.VirtualBrownianTree(0.0, steps * DT, tol=DT / 2, shape=shape, key=key)
            terms = diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, y, args: problem.drift(y)), diffrax.ControlTerm(diffusion, path)
            )
            solution = diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                0.0,
                steps * DT,
                None,
                jnp.full(problem.d, START, dtype=dtype),
                stepsize_controller=diffrax.StepTo(ts=jnp.arange(steps + 1) * DT),
                saveat=diffrax.SaveAt(t0=True, steps=True),
                adjoint=diffrax.DirectAdjoint(),
                max_steps=steps,
            )
            return cast("Any", solution.ys)

        @jax.jit
        def whole(keys):
            ys = jax.vmap(one, out_axes=1)(keys)
            return ys.sum(axis=1), (ys**2).sum(axis=1)

        def run():
            with _jax(x64):
                keys = jax.random.split(jax.random.key(1), paths).reshape(-1, chunk)
                sums = np.sum([np.stack([np.asarray(v, float) for v in whole(k)]) for k in keys], axis=0)
            mean = sums[0] / paths
            return mean, sums[1] / paths - mean**2

        return run

    return build


def _pychastic(problem: Problem, paths: int, steps: int) -> Run:
    import jax
    import jax.numpy as jnp
    from pychastic.sde_problem import SDEProblem
    from pychastic.sde_solver import SDESolver

    chunk = min(paths, max(1, 20_000 // problem.d))
    paths = paths // chunk * chunk
    with _jax(False):
        stated = SDEProblem(
            problem.drift,
            lambda x: jnp.diag(problem.diffusion(x)),
            x0=jnp.full(problem.d, START),
            tmax=(steps + 0.5) * DT,
        )
        solver = SDESolver(scheme="euler", dt=DT)

        @jax.jit
        def whole(seed):
            solved = solver.solve_many(stated, chunk, seed=seed, progress_bar=False)["solution_values"]
            return solved.sum(axis=0), (solved**2).sum(axis=0)

    def run():
        with _jax(False):
            parts = [
                np.stack([np.asarray(v, float) for v in whole(seed)]) for seed in range(1, 1 + paths // chunk)
            ]
        mean, squares = np.sum(parts, axis=0) / paths
        first = np.full((1, problem.d), START)
        return np.vstack([first, mean]), np.vstack([0 * first, squares - mean**2])

    return run


def _jitcsde(problem: Problem, paths: int, steps: int) -> Run:
    """Uncoupled copies in one system, which spares calls; its only scheme is a stochastic Runge-Kutta."""
    import jitcsde
    import symengine

    copies = max(1, 60 // problem.d)
    size, paths = copies * problem.d, max(1, paths // copies) * copies
    y = jitcsde.y
    made: Any = jitcsde.jitcsde(
        [problem.drift(y(i)) for i in range(size)],
        [symengine.sympify(problem.additive or problem.diffusion(y(i))) for i in range(size)],
        verbose=False,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # setuptools reads what lies about
        made.compile_C(extra_compile_args=["-O3", "-march=native", "-w"], chunk_size=100)

    def run():
        sums = _Sums(steps, problem.d)
        states = np.empty((steps + 1, size))
        for seed in range(1, 1 + paths // copies):
            made.set_seed(seed)
            made.set_initial_value(np.full(size, START), 0.0)
            made._initiate()  # the public way adapts the step
            states[0] = START
            for k in range(steps):
                made.SDE.get_next_step(DT)
                made.SDE.accept_step()
                states[k + 1] = made.SDE.get_state()
            sums.add(states.reshape(steps + 1, copies, problem.d), 1)
        return sums.result()

    return run


def _numpy_chunked(problem: Problem, paths: int, steps: int) -> Run:
    chunk = max(1, 4096 // problem.d)

    def run():
        generator = np.random.Generator(np.random.SFC64(1))
        sums, squares = np.zeros((steps + 1, problem.d)), np.zeros((steps + 1, problem.d))
        for low in range(0, paths, chunk):
            x = np.full((problem.d, min(chunk, paths - low)), START)
            z = np.empty_like(x)
            for k in range(steps + 1):
                sums[k] += x.sum(axis=1)
                squares[k] += np.einsum("ij,ij->i", x, x)
                if k < steps:
                    generator.standard_normal(out=z)
                    if problem.additive:
                        z *= problem.additive * ROOT
                    else:
                        z *= problem.diffusion(x) * ROOT
                    x += problem.drift(x) * DT
                    x += z
        mean = sums / paths
        return mean, squares / paths - mean**2

    return run


def _plain_numba(problem: Problem, paths: int, steps: int) -> Run:
    drift, diffusion, d = njit(problem.drift), njit(problem.diffusion), problem.d

    @njit(fastmath=True)
    def loop(generator, paths, steps):
        sums, squares = np.zeros((steps + 1, d)), np.zeros((steps + 1, d))
        x = np.empty(d)
        for _ in range(paths):
            x[:] = START
            for k in range(steps + 1):
                for j in range(d):
                    sums[k, j] += x[j]
                    squares[k, j] += x[j] * x[j]
                    x[j] += drift(x[j]) * DT + diffusion(x[j]) * ROOT * generator.standard_normal()
        return sums, squares

    def run():
        sums, squares = loop(np.random.Generator(np.random.SFC64(1)), paths, steps)
        mean = sums / paths
        return mean, squares / paths - mean**2

    return run


PEERS = (
    Peer("sdeint Euler", _sdeint, ("sdeint",), most=6e4),
    Peer("jitcsde (fixed step SRK)", _jitcsde, ("jitcsde", "symengine"), most=1e6),
    Peer("diffrax, VirtualBrownianTree f64", _diffrax("tree", True), ("diffrax",), most=1e6),
    Peer("diffrax, UnsafeBrownianPath f32", _diffrax("unsafe", False), ("diffrax",), most=2e7),
    Peer("torchsde f32, Brownian with dt", _torchsde, ("torchsde", "torch"), most=1e8),
    Peer("pychastic f32", _pychastic, ("pychastic",), most=2e7),
    Peer("sdepy", _sdepy, ("sdepy",), most=2e7),
    Peer("numpy, chunked by an expert", _numpy_chunked),
    Peer("hand-written jax scan f32", _jax_scan, ("jax",)),
    Peer("hand-written torch f32", _torch_by_hand, ("torch",)),
    Peer("plain Numba with Generator", _plain_numba),
    Peer("C, xoshiro + ziggurat", sde_c.scalar),
    Peer("C, tuned 64-path blocks", sde_c.blocks),
)
