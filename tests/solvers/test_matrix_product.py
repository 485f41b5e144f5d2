"""apply_matrix() and transpose(): against NumPy, for all remainders of the tiles they work in."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from solvers.matrix_product import apply_matrix
from solvers.transposition import transpose


@njit
def _product(matrix, y, out):
    apply_matrix(matrix, y, out)


@pytest.mark.parametrize("rows", [1, 5, 6, 13])
@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_products_are_those_of_numpy(rows, length):
    """A sum of n products is off by at most n ulps of the sum of their sizes (Higham 2002, eq. 3.5), each way."""
    rng = np.random.default_rng(rows * 100 + length)
    matrix = rng.normal(size=(rows, length))
    for columns in ((), (1,), (3,), (8,), (29,)):
        y, out = rng.normal(size=(length, *columns)), np.full((rows, *columns), np.nan)
        _product(matrix, y, out)
        bound = 2 * length * np.finfo(float).eps * (np.abs(matrix) @ np.abs(y))
        assert (np.abs(out - matrix @ y) <= bound).all()
        plain = np.empty_like(out)
        apply_matrix(matrix, y, plain)
        np.testing.assert_array_equal(plain, matrix @ y)


def test_a_column_has_the_same_bits_beside_any_others():
    rng = np.random.default_rng(1)
    matrix, y = rng.normal(size=(20, 30)), rng.normal(size=(30, 24))
    together, part = np.empty((20, 24)), np.empty((20, 5))
    _product(matrix, y, together)
    _product(matrix, np.ascontiguousarray(y[:, 7:12]), part)
    np.testing.assert_array_equal(part, together[:, 7:12])


def test_other_arrays_do_not_compile():
    with pytest.raises(TypingError, match="contiguous float64"):
        _product(np.ones((2, 4))[:, ::2], np.ones(2), np.ones(2))
    with pytest.raises(TypingError, match="a matrix and two arrays"):
        _product(np.ones((2, 2)), np.ones(2), np.ones((2, 1)))


@pytest.mark.parametrize("shape", [(1, 1), (4, 8), (5, 8), (8, 3), (11, 9)])
def test_transposed_copies(shape):
    rows, columns = shape
    source = np.random.default_rng(2).normal(size=(rows, columns + 2))
    target = np.full((columns, rows + 3), -1.0)
    transpose(source.ravel(), 1, columns + 2, rows, columns, target.ravel(), 2, rows + 3)
    np.testing.assert_array_equal(target[:, 2 : rows + 2], source[:, 1 : columns + 1].T)
    assert (target[:, :2] == -1).all()
    assert (target[:, rows + 2 :] == -1).all()
