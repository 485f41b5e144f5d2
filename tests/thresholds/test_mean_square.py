"""The factored mean-square threshold against enumeration of all batches."""

import itertools

import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.thresholds import curvature_factors, symmetric_maps
from solvers import InvalidInput


def problem(n, c, d, seed, weighted):
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(n, c, d)) * rng.uniform(0.2, 2.0, size=(n, 1, 1))
    root = rng.normal(size=(n, c, c))
    weights = root @ root.transpose(0, 2, 1) if weighted else None
    return jacobian, weights


def enumerated_growth(jacobian, weights, eta, batch_size, replacement):
    """Spectral radius of the mean of (I - eta H_B) kron (I - eta H_B) over all batches, on the range of H."""
    n, c, _ = jacobian.shape
    w = np.broadcast_to(np.eye(c), (n, c, c)) if weights is None else weights
    hessians = np.einsum("nci,nce,nej->nij", jacobian, w, jacobian)
    values, vectors = np.linalg.eigh(hessians.mean(0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    hessians = basis.T @ hessians @ basis
    if replacement:
        batches = list(itertools.product(range(n), repeat=batch_size))
    else:
        batches = list(itertools.combinations(range(n), batch_size))
    steps = [np.eye(basis.shape[1]) - eta * hessians[list(b)].mean(0) for b in batches]
    return np.linalg.eigvalsh(np.mean([np.kron(s, s) for s in steps], axis=0))[-1]


CASES = [(5, 1, 3), (5, 2, 4), (4, 1, 9), (3, 2, 8)]  # tall and wide, one and two outputs


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_enumeration(shape, weighted, replacement, batch_size):
    jacobian, weights = problem(*shape, seed=sum(shape), weighted=weighted)
    settings = {"batch_size": batch_size, "weights": weights, "replacement": replacement}
    threshold = thresholds.sgd_mean_square(jacobian, **settings)
    eta = float(threshold)
    # All is rounding here: a radius of 1 from at most 25 products of 6 x 6 matrices.
    assert enumerated_growth(jacobian, weights, eta, batch_size, replacement) == pytest.approx(1.0, abs=1e-12)
    assert enumerated_growth(jacobian, weights, 1.001 * eta, batch_size, replacement) > 1.0 + 1e-5
    for rate in (0.3 * eta, 1.4 * eta):
        growth = thresholds.mean_square_growth(jacobian, rate, **settings)
        assert growth == pytest.approx(
            enumerated_growth(jacobian, weights, rate, batch_size, replacement), rel=1e-12
        )
    assert threshold.criterion == "mean-square"
    assert thresholds.sgd_sufficient_bound(jacobian, **settings) <= eta * (1 + 1e-12)


def test_one_output_may_leave_out_its_axis():
    jacobian, _ = problem(6, 1, 4, 1, False)
    with_axis = thresholds.sgd_mean_square(jacobian, batch_size=2)
    assert float(thresholds.sgd_mean_square(jacobian[:, 0], batch_size=2)) == float(with_axis)
    scaled = thresholds.sgd_mean_square(jacobian, batch_size=2, weights=np.array([[4.0]]))
    assert float(scaled) == pytest.approx(float(with_axis) / 4, rel=1e-13)


@pytest.mark.parametrize("shape", [(7, 1, 20), (7, 3, 5)])
def test_monotone_in_batch_size_up_to_the_deterministic_edge(shape):
    jacobian, _ = problem(*shape, seed=3, weighted=False)
    values = [float(thresholds.sgd_mean_square(jacobian, batch_size=b)) for b in range(1, 8)]
    assert np.all(np.diff(values) > 0)
    flat = jacobian.reshape(-1, shape[2])
    edge = 2 / np.linalg.eigvalsh(flat.T @ flat / 7)[-1]
    assert values[-1] == pytest.approx(edge, rel=1e-13)
    bounds = [float(thresholds.sgd_sufficient_bound(jacobian, batch_size=b)) for b in range(1, 8)]
    assert all(bound <= value * (1 + 1e-12) for bound, value in zip(bounds, values, strict=True))


def test_lanczos_agrees_with_dense(monkeypatch):
    jacobian, _ = problem(9, 2, 10, 5, False)
    dense = thresholds.sgd_mean_square(jacobian, batch_size=3)
    monkeypatch.setattr(symmetric_maps, "_DENSE_RANK", 0)
    lanczos = thresholds.sgd_mean_square(jacobian, batch_size=3)
    assert "dense" in dense.method
    assert "Lanczos" in lanczos.method
    assert abs(float(lanczos) - float(dense)) <= lanczos.stderr + dense.stderr
    assert lanczos.stderr < 1e-6 * float(lanczos)
    growth = thresholds.mean_square_growth(jacobian, float(dense), batch_size=3)
    assert growth == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_growth_with_a_wide_spectrum_as_networks_have(batch_size):
    # Curvatures over eight decades: below the threshold the slowest mode rules, above it the unstable one.
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(40, 40)))[0], np.linalg.qr(rng.normal(size=(300, 40)))[0]
    jacobian = (left * np.exp(-np.linspace(0, 9, 40))) @ right.T
    settings = {"batch_size": batch_size}
    eta = float(thresholds.sgd_mean_square(jacobian, **settings))
    factors = curvature_factors.curvature_factors(jacobian)
    p = curvature_factors.noise_fraction(40, batch_size, False)
    h = factors.curvatures
    basis = [(i, j) for i in range(40) for j in range(i, 40)]
    units = np.zeros((len(basis), 40, 40))
    for k, (i, j) in enumerate(basis):
        units[k, i, j] = units[k, j, i] = 1.0 if i == j else np.sqrt(0.5)
    second = np.array([factors.second_order(u, p).ravel() for u in units]) @ units.reshape(len(basis), -1).T
    decay = np.array([h[i] + h[j] for i, j in basis])
    for factor in (0.5, 0.99, 1.01, 2.0):
        dense = np.linalg.eigvalsh(np.diag(1 - factor * eta * decay) + (factor * eta) ** 2 * second)[-1]
        growth = thresholds.mean_square_growth(jacobian, factor * eta, **settings)
        assert growth == pytest.approx(dense, rel=1e-12)
        assert (growth > 1) == (factor > 1)


