"""What each observable takes, checked by pydantic: every mistake at once, with the place where it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from eos_sde.models.registry import catalogue

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
Wall = Literal["reflecting", "absorbing", "periodic"]
Statistic = Literal["mean", "mean_stderr", "variance", "covariance", "skewness", "kurtosis"]


class Settings(BaseModel):
    """What an observable takes beside the parameters of its model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def across(cls, given: Mapping[str, Any]) -> list[tuple[str, str]]:  # noqa: ARG003
        """What is wrong between settings, whatever else is wrong with each.

        Parameters
        ----------
        given : mapping
            As written, not checked yet.

        Returns
        -------
        list of (setting, text)
        """
        return []


class ModelSettings(Settings):
    """Observables of a model of the catalogue."""

    model: str

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in catalogue():
            raise ValueError(f"{name!r} is not known: choose one of {', '.join(catalogue())}")
        return name


class GridSettings(ModelSettings):
    """Observables on a grid of cells."""

    grid: dict[str, tuple[Number, Number, Whole]]
    boundary: Wall | dict[str, tuple[Wall, Wall]] = "reflecting"

    @field_validator("grid")
    @classmethod
    def _rising(cls, grid: dict[str, tuple[float, float, int]]) -> dict[str, tuple[float, float, int]]:
        for name, (low, high, _) in grid.items():
            if not low < high:
                raise ValueError(
                    f"{name} goes from {low:g} to {high:g}; give low < high, and the number of cells"
                )
        return grid


class Spectrum(GridSettings):
    """Of "spectrum"."""

    k: Whole = 6
    follow: str | None = None


class Escape(GridSettings):
    """Of "escape-rate"."""

    boundary: Wall | dict[str, tuple[Wall, Wall]] = "absorbing"


class Exponent(ModelSettings):
    """Of "lyapunov"."""

    at: Number | list[Number]
    method: Literal["spectral", "simulation"] = "spectral"
    seed: Seed | None = None
    dt: Positive = 0.01
    duration: Positive = 2000.0
    paths: Whole = 64

    @classmethod
    def across(cls, given: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Simulations need a seed."""
        if given.get("method") == "simulation" and given.get("seed") is None:
            return [("method", "method 'simulation' needs a seed")]
        return []


class MomentExponent(Exponent):
    """Of "moment-lyapunov"."""

    p: Number | list[Number] = 2.0
    duration: Positive = 200.0
    paths: Whole = 4096


class Crossing(ModelSettings):
    """Of "threshold": those of `eos_sde.thresholds.locate` that plain numbers can be."""

    over: str
    bracket: tuple[Number, Number]
    criterion: Literal["almost_sure", "moment", "gap", "escape", "density_shape"]
    tolerance: Positive = 1e-6
    grid: dict[str, tuple[Number, Number, Whole]] | None = None
    boundary: Wall | dict[str, tuple[Wall, Wall]] | None = None
    at: Number | list[Number] | None = None
    p: Number | None = None
    method: Literal["spectral", "simulation"] | None = None
    seed: Seed | None = None
    dt: Positive | None = None
    duration: Positive | None = None
    paths: Whole | None = None
    level: Positive | None = None
    ratio: Positive | None = None
    horizon: Positive | None = None

    @classmethod
    def across(cls, given: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What each criterion needs."""
        exponents = dict.fromkeys(("almost_sure", "moment"), ("at",))
        needed = {**exponents, "escape": ("grid", "horizon"), "gap": ("grid",), "density_shape": ("grid",)}
        criterion = given.get("criterion")
        lacking = [n for n in needed.get(str(criterion), ()) if given.get(n) is None]
        return [("criterion", f"criterion {criterion!r} needs {name!r}") for name in lacking]


class Ensemble(ModelSettings):
    """Of "ensemble"."""

    y0: Number | list[Number]
    paths: Whole
    seed: Seed
    t1: Positive | None = None
    dt: Positive | None = None
    steps: Whole | None = None
    save_at: list[Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]] | None = None
    scheme: str = "euler-maruyama"
    statistics: list[Statistic] = ["mean", "variance"]

    @classmethod
    def across(cls, given: Mapping[str, Any]) -> list[tuple[str, str]]:
        """A map takes steps, an SDE times."""
        model = catalogue().get(str(given.get("model")))
        if model is None:
            return []
        needed, foreign = (("steps",), ("t1", "dt")) if model.discrete else (("t1", "dt"), ("steps",))
        kind = "a map" if model.discrete else "no map"
        lacking = [name for name in needed if given.get(name) is None]
        found = [("model", f"{model.name!r} is {kind} and needs {name!r}") for name in lacking]
        odd = [name for name in foreign if given.get(name) is not None]
        return found + [
            (name, f"{model.name!r} is {kind} and takes {' and '.join(needed)}, not {name}") for name in odd
        ]


class Plateau(Settings):
    """Of "plateau"."""

    task: str
    batch_size: Whole
    steps: Annotated[int, Field(strict=True, ge=20)] = 120
    warmup: Annotated[int, Field(strict=True, ge=2)] = 100
    rule: Literal["sgd", "gd"] = "sgd"
    eta: Positive | None = None
    repeats: Whole = 2
    seed: Seed = 0
    task_settings: dict[str, Any] = {}

    @field_validator("task")
    @classmethod
    def _known(cls, name: str) -> str:
        from eos_sde.bridge import tasks

        if name not in tasks():
            raise ValueError(f"{name!r} is not known: choose one of {', '.join(tasks())}")
        return name
