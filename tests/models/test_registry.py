"""The catalogue builds every model from numbers; importing the package stays light."""

import subprocess
import sys

import pytest

from eos_sde import models
from eos_sde.models import maps
from solvers import SDE, InvalidInput

VALUES = {
    "eta": 0.1, "noise": 0.2, "curvature": 3.0, "mu": 0.1, "C": 1.0, "s": 0.1, "alpha": 1.0, "beta": 2.0,
    "eta_base": 0.1, "width": 10.0,
}  # fmt: skip


@pytest.mark.parametrize("name", list(models.catalogue()))
def test_every_entry_builds_from_numbers(name):
    entry = models.catalogue()[name]
    given = {key: VALUES[key] for key in entry.parameters if key not in entry.defaults}
    sde = entry.build(**given)
    assert isinstance(sde, SDE)
    assert entry.name == name
    assert entry.description
    assert entry.discrete == name.endswith("-map")
    if entry.discrete:
        rule = entry.build_map(**given)
        assert isinstance(rule, maps.NoisyMap)
        assert rule.dt == (0.1 if entry.step == "eta" else 1.0)
    else:
        with pytest.raises(InvalidInput, match="continuous"):
            entry.build_map(**given)


def test_refusals_name_the_parameter():
    entry = models.catalogue()["matched-linear"]
    with pytest.raises(InvalidInput, match="no parameter 'etta'"):
        entry.build(etta=0.1, noise=0.1, curvature=1.0)
    with pytest.raises(InvalidInput, match="needs the parameter 'curvature'"):
        entry.build(eta=0.1, noise=0.1)
    with pytest.raises(TypeError):
        models.catalogue()["new"] = entry


@pytest.mark.parametrize(
    "module",
    ["eos_sde", *(pytest.param(m, marks=pytest.mark.slow) for m in ("eos_sde.models", "eos_sde.thresholds"))],
)
def test_importing_is_light(module):
    code = (
        f"import sys, {module}; print([m for m in ('jax', 'sympy', 'diffrax', 'optax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