def test_null_directions_and_repeated_examples_change_nothing():
    jacobian, _ = problem(4, 1, 3, 8, False)
    value = float(thresholds.sgd_mean_square(jacobian, batch_size=1))
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0][:3]
    embedded = jacobian @ rotation  # rank 3 in 40 weights
    assert float(thresholds.sgd_mean_square(embedded, batch_size=1)) == pytest.approx(value, rel=1e-12)
    twice = np.concatenate([jacobian, jacobian])  # the same law of a batch of one
    assert float(thresholds.sgd_mean_square(twice, batch_size=1)) == pytest.approx(value, rel=1e-12)


def test_hundreds_of_examples_without_any_large_matrix():
    rng = np.random.default_rng(2)
    jacobian = rng.normal(size=(60, 2, 3000)) * np.linspace(0.1, 1.0, 3000)
    threshold = thresholds.sgd_mean_square(jacobian, batch_size=4)
    growth = thresholds.mean_square_growth(jacobian, float(threshold), batch_size=4)
    assert growth == pytest.approx(1.0, abs=1e-9)  # Lanczos tolerance 1e-7, squared


def test_simulated_sgd_grows_only_beyond_the_threshold():
    # Second moments of 20000 iterates: their growth rate against the predicted one. Over 40 steps the sample
    # mean of |w|^2 is dominated by few paths, so only well below the heavy-tailed regime is it compared.
    jacobian, _ = problem(6, 1, 2, 4, False)
    eta = 0.6 * float(thresholds.sgd_mean_square(jacobian, batch_size=2))
    rows, rng, paths = jacobian[:, 0], np.random.default_rng(1), 20_000
    w = np.tile([1.0, -0.5], (paths, 1))
    sizes = []
    for _ in range(14):
        sizes.append(np.mean(np.sum(w**2, axis=1)))
        order = np.argsort(rng.random((paths, 6)), axis=1)[:, :2]
        picked = rows[order]
        w = w - eta / 2 * np.einsum("pbi,pb->pi", picked, np.einsum("pbi,pi->pb", picked, w))
    measured = (sizes[-1] / sizes[6]) ** (1 / 7)
    predicted = thresholds.mean_square_growth(jacobian, eta, batch_size=2)
    assert measured == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"jacobian": np.ones(3), "batch_size": 1}, r"shape \(3,\)"),
        ({"jacobian": np.ones((3, 0)), "batch_size": 1}, "none of them 0"),
        ({"jacobian": np.full((3, 2), np.nan), "batch_size": 1}, "NaN or infinity"),
        ({"jacobian": np.zeros((3, 2)), "batch_size": 1}, "jacobian is zero"),
        ({"jacobian": np.ones((3, 2)), "batch_size": 4}, "batch_size=4"),
        ({"jacobian": np.ones((3, 2)), "batch_size": 0, "replacement": True}, "batch_size=0"),
        ({"jacobian": np.ones((3, 2)), "batch_size": 1, "weights": np.eye(2)}, "weights has shape"),
        (
            {"jacobian": np.ones((3, 2, 2)), "batch_size": 1, "weights": [[1.0, 2.0], [0.0, 1.0]]},
            "not symmetric",
        ),
        (
            {"jacobian": np.ones((3, 2, 2)), "batch_size": 1, "weights": np.diag([1.0, -1.0])},
            "negative eigenvalue",
        ),
    ],
)
@pytest.mark.parametrize("function", [thresholds.sgd_mean_square, thresholds.sgd_sufficient_bound])
def test_refusals(function, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        function(**arguments)


def test_growth_refuses_a_rate_of_zero():
    with pytest.raises(InvalidInput, match="eta=0"):
        thresholds.mean_square_growth(np.ones((3, 2)), 0.0, batch_size=1)
