"""threshold, spectrum and simulate: truth in their JSON, files by their ending, one sentence for bad input."""

import json
import math
import shlex
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eos_sde import cli
from eos_sde.cli import model_options
from eos_sde.cli.result_files import read_result
from eos_sde.dataset_figures import kind_of
from eos_sde.models import catalogue, flip_rate_kramers
from eos_sde.thresholds.automatic_grids import automatic_grid, common_grid
from eos_sde.thresholds.model_spectra import model_spectrum
from eos_sde.thresholds.spectral_crossing import MARGINAL_RATIO
from solvers import Grid, InvalidInput
from solvers.errors import AccuracyWarning
from solvers.provenance import git_commit

FLIP = "flip-normal-form --param mu=0.1 --param C=1 --param s=0.1"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _run(line, capsys):
    """Status, standard output, standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status = cli.main(shlex.split(line))
    return (status, *capsys.readouterr())


def test_threshold_tells_value_error_method_and_formula(capsys, tmp_path):
    line = "threshold matched-linear --param curvature=4 --param noise=0.1 --over eta=0.3:0.9 --criterion almost-sure"
    status, out, err = _run(line, capsys)
    assert (status, err) == (0, "")
    for part in ("eta = 0.5", "root of the top Lyapunov exponent", "closed form  0.5", "2/S", "Arnold 1998"):
        assert part in out
    status, out, _ = _run(f"{line} --json --out a/t.nc", capsys)
    told = json.loads(out)
    assert told["rows"][0]["threshold"] == pytest.approx(0.5, abs=1e-6)
    assert told["rows"][0]["closed_form"] == 0.5
    assert told["parameters"] == {"noise": 0.0, "curvature": 4.0}
    assert told["command"].startswith("eos-sde threshold matched-linear --param curvature=4")
    with xr.open_dataset(tmp_path / "a" / "t.nc", engine="h5netcdf") as kept:
        assert float(kept["threshold"]) == told["rows"][0]["threshold"]
        assert kept.attrs["criterion"] == "almost_sure"
        assert kept.attrs.get("git_commit") == git_commit()  # None where this is no checkout


def test_a_curve_of_thresholds_as_zarr_and_figure(capsys, tmp_path):
    line = "threshold flip-normal-form --param C=1 --param s=0 --over mu=-0.1:0.4 --along m=0.2:1:3"
    status, out, _ = _run(f"{line} --out t.zarr --figure t.png", capsys)
    assert status == 0
    assert "m = 1: " in out  # where there is no crossing
    kept = read_result(tmp_path / "t.zarr")
    np.testing.assert_allclose(kept["threshold"], [0.02, 0.18, np.nan], atol=2e-6)
    assert kept["m"].attrs["long_name"] == catalogue()["flip-normal-form"].parameters["m"]
    assert (tmp_path / "t.png").stat().st_size > 10_000


def test_spectrum_of_an_ornstein_uhlenbeck_process(capsys, tmp_path):
    """Eigenvalues -k a with a = -log|1 - eta h|/eta; the excess diffusion of the chosen grid is 1e-3 for each order."""
    status, out, err = _run(
        "spectrum matched-linear --param eta=0.1 --param noise=0.2 --param curvature=3 --json --out s.nc "
        "--figure s.svg",
        capsys,
    )
    assert (status, err) == (0, "")
    told = json.loads(out)
    rate = -math.log(0.7) / 0.1
    assert told["gap"] == pytest.approx(rate, rel=2e-3)
    for k, row in enumerate(told["rows"]):
        assert row["eigenvalue_real"] == pytest.approx(-k * rate, rel=2e-3 * (k + 1), abs=1e-12)
        assert row["residual"] < 1e-10
    assert told["files"] == {"dataset": "s.nc", "figure": "s.svg"}
    kept = read_result(tmp_path / "s.nc")
    variance = float((kept["density"] * kept["x"] ** 2).sum() / kept["density"].sum())
    exact = 0.1 * 0.2**2 / (3 * (2 - 0.3))  # of SGD, which this process shares
    assert variance == pytest.approx(exact, rel=5e-3)
    assert kept.attrs["operator"] == "Fokker-Planck operator"
    status, out, _ = _run(f"spectrum {FLIP} --grid A=-0.6:0.6:60 --boundary A=absorbing --modes 3", capsys)
    assert status == 0
    assert "60 cells, A from -0.6 to 0.6" in out


def test_decay_rates_along_a_parameter(capsys, tmp_path):
    """The gap of the flip normal form closes beyond mu = 0: flips at twice Kramers' rate, good to the inverse barrier.

    At mu = 0.2, s = 0.05 the barrier mu^2/(2 C s^2) is 8. At mu = -0.2 first-order
    perturbation gives |mu| + 3 C s^2/(2 |mu|) = 0.21875, whose relative correction is 9 %: its square is the tolerance,
    doubled.
    """
    line = "spectrum flip-normal-form --param C=1 --param s=0.05 --along mu=-0.2:0.2:3 --modes 3"
    status, out, err = _run(f"{line} --json --out s.zarr --figure s.png", capsys)
    assert (status, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert [row["mu"] for row in rows] == pytest.approx([-0.2, 0, 0.2])
    assert rows[0]["gap"] == pytest.approx(0.21875, rel=2 * 0.09375**2)
    assert rows[1]["decay_rates"][2] / rows[1]["gap"] == pytest.approx(MARGINAL_RATIO, rel=5e-3)
    assert rows[2]["gap"] == pytest.approx(2 * flip_rate_kramers(0.2, 1.0, 0.05), rel=1 / 8)
    kept = read_result(tmp_path / "s.zarr")
    assert kind_of(kept) == "spectra"
    assert float(kept["gap"][2]) == rows[2]["gap"]
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert "rate 2" in _run(line, capsys)[1]
    status, _, err = _run("spectrum flip-normal-form --param C=1 --param s=0 --along mu=0:1:2", capsys)
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_simulated_ensemble_of_a_map_has_its_exact_law(capsys, tmp_path):
    """SGD on a quadratic, 40 steps: mean (1 - eta h)^k and the geometric sum of the variance.

    With 4000 paths the sample variance has a relative error of sqrt(2/4000) = 2.2 %; 4.5 of them and of the mean's
    make a false alarm of 1.4e-5. Negative control: the variance of SME-1, eta s^2/(2 h), is 26 such errors off.
    """
    line = "simulate quadratic-map --param eta=0.4 --param noise=0.5 --param curvature=4 --paths 4000 --t1 16"
    status, out, err = _run(f"{line} --seed 3 --json --out e.zarr --figure e.png", capsys)
    assert (status, err) == (0, "")
    told = json.loads(out)
    row = told["rows"][-1]
    square = 0.6**2
    variance = 0.2**2 * (1 - square**40) / (1 - square)
    assert row["time"] == pytest.approx(16)
    assert row["mean"] == pytest.approx((-0.6) ** 40, abs=4.5 * math.sqrt(variance / 4000))
    assert row["deviation"] ** 2 == pytest.approx(variance, rel=4.5 * math.sqrt(2 / 4000))
    assert abs(0.4 * 0.5**2 / 8 / variance - 1) > 4.5 * math.sqrt(2 / 4000)
    assert row["quantile_0.95"] == pytest.approx(1.645 * math.sqrt(variance), rel=0.1)
    assert told["diverged"] == 0
    kept = read_result(tmp_path / "e.zarr")
    assert kept.sizes["path"] == 4000
    assert kept.attrs["seed"] == 3
    other = json.loads(_run(f"{line} --seed 4 --json", capsys)[1])
    assert other["rows"][-1]["mean"] != row["mean"]
    again = json.loads(_run(f"{line} --seed 3 --threads 1 --json", capsys)[1])
    assert again["rows"] == told["rows"]


def test_simulate_speaks_the_time_of_the_model(monkeypatch, capsys):
    """100 SGD steps in tenths for an SDE; a map's own step, and one path where nothing is random."""
    asked = []

    def stub(sde, y0, **request):
        asked.append((y0, request))
        raise InvalidInput("so far")

    monkeypatch.setattr("solvers.simulate", stub)
    for line in (
        "sme2 --param eta=0.2 --param noise=0.1 --param curvature=3 --start x=-2 --times 50 --seed 9",
        "catapult-map --param eta=0.9 --param width=100 --t1 45",
        "caeo-map --param eta_base=0.1 --param alpha=1 --param beta=2 --param noise=0.3",
    ):
        assert _run(f"simulate {line}", capsys) == (2, "", "eos-sde: so far\n")
    (start, slow), (_, quiet), (_, noisy) = asked
    assert start == [-2.0]
    assert (slow["t1"], slow["dt"], slow["save_every"], slow["seed"]) == pytest.approx((20, 0.02, 20, 9))
    assert (slow["paths"], slow["allow_unstable_step"]) == (10_000, False)
    assert (quiet["t1"], quiet["dt"], quiet["paths"], quiet["allow_unstable_step"]) == (45, 0.9, 1, True)
    assert (noisy["t1"], noisy["dt"], noisy["paths"]) == (100, 1.0, 10_000)


