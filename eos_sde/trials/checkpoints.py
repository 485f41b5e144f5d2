"""Checkpoints of a run, by orbax: weights and state of the rule, bit for bit."""

from pathlib import Path
from typing import Any

from solvers.whole_files import naming

_KEPT = 2


class Checkpoints:
    """The last checkpoints of a run.

    Each is on disk, whole, when `save` returns; one that a killed process left half written is never seen.

    Parameters
    ----------
    folder : path
        Where they are.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as orbax

        self._orbax, self._folder = orbax, folder
        options = orbax.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False)
        self._manager = orbax.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: Any) -> None:
        """Keep a pytree of arrays.

        Parameters
        ----------
        step : int
            Updates made.
        tree : pytree
            Of arrays.

        Raises
        ------
        OSError
            If it cannot be written, with the folder as ``filename``.
        """
        with naming(self._folder):
            self._manager.save(step, args=self._orbax.args.StandardSave(tree))
            self._manager.wait_until_finished()

    def latest(self, like: Any) -> tuple[int, Any] | None:
        """The last one that is whole.

        Parameters
        ----------
        like : pytree
            Of the structure, shapes and dtypes that were saved.

        Returns
        -------
        (int, pytree) or None
            Updates made then, and the arrays; None if there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        return step, self._manager.restore(step, args=self._orbax.args.StandardRestore(like))

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()
