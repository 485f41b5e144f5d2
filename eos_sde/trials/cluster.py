"""Several processes as one machine: the start-up of `jax.distributed`, on GPU and TPU clusters and for tests."""

import jax

from solvers.errors import InvalidInput


def join_cluster(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Let this process see the devices of all; before anything else is done with JAX, in every process.

    Without arguments JAX finds them itself on TPU pods, under SLURM (``srun``), Open MPI and Kubernetes. Elsewhere all
    three are given. On processors the collectives are those of Gloo.

    Parameters
    ----------
    coordinator : str, optional
        "host:port" of the first process, reachable from all.
    processes, process : int, optional
        How many there are, and the number of this one, from 0.

    Raises
    ------
    InvalidInput
        If some are given and others not, a number is out of range, or nothing is found where none is given.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InvalidInput(
            f"coordinator={coordinator!r}, processes={processes!r} and process={process!r} go together: give all"
        )
    if coordinator is not None and processes is not None and process is not None:
        if ":" not in coordinator:
            raise InvalidInput(f"coordinator={coordinator!r} must be host:port of the first process")
        if not 0 <= process < processes:
            raise InvalidInput(f"process={process} must lie from 0 to processes - 1 = {processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:  # jax: arguments that it could not find
        raise InvalidInput(
            f"no cluster is found here ({error}): give coordinator, processes and process"
        ) from error
