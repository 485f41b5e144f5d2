"""The models by name, built from plain numbers: what `eos-sde models` lists and `--param` fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eos_sde.models import maps
from eos_sde.models.landscapes import LineLoss, line_loss
from eos_sde.models.matched import matched_linear
from eos_sde.models.normal_forms import flip_normal_form, self_stabilization
from eos_sde.models.sme import gradient_flow, sme2
from solvers.errors import InvalidInput
from solvers.sde import SDE


@dataclass(frozen=True)
class Model:
    """One entry of the catalogue.

    Attributes
    ----------
    name : str
        For the command line.
    description : str
        One line with the equation.
    parameters : mapping of str to str
        Each parameter's name and meaning.
    defaults : mapping of str to float
        Parameters that may be left out.
    step : str
        What one SGD step is in the model's time: "eta" or "1".
    discrete : bool
        True for a map: its dynamics are Euler-Maruyama steps of size `step` of the SDE, not the SDE.
    """

    name: str
    description: str
    parameters: Mapping[str, str]
    defaults: Mapping[str, float]
    step: str
    discrete: bool
    builder: Callable[..., Any]

    def build(self, **parameters: float) -> SDE:
        """The model's SDE (for a map, the one whose Euler-Maruyama step is the map).

        Raises
        ------
        InvalidInput
            If a parameter is unknown, missing or out of range.
        """
        made = self._made(parameters)
        return made.as_sde() if isinstance(made, maps.NoisyMap) else made

    def build_map(self, **parameters: float) -> maps.NoisyMap:
        """The model's map.

        Raises
        ------
        InvalidInput
            If the model is not discrete, or a parameter is unknown, missing or out of range.
        """
        if not self.discrete:
            raise InvalidInput(f"model {self.name!r} is continuous; choose a model that ends in -map")
        return self._made(parameters)

    def _made(self, parameters: Mapping[str, float]) -> Any:
        known = ", ".join(self.parameters)
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            raise InvalidInput(f"model {self.name!r} has no parameter {unknown[0]!r}; it has {known}")
        missing = [n for n in self.parameters if n not in parameters and n not in self.defaults]
        if missing:
            raise InvalidInput(f"model {self.name!r} needs the parameter {missing[0]!r}; it has {known}")
        return self.builder(**{**self.defaults, **parameters})


def catalogue() -> Mapping[str, Model]:
    """All models that plain numbers can build, by name.

    Returns
    -------
    mapping of str to Model
        Read-only, in order of listing.
    """
    return _CATALOGUE


def _on_a_line(builder: Callable[..., SDE]) -> Callable[..., SDE]:
    def build(*, eta: float, noise: float, curvature: float, third: float, fourth: float) -> SDE:
        return builder(line_loss, eta=eta, noise=noise, params=LineLoss(curvature, third, fourth))

    return build


_ETA = {"eta": "learning rate, > 0"}
_NOISE = {"noise": "standard deviation of the gradient noise, >= 0"}
_LINE = {
    **_ETA,
    **_NOISE,
    "curvature": "f'' of the loss at 0",
    "third": "f''' of the loss at 0",
    "fourth": "f'''' of the loss at 0",
}
_LINEAR = {**_ETA, **_NOISE, "curvature": "curvature h of the loss"}
_FEEDBACK = {"alpha": "progressive sharpening, > 0", "beta": "|gradient of the sharpness|^2, > 0"}
_HIGHER = {"third": 0.0, "fourth": 0.0}
_QUIET = {"noise": 0.0}

_ENTRIES = (
    Model(
        "gradient-flow", "SME-1 on a line: dX = -f'(X) dt + sqrt(eta) s dW; blind to the edge",
        _LINE, _HIGHER, "eta", False, _on_a_line(gradient_flow),
    ),
    Model(
        "sme2", "SME-2 on a line: the loss raised by (eta/4) f'^2; blind to the edge",
        _LINE, _HIGHER, "eta", False, _on_a_line(sme2),
    ),
    Model(
        "matched-linear", "the linear SDE with SGD's exact law at every step; sees the edge",
        _LINEAR, {}, "eta", False, matched_linear,
    ),
    Model(
        "flip-normal-form", "two-step amplitude at the edge: dA = (mu A - C A^3) dk + s dW",
        {"mu": "eta curvature - 2", "C": "cubic coefficient", "s": "kick to the weight per step, >= 0"},
        {}, "1", False, flip_normal_form,
    ),
    Model(
        "self-stabilization", "dx = eta y x dk + eta s dW, dy = eta (alpha - beta x^2/2) dk; y = S - 2/eta",
        {**_FEEDBACK, **_ETA, **_NOISE}, _QUIET, "1", False, self_stabilization,
    ),
    Model(
        "quadratic-map", "SGD itself on a quadratic: x+ = (1 - eta h) x + eta s xi",
        _LINEAR, {}, "eta", True, maps.quadratic_map,
    ),
    Model(
        "line-map", "SGD itself on a line: x+ = x - eta f'(x) + eta s xi",
        _LINE, _HIGHER, "eta", True, maps.line_map,
    ),
    Model(
        "self-stabilization-map", "x+ = -(1 + eta y) x + eta s xi, y+ = y + eta (alpha - beta x^2/2)",
        {**_FEEDBACK, **_ETA, **_NOISE}, _QUIET, "1", True, maps.self_stabilization_map,
    ),
    Model(
        "caeo-map", "the self-stabilization map under eta_t = min(eta_base, (2 - delta)/S)",
        {"eta_base": "uncapped learning rate, > 0", "delta": "distance from the edge, < 2", **_FEEDBACK,
         **_NOISE},
        {"delta": 0.1, **_QUIET}, "1", True, maps.caeo_map,
    ),
    Model(
        "catapult-map", "two-layer linear network: f+ = f (1 - eta l + eta^2 f^2/n), l+ = l + (eta f^2/n)(eta l - 4)",
        {**_ETA, "width": "n, > 0"}, {}, "eta", True, maps.catapult_map,
    ),
)  # fmt: skip
_CATALOGUE = MappingProxyType({entry.name: entry for entry in _ENTRIES})
