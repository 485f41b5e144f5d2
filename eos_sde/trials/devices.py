"""Many devices: a mesh with the axes "data" and "model", and where weights, states of rules and batches lie on it.

Everything is left to the compiler (GSPMD): what a program takes and gives has a `jax.sharding.NamedSharding`, and XLA
puts in the collectives. Nothing here is of one kind of device; for many processes see `eos_sde.trials.cluster`.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solvers.errors import InvalidInput

AXES = ("data", "model")
SHARDED_FROM = 1024
"""Numbers in the smallest array that is cut over "model"; smaller ones are on every device, whole."""


def parse_mesh(spec: str) -> dict[str, int]:
    """Sizes of the axes of a mesh.

    Parameters
    ----------
    spec : str
        For example "data=8" or "data=4,model=2"; an axis left out has size 1.

    Returns
    -------
    dict
        "data" and "model" to their sizes.

    Raises
    ------
    InvalidInput
        For another axis, one given twice, or a size that is no positive integer.

    Examples
    --------
    >>> parse_mesh("data=4,model=2")
    {'data': 4, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for part in str(spec).split(","):
        axis, equals, size = (word.strip() for word in part.partition("="))
        if not equals or axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise InvalidInput(
                f"mesh={spec!r} must be sizes of {' and '.join(AXES)}, such as data=4,model=2 or data=8"
            )
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(spec: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a specification, over the first devices.

    Parameters
    ----------
    spec : str
        As for `parse_mesh`.
    devices : sequence of jax.Device, optional
        All that this run has, over all its processes, if left out. They are laid out so that neighbours on an axis are
        neighbours in the network (`jax.experimental.mesh_utils`).

    Returns
    -------
    jax.sharding.Mesh
        With the axes "data" and "model".

    Raises
    ------
    InvalidInput
        If there are not enough devices, or a process of several would have none.
    """
    sizes = parse_mesh(spec)
    there = list(jax.devices() if devices is None else devices)
    count = sizes["data"] * sizes["model"]
    if count > len(there):
        raise InvalidInput(
            f"mesh={spec!r} needs {count} devices and there are {len(there)}: choose a smaller one, or on a processor "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count} before the start"
        )
    processes = len({device.process_index for device in there})
    if processes > 1 and count < len(there):
        raise InvalidInput(
            f"mesh={spec!r} takes {count} of the {len(there)} devices of {processes} processes: take all"
        )
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), there[:count])
    return Mesh(grid, AXES)


def virtual_devices(count: int) -> list[Any]:
    """Devices of the processor, as many as are asked for if JAX has not begun; for programs that are only compiled.

    Parameters
    ----------
    count : int
        How many.

    Returns
    -------
    list of jax.Device
        Those that there are where JAX has begun: `make_mesh` says if they are too few.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has begun, and its devices are what they are
            jax.config.update("jax_num_cpu_devices", count)
    return list(jax.devices("cpu"))


def describe_mesh(mesh: Mesh) -> str:
    """A mesh in words, for attributes: "data=4,model=2 of cpu devices in 1 process"."""
    sizes = ",".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)
    kinds = {device.device_kind for device in mesh.devices.flat}
    processes = len({device.process_index for device in mesh.devices.flat})
    return f"{sizes} of {'/'.join(sorted(kinds))} devices in {processes} process{'es' * (processes > 1)}"


def partition(shape: Sequence[int], mesh: Mesh, *, stacked: bool = False) -> PartitionSpec:
    """Where an array of weights is cut: along its largest axis that the devices of "model" divide, if it is big.

    Of two axes as large the last is taken. A fully connected pair (w, 4w), (4w, w) is thereby cut as Megatron-LM cuts
    it (Shoeybi et al., arXiv:1909.08053): columns, then rows, with one sum over the devices after the pair.

    Parameters
    ----------
    shape : sequence of int
        Of the array.
    mesh : Mesh
        With the axis "model".
    stacked : bool
        Whether the first axis counts layers that a scan goes through, which is not cut: each layer is needed in turn.

    Returns
    -------
    PartitionSpec
        Empty, that is whole on every device, below `SHARDED_FROM` numbers or where no axis can be cut.
    """
    parts, first = mesh.shape["model"], int(stacked)
    if parts == 1 or np.prod(shape[first:], dtype=float) < SHARDED_FROM:
        return PartitionSpec()
    fitting = [axis for axis in range(first, len(shape)) if shape[axis] % parts == 0]
    if not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda one: (shape[one], one))
    return PartitionSpec(*(None,) * axis, "model")


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Cut along an axis over "data", as the examples of a batch are."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def weight_shardings(
    weights: Any, mesh: Mesh, *, stacked: Sequence[str] = (), cut: Mapping[str, int] | None = None
) -> Any:
    """Sharding of each array of weights, by `partition` where nothing else is said.

    Parameters
    ----------
    weights : pytree
        Of arrays, or of their shapes.
    mesh : Mesh
        Where they lie.
    stacked : sequence of str
        Keys of a path whose arrays hold one layer per entry of their first axis.
    cut : mapping, optional
        Key of a path to the axis that is cut, counted from the last (-1), where "model" divides it.

    Returns
    -------
    pytree of NamedSharding
        Like `weights`.
    """
    parts = mesh.shape["model"]

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        names = {str(getattr(key, "key", getattr(key, "name", None))) for key in path}
        first = int(bool(names & set(stacked)))
        for name, back in (cut or {}).items():
            axis = len(leaf.shape) + back
            if name in names and axis >= first and parts > 1 and leaf.shape[axis] % parts == 0:
                return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "model"))
        return NamedSharding(mesh, partition(leaf.shape, mesh, stacked=bool(first)))

    return jax.tree_util.tree_map_with_path(sharding, weights)


