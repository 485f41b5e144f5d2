"""Running extremes of every path: over the ends of the steps, or over the whole time by a Brownian bridge."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from solvers import schemes, vmath
from solvers.errors import InvalidInput
from solvers.kernels import unpacking
from solvers.moments import Moments, mean_and_second
from solvers.observers import Observer, about, by_path, observing
from solvers.wiener import crossing_uniforms

if TYPE_CHECKING:
    from solvers.request import Request
    from solvers.running import Run

EXTREMES = ("maximum", "minimum", "step_maximum", "step_minimum")
_UP, _DOWN = 1.0, -1.0
_FARTHEST = 36.75
"""Just above -log of the smallest uniform, 53 log 2 = 36.74: no bridge reaches farther."""
_SETTINGS = 8
"""Settings before the parameters of the model.

They are first step, t0, dt, upper and lower half of the seed, how many sides, and the sides: 1 up, -1 down.
"""


@njit(error_model="numpy")
def _copied(source, rows):
    for a in range(source.shape[0]):
        for i in range(source.shape[1]):
            rows[a, i] = source[a, i]


@njit(error_model="numpy")
def _note(save, count, many, rows, sums):
    """Mean and summed squared deviations of the running extremes at a saved time."""
    for q in range(many):
        sums[save + 1, 2 * q], sums[save + 1, 2 * q + 1] = mean_and_second(rows[q], count)


@njit(error_model="numpy")
def _look_at_steps(when, x, carried, sums, _counts, settings):
    """Extremes over the ends of the steps: carried rows (side, component)."""
    step, save, count = when
    d, width = x.shape
    many = int(settings[5])
    for k in range(many):
        side = settings[6 + k]
        if step == int(settings[0]):
            _copied(x, carried[k * d :])
        for a in range(d):
            here, extreme = x[a], carried[k * d + a]
            for i in range(width):
                value = here[i]
                # what is not a number stays so
                extreme[i] = value if side * value > side * extreme[i] or value != value else extreme[i]
    if save >= 0:
        _note(save, count, many * d, carried, sums)


@cache
def _over_steps() -> Any:
    return observing(_look_at_steps, every_step=True)


@njit(fastmath=schemes.FLAGS, error_model="numpy")
def _flag(old, new, squares, extreme, dt, flags):
    """Flag the paths whose extreme m so far a bridge can surpass: 2 (m - a)(m - b) <= 36.75 sigma^2 dt."""
    half = 0.5 * _FARTHEST * dt
    for i in range(old.size):
        beyond = (extreme[i] - old[i]) * (extreme[i] - new[i])
        flags[i] = flags[i] if beyond > half * squares[i] else 1.0


@njit(fastmath=schemes.FLAGS, error_model="numpy")
def _surpass(old, new, squares, flags, number, extremes, settings, step, a, d):
    """Draw the extremes of the flagged paths inside one step, in one component."""
    dt = settings[2]
    seed = (np.uint64(settings[3]) << np.uint64(32)) | np.uint64(settings[4])
    for i in range(old.size):
        if flags[i] == 0.0:
            continue
        uniforms = crossing_uniforms(seed, np.int64(number[i]), step, 2 * a)
        gap = new[i] - old[i]
        for k in range(int(settings[5])):
            side = settings[6 + k]
            u = uniforms[0] if side > 0.0 else uniforms[1]
            far = math.sqrt(gap * gap - 2.0 * dt * squares[i] * vmath.log(u))
            top = 0.5 * (old[i] + new[i] + side * far)
            if side * top > side * extremes[k * d + a, i] or top != top:
                extremes[k * d + a, i] = top


@lru_cache(maxsize=64)
def _inside_steps(stepper: schemes.Stepper, kind: type, count: int) -> Any:
    """The pass for the extremes over all times.

    Carried rows: extremes (side, component), the state before (component), sigma^2 (component), whether a
    bridge may surpass an extreme, the number of the path.
    """
    d, load, store = stepper.model.d, stepper.ops.load, stepper.ops.store
    diffusion, variances, unpack = stepper.model.diffusion, stepper.ops.variances, unpacking(kind, count)

    @njit(fastmath=schemes.FLAGS, error_model="numpy")
    def look(when, x, carried, sums, _counts, settings):
        step, save, paths = when
        width = x.shape[1]
        many = int(settings[5])
        extremes, before = carried[: many * d], carried[many * d : (many + 1) * d]
        squares, flags, number = carried[(many + 1) * d : (many + 2) * d], carried[-2], carried[-1]
        if step == int(settings[0]):
            for k in range(many):
                _copied(x, carried[k * d :])
            _copied(x, before)
        elif step > int(sums[0, 0]):  # not seen already
            t = settings[1] + (step - 1) * settings[2]
            p = unpack(settings[_SETTINGS:])
            flat, flat_squares = before.reshape(-1), squares.reshape(-1)
            for i in range(width):
                store(flat_squares, i, variances(diffusion(t, load(flat, i), p)))
            for a in range(d):
                for i in range(width):
                    flags[i] = 0.0
                for k in range(many):
                    _flag(before[a], x[a], squares[a], extremes[k * d + a], settings[2], flags)
                _surpass(before[a], x[a], squares[a], flags, number, extremes, settings, step - 1, a, d)
            _copied(x, before)
        sums[0, 0] = step
        if save >= 0:
            _note(save, paths, many * d, extremes, sums)

    return observing(look, every_step=True)


class Extremes(Observer):
    """``maximum`` and ``minimum`` (path, component) with their means over the paths at saved times.

    Notes
    -----
    Between two steps a path of additive noise is a Brownian bridge: its maximum is
    (a + b + sqrt((b - a)^2 - 2 sigma^2 dt log U)) / 2 with U uniform (invert P(max > m) =
    exp(-2 (m - a)(m - b) / (sigma^2 dt)); Asmussen, Glynn and Pitman 1995, Ann. Appl. Probab. 5, 875). For other
    noise sigma is that at the beginning of the step, exact to leading order. The maximum over the ends of
    steps alone lies lower by 0.5826 sigma sqrt(dt) on average (same paper).

    Parameters
    ----------
    names : tuple of str
        Either of "maximum", "minimum" or either of "step_maximum", "step_minimum".
    """

    every_step = True
    remedy = "use fewer paths, or fewer times in save_at"

    def __init__(self, names: tuple[str, ...], request: Request):
        d, saves = request.sde.dimension, request.saves.size
        self.names, self._d = names, d
        self.bridged = not names[0].startswith("step_")
        quantities = len(names) * d
        self.carried = quantities + 2 * d + 2 if self.bridged else quantities
        self.sums = (1 + saves, 2 * quantities)
        self.held = 8 * quantities * (request.paths + 2 * saves)
        self.purpose = f"{' and '.join(names)} of {request.paths} paths at {saves} times"
        high, low = divmod(request.seed, 1 << 32)
        sides = [_UP if name.endswith("maximum") else _DOWN for name in names]
        sides += [0.0] * (2 - len(sides))
        parameters = request.sde.params if self.bridged else ()
        self.settings = np.array(
            [request.first_step, request.t0, request.dt, high, low, len(names), *sides, *parameters],
            dtype=float,
        )

    def prepare(self, run: Run) -> None:
        """Compile the pass for the model and allocate the extremes of all paths.

        Raises
        ------
        InvalidInput
            If the noise of the run is not that of a Brownian bridge.
        """
        request = run.request
        if self.bridged:
            if not run.source.name.startswith("gaussian"):
                raise InvalidInput(
                    f"statistics contains {self.names[0]!r}, which takes the paths between two steps for Brownian "
                    f"bridges, but the increments here are not Gaussian; ask for 'step_{self.names[0]}'"
                )
            stepper = schemes.stepper(request.scheme, request.sde, run.width)
            kind = type(request.sde.params)
            self.observe = _inside_steps(stepper, kind, len(request.sde.params))
        else:
            self.observe = _over_steps()
        self._moments = Moments(request.saves.size, len(self.names) * self._d, False)
        self._kept = np.full((request.paths, len(self.names) * self._d), np.nan)

    def begin(self, carried: np.ndarray, first: int) -> None:
        """Number the paths."""
        if self.bridged:
            blocks, _, width = carried.shape
            carried[:, -1] = first + np.arange(blocks * width).reshape(blocks, width)

    def merge(self, sums: np.ndarray, paths: np.ndarray) -> None:
        """Take in consecutive blocks."""
        values = sums[:, 1:].reshape(len(sums), sums.shape[1] - 1, -1, 2)
        mean, second = (np.ascontiguousarray(values[..., k]) for k in range(2))
        self._moments.merge(mean, second, paths)

    def keep(self, carried: np.ndarray, first: int, count: int) -> None:
        """Take in the extremes of a part."""
        self._kept[first : first + count] = by_path(carried[:, : self._kept.shape[1]], count)

    def state(self) -> dict[str, np.ndarray]:
        """The extremes so far."""
        return {"kept": self._kept, **self._moments.state()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        self._kept = state["kept"].copy()
        self._moments.restore(state)

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Extremes of every path; their means over the paths with standard errors."""
        how = "over all times, by a Brownian bridge inside each step" if self.bridged else "over the steps"
        data, stderr = {}, self._moments.stderr()
        for k, name in enumerate(self.names):
            here = slice(k * self._d, (k + 1) * self._d)
            word = name.removeprefix("step_")
            told = about(f"{word} of the path {how} of this run")
            if not self.bridged:
                told["bias"] = "short of the extreme over all times by 0.5826 sigma sqrt(dt) on average"
            data[name] = (("path", "component"), self._kept[:, here], told)
            text = about(f"mean over the paths of the {word} so far, {how}")
            data[f"mean_{name}"] = (("time", "component"), self._moments.mean[:, here], text)
            text = about(f"standard error of the mean {word} so far")
            data[f"mean_{name}_stderr"] = (("time", "component"), stderr[:, here], text)
        return data


def checked_extremes(statistics: tuple[str, ...], stop: Any) -> None:
    """Refuse the extremes over all times of paths that end inside a step.

    Raises
    ------
    InvalidInput
        If `stop` is given with them.
    """
    bridged = [name for name in EXTREMES[:2] if name in statistics]
    if bridged and stop is not None:
        raise InvalidInput(
            f"statistics contains {bridged[0]!r} and stop is given: the Brownian bridge of the one knows nothing of "
            f"the other; ask for 'step_{bridged[0]}', or leave stop out"
        )
