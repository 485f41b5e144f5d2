"""Energy that a run uses, where the machine tells: processors by Linux's RAPL counters, NVIDIA GPUs by NVML.

Both are counters of the hardware, read and subtracted: nothing is estimated. (codecarbon estimates where there is no
counter; zeus reads these, and brings a process to watch for the turn of RAPL's, which is seen here by the time that has
passed.) NVML is read by NVIDIA's own package, nvidia-ml-py.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

POWERCAP = Path("/sys/class/powercap")
_MOST_WATTS = 1000.0
"""More than a processor package draws: where this would not fill a counter, it has turned once at most."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy.

    Attributes
    ----------
    name : str
        Of what.
    read : callable
        Returns microjoules since some time, or None where they cannot be read (any more).
    turn : int
        Microjoules at which it begins anew; 0 for a counter that does not.
    """

    name: str
    read: Callable[[], int | None]
    turn: int = 0


class EnergyMeter:
    """Joules since it was made, over all counters that the machine lets be read.

    They are of the whole device: other programs that run beside count too.

    Parameters
    ----------
    root : path
        Where RAPL's counters are; another for tests.
    gpu : bool, optional
        Whether GPUs are counted; if left out, where JAX computes on them.
    clock : callable
        Seconds; another for tests.
    """

    def __init__(
        self,
        root: Path = POWERCAP,
        *,
        gpu: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        wanted = jax.default_backend() == "gpu" if gpu is None else gpu
        processors, why = _rapl(root)
        devices, missing = _nvml() if wanted else ([], "")
        self._counters, self._clock = [*processors, *devices], clock
        self._absent = "; ".join(filter(None, (why, missing)))
        self._values = [counter.read() for counter in self._counters]
        self._at, self._total = clock(), 0.0

    @property
    def readable(self) -> bool:
        """Whether this machine tells anything."""
        return bool(self._counters)

    @property
    def source(self) -> str:
        """What was read, or why nothing was; for people."""
        if not self.readable:
            return f"not told here: {self._absent}"
        told = f"{', '.join(counter.name for counter in self._counters)}; all programs together"
        return f"{told}; without others: {self._absent}" if self._absent else told

    def joules(self) -> float:
        """Energy since the meter was made; NaN where the machine does not tell, or a counter may have turned twice."""
        if not self.readable:
            return math.nan
        now = self._clock()
        for place, counter in enumerate(self._counters):
            before, value = self._values[place], counter.read()
            if before is None or value is None or _twice(counter, now - self._at):
                self._total = math.nan
                continue
            self._values[place] = value
            if value < before and not counter.turn:
                self._total = math.nan  # set back, by a driver that was loaded anew
            self._total += (value - before + (counter.turn if value < before else 0)) * 1e-6
        self._at = now
        return self._total


def _twice(counter: Counter, seconds: float) -> bool:
    return counter.turn > 0 and seconds * _MOST_WATTS * 1e6 > counter.turn


def _rapl(root: Path) -> tuple[list[Counter], str]:
    """Counters of the processor packages and of the memory beside them, or why there are none.

    Zones of a package other than its memory are inside the package; "psys", a zone beside the packages, holds them all.
    """
    found, refused = [], False
    for zone in sorted(root.glob("intel-rapl:*")):
        name = _text(zone / "name") or ""
        package = zone.name.count(":") == 1 and name.startswith("package")
        if not package and name != "dram":
            continue
        turn, value = _number(zone / "max_energy_range_uj"), _number(zone / "energy_uj")
        if turn is None or value is None:
            refused = True
            continue
        found.append(Counter(f"RAPL {name}", lambda zone=zone: _number(zone / "energy_uj"), turn))
    if found:
        return found, ""
    if refused:
        return [], f"RAPL's counters in {root} may be read by root alone"
    return [], f"no RAPL counter in {root}"


def _nvml() -> tuple[list[Counter], str]:
    """Counters of the GPUs that this process may use, or why there are none."""
    try:
        import pynvml
    except ImportError:
        return [], "GPUs need nvidia-ml-py, pip install 'eos-sde[energy]'"
    try:
        pynvml.nvmlInit()
        found = [_gpu(pynvml, handle) for handle in _handles(pynvml)]
    except pynvml.NVMLError as error:  # no driver, or no such GPU
        return [], f"NVML does not tell ({error})"
    without = [counter.name for counter in found if counter.read() is None]
    if without:
        return [], f"{without[0]} has no counter of energy, as GPUs before Volta"
    return found, ""


def _gpu(nvml: Any, handle: Any) -> Counter:
    def read() -> int | None:
        try:
            return 1000 * nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # in millijoules
        except nvml.NVMLError:
            return None

    return Counter(f"NVML {nvml.nvmlDeviceGetName(handle)}", read)


def _handles(nvml: Any) -> Iterable[Any]:
    """Of the devices that CUDA_VISIBLE_DEVICES names, by number or UUID; all if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(nvml.nvmlDeviceGetCount())) if visible is None else visible.split(",")
    for name in filter(None, map(str.strip, names)):
        if name.isdecimal():
            yield nvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            yield nvml.nvmlDeviceGetHandleByUUID(name)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # absent, or for root alone: the machine does not tell
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None
