"""A disk that is really full and one that is really read-only, mounted in a namespace of the test's own."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
SCRIPT = Path(__file__).with_name("real_faults.py")


@cache
def forbidden() -> str:
    """Why nothing can be mounted here; empty where it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare, which makes the namespace to mount in"
    tried = subprocess.run(
        [*ALONE, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"a tmpfs cannot be mounted here: {tried.stderr.strip()}"


@pytest.mark.parametrize("step", [90, pytest.param(8, marks=pytest.mark.slow)])
def test_full_and_read_only_disks_are_one_sentence_and_cost_nothing(step, tmp_path):
    """Of sizes from 4 KiB up in steps; each sweep is then given room, and goes on to the bits of an undisturbed one."""
    if forbidden():
        pytest.skip(forbidden())
    done = subprocess.run(
        [*ALONE, sys.executable, str(SCRIPT), str(tmp_path), str(step)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["export", "full", "read-only"]
    assert "the disk is full; free some space" in done.stdout
    if step < 20:  # every moment at which it may be full was met
        for kept in ("nothing", "empty", "with a journal", "arrays"):
            assert f"'{kept}'" in done.stdout, done.stdout
