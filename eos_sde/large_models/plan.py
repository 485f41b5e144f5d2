"""What training a large model over a mesh would take: its step compiled ahead of time from shapes, and never run."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr
from jax.sharding import Mesh

from eos_sde.bridge.rules import make_rule
from eos_sde.large_models.catalogue import MODELS, LargeModel, count_weights
from eos_sde.large_models.collectives import KINDS, collectives
from eos_sde.large_models.hardware import HARDWARE, Hardware
from eos_sde.optimizers.curvature import recomputed
from eos_sde.optimizers.curvature.interface import PRODUCT_COST
from eos_sde.optimizers.refresh import LINEARIZATION_COST, SLOPE_COST, Budget, policy
from eos_sde.trials import devices
from eos_sde.trials.costs import Flops, count_flops
from solvers.errors import InvalidInput
from solvers.provenance import provenance

RULES = ("sgd", "adamw", "caeo")
HEADS = {"query": -2, "key": -2, "value": -2, "out": -3}
"""Axes of the arrays of an attention that count its heads, from the last: these are cut, as Megatron-LM cuts them."""
_DAY = 86_400.0
_NEVER_RUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_COUNTED = 2  # examples in a count of operations, which is divided by it
_PASS = 3  # products in a pass of the default estimator


def plan_training(
    model: str,
    *,
    mesh: str,
    batch: int,
    probe: int | None = None,
    rule: str = "caeo",
    precision: str = "bf16",
    hardware: str = "h100",
    peak: float | None = None,
    memory: float | None = None,
    utilization: float = 0.4,
    topology: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Compile a training step over a mesh and plan the whole run.

    Nothing is allocated: weights, state and batch are shapes. With the rule "caeo" the step of plain gradient descent
    is compiled beside, and the difference is what CAEO takes.

    Parameters
    ----------
    model : str
        One of `MODELS`.
    mesh : str
        Such as "data=4,model=2"; see `eos_sde.trials.devices`.
    batch : int
        Examples of an update over all devices, a multiple of data.
    probe : int, optional
        Examples of the batch whose curvature CAEO measures; those of the update if left out.
    rule : {"sgd", "adamw", "caeo"}
        With default options.
    precision : {"bf16", "fp32"}
        Of the arithmetic; weights, state and curvature are float32.
    hardware : str
        One of `HARDWARE`, for peak and memory.
    peak, memory : float, optional
        Operations per second and bytes of a device, in place of the preset's.
    utilization : float
        Part of the peak that is reached, an assumption: 0.3 to 0.5 is usual where matrices are large.
    topology : str, optional
        Of a TPU, such as "v5p:2x2x2", for which its own compiler is asked; needs the package libtpu and no TPU. If left
        out the mesh is of virtual devices of this processor.
    progress : callable, optional
        Called with the part that is done.

    Returns
    -------
    Dataset
        Over ``program`` (the plain step, and that of the rule): bytes of one device (``argument_bytes``,
        ``output_bytes``, ``alias_bytes``, ``temporary_bytes``, ``peak_bytes`` with donated buffers counted once),
        ``compile_seconds``. Over (program, collective, when): ``collectives``, ``collective_bytes``,
        ``largest_collective``; when is "update" or "measurement" of the curvature, of one pass. Scalars: see the code
        of `_planned`. Attributes say what was compiled for what, and sources.

    Raises
    ------
    InvalidInput
        For an unknown name, a batch or a mesh that does not fit, or a missing package.
    """
    chosen, device = _checked(model, rule, hardware, utilization, peak, memory)
    count = math.prod(devices.parse_mesh(mesh).values())
    grid = devices.make_mesh(
        mesh, devices.virtual_devices(count) if topology is None else _topology(topology)
    )
    sizes = {"batch": batch, "probe": batch if probe is None else probe}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name}={value!r} must be a positive integer")
    devices.check_divisible(sizes, grid)
    names = ("sgd", "caeo") if rule == "caeo" else (rule,)
    parts = len(names) + 1
    flops = model_flops(chosen, precision)
    if progress is not None:
        progress(1 / parts)
    programs = []
    for number, name in enumerate(names):
        programs.append(_compiled(chosen, name, grid, sizes, precision))
        if progress is not None:
            progress((number + 2) / parts)
    return _dataset(
        chosen, names, programs, flops, device, grid, sizes, rule, utilization,
        {"precision": precision, "topology": topology or "", "hardware": device.source},
    )  # fmt: skip


