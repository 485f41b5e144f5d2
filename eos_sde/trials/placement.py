"""Where a run's weights are: one vector on one device, or arrays spread over a mesh."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from numpy.typing import NDArray

from eos_sde.bridge.task_library import Task
from eos_sde.trials import devices


class Placement(Protocol):
    """How a trial holds its weights, its state and its data."""

    @property
    def name(self) -> str:
        """Tells programs that are compiled apart."""
        ...

    def of(self, task: Task) -> Task:
        """The task as a function of the weights as they are held."""
        ...

    def start(self, task: Task, rule: optax.GradientTransformation, theta: Any) -> tuple[Any, Any]:
        """Weights, given as the flat vector, and state before the first update."""
        ...

    def vector(self, weights: Any) -> NDArray:
        """All weights as the task's flat vector, on the host."""
        ...

    def whole(self, values: Any) -> Any:
        """Arrays that every device has."""
        ...

    def examples(self, values: Any, *, axis: int = 0) -> Any:
        """Arrays cut over the devices along the axis of the examples."""
        ...

    def parts(self, x: Any, y: Any) -> list[tuple]:
        """Examples in pieces that can each be cut over the devices, or are small."""
        ...

    def jit_updates(self, advance: Callable[..., Any], task: Task, rule: Any) -> Any:
        """Compile (knob, weights, state, ...) to (weights, state, numbers), which stay where they are."""
        ...

    def batch(self, seen: Any) -> Any:
        """Mark a batch inside a program."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """The flat vector of the task, where JAX puts it."""

    name = ""

    def of(self, task: Task) -> Task:
        """The task itself."""
        return task

    def start(self, task: Task, rule: optax.GradientTransformation, theta: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """As it is given."""
        theta = jax.numpy.asarray(theta)
        return theta, rule.init(theta)

    def vector(self, weights: Any) -> NDArray:
        """The vector itself."""
        return np.asarray(weights)

    def whole(self, values: Any) -> Any:
        """A copy on the device."""
        return jax.tree.map(jax.numpy.asarray, values)

    def examples(self, values: Any, *, axis: int = 0) -> Any:  # noqa: ARG002
        """A copy on the device."""
        return self.whole(values)

    def parts(self, x: Any, y: Any) -> list[tuple]:
        """All in one."""
        return [(x, y)]

    def jit_updates(self, advance: Callable[..., Any], task: Task, rule: Any) -> Any:  # noqa: ARG002
        """Compiled as it is."""
        return jax.jit(advance)

    def batch(self, seen: Any) -> Any:
        """As it is."""
        return seen


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """The arrays of the network, cut by `devices.partition`; batches cut over "data".

    Attributes
    ----------
    mesh : Mesh
        With the axes "data" and "model".
    """

    mesh: Mesh

    @property
    def name(self) -> str:
        """Sizes of the axes and the devices."""
        return f"{devices.describe_mesh(self.mesh)} {[device.id for device in self.mesh.devices.flat]}"

    def of(self, task: Task) -> Task:
        """The task as a function of the network's arrays."""
        return _of_arrays(task)

    def shardings(self, task: Task) -> Any:
        """Of the weights."""
        return devices.weight_shardings(_shapes(task), self.mesh)

    def start(self, task: Task, rule: optax.GradientTransformation, theta: Any) -> tuple[Any, Any]:
        """As it is given, each array cut; no device holds the state of the rule whole."""
        shardings = self.shardings(task)
        weights = devices.place(task.network.unravel(jax.numpy.asarray(theta)), shardings)
        of_state = devices.state_shardings(rule, _shapes(task), shardings, self.mesh)
        return weights, jax.jit(rule.init, in_shardings=(shardings,), out_shardings=of_state)(weights)

    def vector(self, weights: Any) -> NDArray:
        """The arrays in the order of the flat vector."""
        leaves = jax.tree.leaves(devices.gathered(weights, self.mesh))
        return np.concatenate([leaf.ravel() for leaf in leaves])

    def whole(self, values: Any) -> Any:
        """On every device."""
        return devices.place(values, devices.replicated(self.mesh))

    def examples(self, values: Any, *, axis: int = 0) -> Any:
        """Over "data" where it divides them, else on every device."""

        def put(value: Any) -> jax.Array:
            fits = value.shape[axis] % self.mesh.shape["data"] == 0
            sharding = devices.over_data(self.mesh, axis=axis) if fits else devices.replicated(self.mesh)
            return devices.place(value, sharding)

        return jax.tree.map(put, values)

    def parts(self, x: Any, y: Any) -> list[tuple]:
        """As many as "data" divides, and the few that are left over."""
        cut = len(x) - len(x) % self.mesh.shape["data"]
        return [(x[a:b], y[a:b]) for a, b in ((0, cut), (cut, len(x))) if b > a]

    def jit_updates(self, advance: Callable[..., Any], task: Task, rule: Any) -> Any:
        """Weights and state stay where they are; what comes with them is as it was placed."""
        of_weights = self.shardings(task)
        of_state = devices.state_shardings(rule, _shapes(task), of_weights, self.mesh)
        return jax.jit(advance, out_shardings=(of_weights, of_state, devices.replicated(self.mesh)))

    def batch(self, seen: Any) -> Any:
        """Cut over "data"."""
        return jax.lax.with_sharding_constraint(seen, devices.over_data(self.mesh))


@lru_cache(maxsize=8)
def _of_arrays(task: Task) -> Task:
    own = task.network
    network = dataclasses.replace(own, apply=own.apply_arrays, layered=own.layered_arrays)
    return dataclasses.replace(task, network=network)


def _shapes(task: Task) -> Any:
    return jax.eval_shape(task.network.unravel, jax.ShapeDtypeStruct((task.size,), np.float64))


def placement_of(mesh: Mesh | str | None) -> Placement:
    """The placement that an argument ``mesh`` means.

    Parameters
    ----------
    mesh : Mesh, str or None
        A mesh, its specification, or one device.

    Returns
    -------
    Placement
        See there.

    Raises
    ------
    InvalidInput
        As `devices.make_mesh`.
    """
    if mesh is None:
        return OneDevice()
    return OnMesh(devices.make_mesh(mesh) if isinstance(mesh, str) else mesh)
