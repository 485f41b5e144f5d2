"""plot and report: every kind of dataset is recognised, drawn right, and shown on a page that needs nothing else."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh

import eos_sde
from eos_sde import cli, sweep_plots
from eos_sde.cli.result_files import read_result, write_result
from eos_sde.dataset_figures import figures_of, kind_of
from eos_sde.dataset_rows import columns_of, rows_of
from eos_sde.models import catalogue
from eos_sde.report_page import html_report
from eos_sde.thresholds.model_spectra import model_spectrum
from solvers import FokkerPlanck, Grid, InvalidInput, eigenmodes
from solvers.provenance import git_commit
from tests import browser


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def spectrum():
    grid = Grid.uniform(A=(-0.8, 0.8, 80))
    return model_spectrum(
        catalogue()["flip-normal-form"], {"mu": 0.1, "C": 1.0, "s": 0.1}, grid=grid, modes=4
    )


@pytest.fixture
def sweep():
    """Growth of the mean square of SGD over learning rate and spread of the curvature, h = 4; six points missing."""
    eta, spread = np.geomspace(0.05, 1.0, 12), np.linspace(0.0, 4.0, 9)
    growth = np.log((1 - 4 * eta[:, None]) ** 2 + eta[:, None] ** 2 * spread**2 + 1e-3)
    growth[9:, 7:] = np.nan
    about = {"units": "1/step", "long_name": "growth of the mean square"}
    edge = {"units": "time", "long_name": "mean-square threshold", "over": "eta"}
    return xr.Dataset(
        {
            "growth": (("eta", "spread"), growth, about),
            "growth_stderr": (("eta", "spread"), np.full(growth.shape, 0.05), {"units": "1/step"}),
            "status": (("eta", "spread"), np.where(np.isnan(growth), "failed", "done")),
            "edge": (("spread",), 8 / (spread**2 + 16), edge),
        },
        coords={
            "eta": ("eta", eta, {"units": "time", "long_name": "learning rate"}),
            "spread": ("spread", spread, {"units": "1", "long_name": "spread of the curvature"}),
        },
        attrs={"creator": "eos-sde test", "seed": 3},
    )


@pytest.fixture
def curve():
    """A threshold curve along the spread, and the formula that it follows."""
    spread = np.linspace(0.0, 4.0, 5)
    exact = 8 / (spread**2 + 16)
    return xr.Dataset(
        {name: ("spread", values) for name, values in (
            ("threshold", exact), ("stderr", 0.01 * exact), ("closed_form", exact), ("evaluations", np.arange(5)),
            ("reason", np.array([""] * 5)), ("method", np.array(["root"] * 5)),
            ("closed_form_method", np.array(["formula"] * 5)),
        )},
        coords={"spread": spread},
        attrs={"kind": "threshold", "along": "spread", "over": "eta", "criterion": "moment",
               "meaning": "Lambda(2) is 0",
               "model": "quadratic-map", "parameters": '{"curvature": 4.0}', "creator": "eos-sde test"},
    )  # fmt: skip


@pytest.fixture
def ensemble():
    time, path = np.linspace(0, 1, 6), np.arange(50)
    final = np.random.default_rng(0).standard_normal((50, 2))
    table = np.ones((6, 2)) * time[:, None]
    return xr.Dataset(
        {
            "mean": (("time", "component"), table), "mean_stderr": (("time", "component"), 0.1 * table),
            "variance": (("time", "component"), table),
            "quantile": (("time", "q", "component"), table[:, None] + np.array([-1.0, 0, 1])[None, :, None]),
            "final": (("path", "component"), final), "diverged": ("path", np.zeros(50, bool)),
        },
        coords={"time": time, "path": path, "component": ["x", "y"], "q": [0.05, 0.5, 0.95]},
        attrs={"model": "self-stabilization", "parameters": '{"eta": 0.1}', "start": '{"x": 0.5}'},
    )  # fmt: skip


def _agreement():
    predicted = np.array([[0.1, 0.5], [1.0, 2.0]])
    return xr.Dataset(
        {"predicted": (("network", "batch"), predicted), "measured": (("network", "batch"), 1.02 * predicted),
         "measured_stderr": (("network", "batch"), 0.03 * predicted)},
        coords={"network": ["a", "b"], "batch": [1, 4]},
    )  # fmt: skip


def test_kinds(spectrum, sweep, curve, ensemble):
    assert [kind_of(each) for each in (spectrum, sweep, curve, ensemble)] == [
        "spectrum", "sweep", "threshold", "simulation"
    ]  # fmt: skip
    assert (
        kind_of(sweep.assign(threshold=sweep["growth"], stderr=0.1, closed_form=sweep["growth"])) == "sweep"
    )
    assert kind_of(curve.drop_attrs()) == "sweep"
    axes = {"delta": [0.1, 0.2], "batch_size": [1, 4], "eta_base": [0.1]}
    regime = (tuple(axes), np.zeros((2, 2, 1)))
    assert (
        kind_of(xr.Dataset({"regime": regime, "delta_escape": ("delta", [1.0, 2.0])}, axes))
        == "stability map"
    )


def test_a_phase_diagram_holds_the_values_and_the_curves(sweep, curve):
    (figure,) = figures_of([sweep, curve], over=["spread", "eta"]).values()
    axis = figure.axes[0]
    (mesh,) = [each for each in axis.collections if isinstance(each, QuadMesh)]
    drawn = np.ma.filled(mesh.get_array(), np.nan).reshape(12, 9)
    np.testing.assert_array_equal(drawn, sweep["growth"].values)
    assert axis.get_yscale() == "log"  # a geometric axis
    assert axis.get_xscale() == "linear"
    labels = axis.get_legend_handles_labels()[1]
    assert any("mean-square threshold" in label for label in labels)  # of the sweep itself
    assert any("threshold: moment" in label for label in labels)  # of the other file
    assert "grey: 6 of 108 points without a result" in axis.get_title(loc="right")
    assert "learning rate [time]" in axis.get_ylabel()
    line = next(each for each in axis.lines if each.get_label().startswith("edge"))
    np.testing.assert_array_equal(line.get_xdata(), sweep["spread"])
    np.testing.assert_array_equal(line.get_ydata(), sweep["edge"])


def test_lines_with_error_bars(sweep):
    (figure,) = figures_of([sweep.isel(spread=[0, 4])], over=["eta"]).values()
    axis = figure.axes[0]
    assert [line.get_label() for line in axis.containers] == ["spread = 0", "spread = 2"]
    np.testing.assert_array_equal(axis.containers[1].lines[0].get_ydata(), sweep["growth"].sel(spread=2.0))
    (figure,) = figures_of([sweep], over=["eta"], at={"spread": "2.1"}).values()
    assert figure.axes[0].get_title(loc="left").startswith("spread = 2")
    texts = xr.Dataset({"loss": ("rule", [1.0, 2.0])}, {"rule": ["gd", "sgd"]})
    (figure,) = figures_of([texts]).values()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["gd", "sgd"]


def test_eigenvalues_against_a_parameter():
    """A line for each mode; of complex ones the real part."""
    mu = np.linspace(-0.2, 0.2, 5)
    values = -np.array([0.0, 1.0, 2.0])[None, :] * (1 + mu[:, None]) + 0.5j
    about = {"units": "1/time", "long_name": "eigenvalue"}
    table = xr.Dataset({"eigenvalue": (("mu", "mode"), values, about)}, {"mu": mu, "mode": [0, 1, 2]})
    (figure,) = figures_of([table], over=["mu"]).values()
    (axis,) = figure.axes
    assert axis.get_ylabel() == "eigenvalue: real part of eigenvalue [1/time]"
    assert [line.get_label() for line in axis.lines] == ["mode = 0", "mode = 1", "mode = 2"]
    np.testing.assert_array_equal(axis.lines[2].get_ydata(), values[:, 2].real)


def test_a_forecast_of_fluctuations_beside_its_measurement():
    x, edges = np.linspace(-1, 1, 9)[None], {"direction": [0], "model": list("abcd")}
    shape = (("direction", "bin"), x)
    density = np.exp(-4 * x**2)
    forecast = xr.Dataset(
        {"position": shape, "density": (("model", "direction", "bin"), np.stack([density] * 4)),
         "eigenvalue": ("direction", [9.0])}, edges, attrs={"eta": 0.1, "batch_size": 4, "description": "made up"},
    )  # fmt: skip
    measured = xr.Dataset(
        {"position": shape, "density": (shape[0], density), "density_stderr": (shape[0], 0.1 * density)},
        {"direction": [0]},
    )
    assert [kind_of(each) for each in (forecast, measured)] == [
        "fluctuation forecast",
        "fluctuation measurement",
    ]
    for pair in ((forecast, measured), (measured, forecast)):
        (figure,) = figures_of(pair).values()
        assert figure.axes[0].get_title(loc="left") == "batch 4, η·eigenvalue = 0.90"
    with pytest.raises(InvalidInput, match="give both files"):
        figures_of([measured])


def test_predicted_against_measured():
    (figure,) = figures_of([_agreement()]).values()
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == ("predicted", "measured", "log")
    assert [each.get_label() for each in axis.containers] == ["network = a", "network = b"]
    np.testing.assert_allclose(axis.containers[1].lines[0].get_ydata(), [1.02, 2.04])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"value": "zip"}, "value='zip' is no variable"),
        ({"value": "status"}, "without numbers to draw"),
        ({"over": ["zip"]}, "over='zip' is no axis of growth; it has eta, spread"),
        ({"over": ["eta", "eta"]}, "two different ones"),
        ({"at": {"zip": "1"}}, "the axes are"),
        ({"at": {"eta": "x"}}, "an axis of numbers"),
        ({"at": {"eta": "0.1", "spread": "1"}}, "a single number here"),
    ],
)
def test_what_cannot_be_drawn(sweep, settings, part):
    with pytest.raises(InvalidInput, match=part):
        figures_of([sweep], **settings)


def test_files_that_do_not_belong_together(sweep, spectrum, curve):
    with pytest.raises(InvalidInput, match="spectrum and threshold are not drawn together"):
        figures_of([spectrum, curve])
    with pytest.raises(InvalidInput, match="only threshold curves are drawn"):
        figures_of([sweep, spectrum])
    with pytest.raises(InvalidInput, match="the axes here are eta and spread"):
        figures_of([sweep, curve.assign_attrs(over="mu")], over=["eta", "spread"])
    with pytest.raises(InvalidInput, match="too many to tell apart"):
        sweep_plots.sweep_figure(xr.Dataset({"z": (("a", "b"), np.ones((20, 30)))}), over=["b"])
    cube = xr.Dataset(
        {"z": (("a", "b", "c"), np.ones((3, 3, 2)))}, {"a": range(3), "b": range(3), "c": [5, 6]}
    )
    with pytest.raises(InvalidInput, match=r"fix it with at c=VALUE, of 5, 6"):
        sweep_plots.sweep_figure(cube, over=["a", "b"])


def test_eigenmodes_in_two_dimensions():
    """A spiral: complex eigenvalues in the plane, and two maps beside them."""
    from solvers import SDE

    spiral = SDE(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1]), lambda t, y, p, xp: (1.0, 1.0), names=("x", "y"),
        convention="ito",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modes = eigenmodes(FokkerPlanck(spiral, Grid.uniform(x=(-3, 3, 12), y=(-3, 3, 12))), k=3)
    (figure,) = figures_of([modes]).values()
    plane, density, mode, *_ = figure.axes
    assert plane.get_xlabel() == "real part [1/time]"
    assert (density.get_xlabel(), density.get_ylabel()) == ("x", "y")
    assert mode.get_title(loc="left") == "slowest decaying mode"


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_files_come_back_as_they_were(ending, tmp_path, sweep, spectrum, curve):
    """With the commit of the checkout, if this is one."""
    commit = git_commit()
    known = {} if commit is None else {"git_commit": commit}
    for name, dataset in (("sweep", sweep), ("spectrum", spectrum), ("curve", curve)):
        path = tmp_path / (name + ending)
        for _ in range(2):  # the second time over the first
            write_result(dataset, path)
        xr.testing.assert_identical(read_result(path), dataset.assign_attrs(known))
        assert not list(tmp_path.glob("*.part*"))


def test_plot_and_report_on_the_command_line(tmp_path, capsys, sweep, curve):
    write_result(sweep, tmp_path / "sweep.zarr")
    write_result(curve, tmp_path / "curve.nc")
    line = ["plot", "sweep.zarr", "curve.nc", "--over", "spread", "--over", "eta", "--out", "p.svg", "--json"]
    assert cli.main(line) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"kinds": ["sweep", "threshold"], "files": {"figure": "p.svg"}}
    assert err == ""
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert cli.main(["plot", "curve.nc"]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert "curve.nc: threshold" in capsys.readouterr().out
    assert cli.main(["report", "sweep.zarr", "curve.nc", "--out", "r.html", "--title", "A <b>"]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "A &lt;b&gt;" in page
    assert capsys.readouterr().out == "page: r.html\n"
    (tmp_path / "text.nc").write_text("not a dataset")
    for bad, part in (
        (["plot", "none.nc"], "none.nc does not exist"),
        (["plot", "."], ". is no result; give a NetCDF file"),
        (["plot", "text.nc"], "holds no dataset"),
        (["plot", "curve.nc", "--out", "p.txt"], "must end in .png or .svg or .pdf"),
        (["plot", "curve.nc", "--at", "eta"], "write NAME=VALUE"),
        (["report", "curve.nc", "--out", "r.txt"], "must end in .html or .htm"),
        (["report", "curve.nc", "--seed", "-1"], "seed=-1"),
    ):
        assert cli.main(bad) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert part in err
        assert err.count("\n") == 1


def test_a_spoilt_sweep_is_one_sentence(tmp_path, capsys):
    """A chunk that is short, one that is gone, and metadata that end early: xarray shows the first two as they come."""
    eos_sde.sweep(lambda x: x**2, {"x": [1.0, 2.0, 3.0]}, store=tmp_path / "s.zarr")
    chunk, metadata = tmp_path / "s.zarr" / "value" / "c" / "0", tmp_path / "s.zarr" / "value" / "zarr.json"
    assert cli.main(["plot", "s.zarr"]) == 0
    for spoil, status, part in (
        (
            lambda: chunk.write_bytes(chunk.read_bytes()[:9]),
            1,
            "chunk 0 of 'value' is missing or damaged; run the",
        ),
        (chunk.unlink, 1, "chunk 0 of 'value' is missing or damaged; run the sweep again"),
        (
            lambda: metadata.write_text(metadata.read_text()[:40]),
            2,
            "s.zarr holds no dataset that can be read",
        ),
    ):
        spoil()
        capsys.readouterr()
        for command in (["plot", "s.zarr"], ["report", "s.zarr"]):
            assert cli.main(command) == status
            out, err = capsys.readouterr()
            assert out == ""
            assert part in err
            assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_copies_of_a_sweep_are_drawn(tmp_path):
    """A copy by xarray lacks the chunks of empty texts: nothing is lost there."""
    table = eos_sde.sweep(lambda x: {"a": x**2, "b": -x}, {"x": [1.0, 2.0, 3.0]}, store=tmp_path / "s.zarr")
    table.load().drop_encoding().to_zarr(tmp_path / "copy.zarr", zarr_format=3, consolidated=False)
    table[["a"]].drop_encoding().to_zarr(tmp_path / "part.zarr", zarr_format=3, consolidated=False)
    for name in ("copy.zarr", "part.zarr"):
        assert cli.main(["plot", name]) == 0
        assert read_result(Path(name))["a"].values.tolist() == [1.0, 4.0, 9.0]


def test_columns_align_on_the_decimal_point(sweep, curve):
    rows = rows_of(curve)
    assert list(rows[0]) == ["spread", "threshold", "stderr", "closed_form", "evaluations", "reason"]
    columns = {column.heading: column for column in columns_of(rows, curve)}
    assert columns["threshold"].cells == ["0.50000", "0.47059", "0.40000", "0.32000", "0.25000"]
    assert columns["evaluations"].cells == ["0", "1", "2", "3", "4"]
    assert "reason" not in columns  # empty in every row
    rows = rows_of(sweep)
    assert len(rows) == 108
    assert rows[1]["growth"] == float(sweep["growth"][0, 1])
    column = next(column for column in columns_of(rows, sweep) if column.heading == "growth")
    assert column.units == "1/step"
    assert {len(cell.partition(".")[2]) for cell in column.cells if cell != "-"} == {4}
    assert column.cells.count("-") == 6
    tiny = xr.Dataset({"z": ("a", [1e-12, 0.5])}, {"a": [1, 2]})
    assert columns_of(rows_of(tiny), tiny)[1].cells == ["1.0000e-12", "5.0000e-01"]


def test_the_page_holds_everything_itself(spectrum, sweep, curve):
    single = curve.isel(spread=0, drop=True).assign_attrs(along="")
    datasets = {"s.nc": spectrum, "sweep.zarr": sweep, "one.nc": single}
    page = html_report(datasets, command="eos-sde report")
    assert html_report({"s.nc": spectrum}) == html_report({"s.nc": spectrum})  # the same bits
    assert "<script" not in page
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("data:image/", "data:,", "#section-"))
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "No figure: the dataset holds a single threshold" in page
    assert page.count("<section") == 3
    assert "<dt>seed</dt><dd><code>3</code></dd>" in page
    with pytest.raises(InvalidInput, match="no dataset"):
        html_report({})


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")
def test_the_page_in_a_browser(tmp_path, spectrum, sweep, curve, ensemble):
    """No request but for the page and its own data, no complaint, images that are there, light and dark, never wide."""
    path = tmp_path / "report.html"
    datasets = {"s": spectrum, "sweep": sweep, "curve": curve, "ensemble": ensemble, "a": _agreement()}
    path.write_text(html_report(datasets))
    with browser.opened(tmp_path / "profile") as page:
        page.open(path)
        assert page.requests[0] == path.as_uri()
        assert all(request.startswith("data:") for request in page.requests[1:])
        assert page.value("document.images.length") == 5
        assert page.value("[...document.images].every(image => image.naturalWidth > 300)")
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        assert page.value("[...document.images].every(image => image.alt)")
        colours = []
        for dark in (False, True):
            page.dark(dark)
            colours.append(page.value("getComputedStyle(document.body).backgroundColor"))
            page.picture(tmp_path / f"page-{dark}.png")
        assert colours == ["rgb(251, 251, 249)", "rgb(22, 25, 29)"]
        page.call(
            "Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True
        )
        assert page.value("document.documentElement.scrollWidth <= 400")
        assert page.complaints == []
    with browser.opened(
        tmp_path / "other"
    ) as page:  # negative control: a page that asks and complains is caught
        path.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
        page.open(path)
        assert any(request.startswith("http:") for request in page.requests)
        assert page.complaints