def _checked(
    model: str, rule: str, hardware: str, utilization: float, peak: float | None, memory: float | None
) -> tuple[LargeModel, Hardware]:
    for name, value, known in (
        ("model", model, MODELS), ("rule", rule, RULES), ("hardware", hardware, HARDWARE),
    ):  # fmt: skip
        if value not in known:
            raise InvalidInput(f"{name}={value!r} is not known: choose one of {', '.join(known)}")
    for name, value in (("utilization", utilization), ("peak", peak), ("memory", memory)):
        if value is not None and not 0 < value < math.inf:
            raise InvalidInput(f"{name}={value!r} must be a positive number")
    if utilization > 1:
        raise InvalidInput(f"utilization={utilization!r} is a part of the peak: at most 1")
    try:
        import flax  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"model={model!r} is defined in Flax, which is not installed: pip install 'eos-sde[models]'"
        ) from error
    preset = HARDWARE[hardware]
    source = preset.source if peak is None and memory is None else "as given"
    return MODELS[model], Hardware(peak or preset.peak, memory or preset.memory, source)


def _topology(name: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # of the plugin: not installed, or a shape that it does not know
        raise InvalidInput(
            f"topology={name!r} cannot be compiled for ({str(error).splitlines()[0]}): install libtpu and choose one "
            "such as v5p:2x2x2"
        ) from error


def model_flops(model: LargeModel, precision: str) -> Flops:
    """Operations of a model for one example, with what is recomputed.

    Parameters
    ----------
    model : LargeModel
        The model.
    precision : {"bf16", "fp32"}
        Of the arithmetic.

    Returns
    -------
    Flops
        Counted on the program as it is before XLA optimises it; scans count as often as they run.
    """
    weights, loss = model.shapes(precision)[0], model.loss(precision)
    batch = model.batch(_COUNTED)

    def slope(w: Any, *seen: Any) -> Any:
        return jax.grad(loss)(w, *seen)

    def product(w: Any, v: Any, *seen: Any) -> Any:
        return recomputed(lambda at: loss(at, *seen)).product(w)(v)

    def bend(w: Any, v: Any, *seen: Any) -> Any:
        return recomputed(lambda at: loss(at, *seen)).product.slope(w, v)

    gradient = count_flops(slope, weights, *batch)
    whole = count_flops(product, weights, weights, *batch)
    counts = (gradient, whole - gradient, count_flops(bend, weights, weights, *batch))
    return Flops(*(count / _COUNTED for count in counts))


def training_step(
    loss: Callable[..., Any], rule: optax.GradientTransformationExtraArgs
) -> Callable[..., Any]:
    """One update of a rule on a batch.

    Parameters
    ----------
    loss : callable
        (weights, *batch) to a scalar.
    rule : optax.GradientTransformationExtraArgs
        The rule.

    Returns
    -------
    callable
        (weights, state, batch, and a batch for the curvature or None) to weights, state and the loss. Products share no
        forward pass, so that recomputed blocks stay so.
    """

    def step(weights: Any, state: Any, batch: tuple, probe: tuple | None = None) -> tuple:
        seen = batch if probe is None else probe
        value, gradient = jax.value_and_grad(loss)(weights, *batch)
        given = {"value": value, "value_fn": recomputed(lambda w: loss(w, *seen))}
        updates, state = rule.update(gradient, state, weights, **given)
        return optax.apply_updates(weights, updates), state, value

    return step


def _compiled(
    model: LargeModel, name: str, mesh: Mesh, sizes: Mapping[str, int], precision: str
) -> dict[str, Any]:
    """Memory and collectives of one update."""
    batch = model.batch(sizes["batch"])
    probe = model.batch(sizes["probe"]) if name == "caeo" and sizes["probe"] != sizes["batch"] else None
    options: dict[str, Any] = {"refresh": "auto"} if name == "caeo" else {}
    rule = make_rule(name, eta=0.1, **options)
    weights = model.shapes(precision)[0]
    of_weights = devices.weight_shardings(weights, mesh, stacked=model.stacked, cut=HEADS)
    of_state = devices.state_shardings(rule, weights, of_weights, mesh)
    step = jax.jit(
        training_step(model.loss(precision), rule),
        in_shardings=(of_weights, of_state, devices.over_data(mesh), devices.over_data(mesh)),
        out_shardings=(of_weights, of_state, devices.replicated(mesh)),
        donate_argnums=(0, 1),
    )
    began = time.perf_counter()
    lowered = step.lower(weights, jax.eval_shape(rule.init, weights), batch, probe)
    on_processor = mesh.devices.flat[0].platform == "cpu"
    compiled = lowered.compile(compiler_options=_NEVER_RUN if on_processor else None)
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    sizes = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }
    peak = sum(sizes.values()) - 2 * sizes["alias_bytes"]
    return {
        **sizes,
        "peak_bytes": peak,
        "compile_seconds": seconds,
        "sent": collectives(compiled.as_text() or ""),
    }


