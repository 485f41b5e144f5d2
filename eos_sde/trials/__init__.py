"""Trials: real training runs under any rule, what they reach and cost, and fair comparisons between rules."""

from eos_sde.trials.cluster import join_cluster
from eos_sde.trials.comparison import compare
from eos_sde.trials.contenders import CONTENDERS
from eos_sde.trials.devices import make_mesh
from eos_sde.trials.milestones import Target
from eos_sde.trials.scores import Scores, classifier_scores
from eos_sde.trials.significance import holm, mean_interval, paired_difference, paired_ratio
from eos_sde.trials.training import train
from eos_sde.trials.trial import Trial, split_task

__all__ = [
    "CONTENDERS",
    "Scores",
    "Target",
    "Trial",
    "classifier_scores",
    "compare",
    "holm",
    "join_cluster",
    "make_mesh",
    "mean_interval",
    "paired_difference",
    "paired_ratio",
    "split_task",
    "train",
]
