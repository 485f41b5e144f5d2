"""Fuzzes what reads files and words of users: specifications, arguments of all commands, the opener of stores.

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
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
FILES = [
    "made.nc", "mu.toml", "a.zarr", "a.nc", "p.png", "r.html", "b/c.zarr", "text.nc", ".", "nothing", "", "a\0b",
    "n" * 300,
]  # fmt: skip
ALIKE = {  # values of options and arguments by the kind of the parameter; the last ones are of another kind
    "integer": ["0", "1", "3", "-1", "64", "9" * 25, "2.5", "x", ""],
    "float": ["0.5", "1", "0", "-2", "nan", "inf", "x", "1,5", ""],
    "path": FILES,
    "file": FILES,
    "text": [
        "flip-normal-form", "line-map", "digits-mlp", "sgd", "caeo", "gap", "mean_square", "mu=0.1", "C=1", "s=0.1",
        "mu=-0.1:0.2", "mu=-0.1:0.2:3", "A=-1:1:40", "A=1:-1:40", "A=-1:1", "A=absorbing", "=", "mu=", "x=y=z", "all",
        "tcp://127.0.0.1:1", "data=2", "loss=", "none", "", "[", "%s", "{0}",
    ],
}  # fmt: skip
SMALL = {"--t1": ["0.5", "2", "-1", "x"], "--dt": ["0.1", "0.5", "0", "x"], "--paths": ["1", "20", "0", "x"]}
HEAVY = ("bridge.replay", "bridge.onset_table", "bridge.run_campaign", "bridge.implicit_bias_table", "trials.train",
         "trials.compare", "large_models.plan_training")  # fmt: skip
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
    """A command with options of its own, and values of the right and the wrong kind: one message, and no traceback."""
    import atheris

    from eos_sde import cli

    words = _words(atheris.FuzzedDataProvider(data))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    told = err.getvalue()
    assert status in {0, 1, 2}, (words, status)
    assert status != 2 or told.startswith("eos-sde: "), (words, told)
    assert status != 1 or told or words[0] == "check-images", (words, told)
    assert "Traceback" not in told, words
    for left in Path().glob("[!mt]*.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _words(choose: Any) -> list[str]:
    """The words of a command line."""
    command = choose.PickValueInList(sorted(COMMANDS))
    options, given = [], []
    for one in COMMANDS[command].params:
        (options if one.param_type_name == "option" else given).append(one)
    words = [command]
    for one in given:
        if choose.ConsumeIntInRange(0, 9):
            words.append(_value(choose, one, ""))
    for _ in range(choose.ConsumeIntInRange(0, 6)):
        one = choose.PickValueInList(options)
        name = choose.PickValueInList([*one.opts, *one.secondary_opts])
        words.append(name)
        if not getattr(one, "is_flag", False):
            words.append(_value(choose, one, name))
    if not choose.ConsumeIntInRange(0, 15):
        words.insert(choose.ConsumeIntInRange(0, len(words)), choose.ConsumeUnicodeNoSurrogates(8))
    if "--workers" in words or "--scheduler" in words:
        words.append("--dry-run")  # no processes and no network for each of thousands of tries
    return words


def _value(choose: Any, one: Any, name: str) -> str:
    if name in SMALL:
        return choose.PickValueInList(SMALL[name])
    own = getattr(getattr(one, "type", None), "name", "text")
    kinds = [own] if own in ALIKE and choose.ConsumeIntInRange(0, 7) else sorted(ALIKE)
    return choose.PickValueInList(ALIKE[choose.PickValueInList(kinds)])


def _heavy_work_refused() -> None:
    """What takes minutes says at once that it failed: its words were understood."""
    from solvers.errors import ConvergenceFailure

    def refuse(*_: Any, **__: Any) -> None:
        raise ConvergenceFailure("no work here")

    for name in HEAVY:
        module, function = name.split(".")
        setattr(importlib.import_module(f"eos_sde.{module}"), function, refuse)


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


COMMANDS: dict[str, Any] = {}
TARGETS = {"spec": spec, "arguments": arguments, "store": store}


def _pristine() -> None:
    import eos_sde

    def wave(x, seed):
        return {"height": x**0.5 + seed, "phase": complex(x, seed)}

    eos_sde.sweep(wave, {"x": [0.5, 1.0, 2.0], "seed": range(3)}, store="pristine.zarr")


def _made() -> None:
    """A dataset, a text that is none, the commands, and no heavy work."""
    import typer
    import xarray as xr

    from eos_sde import cli

    xr.Dataset({"height": ("x", [1.0, 2.0])}, coords={"x": [0.0, 1.0]}).to_netcdf(
        "made.nc", engine="h5netcdf"
    )
    Path("text.nc").write_text("no dataset")
    COMMANDS.update(typer.main.get_command(cli.app).commands)
    _heavy_work_refused()


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
        for name in ("eos_sde.cli", "eos_sde.store", "eos_sde.sweeps.spec"):
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
        if target is arguments:
            _made()
        atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=600", *words[1:], "corpus"], target)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
