"""Which models run as vector instructions, and what is said of those that do not: on this machine and on others."""

import os
import platform
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features
from numba import carray, cfunc, float64, types

from solvers import SDE, schemes
from solvers.vectorisation import explain

BLOCK = 512
POINTER = types.CPointer(float64)


def pass_of(sde, scheme="euler-maruyama"):
    """A pass over a block of paths as in `solvers.kernels`, whatever is around it there."""
    stepper = schemes.stepper(schemes.find(scheme), sde, BLOCK)
    step, load, load_noise, store = stepper.step, stepper.ops.load, stepper.ops.load_noise, stepper.ops.store
    kind, d, numbers = type(sde.params), stepper.model.d, sum(stepper.draws)

    @cfunc(
        types.void(float64, float64, POINTER, POINTER, POINTER),
        fastmath={"contract", "reassoc"},
        error_model="numpy",
    )
    def advance(t, dt, at_x, at_dw, at_p):
        x, dw, values = carray(at_x, (d * BLOCK,)), carray(at_dw, (numbers * BLOCK,)), carray(at_p, (3,))
        p = kind(values[0], values[1], values[2])
        for i in range(BLOCK):
            store(x, i, step(p, t, dt, load(x, i), load_noise(dw, i)))

    return advance


def model(*drift, diffusion=None, noise="diagonal"):
    """An SDE of x, z, ... from the text of its drift: one compiled function per model, as a user writes it."""
    d = len(drift)
    diffusion = diffusion or ("p.b",) * d
    unpack = "\n".join(f"    {name} = y[{i}]" for i, name in enumerate("xzuv"[:d]))
    scope: dict[str, Any] = {"np": np}
    source = f"def drift(t, y, p, xp):\n{unpack}\n    return ({', '.join(drift)},)\n"
    source += f"def diffusion(t, y, p, xp):\n{unpack}\n    return ({', '.join(diffusion)},)\n"
    exec(compile(source, "<model of the test>", "exec"), scope)
    return SDE(
        scope["drift"],
        scope["diffusion"],
        params={"a": 1.3, "b": 0.7, "n": 3.0},
        names=tuple("xzuv"[:d]),
        convention="ito",
        noise=noise,
    )


FAST = {
    "ornstein-uhlenbeck": model("-p.a * x"),
    "double well": model("x - x**3"),
    "powers": model("x**2 - x**4 + x**5 - x**7 - x**2.0 + 1 / (1 + x**2) ** 2"),
    "square root power": model("(1 + x * x)**0.5"),
    "geometric": model("p.a * x", diffusion=("p.b * x",)),
    "multiplicative": model("-p.a * x", diffusion=("xp.sqrt(0.2 * (1 + x**2))",)),
    "forced pendulum": model("z", "-xp.sin(x) - p.a * z + xp.cos(2 * t)"),
    "power of time": model("-x * t**p.a"),
    "network": model("-x + xp.tanh(p.a * z)", "-z + xp.tanh(x)"),
    "selections": model(
        "xp.where(xp.logical_and(x > 0, xp.logical_not(z > 1)), z, -x)",
        "xp.abs(x) - xp.maximum(z, 0) + xp.minimum(z, x) + xp.sign(x) - xp.clip(z, -1, 1)",
    ),
    "every function": model(
        "xp.exp(-x**2) + xp.expm1(z) + xp.log(1 + x * x) + xp.log1p(z * z) + xp.arcsin(xp.tanh(z))",
        "xp.sinh(x) - xp.cosh(z) + xp.tan(x) + xp.arctan(z) + xp.arctan2(x, z) + xp.hypot(x, z)",
    ),
    "general noise": model("-x", "-z", diffusion=("(1.0, p.a)", "(0.0, x)"), noise="general"),
    "four components": model("z - x", "x * u - z", "-v * u", "xp.sin(x - v)"),
}
SLOW = {
    "np.tanh": (model("-np.tanh(x)"), "calls tanh of the C library: call xp.tanh"),
    "np.arctan2": (model("-np.arctan2(x, 1.0)"), "calls atan2 of the C library: call xp.arctan2"),
    "np.sin in the noise": (model("-x", diffusion=("np.sin(x)",)), "calls sin of the C library: call xp.sin"),
    "two": (model("-np.exp(x) - np.log(x)"), "calls exp, log of the C library: call xp.exp; call xp.log"),
    "fractional power": (model("-xp.abs(x)**1.7"), r"calls pow .* xp.exp\(a \* xp.log\(x\)\)"),
    "variable power": (model("-xp.abs(x)**p.a"), r"calls pow .* xp.exp\(a \* xp.log\(x\)\)"),
    "power of two": (model("2.0**x"), r"calls exp2 .* write 2\*\*x as xp.exp\(x \* xp.log\(2\)\)"),
    "remainder": (model("-(x % 1.0)"), "calls fmod .* have no vector form"),
    "negative power": (model("-(2 + x)**-2"), r"may raise an exception: write a negative power x\*\*-2 as"),
    "whole power in a parameter": (model("x**int(p.n)"), r"whole powers .*x\*\*3"),
}


