"""The Threshold: a number, its error, and what it is a threshold of."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, SupportsFloat

from solvers.errors import InvalidInput


@functools.total_ordering
@dataclass(frozen=True, eq=False)
class Threshold:
    """A value of a control parameter at which a stability criterion is met.

    Ordered and compared as a float, so ``eta < threshold`` works.

    Attributes
    ----------
    value : float
        The threshold, in the units of the control parameter; ``inf`` when the criterion never fails.
    stderr : float
        Standard error, or for a deterministic computation a bound on its numerical error; 0 if exact.
    criterion : str
        ``"deterministic"``, ``"mean-square"``, ``"almost-sure"``, ``"gap"``, ``"escape"``, ...
    method : str
        How it was computed, with what `stderr` contains.
    source : str
        Paper and equation, or ``""``.
    evaluations : int, optional
        Eigen-solves, densities or simulations that it took, where they were counted.

    Raises
    ------
    InvalidInput
        If `value` is NaN, or `stderr` is NaN or negative.
    """

    value: float
    stderr: float
    criterion: str
    method: str
    source: str
    evaluations: int | None = None

    def __post_init__(self) -> None:
        for name in ("value", "stderr"):
            try:
                object.__setattr__(self, name, float(getattr(self, name)))
            except (TypeError, ValueError) as error:
                message = f"{name}={getattr(self, name)!r} of a Threshold is not a number; give a float"
                raise InvalidInput(message) from error
        if math.isnan(self.value):
            raise InvalidInput(
                "value=nan is not a Threshold; give the number, or inf where there is no threshold"
            )
        if math.isnan(self.stderr) or self.stderr < 0:
            raise InvalidInput(
                f"stderr={self.stderr} of a Threshold is not a size; give 0 for an exact value"
            )

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: Any) -> bool:
        number = _number(other)
        return NotImplemented if number is None else self.value == number

    def __lt__(self, other: Any) -> bool:
        number = _number(other)
        return NotImplemented if number is None else self.value < number

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return f"{with_error(self.value, self.stderr)} ({self.criterion}, {self.method})"


def _number(other: Any) -> float | None:
    """A number, 0-d array or Threshold as a float; None for anything else."""
    if not isinstance(other, SupportsFloat):
        return None
    try:
        return float(other)
    except TypeError:  # arrays of several elements: left to their own comparison
        return None


def with_error(value: float, stderr: float) -> str:
    """``0.463 +- 0.002``: the error to one or two digits and the value to the same place.

    Returns
    -------
    str
        The value alone, to six digits, when the error is zero or below the sixth digit.
    """
    if stderr == 0 or not math.isfinite(value) or stderr < 1e-6 * abs(value):
        return f"{value:.6g}"
    if not math.isfinite(stderr):
        return f"{value:.3g} +- {stderr}"
    place = math.floor(math.log10(stderr))
    digits = -place + (1 if stderr / 10.0**place < 2 else 0)
    if digits > 0 and abs(value) < 1e6:
        return f"{value:.{digits}f} +- {stderr:.{digits}f}"
    return f"{value:.6g} +- {stderr:.2g}"
