"""Mean-square thresholds from Gram matrices against enumeration of all batches, dense maps and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eos_sde import thresholds
from eos_sde.thresholds import GramBasis, GramOperator, mean_square_factored
from solvers import InvalidInput

RULES = [
    {"momentum": 0.9},
    {"weight_decay": 0.4},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"momentum": 0.6, "nesterov": True},
]


def factors(n, c, d, seed, decay=np.inf):
    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / decay) * rng.uniform(0.4, 2.0, size=(n, 1, 1))
    return rng.normal(size=(n, c, d)) * scale


def enumerated_radius(rows, eta, batch_size, replacement, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Spectral radius of the mean over all batches of the squared map of (w, w_last), on the range of H."""
    n = len(rows)
    hessians = np.einsum("nci,ncj->nij", rows, rows)
    values, vectors = np.linalg.eigh(hessians.mean(0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    hessians = basis.T @ hessians @ basis
    r = basis.shape[1]
    choose = itertools.product(range(n), repeat=batch_size)
    batches = list(choose if replacement else itertools.combinations(range(n), batch_size))
    total = np.zeros(((2 * r) ** 2,) * 2)
    for batch in batches:
        gradient = eta * (hessians[list(batch)].mean(0) + weight_decay * np.eye(r))
        one, zero = np.eye(r), np.zeros((r, r))
        if nesterov:
            top = [(one - gradient) * (1 + momentum), -momentum * (one - gradient)]
        else:
            top = [(1 + momentum) * one - gradient, -momentum * one]
        step = np.block([top, [one, zero]])
        total += np.kron(step, step)
    return np.max(np.abs(np.linalg.eigvals(total / len(batches))))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 3), (3, 2, 8), (5, 2, 2)])
def test_rules_against_enumeration(rule, replacement, shape):
    rows = factors(*shape, seed=1)
    threshold = thresholds.sgd_mean_square(rows, batch_size=2, replacement=replacement, **rule)
    eta = float(threshold)
    # the moments are found to 1e-9, eta to its square; eigenvalues of a map that is not symmetric to 1e-10
    assert enumerated_radius(rows, eta, 2, replacement, **rule) == pytest.approx(1.0, abs=1e-8)
    assert enumerated_radius(rows, 1.01 * eta, 2, replacement, **rule) > 1 + 1e-4
    assert enumerated_radius(rows, 0.99 * eta, 2, replacement, **rule) < 1 - 1e-4
    assert threshold.lower <= eta <= threshold.upper


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 7), c=st.integers(1, 3), d=st.integers(2, 9), seed=st.integers(0, 10**6), data=st.data()
)
def test_output_moments_agree_with_moments_of_the_weights(n, c, d, seed, data):
    """Two eigenproblems of one threshold: n blocks of c x c against r x r matrices."""
    rows = factors(n, c, d, seed)
    batch_size = data.draw(st.integers(1, n))
    expected = float(thresholds.sgd_mean_square(rows, batch_size=batch_size))
    found = thresholds.sgd_mean_square(GramOperator.of_factors(rows), batch_size=batch_size)
    assert float(found) == pytest.approx(expected, rel=1e-7)
    sufficient = thresholds.sgd_sufficient_bound(rows, batch_size=batch_size)
    necessary = thresholds.sgd_necessary_bounds(rows, batch_size=batch_size)
    assert float(sufficient) <= expected * (1 + 1e-10)
    assert all(float(bound) >= expected * (1 - 1e-10) for bound in necessary)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    decay=st.floats(5, 40),
    rank=st.integers(20, 70),
    batch_size=st.integers(1, 20),
)
def test_the_bracket_holds_the_truth(seed, decay, rank, batch_size):
    """Whatever is left unresolved, of slow and fast spectra."""
    rows = factors(30, 3, 150, seed, decay)
    truth = float(thresholds.sgd_mean_square(rows, batch_size=batch_size))
    basis = GramBasis(GramOperator.of_factors(rows), block=8)
    found = thresholds.sgd_mean_square(basis, batch_size=batch_size, max_rank=rank, tolerance=1e-4)
    assert found.lower <= truth * (1 + 1e-9)
    assert found.upper >= truth * (1 - 1e-9)
    assert abs(float(found) - truth) <= found.stderr + 1e-9 * truth


@pytest.mark.parametrize("rule", RULES)
def test_the_bracket_closes_around_other_rules(rule):
    rows = factors(30, 3, 150, 5, 12)
    truth = float(thresholds.sgd_mean_square(rows, batch_size=3, **rule))
    basis = GramBasis(GramOperator.of_factors(rows), block=8)
    widths = []
    for rank in (40, 56, 72):
        found = thresholds.sgd_mean_square(basis, batch_size=3, max_rank=rank, tolerance=1e-6, **rule)
        assert found.lower <= truth <= found.upper
        widths.append(found.upper - found.lower)
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 0.01 * truth


def test_stops_at_the_tolerance_and_starts_warm(monkeypatch):
    monkeypatch.setattr(mean_square_factored, "_FIRST_RANK", 16)
    rows = factors(40, 2, 200, 3, 10)
    basis = GramBasis(GramOperator.of_factors(rows), block=4)
    first = thresholds.sgd_mean_square(basis, batch_size=4, tolerance=0.02)
    assert first.upper - first.lower <= 0.02 * first.upper
    assert basis.rank == first.rank < 80
    assert first.moments.shape == (40, 2, 2)
    again = thresholds.sgd_mean_square(basis, batch_size=4, tolerance=0.02, start=first)
    assert again.rank == first.rank
    assert again.value == pytest.approx(first.value, rel=0.02)
    truth = thresholds.sgd_mean_square(rows, batch_size=4)
    assert first.lower <= float(truth) <= first.upper


