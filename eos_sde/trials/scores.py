"""How good a classifier is and how well it knows: accuracy, NLL, Brier score, calibration error, reliability."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidInput

BINS = 15


@dataclass(frozen=True)
class Scores:
    """Of a classifier on labelled examples.

    Attributes
    ----------
    accuracy : float
        Part of the examples whose most probable class is the label.
    nll : float
        Mean of -log p(label), in nats; the perplexity is its exponential.
    brier : float
        Mean of the squared distance between the probabilities and the one-hot label, from 0 to 2.
    ece : float
        Expected calibration error: the mean over the examples of |accuracy - confidence| of their bin.
    edges : ndarray
        Of the bins of confidence, (bins + 1,).
    count, bin_confidence, bin_accuracy : ndarray
        Examples in each bin and what a reliability diagram shows of it, (bins,); NaN where there are none.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    bin_confidence: NDArray[np.float64]
    bin_accuracy: NDArray[np.float64]


def classifier_scores(log_probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> Scores:
    """Scores of predicted probabilities.

    Parameters
    ----------
    log_probabilities : array
        Shape (n, c), in nats, each row of probabilities that sum to one.
    labels : array
        Classes, shape (n,).
    bins : int
        Bins of equal width for the confidence (the largest probability), closed above.

    Returns
    -------
    Scores
        The calibration error is that of Guo et al. 2017 (1706.04599): with few examples it is biased upwards.

    Raises
    ------
    InvalidInput
        If the shapes do not fit, rows do not sum to one, or `bins` is no positive number.

    Examples
    --------
    >>> import numpy as np
    >>> scores = classifier_scores(np.log([[0.8, 0.2], [0.6, 0.4]]), [0, 1])
    >>> print(f"{scores.accuracy:.2f} {scores.brier:.2f} {scores.ece:.2f} {scores.nll:.4f}")
    0.50 0.40 0.40 0.5697
    """
    logs, truth = np.asarray(log_probabilities, float), np.asarray(labels)
    if logs.ndim != 2 or truth.shape != logs.shape[:1] or not len(truth):
        raise InvalidInput(
            f"log_probabilities {logs.shape} and labels {truth.shape} must be (n, c) and (n,), of one example or more"
        )
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InvalidInput(f"bins={bins!r} must be a positive integer")
    with np.errstate(over="ignore", under="ignore"):
        probabilities = np.exp(logs)
        sums = probabilities.sum(axis=1)
    if not np.all(np.abs(sums - 1) <= 1e-6):
        raise InvalidInput(
            "log_probabilities has a row whose probabilities do not sum to 1: give log_softmax"
        )
    confidence, chosen = probabilities.max(axis=1), logs.argmax(axis=1)
    right = chosen == truth
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    there = np.maximum(count, 1)
    mean_confidence = np.bincount(place, confidence, minlength=bins) / there
    mean_accuracy = np.bincount(place, right, minlength=bins) / there
    one_hot = np.eye(logs.shape[1])[truth]
    empty = count == 0
    return Scores(
        accuracy=float(right.mean()),
        nll=float(-logs[np.arange(len(truth)), truth].mean()),
        brier=float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        ece=float(np.sum(count * np.abs(mean_accuracy - mean_confidence)) / count.sum()),
        edges=edges,
        count=count,
        bin_confidence=np.where(empty, np.nan, mean_confidence),
        bin_accuracy=np.where(empty, np.nan, mean_accuracy),
    )