def state_shardings(rule: optax.GradientTransformation, weights: Any, shardings: Any, mesh: Mesh) -> Any:
    """Sharding of the state of a rule: what is shaped like the weights follows them, the rest is on every device.

    Parameters
    ----------
    rule : optax.GradientTransformation
        The rule.
    weights : pytree
        Of arrays, or of their shapes.
    shardings : pytree of NamedSharding
        Of the weights.
    mesh : Mesh
        Where they lie.

    Returns
    -------
    pytree of NamedSharding
        Like the state.
    """
    state = jax.eval_shape(rule.init, weights)
    return optax.tree.map_params(
        rule,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )


def place(values: Any, shardings: Any) -> Any:
    """Put values that every process holds whole where they belong; each process keeps its part.

    Parameters
    ----------
    values : pytree of array
        The same in every process.
    shardings : pytree of NamedSharding
        Like `values`, or one for all.

    Returns
    -------
    pytree of jax.Array
        Spread over the mesh.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, values)

    def put(value: Any, sharding: NamedSharding) -> jax.Array:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.device_put(value, sharding)
        held = np.asarray(value)
        return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])

    return jax.tree.map(put, values, shardings)


def gathered(values: Any, mesh: Mesh) -> Any:
    """Whole arrays of the host, in every process.

    Parameters
    ----------
    values : pytree of jax.Array
        Spread over the mesh.
    mesh : Mesh
        The mesh.

    Returns
    -------
    pytree of ndarray
        The same numbers.
    """
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(values)
    return jax.tree.map(np.asarray, whole)


def check_divisible(counts: Mapping[str, int], mesh: Mesh) -> None:
    """Refuse numbers of examples that the devices of "data" do not divide.

    Parameters
    ----------
    counts : mapping
        Name of a setting to its value.
    mesh : Mesh
        The mesh.

    Raises
    ------
    InvalidInput
        Naming the first that is wrong.
    """
    parts = mesh.shape["data"]
    for name, count in counts.items():
        if count % parts:
            raise InvalidInput(f"{name}={count} must be a multiple of data={parts} of the mesh")
