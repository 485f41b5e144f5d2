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
    components : mapping of str to str
        Each component's name and meaning.
    start : mapping of str to float
        A start from which there is something to see.
    fixed_point : mapping of str to float, or None
        Where growth rates are taken.
    growth : tuple of str
        Parameters on which the growth rates there depend, and in which they can cross 0.
    remark : str
        Of the growth rates: what the model does not know, or why there is no fixed point.
    kicks : tuple of str
        Parameters of the noise: without any the model is deterministic.
    linear : bool
        Linear whatever its parameters, so that additive noise leaves the growth rates as they are.
    example : str
        Arguments of an `eos-sde` command that shows the model.
    """

    name: str
    description: str
    parameters: Mapping[str, str]
    defaults: Mapping[str, float]
    step: str
    discrete: bool
    builder: Callable[..., Any]
    components: Mapping[str, str]
    start: Mapping[str, float]
    fixed_point: Mapping[str, float] | None
    growth: tuple[str, ...]
    remark: str
    kicks: tuple[str, ...]
    linear: bool
    example: str

    def complete(self, **parameters: float) -> dict[str, float]:
        """All parameters: those given, and the defaults of the others.

        Raises
        ------
        InvalidInput
            If a parameter is unknown or missing.
        """
        known = ", ".join(self.parameters)
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            raise InvalidInput(f"model {self.name!r} has no parameter {unknown[0]!r}; it has {known}")
        whole = {**self.defaults, **parameters}
        missing = [name for name in self.parameters if name not in whole]
        if missing:
            raise InvalidInput(f"model {self.name!r} needs the parameter {missing[0]!r}; it has {known}")
        return {name: whole[name] for name in self.parameters}

    def step_time(self, **parameters: float) -> float:
        """Time of one SGD step, in the model's unit."""
        return float(parameters["eta"]) if self.step == "eta" else 1.0

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
        return self.builder(**self.complete(**parameters))


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
_WEIGHT = {"x": "weight along the line, from the minimum of its quadratic part"}
_ALONG = "displacement along the top eigenvector"
_ZERO = {"x": 0.0}
_BLIND = (
    "the growth rate at 0 is {} at every learning rate: this model is blind to the edge eta curvature = 2"
)

