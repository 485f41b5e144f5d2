"""Layers: what importing a package brings along, and the import contracts."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("jax", "optax", "diffrax", "equinox", "matfree", "sympy", "matplotlib", "typer", "rich")


def loaded(statement):
    """Which heavy packages a fresh interpreter has after the statement."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_bring_nothing_heavy_along():
    assert loaded("import solvers, eos_sde, eos_sde.models, eos_sde.thresholds") == set()


def test_using_solvers_needs_no_jax():
    use = (
        "from eos_sde.models import self_stabilization\n"
        "self_stabilization(1.0, 1.0, 0.1, 0.1).to('klimontovich').drift_at(0.0, (1.0, 2.0))"
    )
    assert loaded(use) <= {"sympy"}


def test_subpackages_come_when_they_are_used():
    """Positive control of the check, and of the deferred imports."""
    assert "jax" in loaded("import eos_sde\neos_sde.bridge.tasks()")


def test_import_contracts():
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed; it comes with the extra 'dev'")
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
