"""The peers in C: sde.c compiled for one problem at run time, where there is a compiler, and called by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from sde_problems import DT, START, Problem

SOURCE = Path(__file__).with_name("sde.c")
FLAGS = ("-O3", "-march=native", "-std=c11", "-Wno-psabi", "-fPIC", "-shared")
_ARRAY = np.ctypeslib.ndpointer(dtype=np.float64, flags="C_CONTIGUOUS")


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def library(problem: Problem) -> ctypes.CDLL:
    """sde.c with the functions of a problem compiled in."""
    found = compiler()
    if found is None:
        raise RuntimeError("there is no C compiler (cc, gcc or clang) on the path")
    drift, diffusion = problem.c
    folder = Path(tempfile.mkdtemp(prefix="sde-c-"))
    made = folder / "sde.so"
    defines = [f"-DD={problem.d}", f"-DDRIFT(x)={drift}", f"-DDIFFUSION(x)={diffusion}"]
    subprocess.run([found, *FLAGS, *defines, str(SOURCE), "-o", str(made), "-lm"], check=True)
    opened = ctypes.CDLL(str(made))
    shutil.rmtree(folder)
    opened.chain.restype, opened.chain.argtypes = ctypes.c_uint64, [ctypes.c_long]
    return opened


def _runner(function: str) -> Callable[[Problem, int, int], Callable[[], tuple]]:
    def build(problem: Problem, paths: int, steps: int) -> Callable[[], tuple]:
        call = getattr(library(problem), function)
        call.restype = None
        call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_double, ctypes.c_double, ctypes.c_uint64]
        call.argtypes += [_ARRAY, _ARRAY]

        def run():
            sums, squares = np.zeros((steps + 1, problem.d)), np.zeros((steps + 1, problem.d))
            call(paths, steps, DT, START, 1, sums, squares)
            mean = sums / paths
            return mean, squares / paths - mean**2

        return run

    return build


scalar = _runner("scalar")
blocks = _runner("blocks")


def clock(problem: Problem) -> float:
    """Cycles per nanosecond of this core, from a chain of dependent additions; the best of 20."""
    chain, length = library(problem).chain, 1_600_000
    best = float("inf")
    for _ in range(20):
        begin = time.process_time()
        chain(length)
        best = min(best, time.process_time() - begin)
    return length / best * 1e-9
