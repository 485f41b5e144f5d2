"""What a run leaves on disk: a log that is safe to append to, and datasets that are written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solvers.errors import InvalidInput
from solvers.whole_files import naming, write_whole


class RunLog:
    """Rows of numbers, one JSON object a line, the first of them the settings; no row is lost once appended.

    A process that is killed while it writes leaves a last line without an end. Such a line is no row.

    Parameters
    ----------
    path : path
        Of the file.
    settings : mapping
        All that decides the numbers, as it comes back from JSON.
    synced : bool
        Whether each row is waited for until it is on disk, so that it outlives the machine and not only the process.
    writes : bool
        Whether this process writes; of several that share a run, one does.

    Raises
    ------
    InvalidInput
        If the file is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, synced: bool = True, writes: bool = True):
        self._path, self._settings = path, dict(settings)
        self._synced, self._writes = synced, writes
        lines = self._lines()
        if lines and lines[0].get("settings") != self._settings:
            known = lines[0].get("settings") or {}
            different = [key for key in self._settings if known.get(key) != self._settings[key]]
            raise InvalidInput(
                f"{path} is of a run with another {' and '.join(different[:3]) or 'meaning'}; choose another folder"
            )

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        whole = self._path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is torn
        return [json.loads(line) for line in whole]

    def rows(self) -> list[dict[str, Any]]:
        """The rows that are whole."""
        return self._lines()[1:]

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """Drop what is torn and the rows beyond a step; with -1 all.

        Parameters
        ----------
        step : int
            The last to be kept.

        Returns
        -------
        list of dict
            The rows that are left.
        """
        kept = [row for row in self.rows() if row["step"] <= step]
        if not self._writes:
            return kept
        lines = [json.dumps(line) + "\n" for line in ({"settings": self._settings}, *kept)]
        write_whole(self._path, "".join(lines).encode())
        return kept

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        if not self._writes:
            return
        with naming(self._path), self._path.open("ab") as file:
            file.write(json.dumps(dict(row)).encode() + b"\n")
            file.flush()
            if self._synced:
                os.fsync(file.fileno())