def test_the_full_batch_is_the_deterministic_edge():
    rows = factors(30, 3, 150, 5, 12)
    edge = 2 / np.linalg.eigvalsh(GramOperator.of_factors(rows).product(np.eye(90)))[-1]
    basis = GramBasis(GramOperator.of_factors(rows), block=8)
    found = thresholds.sgd_mean_square(basis, batch_size=30, max_rank=48)
    assert found.lower <= edge * (1 + 1e-12)
    assert found.upper >= edge * (1 - 1e-12)
    momentum = thresholds.sgd_mean_square(rows, batch_size=30, momentum=0.9)
    assert float(momentum) == pytest.approx(1.9 * edge, rel=1e-12)
    after = thresholds.sgd_mean_square(basis, batch_size=29, max_rank=48, start=found)
    assert after.value < edge


def test_output_curvature_enters_by_its_root():
    rng = np.random.default_rng(0)
    rows, root = factors(6, 3, 8, 2), rng.normal(size=(6, 3, 3))
    weights = root @ root.transpose(0, 2, 1)
    plain = thresholds.sgd_mean_square(rows, batch_size=2, weights=weights)
    other = thresholds.sgd_mean_square(rows, batch_size=2, weights=weights, momentum=1e-12)
    assert float(other) == pytest.approx(float(plain), rel=1e-7)


def test_bounds_from_products_equal_those_from_factors():
    rows = factors(8, 2, 40, 4)
    gram = GramOperator.of_factors(rows)
    for batch_size in (1, 3, 8):
        settings = {"batch_size": batch_size}
        dense, products = (
            [
                thresholds.sgd_sufficient_bound(one, **settings),
                *thresholds.sgd_necessary_bounds(one, **settings),
            ]
            for one in (rows, gram)
        )
        # Lanczos to 1e-6 in the first, a complete basis in the others
        assert [float(one) for one in products] == pytest.approx([float(one) for one in dense], rel=1e-6)


def test_simulated_momentum_sgd_grows_only_beyond_the_threshold():
    """Second moments of 40000 runs of heavy ball against the threshold; a growth of 1 +- 0.02 is not decided."""
    rows = factors(6, 1, 2, 4)
    eta = float(thresholds.sgd_mean_square(rows, batch_size=3, momentum=0.5))
    rng, paths = np.random.default_rng(1), 40_000
    for share in (0.8, 1.2):
        w = np.tile([1.0, -0.5], (paths, 1))
        v, sizes = np.zeros_like(w), []
        for _ in range(25):
            sizes.append(np.mean(np.sum(w**2, axis=1)))
            picked = rows[np.argsort(rng.random((paths, 6)), axis=1)[:, :3], 0]
            v = 0.5 * v + np.einsum("pbi,pbj,pj->pi", picked, picked, w, optimize=True) / 3
            w = w - share * eta * v
        predicted = enumerated_radius(rows, share * eta, 3, False, momentum=0.5)
        assert (predicted > 1) == (share > 1)
        assert abs(predicted - 1) > 0.02
        measured = (sizes[-1] / sizes[9]) ** (1 / 15)
        assert measured == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"max_rank": 0}, "max_rank=0"),
        ({"batch_size": 7}, "batch_size=7"),
        ({"weights": np.eye(2)}, "weights is given with a Gram matrix"),
    ],
)
def test_refusals(change, sentence):
    gram = GramOperator.of_factors(factors(6, 2, 20, 0))
    with pytest.raises(InvalidInput, match=sentence):
        thresholds.sgd_mean_square(gram, **{"batch_size": 2, **change})


def test_a_start_of_another_shape_is_refused():
    other = thresholds.sgd_mean_square(GramOperator.of_factors(factors(5, 2, 20, 0)), batch_size=2)
    with pytest.raises(InvalidInput, match="start has moments"):
        thresholds.sgd_mean_square(GramOperator.of_factors(factors(6, 2, 20, 0)), batch_size=2, start=other)
    with pytest.raises(InvalidInput, match="the trace of the curvature is 0"):
        GramBasis(GramOperator.of_factors(np.zeros((3, 1, 4))))


@pytest.mark.parametrize(
    ("widths", "rank"),
    [
        ([(256, 0.04)], 512),
        ([(256, 0.04), (512, 0.02)], 1075),  # like 1/rank, with a margin of 5 %
        ([(256, 0.04), (512, 0.0102)], 640),  # at least a quarter more
        ([(256, 0.04), (512, 0.039)], 2048),  # at most four times
        ([(256, 0.04), (512, 0.05)], 1024),  # no promise
    ],
)
def test_next_rank_follows_the_widths(widths, rank):
    assert mean_square_factored._next_rank(widths, 0.01) == rank


def test_a_gram_matrix_of_zero_is_refused():
    zero = GramOperator.of_factors(np.zeros((4, 2, 3)))
    with pytest.raises(InvalidInput, match="Gram matrix is zero"):
        thresholds.sgd_mean_square(zero, batch_size=2)
    with pytest.raises(InvalidInput, match="Gram matrix is zero"):
        thresholds.sgd_almost_sure(zero, batch_size=2, seed=0)
