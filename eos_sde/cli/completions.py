"""Names of rules and networks for the shell: of each command those that it takes, looked up when they are asked for."""

from collections.abc import Iterable


def complete_rule(incomplete: str) -> list[str]:
    """Rules that train."""
    from eos_sde.bridge.rules import RULES

    return beginning(RULES, incomplete)


def complete_contender(incomplete: str) -> list[str]:
    """Rules that can be compared."""
    from eos_sde.trials.contenders import CONTENDERS

    return beginning(CONTENDERS, incomplete)


def complete_forecast_rule(incomplete: str) -> list[str]:
    """Rules of campaigns and of the table of implicit bias."""
    from eos_sde.bridge.campaign_runs import RULES

    return beginning(RULES, incomplete)


def complete_replayed_rule(incomplete: str) -> list[str]:
    """Rules with a reduced model to replay."""
    from eos_sde.bridge.prediction import RULES

    return beginning(RULES, incomplete)


def complete_network(incomplete: str) -> list[str]:
    """Networks of the onset table."""
    from eos_sde.bridge.onset_grid import NETWORKS

    return beginning(NETWORKS, incomplete)


def complete_loss(incomplete: str) -> list[str]:
    """Losses of the onset table."""
    from eos_sde.bridge.onset_grid import LOSSES

    return beginning(LOSSES, incomplete)


def complete_large_model(incomplete: str) -> list[str]:
    """Models that can be planned for."""
    from eos_sde.large_models.catalogue import MODELS

    return beginning(MODELS, incomplete)


def complete_planned_rule(incomplete: str) -> list[str]:
    """Rules of a plan."""
    from eos_sde.large_models.plan import RULES

    return beginning(RULES, incomplete)


def complete_hardware(incomplete: str) -> list[str]:
    """Accelerators whose peak and memory are known."""
    from eos_sde.large_models.hardware import HARDWARE

    return beginning(HARDWARE, incomplete)


def beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """Those of some names that begin so."""
    return [name for name in names if name.startswith(incomplete)]
