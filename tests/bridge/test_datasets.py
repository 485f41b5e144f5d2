"""The data are what the recipes say, the same on every machine, and refuse to be anything else."""

import hashlib

import numpy as np
import pytest

from eos_sde.bridge import datasets
from eos_sde.bridge.datasets import debian_fashion_installed, load_dataset
from solvers.errors import InvalidInput


def test_fashion_subset_is_balanced_and_scaled():
    data = load_dataset("fashion", source="subset")
    assert data.x_train.shape == (5000, 28, 28)
    assert data.x_test.shape == (1000, 28, 28)
    assert np.array_equal(np.bincount(data.y_train), np.full(10, 500))
    assert np.array_equal(np.bincount(data.y_test), np.full(10, 100))
    assert data.x_train.dtype == np.float64
    assert data.x_train.min() == 0.0
    assert data.x_train.max() == 1.0
    assert len(data.classes) == 10
    assert "MIT" in data.licence


def test_digits():
    data = load_dataset("digits")
    assert data.x_train.shape == (1500, 8, 8)
    assert data.x_test.shape == (297, 8, 8)
    # the totals of scikit-learn's load_digits
    assert round(16 * (data.x_train.sum() + data.x_test.sum())) == 561718
    assert np.array_equal(data.y_train[:10], np.arange(10))


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        load_dataset("digits").x_train[0] = 1.0


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_balanced_choice_goes_class_by_class(name):
    x, y = load_dataset(name, source="subset").balanced(25)
    assert np.array_equal(y, np.arange(25) % 10)
    assert len(np.unique(x.reshape(25, -1), axis=0)) == 25


def test_balanced_refuses_more_than_there_are():
    with pytest.raises(InvalidInput, match="examples=1501"):
        load_dataset("digits").balanced(1501)


@pytest.mark.skipif(
    not debian_fashion_installed(), reason="the Debian package dataset-fashion-mnist is absent"
)
def test_full_set_and_subset_give_the_same_images():
    subset, full = (load_dataset("fashion", source=s) for s in ("subset", "debian"))
    assert full.x_train.shape == (60000, 28, 28)
    assert load_dataset("fashion", source="auto") is full
    for part, count in (("train", 5000), ("test", 1000)):
        for ours, theirs in zip(subset.balanced(count, part), full.balanced(count, part), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "name='mnist' is not a dataset"),
        ({"name": "fashion", "source": "web"}, "source='web' is not known"),
        ({"name": "digits", "source": "debian"}, "holds no digits"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        load_dataset(**arguments)


def test_absent_debian_package_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path)
    with pytest.raises(InvalidInput, match="apt-get install dataset-fashion-mnist"):
        load_dataset("fashion", source="debian")
    assert load_dataset("fashion", source="auto").x_train.shape[0] == 5000


def test_a_changed_file_is_refused(monkeypatch):
    wrong = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setitem(datasets.SHA256, "digits.npz", wrong)
    with pytest.raises(InvalidInput, match="has SHA-256"):
        datasets._read_verified("digits.npz")