_ENTRIES = (
    Model(
        name="gradient-flow",
        description="SME-1 on a line: dX = -f'(X) dt + sqrt(eta) s dW; blind to the edge",
        parameters=_LINE, defaults=_HIGHER, step="eta", discrete=False, builder=_on_a_line(gradient_flow),
        components=_WEIGHT, start={"x": 1.0}, fixed_point=_ZERO, growth=("curvature",),
        remark=_BLIND.format("-curvature"), kicks=("noise",), linear=False,
        example="simulate gradient-flow --param eta=0.1 --param noise=0.2 --param curvature=3",
    ),
    Model(
        name="sme2",
        description="SME-2 on a line: the loss raised by (eta/4) f'^2; blind to the edge",
        parameters=_LINE, defaults=_HIGHER, step="eta", discrete=False, builder=_on_a_line(sme2),
        components=_WEIGHT, start={"x": 1.0}, fixed_point=_ZERO, growth=("curvature",),
        remark=_BLIND.format("-curvature (1 + eta curvature/2)"), kicks=("noise",), linear=False,
        example="spectrum sme2 --param eta=0.1 --param noise=0.2 --param curvature=3",
    ),
    Model(
        name="matched-linear",
        description="the linear SDE with SGD's exact law at every step; sees the edge",
        parameters=_LINEAR, defaults={}, step="eta", discrete=False, builder=matched_linear,
        components={"x": "weight; of SGD's (-1)^k x after k steps where eta curvature > 1"}, start={"x": 1.0},
        fixed_point=_ZERO, growth=("eta", "curvature"), remark="", kicks=("noise",), linear=True,
        example="threshold matched-linear --param curvature=4 --param noise=0.1 --over eta=0.3:0.9",
    ),
    Model(
        name="flip-normal-form",
        description="two-step amplitude at the edge: dA = (mu A - C A^3) dk + sqrt(s^2 + m^2 A^2) dW",
        parameters={
            "mu": "eta curvature - 2", "C": "cubic coefficient", "s": "kick to the weight per step, >= 0",
            "m": "spread of the growth factor of a step, >= 0",
        },
        defaults={"m": 0.0}, step="1", discrete=False, builder=flip_normal_form,
        components={"A": "two-step amplitude (-1)^k x after k steps"}, start={"A": 0.1},
        fixed_point={"A": 0.0}, growth=("mu", "m"), remark="", kicks=("s", "m"), linear=False,
        example="threshold flip-normal-form --param C=1 --param s=0.1 --over mu=-0.1:0.2 --criterion gap",
    ),
    Model(
        name="self-stabilization",
        description="dx = eta y x dk + eta s dW, dy = eta (alpha - beta x^2/2) dk; y = S - 2/eta",
        parameters={**_FEEDBACK, **_ETA, **_NOISE}, defaults=_QUIET, step="1", discrete=False,
        builder=self_stabilization,
        components={"x": f"{_ALONG}, as two-step amplitude", "y": "sharpness above 2/eta"},
        start={"x": 0.5, "y": 0.0}, fixed_point=None, growth=(),
        remark="its fixed points x^2 = 2 alpha/beta, y = 0 are centres at all parameters", kicks=("noise",),
        linear=False, example="simulate self-stabilization --param alpha=1 --param beta=2 --param eta=0.1 --t1 150",
    ),
    Model(
        name="quadratic-map",
        description="SGD itself on a quadratic: x+ = (1 - eta h) x + eta sqrt(s^2 + c^2 x^2) xi",
        parameters={**_LINEAR, "spread": "standard deviation c of the batch curvature, >= 0"},
        defaults={"spread": 0.0}, step="eta", discrete=True, builder=maps.quadratic_map,
        components={"x": "weight"}, start={"x": 1.0}, fixed_point=_ZERO, growth=("eta", "curvature", "spread"),
        remark="", kicks=("noise", "spread"), linear=True,
        example="threshold quadratic-map --param curvature=4 --param noise=0.1 --param spread=2 --over eta=0.1:0.9 "
        "--criterion moment",
    ),
    Model(
        name="line-map",
        description="SGD itself on a line: x+ = x - eta f'(x) + eta s xi",
        parameters=_LINE, defaults=_HIGHER, step="eta", discrete=True, builder=maps.line_map,
        components=_WEIGHT, start={"x": 0.1}, fixed_point=_ZERO, growth=("eta", "curvature"), remark="",
        kicks=("noise",), linear=False,
        example="spectrum line-map --param eta=0.7 --param noise=0.1 --param curvature=3 --param third=3",
    ),
    Model(
        name="self-stabilization-map",
        description="x+ = -(1 + eta y) x + eta s xi, y+ = y + eta (alpha - beta x^2/2)",
        parameters={**_FEEDBACK, **_ETA, **_NOISE}, defaults=_QUIET, step="1", discrete=True,
        builder=maps.self_stabilization_map,
        components={"x": _ALONG, "y": "sharpness above 2/eta"}, start={"x": 0.5, "y": 0.0}, fixed_point=None,
        growth=(), remark="it has no fixed point, and its 2-cycle is unstable at all parameters",
        kicks=("noise",), linear=False,
        example="simulate self-stabilization-map --param alpha=1 --param beta=2 --param eta=0.1 --t1 150",
    ),
    Model(
        name="caeo-map",
        description="the self-stabilization map under eta_t = min(eta_base, (2 - delta)/S)",
        parameters={
            "eta_base": "uncapped learning rate, > 0", "delta": "distance from the edge, < 2", **_FEEDBACK, **_NOISE,
        },
        defaults={"delta": 0.1, **_QUIET}, step="1", discrete=True, builder=maps.caeo_map,
        components={"x": _ALONG, "S": "sharpness"}, start={"x": 0.1, "S": 1.0}, fixed_point=None, growth=(),
        remark="its sharpness never rests where x does", kicks=("noise",), linear=False,
        example="simulate caeo-map --param eta_base=0.1 --param alpha=1 --param beta=2 --t1 400",
    ),
    Model(
        name="catapult-map",
        description="two-layer linear network: f+ = f (1 - eta l + eta^2 f^2/n), l+ = l + (eta f^2/n)(eta l - 4)",
        parameters={**_ETA, "width": "n, > 0"}, defaults={}, step="eta", discrete=True, builder=maps.catapult_map,
        components={"f": "output of the network", "l": "tangent kernel: the sharpness where f = 0"},
        start={"f": 0.1, "l": 3.0}, fixed_point=None, growth=(),
        remark="every f = 0 is a fixed point, left beyond eta l = 2; beyond eta l = 4 the map diverges", kicks=(),
        linear=False, example="simulate catapult-map --param eta=0.9 --param width=100 --t1 45",
    ),
)  # fmt: skip
_CATALOGUE = MappingProxyType({entry.name: entry for entry in _ENTRIES})