REFUSED = [
    ("threshold nope --over a=0:1", "model 'nope' is not known"),
    ("threshold flip-normal-form", "--over"),
    ("threshold flip-normal-form --over mu", "write NAME=LO:HI"),
    ("threshold flip-normal-form --over mu=1:0", "1 is not below 0"),
    ("threshold flip-normal-form --over mu=a:b", "'a' is not a finite number"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1", "needs the parameter 's'"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --param k=1", "no parameter 'k'"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param C=2 --param s=0", "C is given twice"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --criterion edge", "criterion='edge'"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --p 3", "has no setting 'p'"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --figure t.png", "give --along"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --along m=0:1", "write NAME=LO:HI:COUNT"),
    ("threshold flip-normal-form --over mu=0:1 --param C=1 --param s=0 --out t.txt", "must end in .nc or .zarr"),
    ("threshold gradient-flow --over eta=0:1 --param noise=0 --param curvature=3", "blind to the edge"),
    (f"threshold {FLIP} --over mu=0:1", "both given and varied"),
    (f"spectrum {FLIP} --seed -1", "seed=-1 must be at least 0"),
    (f"spectrum {FLIP} --modes 1", "modes=1"),
    (f"spectrum {FLIP} --along mu=0:1:3", "both given and varied"),
    (f"spectrum {FLIP} --along k=0:1:3", "no parameter 'k'"),
    (f"spectrum {FLIP} --along m=0:1", "write NAME=LO:HI:COUNT"),
    (f"spectrum {FLIP} --along m=0:1:2 --modes -1", "modes=-1"),
    (f"spectrum {FLIP} --method best", "method='best'"),
    (f"spectrum {FLIP} --grid A=0:1:0", "no whole number of at least 2"),
    (f"spectrum {FLIP} --grid x=0:1:20", "the components are A"),
    (f"spectrum {FLIP} --boundary A=open", "each reflecting, absorbing or periodic"),
    (f"spectrum {FLIP} --boundary A=absorbing", "needs a grid"),
    (f"spectrum {FLIP} --figure s.txt", "must end in .png or .svg or .pdf"),
    ("spectrum flip-normal-form --param mu=0.1 --param C=1 --param s=0", "has no noise here"),
    ("spectrum self-stabilization --param alpha=1 --param beta=1 --param eta=1 --param noise=1 --grid x=0:1:9",
     "the axis y is missing"),
    (f"simulate {FLIP} --start x=1", "the components are A"),
    (f"simulate {FLIP} --scheme best", "scheme='best' is unknown"),
    (f"simulate {FLIP} --dt 7", "does not divide"),
    (f"simulate {FLIP} --dt -1", "give an end and a step above 0"),
    (f"simulate {FLIP} --t1 1e300", "1e+301 steps"),
    (f"simulate {FLIP} --paths 0", "paths=0"),
    (f"simulate {FLIP} --times 0", "times=0"),
    (f"simulate {FLIP} --threads 0", "threads=0"),
    ("simulate catapult-map --param eta=1 --param width=9 --dt 0.1", "has its own step"),
    ("simulate catapult-map --param eta=1 --param width=9 --scheme heun", "is one of euler-maruyama"),
    ("models nope", "model 'nope' is not known"),
    ("tasks nope", "task='nope' is not known"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "part"), REFUSED)
def test_bad_input_is_one_line_and_status_two(line, part, capsys, tmp_path):
    status, out, err = _run(line, capsys)
    assert status == 2
    assert out == ""
    assert err.startswith("eos-sde: ")
    assert err.count("\n") == 1
    assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a-file.zarr", "folder.nc", "foreign.zarr"])
def test_what_is_there_is_not_overwritten(name, capsys, tmp_path):
    (tmp_path / "a-file.zarr").write_text("mine")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "foreign.zarr").mkdir()
    (tmp_path / "foreign.zarr" / "zarr.json").write_text('{"attributes": {"creator": "another program"}}')
    status, _, err = _run(f"spectrum {FLIP} --out {name}", capsys)
    assert status == 2
    assert "choose another name" in err
    assert (tmp_path / "a-file.zarr").read_text() == "mine"


