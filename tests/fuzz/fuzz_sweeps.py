"""Fuzzes what reads files and words of users: specifications, arguments of the command, the opener of stores.

``python tests/fuzz/fuzz_sweeps.py spec|arguments|store [options of libFuzzer]``, for example ``-max_total_time=600``,
where `atheris` is installed (``pip install atheris``). Allowed are results and the refusals that the documentation
names; anything else that is raised is a finding. Coverage is followed in this package's own parsers and in tomllib.
"""

import contextlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
WORDS = [
    "mu.toml", "nothing.toml", ".", "--out", "a.zarr", "a.nc", "b/c.zarr", "--workers", "-1", "4097", "--scheduler",
    "x", "://", "tcp://127.0.0.1:1", "--no-resume", "--dry-run", "--json", "--fail-fast", "--seed", "3", "1e9", "--",
    "--bogus", "--help",
]  # fmt: skip
SPEC = """observable = "lyapunov"
[settings]
model = "flip-normal-form"
C = 1.0
s = 0.0
at = 0.0
[axes]
mu = { from = -0.1, to = 0.1, count = 3 }
seed = { first = 1, count = 2 }
[[zip]]
a = [1, 2]
b = ["x", "y"]
"""


def spec(data: bytes) -> None:
    """Any bytes as a specification: a plan, or one refusal."""
    from eos_sde.sweeps.spec import read_spec
    from solvers.errors import InvalidInput

    path = Path("fuzzed.toml")
    path.write_bytes(data)
    for seed in (None, 7):
        with contextlib.suppress(InvalidInput):
            assert read_spec(path, seed=seed).points >= 1


def arguments(data: bytes) -> None:
    """Any words after ``sweep``: an exit status, and one message that is no traceback."""
    import atheris

    from eos_sde import cli

    choose = atheris.FuzzedDataProvider(data)
    words = [
        WORDS[choose.ConsumeIntInRange(0, len(WORDS) - 1)]
        if choose.ConsumeBool()
        else choose.ConsumeUnicodeNoSurrogates(8)
        for _ in range(choose.ConsumeIntInRange(0, 7))
    ]
    if "--workers" in words or "--scheduler" in words:
        words.append("--dry-run")  # no processes and no network for each of thousands of tries
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["sweep", *words])
    assert status in {0, 1, 2}, (words, status)
    assert (status == 0) == (err.getvalue() == ""), (words, err.getvalue())
    assert "Traceback" not in err.getvalue(), words
    for left in Path().glob("*.zarr"):
        shutil.rmtree(left, ignore_errors=True)


def store(data: bytes) -> None:
    """A store with one file replaced or spoilt: a table, or one refusal that names the store."""
    import atheris

    import eos_sde
    from eos_sde.store import StoreFailure
    from solvers.errors import InvalidInput

    choose = atheris.FuzzedDataProvider(data)
    shutil.rmtree("fuzzed.zarr", ignore_errors=True)
    shutil.copytree("pristine.zarr", "fuzzed.zarr")
    files = sorted(path for path in Path("fuzzed.zarr").rglob("*") if path.is_file())
    victim = files[choose.ConsumeIntInRange(0, len(files) - 1)]
    content = victim.read_bytes()
    start = choose.ConsumeIntInRange(0, len(content))
    cut = choose.ConsumeIntInRange(0, 8)
    victim.write_bytes(content[:start] + choose.ConsumeBytes(64) + content[start + cut :])
    try:
        eos_sde.open_sweep("fuzzed.zarr", check=True)
    except (InvalidInput, StoreFailure) as refusal:
        if "fuzzed.zarr" not in str(refusal):
            raise


TARGETS = {"spec": spec, "arguments": arguments, "store": store}


def _pristine() -> None:
    import eos_sde

    def wave(x, seed):
        return {"height": x**0.5 + seed, "phase": complex(x, seed)}

    eos_sde.sweep(wave, {"x": [0.5, 1.0, 2.0], "seed": range(3)}, store="pristine.zarr")


def main(words: list[str]) -> int:
    if not words or words[0] not in TARGETS:
        sys.stderr.write(f"fuzz_sweeps: give a target: one of {', '.join(TARGETS)}\n")
        return 2
    try:
        import atheris
    except ImportError:
        sys.stderr.write("fuzz_sweeps: atheris is not installed; pip install atheris\n")
        return 2
    with atheris.instrument_imports(include=["eos_sde.sweeps", "eos_sde.store", "eos_sde.cli", "tomllib"]):
        for name in ("eos_sde.cli.sweep_commands", "eos_sde.store", "eos_sde.sweeps.spec"):
            importlib.import_module(name)
    target = TARGETS[words[0]]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        Path("mu.toml").write_text(SPEC)
        corpus = Path("corpus")
        corpus.mkdir()
        if target is spec:
            for number, text in enumerate(
                [SPEC, *(path.read_text() for path in ROOT.glob("examples/*.toml"))]
            ):
                (corpus / str(number)).write_text(text)
        if target is store:
            _pristine()
        atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=600", *words[1:], "corpus"], target)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
