"""Layers: what importing a package brings along, and the import contracts."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "jax",
    "optax",
    "diffrax",
    "equinox",
    "matfree",
    "sympy",
    "matplotlib",
    "typer",
    "rich",
    "tensorflow",
    "keras",
    "distributed",
    "pydantic",
)


STAGES = (
    "import solvers, eos_sde, eos_sde.models, eos_sde.thresholds",
    "eos_sde.models.self_stabilization(1.0, 1.0, 0.1, 0.1).to('klimontovich').drift_at(0.0, (1.0, 2.0))",
    "eos_sde.bridge.tasks()",
)


def test_imports_bring_nothing_heavy_along():
    """In one fresh interpreter: nothing at import; SymPy, but no JAX, in use; JAX with the bridge alone."""
    report = f"; print(*[m for m in {HEAVY} if m in sys.modules])"
    code = "import sys\n" + "\n".join(stage + report for stage in STAGES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, used, bridge = (set(line.split()) for line in done.stdout.splitlines())
    assert imported == set()
    assert used <= {"sympy"}
    assert "jax" in bridge  # positive control of the check, and of the deferred imports


def test_import_contracts():
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed; it comes with the extra 'dev'")
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