def test_models_and_tasks_tell_what_they_are(capsys):
    described = json.loads(_run("models --json", capsys)[1])
    for name, model in catalogue().items():
        told = described[name]
        assert set(told["parameters"]) == set(model.parameters)
        assert all(each["meaning"] for each in told["parameters"].values())
        assert {key for key, each in told["parameters"].items() if each["required"]} == set(
            model.parameters
        ) - set(model.defaults)
        assert set(told["components"]) == set(model.components) == set(model.start)
        assert shlex.split(told["example"])[2] == name
    out = _run("models caeo-map", capsys)[1]
    for part in (
        "delta     distance from the edge, < 2 (default: 0.1)",
        "S  sharpness (starts at 1)",
        "example:",
    ):
        assert part in out
    task = json.loads(_run("tasks digits-mlp --json", capsys)[1])["digits-mlp"]
    assert task["settings"]["eta"] == 0.2
    assert "--task digits-mlp" in task["example"]
    assert "examples       1000" in _run("tasks digits-mlp", capsys)[1]


def test_completions(capsys, monkeypatch):
    assert [name for name, _ in model_options.complete_model("line")] == ["line-map"]
    assert [name for name, _ in model_options.complete_criterion("almost-")] == ["almost_sure"]
    assert "digits-mlp" in model_options.complete_task("dig")
    assert model_options.complete_scheme("mil") == ["milstein"]
    monkeypatch.setenv("_EOS_SDE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "eos-sde spectrum cae")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setattr("sys.argv", ["eos-sde"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert capsys.readouterr().out.strip() == "caeo-map"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train --rule caeo", "caeo caeo-ss"),
        ("train --task digits-m", "digits-mlp"),
        ("compare --rule invers", "inverse-sharpness"),
        ("compare --reference ada", "adamw"),
        ("onsets --network digits-t", "digits-tanh"),
        ("onsets --loss cro", "cross-entropy"),
        ("campaign --rule nest", "nesterov"),
        ("implicit-bias --rule rms", "rmsprop"),
        ("replay --rule ca", "caeo"),
        ("plan --rule ad", "adamw"),
        ("plan --hardware h", "h100 h200"),
        ("plan --json vit", "vit-h-14"),
    ],
)
def test_completions_of_options(words, found, capsys, monkeypatch):
    monkeypatch.setenv("_EOS_SDE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"eos-sde {words}")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr("sys.argv", ["eos-sde"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert capsys.readouterr().out.split() == found.split()


@pytest.mark.slow
def test_a_plane_chosen_for_the_user_tells_how_well_the_gap_is_known(capsys):
    """With weak noise 160 cells an axis are far too few: half as many give a gap that is off by a quarter or more."""
    line = "spectrum self-stabilization --param alpha=1 --param beta=2 --param eta=0.1 --param noise=0.4 --modes 2"
    status, out, err = _run(f"{line} --json", capsys)
    assert status == 0
    told = json.loads(out)
    assert told["cells"] == [160, 160]
    assert told["gap_difference"] > 0.25
    assert f"it is not known better than to {100 * told['gap_difference']:.0f} %" in err
    model, given = catalogue()["self-stabilization"], {"alpha": 1.0, "beta": 2.0, "eta": 0.1, "noise": 0.4}
    edges = automatic_grid(model.build(**given), start=model.start).edges
    half = Grid(**{name: each[::2] for name, each in edges.items()})
    with pytest.warns(AccuracyWarning, match="too coarse"):
        coarse = model_spectrum(model, given, grid=half, modes=2)
    assert "gap_difference" not in coarse.attrs  # the user chose
    np.testing.assert_allclose(told["gap_difference"], abs(float(coarse["gap"]) / told["gap"] - 1), rtol=1e-9)


def test_grids_of_several_values_become_one():
    grid = common_grid([Grid.uniform(x=(-1, 1, 100)), Grid.uniform(x=(-3, 2, 100))])
    assert (grid.edges["x"][0], grid.edges["x"][-1]) == (-3, 2)
    assert grid.shape == (250,)  # the finest cells, 0.02, over the whole box
    with pytest.raises(InvalidInput, match="no noise here"):
        automatic_grid(catalogue()["catapult-map"].build_map(eta=0.5, width=9.0), start={"f": 0.1, "l": 1.0})
    with pytest.raises(InvalidInput, match="diverge, or still spread"):
        automatic_grid(catalogue()["quadratic-map"].build_map(eta=0.6, curvature=4.0, noise=0.1))
    with pytest.raises(InvalidInput, match="no grid can be chosen"):
        automatic_grid(catalogue()["flip-normal-form"].build(mu=0.1, C=-1.0, s=0.1))


@pytest.mark.slow
def test_spectrum_of_a_map_on_its_own_grid(capsys):
    """Eigenvalues (1 - eta h)^k of the exact kernel; cells of a quarter of the noise err by about (1/4)^2/12."""
    line = "spectrum quadratic-map --param eta=0.45 --param noise=0.2 --param curvature=4 --json"
    status, out, err = _run(line, capsys)
    assert (status, err) == (0, "")
    told = json.loads(out)
    for k, row in enumerate(told["rows"]):
        assert row["eigenvalue_real"] == pytest.approx((-0.8) ** k, rel=5e-3 * (k + 1))
    low, high = told["box"]["x"]
    deviation = math.sqrt(0.45 * 0.2**2 / (4 * (2 - 1.8)))
    assert low < -5.5 * deviation
    assert high > 5.5 * deviation


@pytest.mark.slow
@pytest.mark.parametrize("name", list(catalogue()))
def test_the_example_of_every_model_runs(name, capsys):
    status, out, err = _run(catalogue()[name].example + " --json", capsys)
    assert status == 0, err
    assert json.loads(out)["model"] == name


_WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(
    [
        "mu=0.1",
        "C=1",
        "s=0.1",
        "A=-1:1:20",
        "mu=0:1",
        "m=0:1:3",
        "A=absorbing",
        "=",
        ":",
        "1e400",
        "-0",
        "nan",
    ]
)
_OPTION = st.sampled_from(
    ["--param", "--over", "--along", "--criterion", "--p", "--level", "--ratio", "--horizon", "--grid", "--boundary",
     "--method", "--modes", "--start", "--t1", "--dt", "--scheme", "--times", "--threads", "--seed", "--out", "--json",
     "--figure", "--tolerance", "--duration"]
)  # fmt: skip
_ARGUMENTS = st.tuples(
    st.sampled_from(["threshold", "spectrum", "simulate", "plot", "report", "models", "tasks"]),
    st.sampled_from([[], ["flip-normal-form"], ["catapult-map"], ["nothing.nc"]]),
    st.lists(st.tuples(_OPTION, _WORD), max_size=5),
)


def _fuzzed(arguments, capsys):
    command, model, options = arguments
    line = [command, *model, *(word for pair in options for word in pair)]
    if command == "simulate":
        line += ["--paths", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = cli.main(line)
    err = capsys.readouterr().err
    assert status in {0, 1, 2}, line
    if status:
        assert err.startswith("eos-sde: "), (line, err)
        assert "Traceback" not in err, (line, err)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_ARGUMENTS)
def test_no_arguments_lead_to_a_traceback(capsys, arguments):
    _fuzzed(arguments, capsys)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_ARGUMENTS)
def test_no_arguments_lead_to_a_traceback_at_length(capsys, arguments):
    _fuzzed(arguments, capsys)


_NUMBER = st.floats(allow_nan=False, width=64) | st.floats(-2, 2)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_NUMBER, _NUMBER, _NUMBER, st.sampled_from(["almost_sure", "moment", "gap"]))
def test_no_number_leads_to_a_traceback(capsys, mu, c, s, criterion):
    flip = f"flip-normal-form --param C={c!r} --param s={s!r}"
    for line in (
        f"spectrum {flip} --param mu={mu!r} --modes 2",
        f"threshold {flip} --over mu={mu!r}:{mu + 0.3!r} --criterion {criterion}",
        f"simulate {flip} --param mu={mu!r} --t1 1 --paths 2",
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = cli.main(shlex.split(line))
        err = capsys.readouterr().err
        assert status in {0, 1, 2}, line
        assert not status or err.startswith("eos-sde: "), (line, err)