def _planned(
    model: LargeModel,
    flops: Flops,
    device: Hardware,
    mesh: Mesh,
    sizes: Mapping[str, int],
    rule: str,
    utilization: float,
) -> dict[str, tuple[Any, str, str]]:
    """Scalars of a plan: value, units, long name."""
    overhead, batch = 0.0, sizes["batch"]
    measurement = _PASS * (flops.gradient + flops.product) + flops.slope  # nothing is shared
    measurement *= sizes["probe"] / batch
    if rule == "caeo":
        plan = policy("auto")
        assert isinstance(plan, Budget)
        nominal = LINEARIZATION_COST + PRODUCT_COST * _PASS + SLOPE_COST  # what the budget takes it to cost
        overhead = plan.share * measurement / (nominal * flops.gradient)
    per_update = batch * flops.gradient * (1 + overhead)
    rate = utilization * device.peak * mesh.devices.size / per_update  # updates per second
    updates = math.ceil(model.examples / batch) * model.epochs
    return {
        "weights": (count_weights(model.shapes("fp32")[0]), "1", "number of weights"),
        "gradient_flops": (flops.gradient, "1", "operations of a gradient for an example"),
        "product_flops": (
            flops.product,
            "1",
            "of a Hessian-vector product, beyond the gradient that it shares",
        ),
        "slope_flops": (flops.slope, "1", "of the gradient of v'Hv"),
        "measurement_gradients": (
            measurement / flops.gradient,
            "1",
            "a measurement of one pass, in gradients of the batch",
        ),
        "overhead": (overhead, "1", "operations for curvature in the long run over those of the gradient"),
        "updates_per_day": (rate * _DAY, "1", "updates in a day"),
        "updates": (updates, "1", "updates of the recipe"),
        "days": (updates / rate / _DAY, "day", "time of the recipe"),
        "epochs": (model.epochs, "1", "of the recipe"),
        "examples": (model.examples, "1", "examples of an epoch"),
        "peak": (device.peak, "1/s", "operations per second of a device"),
        "memory": (device.memory, "byte", "memory of a device"),
        "utilization": (utilization, "1", "part of the peak that is assumed"),
    }


def _dataset(
    model: LargeModel, names: tuple[str, ...], programs: list[dict[str, Any]], flops: Flops, device: Hardware,
    mesh: Mesh, sizes: Mapping[str, int], rule: str, utilization: float, words: dict[str, str],
) -> xr.Dataset:  # fmt: skip
    contents: dict[str, Any] = {}
    for key in ("argument_bytes", "output_bytes", "alias_bytes", "temporary_bytes", "peak_bytes"):
        text = {"units": "byte", "long_name": f"{key.split('_')[0]} memory of a device"}
        contents[key] = ("program", [program[key] for program in programs], text)
    seconds = [program["compile_seconds"] for program in programs]
    contents["compile_seconds"] = (
        "program",
        seconds,
        {"units": "s", "long_name": "time to lower and compile"},
    )
    for key, unit in (("number", "1"), ("bytes", "byte"), ("largest", "byte")):
        values = np.array(
            [
                [
                    [getattr(program["sent"].get((kind, data)), key, 0.0) for data in (False, True)]
                    for kind in KINDS
                ]
                for program in programs
            ]
        )
        name = {"number": "collectives", "bytes": "collective_bytes", "largest": "largest_collective"}[key]
        contents[name] = (("program", "collective", "when"), values, {"units": unit, "long_name": name})
    for key, (value, unit, name) in _planned(model, flops, device, mesh, sizes, rule, utilization).items():
        contents[key] = ((), float(value), {"units": unit, "long_name": name})
    contents["fits"] = ((), bool(programs[-1]["peak_bytes"] <= device.memory), {"units": "1"})
    coords = {"program": list(names), "collective": list(KINDS), "when": ["update", "measurement"]}
    attrs = provenance(
        model=model.name, description=model.description, mesh=devices.describe_mesh(mesh), rule=rule, **sizes,
        data=model.data, source=model.source, **words,
    )  # fmt: skip
    return xr.Dataset(contents, coords, attrs)
