"""The worked examples run, and show what they say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.main()


@pytest.mark.slow
def test_equinox():
    log, edge, last = run("monitor_equinox")
    assert last < 0.1
    assert not log.warning.any()
    assert np.all(log.distance_deterministic > 0)
    # the probe is a sample of the training set, the rate is near 0 at the end: the same edge to its sampling error
    assert float(log.deterministic[-1]) == pytest.approx(float(edge), rel=0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax's own dependencies
def test_flax():
    pytest.importorskip("flax", reason="flax comes with the extra 'dev'")
    log, said = run("monitor_flax")
    assert len(said) == 1
    assert said[0].startswith("step 200")
    assert not log.warning.sel(step=slice(0, 160)).any()
    assert float(log.loss.sel(step=240)) > 10 * float(log.loss.sel(step=0))
