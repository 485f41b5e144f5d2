"""Lets a sweep die before each of its steps on the file system, in turn, and another go on: the bits must agree.

Prints the number of deaths, and of those within a write. Run by a test: an empty folder, and the stride from death to
death (1 by default).
"""

import os
import shutil
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import eos_sde.sweeps  # imported once: the children that die have it, and no threads yet
from solvers.errors import InvalidInput
from tests.sweeps.stores import AXES, Counted, counting, same_files

STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
SHORT = {"x": AXES["x"][:3], "seed": range(3)}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fate:
    """Counts the steps of this process on a folder, and ends it before one of them."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.left, self.torn = str(folder), at, False
        self.write = os.write
        os.write, os.fsync = self.written, self.synced
        sys.addaudithook(self.heard)

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            die()

    def heard(self, event: str, arguments: tuple) -> None:
        writes = event in STEPS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and any(self.folder in str(one) for one in arguments[:2]):
            self.step()

    def written(self, file: int, content: bytes) -> int:
        if self.left == 1:
            self.write(file, bytes(content)[: len(content) // 2])
            Path(self.folder, "torn").touch()
        self.step()
        return self.write(file, content)

    def synced(self, file: int) -> None:  # noqa: ARG002 - what a process leaves is there without it
        self.step()


def child(folder: Path, at: int, name: str) -> int:
    """Run a sweep, of some axes and then of longer ones, in a child that dies at a step; how it ended."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        warnings.simplefilter("ignore")
        Fate(folder, at)
        for axes in (SHORT, AXES):
            with suppress(InvalidInput):  # after a death it may have become longer already
                eos_sde.sweep(counting(Counted()), axes, store=folder / name)
        os._exit(0)
    except BaseException as error:  # what a parent of many should see
        sys.stderr.write(f"at {at}: {type(error).__name__}: {error}\n")
        os._exit(1)


def main(place: Path, stride: int) -> None:
    assert child(place, 0, "whole.zarr") == 0
    at, deaths, torn = 1, 0, 0
    while True:
        folder = place / "one"
        folder.mkdir()
        ended = child(folder, at, "s.zarr")
        torn += (folder / "torn").exists()
        (folder / "torn").unlink(missing_ok=True)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, (at, ended)
        assert child(folder, 0, "s.zarr") == 0, at
        assert same_files(place / "whole.zarr", folder / "s.zarr"), at
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["s.zarr"], (at, left)
        shutil.rmtree(folder)
        at, deaths = at + stride, deaths + 1
    sys.stdout.write(f"{deaths} {torn}\n")


main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1)
