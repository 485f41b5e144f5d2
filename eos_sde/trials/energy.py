"""Energy that the processor has used, where the machine tells: the RAPL counters of Linux."""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, of all processor packages together.

    The counters are those of the machine: other programs that run beside count too. They wrap around, which is seen as
    long as the meter is read at least once a turn (minutes at full power).

    Parameters
    ----------
    root : path
        Where the counters are; another for tests.
    """

    def __init__(self, root: Path = POWERCAP):
        self._total = 0.0
        self._last: dict[Path, int] = {}
        # packages are intel-rapl:0, :1; their parts (intel-rapl:0:0) would count twice
        for package in sorted(root.glob("intel-rapl:*")):
            if package.name.count(":") == 1:
                counted = _counter(package / "energy_uj")
                if counted is not None:
                    self._last[package] = counted

    @property
    def readable(self) -> bool:
        """Whether this machine tells; often root alone may read."""
        return bool(self._last)

    def joules(self) -> float | None:
        """Energy since the meter was made, or None where the machine does not tell."""
        if not self.readable:
            return None
        for package, before in self._last.items():
            now = _counter(package / "energy_uj")
            if now is None:
                return None
            turn = 0 if now >= before else (_counter(package / "max_energy_range_uj") or 0)
            self._total += (now - before + turn) * 1e-6
            self._last[package] = now
        return self._total


def _counter(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or for root alone: the machine does not tell
        return None
