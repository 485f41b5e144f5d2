"""What a dataset is, from what it holds, and the figures that show it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from eos_sde import (
    agreement_plots,
    campaign_plots,
    implicit_bias_report,
    model_plots,
    plots,
    stability_plots,
    sweep_plots,
)
from solvers.errors import InvalidInput

SWEEP = "sweep"


def kind_of(dataset: xr.Dataset) -> str:
    """What a dataset is.

    Parameters
    ----------
    dataset : Dataset
        From a command or function of this package, or any other with labelled axes.

    Returns
    -------
    str
        "replay", "onsets", "campaign", "implicit bias", "stability map", "fluctuation forecast",
        "fluctuation measurement", "threshold", "spectra", "spectrum", "simulation", or "sweep": variables over
        labelled axes.
    """
    names, dims = set(map(str, dataset.variables)), set(map(str, dataset.dims))
    told = dataset.attrs.get("kind")
    for kind, variables, axes in _SIGNS:
        agrees = told == kind or (told is None and kind not in _TOLD)
        if agrees and variables <= names and axes <= dims:
            return kind
    return SWEEP


# Kinds that only their attribute tells from a sweep.
_TOLD = ("threshold", "spectra")
# Kind, variables, dimensions; ordered: the first that fits.
_SIGNS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("threshold", {"threshold", "stderr", "closed_form"}, set()),
    ("replay", {"experiment", "predicted", "measured"}, {"quantity"}),
    (
        "onsets",
        {"ratio_low", "predicted", "measured"},
        {"network", "loss", "criterion", "batch_size", "seed"},
    ),
    ("campaign", {"sharpness_ratio", "forecast_sharpness"}, {"task", "rule", "batch", "seed", "step"}),
    ("implicit bias", {"measured_test_loss"}, {"rule", "batch", "seed"}),
    ("stability map", {"regime", "delta_escape"}, {"delta", "batch_size", "eta_base"}),
    ("fluctuation forecast", {"density", "position", "eigenvalue"}, {"model", "direction", "bin"}),
    ("fluctuation measurement", {"density", "density_stderr", "position"}, {"direction", "bin"}),
    ("spectra", {"decay_rate", "frequency", "gap", "reason"}, {"mode"}),
    ("spectrum", {"eigenvalue", "right", "residual"}, {"mode"}),
    ("simulation", {"final", "diverged"}, {"path", "component"}),
)


def figures_of(
    datasets: Sequence[xr.Dataset],
    *,
    value: str | None = None,
    over: Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
) -> dict[str, Figure]:
    """The figures that show one dataset, or several that belong together.

    Parameters
    ----------
    datasets : sequence of Dataset
        One; or a fluctuation forecast and its measurement; or a sweep and threshold curves along its axes.
    value, over, at
        Of a sweep: as for `sweep_plots.sweep_figure`. Without them, one that has ``predicted`` and ``measured`` is
        drawn on the diagonal.

    Returns
    -------
    dict of str to Figure
        By name; the first is the main one, "".

    Raises
    ------
    InvalidInput
        If the datasets do not belong together, or there is nothing to draw.
    """
    kinds = [kind_of(dataset) for dataset in datasets]
    first = datasets[0]
    chosen = value is not None or over is not None or bool(at)
    if len(datasets) > 1 and sorted(kinds) == ["fluctuation forecast", "fluctuation measurement"]:
        pair = dict(zip(kinds, datasets, strict=True))
        return {
            "": plots.fluctuation_figure([(pair["fluctuation forecast"], pair["fluctuation measurement"])])
        }
    if kinds[0] == SWEEP or chosen:
        return {"": _of_sweep(datasets, kinds, value, over, at)}
    if len(datasets) > 1:
        raise InvalidInput(
            f"{' and '.join(kinds)} are not drawn together; give one file, a sweep followed by threshold curves, or a "
            "fluctuation forecast and its measurement"
        )
    if kinds[0] == "campaign":
        figures = campaign_plots.campaign_figures(first)
        return {"": figures.pop("all"), **figures}
    if kinds[0] not in _FIGURES:
        raise InvalidInput(f"a {kinds[0]} is drawn beside its counterpart; give both files")
    return {"": _FIGURES[kinds[0]](first)}


_FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "replay": plots.replay_figure,
    "onsets": plots.onset_figure,
    "implicit bias": implicit_bias_report.implicit_bias_figure,
    "stability map": stability_plots.stability_figure,
    "threshold": model_plots.threshold_figure,
    "spectra": model_plots.spectra_figure,
    "spectrum": model_plots.spectrum_figure,
    "simulation": model_plots.ensemble_figure,
}


def _of_sweep(
    datasets: Sequence[xr.Dataset],
    kinds: list[str],
    value: str | None,
    over: Sequence[str] | None,
    at: Mapping[str, Any] | None,
) -> Figure:
    first, *others = datasets
    wrong = [kind for kind in kinds[1:] if kind != "threshold"]
    if wrong:
        raise InvalidInput(
            f"beside a sweep only threshold curves are drawn, and a file is a {wrong[0]}; leave it out"
        )
    if value is None and over is None and not others and {"predicted", "measured"} <= set(first.data_vars):
        return agreement_plots.agreement_figure(first if not at else sweep_plots.selected(first, at))
    return sweep_plots.sweep_figure(first, value=value, over=over, at=at, curves=others)