@pytest.mark.parametrize("name", FAST)
def test_models_that_become_vectors(name):
    compiled = pass_of(FAST[name])
    assert explain(compiled) is None
    assert "x double>" in compiled.inspect_llvm()


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.slow
def test_models_that_do_not(name):
    sde, sentence = SLOW[name]
    said = explain(pass_of(sde))
    assert said is not None
    assert "\n" not in said
    assert re.search(sentence, said), said


def test_a_sum_of_variable_length_is_named():
    def drift(t, y, p, xp):
        total, term = 0.0 * y[0], y[0]
        for _ in range(int(p.n)):
            term = term * y[0]
            total = total - term
        return (total,)

    sde = SDE(drift, lambda t, y, p, xp: (p.n,), params={"a": 1.0, "b": 1.0, "n": 3.0}, convention="ito")
    assert "contains a loop of variable length" in (explain(pass_of(sde)) or "")


@pytest.mark.parametrize("scheme", sorted(schemes.SCHEMES))
def test_no_scheme_is_blamed_on_the_model(scheme):
    assert explain(pass_of(FAST["ornstein-uhlenbeck"], scheme)) is None


def test_the_explanation_is_cheap():
    compiled = pass_of(FAST["every function"])
    explain(compiled)
    took = []
    for _ in range(5):
        start = time.process_time()
        explain(compiled)
        took.append(time.process_time() - start)
    assert min(took) < 0.02


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="other instruction sets")
@pytest.mark.parametrize(
    ("cpu", "extra"), [("haswell", ""), ("skylake-avx512", ",+avx512f,+avx512dq,+avx512vl")]
)
def test_other_instruction_sets_agree(cpu, extra):
    """The same verdicts when code is compiled (not run) for AVX2 and for AVX-512, there with the widest vectors."""
    program = (
        "import runpy, sys\n"
        "here = runpy.run_path(sys.argv[1])\n"
        "said = lambda m: here['explain'](here['pass_of'](m))\n"
        "print(*[n for n, m in here['FAST'].items() if said(m) is not None], sep=';')\n"
        "print(*[n for n, (m, _) in here['SLOW'].items() if said(m) is None], sep=';')\n"
        "from solvers import kernels, schemes, sources\n"
        "sde = here['FAST']['ornstein-uhlenbeck']\n"
        "stepper = schemes.stepper(schemes.find('euler-maruyama'), sde, 512)\n"
        "passes = [kernels.advancing(stepper, type(sde.params), len(sde.params), 512, 'single')]\n"
        "passes += [sources.source(schemes.Draws(1, 0, 0), bits, 512).fill for bits in (32, 53)]\n"
        "print(*['zmm' in p._library.get_asm_str() for p in passes])\n"
    )
    features = "+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2" + extra
    done = subprocess.run(
        [sys.executable, "-c", program, __file__],
        env=os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features},
        capture_output=True,
        text=True,
        check=True,
    )
    wide = "avx512" in cpu
    assert done.stdout == f"\n\n{wide} {wide} {wide}\n"


_BITS = """
import hashlib
import numpy as np
from solvers import SDE, simulate

def cubic(t, y, p, xp):
    return (y[0] - y[0] ** 3 + 0.1 * xp.sin(y[1]), -y[1] * y[0])

def sizes(t, y, p, xp):
    return (0.5 * xp.sqrt(1.0 + 0.1 * y[0] ** 2), 0.3)

sde = SDE(cubic, sizes, names=("x", "z"), convention="ito")
for options in (
    {}, {"resolution": 53}, {"scheme": "milstein"}, {"scheme": "weak-euler"}, {"scheme": "weak-platen"},
    {"statistics": ("mean", "variance", "skewness", "kurtosis", "covariance")},
):
    run = simulate(sde, [1.0, 0.3], t1=1.0, dt=0.01, paths=3000, seed=5, threads=1, **options)
    values = b"".join(np.ascontiguousarray(run[name].values).tobytes() for name in sorted(run.data_vars))
    print(hashlib.sha256(values).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not get_host_cpu_features().get("avx512f", False), reason="this processor cannot run AVX-512 code"
)
def test_bits_are_those_of_other_vector_widths():
    """The same bits from code with registers of 512 bits and from code for AVX2 on the same processor."""
    host = get_host_cpu_features()
    narrow = ",".join(
        ("+" if on and not name.startswith(("avx512", "avx10", "evex512")) else "-") + name
        for name, on in host.items()
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", _BITS], env=os.environ | extra, capture_output=True, text=True, check=True
        ).stdout
        for extra in ({}, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": narrow})
    ]
    assert len(said[0].split()) == 6
    assert said[0] == said[1]
