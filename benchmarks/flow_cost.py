"""What a stochastic central flow costs beside SGD itself: CPU seconds per step of the rule, and memory.

OMP_NUM_THREADS=1 python benchmarks/flow_cost.py [--task digits-mlp] [--size 1000] [--examples M ...]
                                                  [--precision double single] [--large]

Without --large: a task, for every size of the sample and precision. A flow is run twice; the second run, of another
seed, compiles nothing and is timed, with a saved row every 50 steps. SGD is timed alone and as the six replicas that a
standard error of its late means takes, without measuring anything.

With --large: a network of 1e6 weights on 1e4 images (5000 of Fashion-MNIST and their mirror images), where the
seconds between saved points and the peak of memory are told.
"""

import argparse
import dataclasses
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde import bridge

STEPS, EVERY, REPLICAS = 200, 50, 6


def large_task(hidden):
    """Fashion-MNIST and its mirror images, 1e4 in all."""
    task = bridge.load_task("fashion-mlp", examples=5000, test_examples=100, hidden=hidden, pool=1, eta=0.01)
    with jax.enable_x64(True):
        mirrored = task.x.reshape(-1, 28, 28)[:, :, ::-1].reshape(task.x.shape)
        x, y = jnp.concatenate([task.x, mirrored]), jnp.concatenate([task.y, task.y])
    return dataclasses.replace(task, name="fashion-mlp, mirrored", x=x, y=y)


def seconds(function):
    """CPU seconds of a call that has been made before, and what it returns."""
    begun = time.process_time()
    found = function()
    return time.process_time() - begun, found


def sgd_seconds(task, theta, batch_size, replicas, steps=STEPS):
    """Per step: of runs of two lengths, so that what is paid once drops out."""

    def run(count):
        return bridge.record(task, "sgd", batch_size=batch_size, steps=count, start=theta, seed=1, replicas=replicas,
                             every=count, curvature=False)  # fmt: skip

    times = []
    for count in (steps, 5 * steps):
        run(count)
        times.append(seconds(lambda count=count: run(count))[0])
    return (times[1] - times[0]) / (4 * steps)


def compared(task, batch_size, samples, precisions, modes):
    theta = bridge.checkpoint(task, eta=task.eta, steps=150, seed=0)
    print(f"{task.description}; batch {batch_size}, {modes} modes")
    one, six = (sgd_seconds(task, theta, batch_size, replicas) for replicas in (1, REPLICAS))
    print(
        f"  SGD, a run: {1e3 * one:.3f} ms a step; {REPLICAS} runs together: {1e3 * six:.3f} ms a step",
        flush=True,
    )
    settings = {"batch_size": batch_size, "steps": STEPS, "save_every": EVERY, "modes": modes}
    for examples in samples:
        for precision in precisions:
            asked = settings | {"examples": examples, "precision": precision}
            once, _ = seconds(
                lambda asked=asked: bridge.stochastic_central_flow(task, theta, seed=0, **asked)
            )
            again, flow = seconds(
                lambda asked=asked: bridge.stochastic_central_flow(task, theta, seed=1, **asked)
            )
            evaluated = flow.attrs["gradients_per_step"]
            late = flow.isel(step=slice(-2, None))
            sharpness, loss = (float(late[name].mean()) for name in ("iterate_sharpness", "mean_loss"))
            print(
                f"  flow of {flow.attrs['examples']:5} examples, {precision}: {1e3 * again / STEPS:6.1f} ms a step, "
                f"{again / STEPS / six:.0f} times {REPLICAS} runs; {evaluated:.0f} gradients a step, "
                f"{evaluated / batch_size:.0f} times a run; compilation {once - again:.0f} s; "
                f"late sharpness {sharpness:.4g}, loss {loss:.5g}",
                flush=True,
            )


def large(options):
    task = large_task(tuple(options.hidden))
    print(
        f"{task.description}; batch {options.batch}, {options.modes} modes, {options.precision[0]}",
        flush=True,
    )
    theta = bridge.checkpoint(task, eta=task.eta, steps=100, seed=0)
    began, marks = time.monotonic(), []

    def told(step):
        marks.append((time.process_time(), time.monotonic()))
        print(f"  step {step}: {marks[-1][1] - began:.0f} s, peak {peak():.2f} GiB", flush=True)

    flow = bridge.stochastic_central_flow(
        task, theta, batch_size=options.batch, steps=options.steps, stride=5, save_every=options.every,
        modes=options.modes, examples=options.examples[0] if options.examples else None,
        precision=options.precision[0], progress=told,
    )  # fmt: skip
    (cpu, wall), (cpu_end, wall_end) = marks[-2:]
    moved = np.linalg.norm(flow["final_params"].values - np.asarray(theta))
    print(
        f"  {options.every} steps of the rule with a saved row: {cpu_end - cpu:.0f} CPU seconds, "
        f"{wall_end - wall:.0f} s by the clock; {flow.attrs['gradients_per_step']:.0f} gradients a step, "
        f"{flow.attrs['examples']} examples; peak {peak():.2f} GiB"
    )
    print(
        f"  sharpness {np.round(flow['iterate_sharpness'].values, 2)}, "
        f"mean loss {np.round(flow['mean_loss'].values, 5)}, moved {moved:.3g}; "
        f"{flow.attrs['stopped'] or 'to the end'}"
    )


def peak():
    """GiB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits-mlp", choices=bridge.tasks())
    parser.add_argument("--size", type=int, default=1000, help="training examples")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--examples", type=int, nargs="+", help="sizes of the sample")
    parser.add_argument("--precision", nargs="+", default=["double"], choices=("double", "single"))
    parser.add_argument("--modes", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1000, 200], help="widths, with --large")
    parser.add_argument("--steps", type=int, default=20, help="with --large")
    parser.add_argument("--every", type=int, default=10, help="steps between saved rows, with --large")
    options = parser.parse_args()
    if options.large:
        large(options)
        return
    task = bridge.load_task(options.task, examples=options.size, test_examples=100)
    compared(task, options.batch, options.examples or [None], options.precision, options.modes)


if __name__ == "__main__":
    main()
