"""The rules that are compared, each with the one number that is tuned and the grid on which it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.trials.programs import KNOBS
from solvers.errors import InvalidInput


@dataclass(frozen=True)
class Contender:
    """A rule as it is compared.

    Attributes
    ----------
    rule : str
        Of `bridge.make_rule`.
    centre : float
        Middle of the grid of its knob.
    of_task : bool
        Whether the centre is a multiple of the task's learning rate, instead of a number by itself.
    schedule : str
        Of the learning rate.
    options : mapping
        Of the rule, fixed.
    steady : bool
        Whether its curvature may be that of a fixed batch instead of each update's own.
    """

    rule: str
    centre: float
    of_task: bool = True
    schedule: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)
    steady: bool = False

    @property
    def knob(self) -> str:
        """What is tuned: "eta", or the option that sets the size of the steps."""
        return KNOBS[self.rule][0] if self.rule in KNOBS else "eta"

    def grid(self, eta: float, points: int, ratio: float) -> NDArray[np.float64]:
        """Values of the knob that are tried.

        Parameters
        ----------
        eta : float
            The task's learning rate.
        points : int
            How many, odd, so that the centre is one.
        ratio : float
            Of neighbours, above 1.

        Returns
        -------
        ndarray
            Ascending.
        """
        centre = self.centre * (eta if self.of_task else 1.0)
        return np.float64(centre) * np.float64(ratio) ** (np.arange(points) - points // 2)


CONTENDERS: dict[str, Contender] = {
    "sgdm": Contender("sgdm", 0.3),
    "adamw": Contender("adamw", 0.08, options={"weight_decay": 1e-4}),
    "sgd": Contender("sgd", 1.0),
    "sgd-cosine": Contender("sgd", 2.0, schedule="warmup-cosine"),
    "l4": Contender("l4", KNOBS["l4"][1], of_task=False),
    "cdat": Contender("cdat", KNOBS["cdat"][1], of_task=False),
    "inverse-sharpness": Contender(
        "inverse-sharpness", KNOBS["inverse-sharpness"][1], of_task=False, steady=True
    ),
    "caeo": Contender("caeo", 2.0, steady=True),
    "caeo-momentum": Contender("caeo", 0.6, options={"momentum": 0.9}, steady=True),
    "caeo-ss": Contender("caeo-ss", 2.0, steady=True),
}
"""By name. Centres are the multiples of the campaign for learning rates, but for the schedule's and AdamW's, whose best
were at the ends of their grids on digits; the authors' own values for L4 and CDAT."""


def check_contenders(names: Sequence[str], reference: str) -> None:
    """Refuse rules that are not known, given twice, or do not hold the reference.

    Parameters
    ----------
    names : sequence of str
        Of `CONTENDERS`.
    reference : str
        One of them.

    Raises
    ------
    InvalidInput
        Naming the first that is wrong.
    """
    for name in names:
        if name not in CONTENDERS:
            raise InvalidInput(f"rule={name!r} is not known here: choose one of {', '.join(CONTENDERS)}")
    if len(set(names)) < len(names) or len(names) < 2:
        raise InvalidInput(f"rules={', '.join(names)} must be two or more different ones")
    if reference not in names:
        raise InvalidInput(f"reference={reference!r} must be one of the rules, {', '.join(names)}")
