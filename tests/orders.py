"""Whether errors on ever finer grids fall with a stated power of the spacing, without a band to be chosen."""

import numpy as np


def assert_order(errors, sizes, order):
    """The last two steps of refinement show `order`, and the higher terms fade as they must.

    For e = C h^p (1 + c h^2 + ...) halving h changes the fitted order by c h^2 times 1.1, so that its distance from p
    falls by about 4 with each further halving: half of that is asked for, and an order that is nearest to p among
    the whole numbers.

    Parameters
    ----------
    errors : array (grids, ...)
        At least three grids.
    sizes : sequence of int
        Cells per axis, each twice the one before (or nearly).
    order : int
    """
    logs = np.log(np.asarray(errors, float))
    steps = np.log(np.asarray(sizes, float))
    shape = (-1,) + (1,) * (logs.ndim - 1)
    off = np.abs(-np.diff(logs, axis=0) / np.diff(steps).reshape(shape) - order)
    assert np.all(off[-2:] < 0.5), off
    assert np.all(off[-1] <= off[-2] / 2), off
