"""What multilevel Monte Carlo runs on: schemes whose short steps add up to long ones, and observables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from solvers import namespaces, scalar, schemes
from solvers.compiling import Keyed
from solvers.coupled_levels import WIDTH
from solvers.errors import InvalidInput
from solvers.exit_times import refuse_arity
from solvers.purity import plain_function, purity_key
from solvers.reading import PROBES, read_model
from solvers.schemes import FLAGS, structure

if TYPE_CHECKING:
    from solvers.sde import SDE

_AREAS = ("sra1", "sriw1")
"""Schemes whose step draws, besides dW, numbers U with int_0^dt W ds = dt (dW + U / sqrt(3)) / 2."""


def truncated_milstein(sde: SDE) -> schemes.Scheme:
    """Milstein's scheme without Levy areas, for any noise: of strong order 1/2, but 1 for antithetic means.

    Raises
    ------
    InvalidInput
        If the noise commutes, so that nothing is left out, or is diagonal in form but coupled.
    """
    full = schemes.find("milstein")
    if structure.verdict(sde).kind in full.accepts:
        raise InvalidInput(
            "antithetic=True is for noise that does not commute; here 'milstein' is exact: use it"
        )
    if sde.noise == "diagonal":
        raise InvalidInput(
            "antithetic=True needs the products of different noises: write this coupled noise as a matrix, with "
            "noise='general'"
        )
    return replace(full, name="truncated-milstein", strong=0.5, accepts=frozenset(structure.KINDS))


def coupling(scheme: schemes.Scheme, sde: SDE) -> schemes.Stepper:
    """The step of a scheme whose random numbers of short steps make those of long ones.

    Raises
    ------
    InvalidInput
        If they do not, as two-point numbers or auxiliary ones, or the scheme cannot treat the noise.
    """
    stepper = schemes.stepper(scheme, sde, WIDTH)
    m, draws = sde.noise_dimension, stepper.draws
    if draws.gaussian != sum(draws) or not (draws.gaussian == m or scheme.name in _AREAS):
        raise InvalidInput(
            f"scheme={scheme.name!r} draws numbers that do not add up to those of a longer step; choose one "
            "that draws Gaussian increments, such as 'milstein' or 'euler-maruyama'"
        )
    return stepper


def compiled_observable(observable: Callable[..., Any], sde: SDE) -> Any:
    """A dispatcher (t, y, p) -> float for ``observable(t, y, p, xp)``, after one trial on arrays.

    Raises
    ------
    InvalidInput
        If it is no such function, or does not return one real number per path.
    """
    function = plain_function(observable, "observable")
    refuse_arity(function, 4, "observable", "(t, y, p, xp)")
    probes = tuple(PROBES + 0.1 * i for i in range(sde.dimension))
    with np.errstate(all="ignore"):
        value = read_model("observable", function, 0.0, probes, sde.params, namespaces.array)
    if (
        isinstance(value, (tuple, list))
        or np.iscomplexobj(value)
        or np.shape(value) not in {(), PROBES.shape}
    ):
        raise InvalidInput(f"observable returned {value!r}; return one real number, as in y[0] ** 2")
    return _observing(Keyed(purity_key(function, "observable"), function))


@lru_cache(maxsize=128)
def _observing(keyed: Keyed) -> Any:
    function = njit(fastmath=FLAGS, error_model="numpy")(keyed.function)

    @njit(fastmath=FLAGS, error_model="numpy")
    def observe(t, y, p):
        return float(function(t, y, p, scalar))

    return observe
