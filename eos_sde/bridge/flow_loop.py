"""The loop of all central flows: settle the local model, save, advance, until the end or where it ceases to apply."""

from collections.abc import Callable
from typing import Protocol


class Flow(Protocol):
    """An averaged path at one point, which can look about and move on."""

    def settle(self, most: int, *, save: bool) -> str:
        """Find the local model for at most so many steps; why the flow does not apply here, or nothing."""
        ...

    def row(self, reached: int) -> dict[str, float]:
        """What is saved at a point, once settled."""
        ...

    def advance(self) -> int:
        """Move on from a settled point; the steps made."""
        ...


def follow(
    flow: Flow, *, steps: int, stride: int, save_every: int, progress: Callable[[int], None] | None
) -> tuple[list[dict[str, float]], str]:
    """Follow a flow from step 0.

    Parameters
    ----------
    flow : Flow
        At the checkpoint; at the last point afterwards.
    steps : int
        Of the rule.
    stride, save_every : int
        Steps of the rule per step of the flow, at most, and between saved points.
    progress : callable or None
        Called with the step reached, where it is saved.

    Returns
    -------
    rows, stopped
        The saved points, and why the flow ended early, or nothing.
    """
    rows: list[dict[str, float]] = []
    reached, next_save = 0, 0
    while True:
        save = reached >= next_save
        next_save += save_every if save else 0
        most = min(stride, next_save - reached, steps - reached if reached < steps else stride)
        reason = flow.settle(most, save=save)
        if reason:
            return rows, f"step {reached}: {reason}"
        if save:
            rows.append({"step": reached} | flow.row(reached))
            if progress is not None:
                progress(reached)
        if reached >= steps:
            return rows, ""
        reached += flow.advance()
