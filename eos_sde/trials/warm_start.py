"""Weights of an earlier run as the start of another: the layers that fit are taken, the others are drawn anew."""

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eos_sde.bridge.networks import Network
from solvers.errors import InvalidInput

_ROLE = re.compile(r"\.(?:weights?|kernel|bias(?:es)?)(\[\d+\])?$")


class Earlier(NamedTuple):
    """The weights of a finished run.

    Attributes
    ----------
    weights : ndarray
        As one vector, in the order of the layers.
    layers : tuple of (str, tuple of int)
        Names and shapes of the arrays.
    digest : str
        Of the two: what decides the numbers of a run that starts there.
    words : str
        What was run, for people.
    """

    weights: NDArray[np.float64]
    layers: tuple[tuple[str, tuple[int, ...]], ...]
    digest: str
    words: str


def layers_of(network: Network) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the arrays of a network, in the order of its flat vector.

    Parameters
    ----------
    network : Network
        The network.

    Returns
    -------
    tuple
        Of (name, shape).
    """
    arrays = jax.eval_shape(network.unravel, jax.ShapeDtypeStruct((network.size,), np.float64))
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return tuple((jax.tree_util.keystr(path), tuple(leaf.shape)) for path, leaf in leaves)


def earlier_run(path: str | Path) -> Earlier:
    """Weights of a run.

    Parameters
    ----------
    path : str or Path
        Its ``run.nc``, or the folder that holds it.

    Returns
    -------
    Earlier
        See there.

    Raises
    ------
    InvalidInput
        If there is no finished run, it diverged, or it does not tell its layers.
    """
    given = Path(path).absolute()
    file = given / "run.nc" if given.is_dir() else given
    if not file.is_file():
        raise InvalidInput(
            f"from={path} is no finished run: give the folder of one, which holds run.nc, or that file"
        )
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(file: Path, _: int) -> Earlier:
    try:
        run = xr.load_dataset(file, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"from={file} is no dataset of a run ({error}): give the run.nc of one") from error
    if "final_params" not in run or "layers" not in run.attrs:
        raise InvalidInput(f"from={file} does not tell its layers: make the run again, by eos-sde train")
    if bool(run["diverged"]):
        raise InvalidInput(f"from={file} is of a run that diverged: choose another")
    weights = np.asarray(run["final_params"].values, np.float64)
    layers = tuple((name, tuple(shape)) for name, shape in json.loads(run.attrs["layers"]))
    digest = hashlib.sha256(run.attrs["layers"].encode() + weights.tobytes()).hexdigest()[:16]
    words = f"{run.attrs['task']} under {run.attrs['rule']}, seed {run.attrs['seed']}"
    return Earlier(weights, layers, digest, words)


def run_of_comparison(path: str | Path, seed: int) -> Path | None:
    """The run of a rule and a seed, at the value of the knob that was chosen, in the folder of a comparison.

    Parameters
    ----------
    path : str or Path
        The folder, which holds ``compare.nc``, and the name of a rule: ``folder/caeo``.
    seed : int
        Of the run: one of those that tuned or judged.

    Returns
    -------
    Path or None
        Its folder; None if there is no comparison.

    Raises
    ------
    InvalidInput
        If the comparison has no such rule or seed.
    """
    file = Path(path).parent / "compare.nc"
    if not file.is_file():
        return None
    with xr.open_dataset(file, engine="h5netcdf") as found:
        runs = json.loads(found.attrs.get("runs", "{}"))
    name = Path(path).name
    if name not in runs:
        raise InvalidInput(
            f"from={path}: {file} has no runs of {name!r}: choose one of {', '.join(runs) or 'none'}"
        )
    if str(seed) not in runs[name]:
        raise InvalidInput(
            f"from={path}: {file} has no run of seed {seed}, but of {', '.join(runs[name])}: compare on the same seeds"
        )
    return Path(path).parent / "runs" / runs[name][str(seed)]


def warm_weights(
    earlier: Earlier, network: Network, fresh: Any
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Weights with the layers of an earlier run where they fit.

    An array fits where the earlier network has one of the same name and shape. The weights and biases of a layer, which
    differ in the last part of their names alone, are taken both or neither: a head for other classes is drawn whole.

    Parameters
    ----------
    earlier : Earlier
        The run.
    network : Network
        Whose weights are wanted.
    fresh : array
        Its random initial weights, shape (size,).

    Returns
    -------
    (ndarray, list, list)
        Weights, shape (size,), float64; names of the arrays that were taken, and of those drawn anew.

    Raises
    ------
    InvalidInput
        If no layer fits.
    """
    known, place = {}, 0
    for name, shape in earlier.layers:
        size = int(np.prod(shape))
        known[name] = shape, earlier.weights[place : place + size]
        place += size
    wanted = layers_of(network)
    misfits = {_layer(name) for name, shape in wanted if name not in known or known[name][0] != shape}
    weights, place = np.array(fresh, np.float64), 0
    taken, drawn = [], []
    for name, shape in wanted:
        size = int(np.prod(shape))
        if _layer(name) in misfits:
            drawn.append(name)
        else:
            weights[place : place + size] = known[name][1]
            taken.append(name)
        place += size
    if not taken:
        raise InvalidInput(
            f"from: no layer of {network.description} has the shape that it has in the earlier run ({earlier.words}): "
            "give both runs the same network but for its head"
        )
    return weights, taken, drawn


def _layer(name: str) -> str:
    """The layer that an array belongs to: ``.head.weights[1]`` and ``.head.biases[1]`` are of one."""
    return _ROLE.sub(r"\1", name)
