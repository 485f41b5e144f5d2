"""Figures: the replay on one page, onsets predicted against measured, fluctuations forecast and recorded."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eos_sde.report import number
from solvers.whole_files import write_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's, safe for the colour-blind
GREY = "#777777"


def replay_figure(dataset: xr.Dataset) -> Figure:
    """One page: each experiment of a replay as a panel, theory as lines, the network as points.

    Parameters
    ----------
    dataset : Dataset
        From `bridge.replay`; panels whose experiment was not run are left out.

    Returns
    -------
    Figure
        To be saved or shown.
    """
    panels = [
        (name, draw)
        for name, draw in (
            ("minimum_measured", _minimum),
            ("plateau_sharpness", _plateau),
            ("fluctuations_variance", _fluctuations),
            ("metastability_density", _metastability),
            ("caeo_sharpness", _caeo_sharpness),
            ("caeo_learning_rate", _caeo_rate),
        )
        if name in dataset
    ]
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 4.3 * lines + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (_, draw) in zip(axes, panels, strict=False):
        draw(axis, dataset)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Continuous theory against a real network: {dataset.attrs['description']}", fontsize=11)
    return figure


def _rows(dataset: xr.Dataset, experiment: str) -> xr.Dataset:
    names = [name for name, variable in dataset.data_vars.items() if variable.dims == ("quantity",)]
    return dataset[names].isel(quantity=np.flatnonzero(dataset["experiment"].values == experiment))


def _title(axis: Axes, question: str) -> None:
    axis.set_title(question, fontsize=10, loc="left")


def _minimum(axis: Axes, dataset: xr.Dataset) -> None:
    batch = dataset["onset_batch"].values
    axis.axhline(1, color=GREY, ls=":", lw=1)
    axis.text(batch[0], 1.012, "gradient descent: 2 / sharpness", color=GREY, fontsize=8)
    axis.plot(batch, dataset["minimum_predicted"], "o-", mfc="none", ms=9, color=COLOURS[0],
              label="predicted from per-example Jacobians")  # fmt: skip
    axis.errorbar(batch, dataset["minimum_measured"], dataset["minimum_measured_stderr"], fmt="k.", capsize=3,
                  label="measured by bisection of real SGD")  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(batch, [str(b) for b in batch[:-1]] + [f"{batch[-1]}\n(all)"], minor=False)
    axis.minorticks_off()
    axis.set(xlabel="batch size", ylabel="largest stable learning rate × sharpness / 2", ylim=(0, 1.15))
    axis.legend(fontsize=8, loc="lower right", frameon=False)
    _title(axis, "At which learning rate does a minimum lose its stability?")


def _plateau(axis: Axes, dataset: xr.Dataset) -> None:
    eta = dataset.attrs["plateau_eta"]
    step = dataset["plateau_step"].values
    table = _rows(dataset, "plateau")
    published = np.char.startswith(table["model"].values.astype(str), "published")
    laws = table["predicted"].values[published]
    for i, batch in enumerate(dataset["plateau_batch"].values):
        colour = COLOURS[i % len(COLOURS)]
        runs = eta * dataset["plateau_sharpness"].isel(plateau_batch=i).values
        axis.plot(step, runs.T, color=colour, alpha=0.3, lw=0.9)
        axis.plot(
            step, runs.mean(axis=0), ".", ms=4, color=colour, label=f"SGD, batch {batch} (mean; runs thin)"
        )
        axis.plot(step, eta * dataset["plateau_flow"].isel(plateau_batch=i), color=colour, lw=2.2,
                  label="stochastic central flow")  # fmt: skip
        if np.isfinite(laws[i]):
            axis.axhline(laws[i], color=colour, ls="--", lw=1, label="published small-noise law")
    axis.axhline(2, color=GREY, ls=":", lw=1)
    axis.text(step[-1], 2.015, "deterministic edge", ha="right", color=GREY, fontsize=8)
    axis.set(xlabel="SGD steps since the checkpoint", ylabel="learning rate × sharpness")
    axis.set_ylim(min(0.8, axis.get_ylim()[0]), 2.6)
    axis.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper left")
    _title(axis, "Where does the sharpness settle? (forecast from one checkpoint)")


def _fluctuations(axis: Axes, dataset: xr.Dataset) -> None:
    table = _rows(dataset, "fluctuations")
    models, measured = table["model"].values, float(table["measured"][0])
    place = np.arange(models.size)[::-1]
    error = float(table["measured_stderr"][0]) / measured
    axis.axvspan(1 - 2 * error, 1 + 2 * error, color="k", alpha=0.12, lw=0, label="measured, ± 2 s.e.")
    axis.axvline(1, color="k", lw=1)
    axis.errorbar(table["predicted"] / measured, place, xerr=2 * table["predicted_stderr"] / measured, fmt="o",
                  color=COLOURS[0], capsize=3, label="predicted, ± 2 s.e.")  # fmt: skip
    axis.set_yticks(place, [str(model).replace(" + ", " +\n") for model in models])
    axis.set(xlabel="predicted variance / measured variance", xlim=(0, None), ylim=(-0.6, models.size - 0.1))
    axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.62))
    product = dataset.attrs["fluctuations_eta"] * dataset.attrs["calibration_sharpness"]
    _title(
        axis,
        f"Which model knows the fluctuation of SGD?\n(along the top eigenvector, η·sharpness = {product:.2f})",
    )


def _metastability(axis: Axes, dataset: xr.Dataset) -> None:
    flip = dataset.attrs["metastability_kind"] == "phase flip"
    centre = dataset["amplitude_bin"].values
    axis.bar(centre, dataset["metastability_histogram"], width=centre[1] - centre[0], color=COLOURS[1], alpha=0.45,
             label="network SGD on the line")  # fmt: skip
    what = "stationary density" if flip else "quasi-stationary density"
    axis.plot(dataset["amplitude"], dataset["metastability_density"], color=COLOURS[0], lw=2,
              label=f"Fokker-Planck, {what}")  # fmt: skip
    table = _rows(dataset, "metastability")
    text = [
        f"{'flip' if flip else 'escape'} rate per step",
        f"Fokker-Planck, normal form   {float(table['predicted'][0]):.3g}",
    ]
    names = ("transfer operator, normal form", "simulated normal form", "network SGD on the line")
    for name, value, error in zip(
        names, table["measured"].values, table["measured_stderr"].values, strict=False
    ):
        text.append(f"{name}   {number(value, error)}")
    text.append(f"transfer operator, line's own noise   {float(table['predicted'][3]):.3g}")
    axis.text(0.99, 0.99, "\n".join(text), transform=axis.transAxes, ha="right", va="top", fontsize=7.5)
    axis.set(xlabel="two-step amplitude (−1)ᵏ xₖ along the top eigenvector", ylabel="density")
    axis.set_ylim(0, 1.7 * axis.get_ylim()[1])
    axis.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0.76))
    question = (
        "How long does the oscillation keep its phase"
        if flip
        else "How long does the weight stay in its basin"
    )
    _title(axis, f"{question}\nat η·sharpness = {2 + dataset.attrs['metastability_mu']:.2f}?")


def _paths(axis: Axes, dataset: xr.Dataset, name: str) -> None:
    step = dataset["caeo_step"].values
    for i, delta in enumerate(dataset["caeo_delta"].values):
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(step, dataset[f"{name}_predicted"].isel(caeo_delta=i), color=colour, lw=2,
                  label=f"reduced model, δ = {delta:g}")  # fmt: skip
        axis.plot(step, dataset[f"{name}_flow"].isel(caeo_delta=i), color=colour, lw=1.2, ls="--",
                  label="gradient flow, capped rate")  # fmt: skip
        shown = dataset[name].isel(caeo_delta=i)
        axis.plot(step[1:], shown[1:], ".", color=colour, label=f"network, δ = {delta:g}")
    axis.set(xlabel="CAEO steps since the checkpoint")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.35 * (high - low))
    axis.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper center")


def _caeo_sharpness(axis: Axes, dataset: xr.Dataset) -> None:
    _paths(axis, dataset, "caeo_sharpness")
    axis.set_ylabel("sharpness")
    _title(axis, "CAEO: does the sharpness run away as the reduced model says?")


def _caeo_rate(axis: Axes, dataset: xr.Dataset) -> None:
    _paths(axis, dataset, "caeo_learning_rate")
    axis.set_ylabel("learning rate")
    _title(axis, "CAEO: and does the learning rate follow it down?")


def onset_figure(table: xr.Dataset) -> Figure:
    """Predicted against measured onset: on the diagonal for each criterion, and their ratio by batch size.

    Parameters
    ----------
    table : Dataset
        From `bridge.onset_table`.

    Returns
    -------
    Figure
        A colour per network; half squared error filled, cross entropy open; bars of one standard error on the left,
        95 % intervals on the right.
    """
    criteria = table["criterion"].values
    figure = Figure(figsize=(10.4, 4.3 * len(criteria)), layout="constrained")
    axes = figure.subplots(len(criteria), 2, squeeze=False)
    for (left, right), criterion in zip(axes, criteria, strict=True):
        chosen = table.sel(criterion=criterion)
        _diagonal(left, chosen)
        _ratios(right, chosen)
        _title(left, f"{criterion} onset: at which learning rate is the minimum lost?")
        _title(right, "measured / predicted")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _series(table: xr.Dataset):
    """(label, marker style, cells) of each network and loss."""
    for i, network in enumerate(table["network"].values):
        for j, loss in enumerate(table["loss"].values):
            colour = COLOURS[i % len(COLOURS)]
            style = {
                "fmt": "os"[j % 2],
                "ms": 4,
                "color": colour,
                "mfc": colour if j == 0 else "white",
                "lw": 1,
            }
            yield f"{network}, {loss.replace('-', ' ')}", style, table.sel(network=network, loss=loss)


def _diagonal(axis: Axes, table: xr.Dataset) -> None:
    edge = 2 / table["sharpness"]
    ends = np.array(
        [0.8 * float((table["predicted"] / edge).min()), 1.2 * float((table["measured"] / edge).max())]
    )
    margin = table.attrs["margin"]
    axis.fill_between(ends, ends * (1 - margin), ends * (1 + margin), color=GREY, alpha=0.2, lw=0)
    axis.plot(ends, ends, color=GREY, lw=1)
    for label, style, cells in _series(table):
        scale = 2 / cells["sharpness"]
        x, y, dx, dy = (
            (cells[name] / scale).values.ravel()
            for name in ("predicted", "measured", "predicted_stderr", "measured_stderr")
        )
        axis.errorbar(x, y, dy, dx, label=label, **style)
    axis.set(xlabel="predicted learning rate × sharpness / 2",
             ylabel="measured learning rate × sharpness / 2")  # fmt: skip


def _ratios(axis: Axes, table: xr.Dataset) -> None:
    margin = table.attrs["margin"]
    axis.axhspan(1 - margin, 1 + margin, color=GREY, alpha=0.2, lw=0)
    axis.axhline(1, color=GREY, lw=1)
    series = list(_series(table))
    seeds = table.sizes["seed"]
    for i, (_, style, cells) in enumerate(series):
        for k in range(seeds):
            one = cells.isel(seed=k)
            shift = ((i * seeds + k + 0.5) / (len(series) * seeds) - 0.5) * 0.8
            ends = np.stack([one["ratio"] - one["ratio_low"], one["ratio_high"] - one["ratio"]])
            axis.errorbar(np.arange(one.sizes["batch_size"]) + shift, one["ratio"], ends, **style)
    axis.set_xticks(np.arange(table.sizes["batch_size"]), [str(size) for size in table["batch_size"].values])
    axis.set(xlabel="batch size")


def fluctuation_figure(pairs: Sequence[tuple[xr.Dataset, xr.Dataset]]) -> Figure:
    """Recorded histograms of SGD's fluctuation beside the densities forecast, on a logarithmic scale.

    Parameters
    ----------
    pairs : sequence of (forecast, measured)
        From `bridge.forecast_fluctuations` and `bridge.measure_fluctuations`; a column each, a row per direction.

    Returns
    -------
    Figure
        To be saved or shown.
    """
    rows = pairs[0][0].sizes["direction"]
    figure = Figure(figsize=(3.9 * len(pairs), 3.3 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(pairs), squeeze=False)
    for column, (forecast, measured) in enumerate(pairs):
        for row in range(rows):
            _histogram(axes[row, column], forecast.isel(direction=row), measured.isel(direction=row))
            product = forecast.attrs["eta"] * float(forecast["eigenvalue"][row])
            _title(axes[row, column], f"batch {forecast.attrs['batch_size']}, η·eigenvalue = {product:.2f}")
    axes[0, 0].legend(fontsize=7.5, frameon=False, loc="lower center")
    figure.suptitle(
        f"Fluctuation of SGD about its averaged path\n{pairs[0][0].attrs['description']}", fontsize=9
    )
    return figure


def _histogram(axis: Axes, forecast: xr.Dataset, measured: xr.Dataset) -> None:
    position, density = measured["position"].values, measured["density"].values
    error, seen = measured["density_stderr"].values, measured["density"].values > 0
    axis.errorbar(position[seen], density[seen], error[seen], fmt="k.", ms=3, lw=0.6, label="measured")
    styles = (("--", 1.5), ("-", 1.0), ("-", 1.5), (":", 1.5))
    for i, (model, (style, width)) in enumerate(zip(forecast["model"].values, styles, strict=True)):
        values = forecast["density"].values[i]
        axis.plot(
            position, np.where(values > 0, values, np.nan), style, lw=width, color=COLOURS[i], label=model
        )
    axis.set_yscale("log")
    axis.set_ylim(0.3 * density[seen].min(), 3 * density.max())
    reach = 1.2 * np.abs(position[seen]).max()
    axis.set(xlabel="displacement from the averaged path", ylabel="density", xlim=(-reach, reach))
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Any) -> None:
    """Write a figure as PNG, PDF or SVG, by the ending of the path: whole or not at all."""
    path, image = Path(path), io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=130)
    write_whole(path, image.getbuffer())
