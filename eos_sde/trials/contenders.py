"""The rules that are compared, each with the one number that is tuned and the grid on which it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.trials.estimators import DEFAULT
from eos_sde.trials.programs import KNOBS
from eos_sde.trials.warm_start import run_of_comparison
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
    delta : float
        Margin of "caeo" and "caeo-ss".
    start : str or None
        An earlier run whose weights it starts from; ``{seed}`` in it stands for the seed of the run. Or the folder of a
        comparison and the name of a rule in it, ``folder/caeo``, for the run of the same seed.
    """

    rule: str
    centre: float
    of_task: bool = True
    schedule: str = "constant"
    options: Mapping[str, Any] = field(default_factory=dict)
    steady: bool = False
    delta: float = 0.1
    start: str | None = None

    def start_of(self, seed: int) -> str | None:
        """The earlier run of a seed."""
        if self.start is None:
            return None
        found = run_of_comparison(self.start, seed)
        return self.start.replace("{seed}", str(seed)) if found is None else str(found)

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


_WITH_DELTA = ("caeo", "caeo-ss")
_DEFAULTS = {"estimator": DEFAULT, "refresh": "auto"}


def contender(name: str) -> Contender:
    """A rule by name, with settings of its own after a colon: the way to compare forms of one rule.

    Parameters
    ----------
    name : str
        One of `CONTENDERS`; or it with a colon and settings, name=value with commas between them: ``delta``,
        ``schedule``, ``estimator`` (see `estimators.NAMES`), ``refresh`` and other options of the rule, and ``from``,
        an earlier run whose weights it starts from: see `Contender`.

    Returns
    -------
    Contender
        With the grid of the rule without settings; what is set to its default is as if left out.

    Raises
    ------
    InvalidInput
        For an unknown rule, what is not name=value, or a setting of the knob, which is tuned.

    Examples
    --------
    >>> contender("caeo:delta=-0.05,refresh=50").delta
    -0.05
    """
    base, colon, rest = name.partition(":")
    if base not in CONTENDERS:
        raise InvalidInput(f"rule={base!r} is not known here: choose one of {', '.join(CONTENDERS)}")
    known = CONTENDERS[base]
    if not colon:
        return known
    given: dict[str, Any] = {}
    for one in rest.split(","):
        key, equals, value = one.partition("=")
        if not (key and equals and value):
            raise InvalidInput(
                f"rule={name!r}: {one!r} must be setting=value, as in caeo:delta=-0.05,refresh=50"
            )
        key = key.replace("-", "_")
        if key in given:
            raise InvalidInput(f"rule={name!r} gives {key} twice: give it once")
        if key in ("eta", known.knob):
            raise InvalidInput(f"rule={name!r} sets {key}, which is what is tuned: leave it out")
        given[key] = value if key == "from" else plain_value(value)
    if "delta" in given and known.rule not in _WITH_DELTA:
        raise InvalidInput(f"rule={name!r}: delta is a setting of {' and '.join(_WITH_DELTA)}: leave it out")
    delta, schedule = given.pop("delta", known.delta), given.pop("schedule", known.schedule)
    start = given.pop("from", None)
    kept = {key: value for key, value in given.items() if _DEFAULTS.get(key) != value}
    options = {**known.options, **kept}
    return replace(known, delta=delta, schedule=schedule, start=start, options=options)


def plain_value(text: str) -> bool | int | float | str:
    """A truth value, a number or a word, whichever a text can be first."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_contenders(names: Sequence[str], reference: str) -> None:
    """Refuse rules that are not known, given twice, or do not hold the reference.

    Parameters
    ----------
    names : sequence of str
        Of `CONTENDERS`, with settings or without: see `contender`.
    reference : str
        One of them.

    Raises
    ------
    InvalidInput
        Naming the first that is wrong.
    """
    meant = [contender(name) for name in names]
    for number, one in enumerate(meant):
        if one in meant[:number]:
            first = names[meant.index(one)]
            same = f" ({first} and {names[number]} are the same)" if first != names[number] else ""
            raise InvalidInput(f"rules={', '.join(names)} must be two or more different ones{same}")
    if len(names) < 2:
        raise InvalidInput(f"rules={', '.join(names)} must be two or more different ones")
    if reference not in names:
        raise InvalidInput(f"reference={reference!r} must be one of the rules, {', '.join(names)}")
