"""What `eos_sde.optimizers.keras` says where TensorFlow is missing or Keras runs on another backend."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["keras", "tensorflow"])
def test_the_rest_needs_no_tensorflow_and_the_keras_form_says_what_it_needs(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"  # Python then raises ImportError
        "import eos_sde.optimizers; eos_sde.optimizers.rule\n"
        "assert 'tensorflow' not in [name for name, module in sys.modules.items() if module]\n"
        "try: import eos_sde.optimizers.keras\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "eos_sde.optimizers.keras needs Keras 3 and TensorFlow: pip install 'eos-sde[tensorflow]'."
    )
    assert "TypeError" not in done.stderr


@pytest.mark.parametrize(
    ("version", "backend", "sentence"),
    [
        ("2.15.0", "tensorflow", "needs Keras 3 and found 2.15.0: pip install 'keras>=3'."),
        ("3.15.1", "torch", "found 'torch': set the environment variable KERAS_BACKEND=tensorflow before"),
    ],
)
def test_another_keras_is_refused(version, backend, sentence):
    """The modules are stand-ins with a version and a backend, which is all that the check looks at."""
    code = (
        "import sys, types\n"
        f"keras = types.ModuleType('keras'); keras.__version__ = {version!r}\n"
        f"keras.backend = types.SimpleNamespace(backend=lambda: {backend!r})\n"
        "sys.modules.update(keras=keras, tensorflow=types.ModuleType('tensorflow'))\n"
        "try: import eos_sde.optimizers.keras\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sentence in done.stdout
