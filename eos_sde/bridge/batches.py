"""Random batches without replacement, drawn on the host so that no chunking changes a bit."""

import numpy as np
from numpy.typing import NDArray


def stream(*key: int) -> np.random.Philox:
    """Counter-based stream of random words of its own for each key.

    Parameters
    ----------
    *key : int
        For example (seed, purpose, replica).

    Returns
    -------
    numpy.random.Philox
        Consumed word by word: however the draws are grouped, the words are the same.
    """
    return np.random.Philox(np.random.SeedSequence(key))


def draw_batches(words: np.random.Philox, count: int, *, examples: int, batch_size: int) -> NDArray[np.int32]:
    """Draw independent uniformly random subsets.

    Floyd's algorithm, over all batches at once: batch_size random words and O(batch_size^2) comparisons a
    batch, far cheaper than a permutation of the examples at the batch sizes of interest. The
    multiply-shift that maps a 32-bit word to a range has a bias below examples / 2^32.

    Parameters
    ----------
    words : numpy.random.Philox
        Source of randomness; `count` * `batch_size` words are consumed, in the order of the batches.
    count : int
        How many subsets.
    examples, batch_size : int
        Sizes n of the set and B of the subsets.

    Returns
    -------
    ndarray
        Shape (count, batch_size), int32; each row holds distinct indices in no meaningful order.
    """
    if batch_size == examples:
        return np.broadcast_to(np.arange(examples, dtype=np.int32), (count, examples))
    high = words.random_raw(count * batch_size).reshape(count, batch_size) >> np.uint64(32)
    tops = np.arange(examples - batch_size, examples, dtype=np.uint64)
    chosen = ((high * (tops + np.uint64(1))) >> np.uint64(32)).astype(np.int32)
    for j in range(1, batch_size):
        taken = (chosen[:, :j] == chosen[:, j : j + 1]).any(axis=1)
        chosen[taken, j] = tops[j]
    return chosen
