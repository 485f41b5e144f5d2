"""The largest stable learning rate against closed forms, exact enumeration and the recursion itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eos_sde import bridge, thresholds
from eos_sde.training import minimum_curvature
from eos_sde.training.linear_rules import linear_rule
from eos_sde.training.local_loss import programs
from eos_sde.training.objective import objective
from eos_sde.training.rate_limit import max_stable_lr
from eos_sde.training.second_moments import dense_curvatures, mean_square_limit
from solvers import AccuracyWarning, InvalidInput

CURVATURES = np.array([4.0, 1.0, 0.25])
DATA = (jnp.sqrt(3.0) * jnp.diag(jnp.sqrt(CURVATURES)), jnp.zeros(3))  # H = diag(CURVATURES)


def regression(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def transform(rule, eta):
    options = {
        "adam": {},
        "adamw": {"weight_decay": 0.5},
        "sgdm": {"momentum": 0.7},
        "nesterov": {"momentum": 0.7},
    }
    return bridge.make_rule(rule, eta=eta, **options.get(rule, {})), options.get(rule, {})


@pytest.mark.parametrize(
    ("rule", "edge"),
    [("gd", 2 / 4), ("sgd", 2 / 4), ("sgdm", 3.4 / 4), ("nesterov", 3.4 / (2.4 * 4))],
)
def test_full_batch_edges_against_optax_itself(rule, edge):
    found = max_stable_lr(regression, jnp.zeros(3), DATA, rule=rule, **transform(rule, 1.0)[1])
    assert found.value == pytest.approx(edge, rel=1e-12)
    assert found.criterion == "deterministic"
    for factor, grows in ((0.97, False), (1.03, True)):
        optimizer, _ = transform(rule, factor * edge)

        def step(carry, _, optimizer=optimizer):
            w, state = carry
            updates, state = optimizer.update(jax.grad(regression)(w, *DATA), state, w)
            return (w + updates, state), None

        start = jnp.ones(3)
        (end, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=600)
        assert (float(jnp.linalg.norm(end)) > 1.0) == grows


@pytest.mark.parametrize(("rule", "decay"), [("adam", 0.0), ("adamw", 0.5)])
def test_adam_with_frozen_moments_against_the_recursion(rule, decay):
    # Second moments as after very many updates: frozen, no bias left. The linear recursion is that of optax, whose
    # moments are put back after each step.
    nu = jnp.array([0.04, 4.0, 0.01])
    frozen = optax.ScaleByAdamState(jnp.asarray(10**6), jnp.zeros(3), nu)
    options = {"weight_decay": decay} if decay else {}
    rest = bridge.make_rule(rule, eta=1.0, **options).init(jnp.zeros(3))[1:]
    state = (frozen, *rest)
    found = max_stable_lr(regression, jnp.zeros(3), DATA, rule=rule, opt_state=state, **options)
    top = np.max(CURVATURES / (np.sqrt(nu) + 1e-8))
    assert found.value == pytest.approx(3.8 / (0.1 * top + 1.9 * decay), rel=1e-9)
    for factor, grows in ((0.98, False), (1.02, True)):
        optimizer = bridge.make_rule(rule, eta=factor * float(found), **options)

        def step(carry, _, optimizer=optimizer):
            w, mu = carry
            state = (optax.ScaleByAdamState(frozen.count, mu, nu), *rest)
            updates, new = optimizer.update(jax.grad(regression)(w, *DATA), state, w)
            return (w + updates, new[0].mu), None

        (end, _), _ = jax.lax.scan(step, (1e-6 * jnp.ones(3), jnp.zeros(3)), length=1500)
        assert (float(jnp.linalg.norm(end)) > 1e-6) == grows


def enumerated_radius(rule, eta, hessians, batch_size):
    """Spectral radius of the mean of the Kronecker squares of the steps over all batches."""
    total, number = 0.0, 0
    for batch in itertools.combinations(range(len(hessians)), batch_size):
        h = hessians[list(batch)].mean(0)
        d, b, eye = len(h), rule.momentum, np.eye(len(h))
        after = (rule.gain * h, b * eye)  # v+ on (w, v)
        look = (rule.gain * h + b * after[0], b * after[1]) if rule.nesterov else after
        matrix = np.block([[(1 - eta * rule.weight_decay) * eye - eta * look[0], -eta * look[1]], [*after]])
        total, number = total + np.kron(matrix, matrix), number + 1
        assert matrix.shape == (2 * d, 2 * d)
    return float(np.max(np.abs(np.linalg.eigvals(total / number))))


@pytest.mark.parametrize("name", ["sgd", "sgdm", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_mean_square_with_momentum_against_enumeration_of_all_batches(name, batch_size):
    rng = np.random.default_rng(3)
    jacobian = rng.normal(size=(5, 1, 3)) * rng.uniform(0.3, 2.0, size=(5, 1, 1))
    hessians = np.einsum("nci,ncj->nij", jacobian, jacobian)
    rule = linear_rule(name, **({"weight_decay": 0.3} if name == "adamw" else {}))
    values, vectors = np.linalg.eigh(hessians.mean(0))
    p = (5 - batch_size) / (batch_size * 4)
    eta = mean_square_limit(rule, dense_curvatures(values, vectors.T @ hessians @ vectors), p)
    assert eta < rule.edge(values[-1])
    # The root is found to 1e-8 in log eta and eigs to 1e-8; the radius rises by less than 4 per unit of log eta.
    assert enumerated_radius(rule, eta, hessians, batch_size) == pytest.approx(1.0, abs=1e-7)
    assert enumerated_radius(rule, 1.01 * eta, hessians, batch_size) > 1 + 1e-5
    assert enumerated_radius(rule, 0.99 * eta, hessians, batch_size) < 1
    if name == "sgd":
        assert eta == pytest.approx(
            thresholds.sgd_mean_square(jacobian, batch_size=batch_size).value, rel=1e-7
        )


def test_one_mode_is_the_closed_form():
    h, each = 1.5, np.array([0.5, 2.5, 0.9, 2.1])
    curvatures = dense_curvatures(np.array([h]), each[:, None, None])
    for b in (0.0, 0.6, 0.95):
        found = mean_square_limit(linear_rule("sgdm", momentum=b), curvatures, 0.5)
        closed = thresholds.momentum_sgd_scalar(h, 0.5 * np.var(each), momentum=b)
        assert found == pytest.approx(float(closed), rel=1e-7)


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
    return 0.5 * jnp.mean(jnp.sum((hidden @ params["v"] - batch["y"]) ** 2, axis=1))


@pytest.fixture(scope="module")
def fitted():
    """A 3-8-2 tanh network that interpolates: its targets are its own outputs."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (3, 8)),
        "b": 0.1 * jax.random.normal(keys[1], (8,)),
        "v": jax.random.normal(keys[2], (8, 2)) / 3,
    }
    x = jax.random.normal(keys[3], (12, 3))
    return params, {"x": x, "y": jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]}


def jacobian_of(params, data):
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def outputs(w):
        tree = unravel(w)
        return jnp.tanh(data["x"] @ tree["w"] + tree["b"]) @ tree["v"]

    return np.asarray(jax.jacobian(outputs)(flat))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("replacement", [False, True])
def test_network_at_a_fit_is_exact_from_hessian_products_alone(fitted, batch_size, replacement):
    settings = {"batch_size": batch_size, "replacement": replacement}
    found = max_stable_lr(network_loss, *fitted, rule="sgd", **settings)
    exact = thresholds.sgd_mean_square(jacobian_of(*fitted), **settings)
    # residuals are zero to rounding, so what is left is that of the sketch, whose cutoff is 2^-26
    assert found.value == pytest.approx(exact.value, rel=1e-6)
    assert abs(found.value - exact.value) <= found.stderr + 1e-9 * exact.value
    assert found.criterion == "mean-square"
    almost_sure = max_stable_lr(network_loss, *fitted, rule="sgd", criterion="almost-sure", **settings)
    assert almost_sure.value > found.value
    assert almost_sure.criterion == "almost-sure"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgdm", "nesterov", "adam", "adamw"])
def test_network_under_every_rule_against_its_second_moments(fitted, rule):
    params, data = fitted
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    options, scale = {}, np.ones(len(flat))
    if rule.startswith("adam"):
        nu = jnp.abs(jax.random.normal(jax.random.key(5), flat.shape)) + 0.1
        adam = optax.ScaleByAdamState(jnp.array(7), jax.tree.map(jnp.zeros_like, params), unravel(nu))
        options["opt_state"] = (adam,)
        scale = np.asarray((1 - 0.9**7) * (jnp.sqrt(nu / (1 - 0.999**7)) + 1e-8)) ** -0.5
    if rule == "adamw":
        options["weight_decay"] = 0.3
    found = max_stable_lr(network_loss, params, data, rule=rule, batch_size=3, **options)
    rows = jacobian_of(params, data) * scale
    _, sizes, vectors = np.linalg.svd(rows.reshape(24, -1) / np.sqrt(12), full_matrices=False)
    rows = rows @ vectors.T
    step = linear_rule(rule, weight_decay=options.get("weight_decay"))
    curvatures = dense_curvatures(sizes**2, rows.transpose(0, 2, 1) @ rows)
    exact = mean_square_limit(step, curvatures, 9 / (3 * 11))
    # 1e-8 of its root and of eigs; the cutoff of the sketch is 2^-26
    assert found.value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("rule", ["sgd", "sgdm", "nesterov"])
def test_factors_too_large_to_keep_give_bounds_from_leading_modes(fitted, rule, monkeypatch):
    exact = max_stable_lr(network_loss, *fitted, rule=rule, batch_size=2)
    monkeypatch.setattr(minimum_curvature, "_LARGEST_FACTORS", 0)
    monkeypatch.setattr(minimum_curvature, "_LARGEST_SIDE", 0)
    monkeypatch.setattr(minimum_curvature, "_FACTOR_MODES", 12)  # of 24
    found = max_stable_lr(network_loss, *fitted, rule=rule, batch_size=2)
    assert found.lower <= exact.value <= found.upper
    assert found.upper - found.lower < 0.05 * found.upper  # the other half holds some percent of the trace
    # the modes alone, with the rest left out, are off by more than the bound from above
    alone = max_stable_lr(network_loss, *fitted, rule=rule, batch_size=2, modes=12)
    assert alone.value > found.upper > exact.value * (1 - 1e-9)


@pytest.mark.parametrize("examples", [1, 5, 12])
def test_factors_too_large_to_keep_give_their_gram_matrix_in_pieces(fitted, examples, monkeypatch):
    exact = max_stable_lr(network_loss, *fitted, rule="nesterov", batch_size=2)
    monkeypatch.setattr(minimum_curvature, "_LARGEST_FACTORS", 0)
    weights = sum(leaf.size for leaf in jax.tree.leaves(fitted[0]))
    monkeypatch.setattr(minimum_curvature, "_LARGEST_PIECE", 2 * examples * weights)
    found = max_stable_lr(network_loss, *fitted, rule="nesterov", batch_size=2)
    assert found.value == pytest.approx(exact.value, rel=1e-5)  # products of single precision, 1e-6
    assert abs(found.value - exact.value) <= found.stderr


def test_many_outputs_are_resolved_between_bounds(fitted, monkeypatch):
    exact = max_stable_lr(network_loss, *fitted, rule="sgdm", batch_size=2)
    monkeypatch.setattr(minimum_curvature, "_LARGEST_RANK", 10)
    found = max_stable_lr(network_loss, *fitted, rule="sgdm", batch_size=2)
    assert found.lower <= exact.value * (1 + 1e-9)
    assert exact.value <= found.upper * (1 + 1e-9)
    assert found.upper - found.lower <= 0.01 * found.upper


def test_fewer_modes_bound_from_above(fitted):
    whole = max_stable_lr(network_loss, *fitted, rule="sgdm", batch_size=2)
    for modes in (2, 8):
        part = max_stable_lr(network_loss, *fitted, rule="sgdm", batch_size=2, modes=modes)
        assert part.value >= whole.value * (1 - 1e-9)
        assert "upper bound" in part.method
        assert part.stderr > 0


@pytest.mark.slow
def test_single_precision_gives_the_same_to_its_own_accuracy(fitted):
    low = jax.tree.map(lambda a: a.astype(jnp.float32), fitted)
    exact = max_stable_lr(network_loss, *fitted, rule="nesterov", batch_size=3)
    found = max_stable_lr(network_loss, *low, rule="nesterov", batch_size=3)
    assert found.value == pytest.approx(
        exact.value, rel=2e-3
    )  # cutoff 2^-11.5 = 3e-4 of a factor, enters linearly
    assert abs(found.value - exact.value) <= 3 * (found.stderr + exact.stderr) + 1e-4 * exact.value


def test_double_precision_of_the_weights_is_kept_whatever_the_settings():
    with jax.enable_x64(False):
        found = max_stable_lr(regression, np.zeros(3), tuple(map(np.asarray, DATA)), rule="sgd", batch_size=1)
    exact = thresholds.sgd_mean_square(np.asarray(DATA[0]), batch_size=1)
    assert found.value == pytest.approx(exact.value, rel=1e-7)  # float32 would give 1e-4 and worse


def test_preconditioner_of_resting_weights():
    x, y = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 2.0]]), jnp.array([1.0, -2.0, 0.5, 3.0])
    w = jnp.linalg.lstsq(x, y)[0]  # a minimum with residuals: gradients of examples do not vanish
    each = (x @ w - y)[:, None] * x
    p = (4 - 2) / (2 * 3)
    scale = 1 / jnp.sqrt(jnp.sqrt(p * jnp.mean(each**2, axis=0)) + 1e-8)
    found = max_stable_lr(regression, w, (x, y), rule="adam", batch_size=2)
    whitened = np.asarray(scale)[:, None] * np.einsum("ni,nj->nij", x, x) * np.asarray(scale)
    values, vectors = np.linalg.eigh(whitened.mean(0))
    exact = mean_square_limit(
        linear_rule("adam"), dense_curvatures(values, vectors.T @ whitened @ vectors), p
    )
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert "E g_B^2" in found.method


@pytest.mark.slow
def test_curvatures_that_are_no_fit_are_taken_as_they_are():
    # logistic loss at its minimum: the examples' Hessians are of rank one, so both ways are open
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(30, 3))), jnp.asarray(np.sign(rng.normal(size=30)))

    def logistic(w, batch):
        # an extra weight that enters as a product gives each example an indefinite Hessian with zero mean
        inputs, labels, sign = batch
        return jnp.mean(jnp.logaddexp(0.0, -labels * (inputs @ w[:3])) + sign * w[3] * w[4]) + 0.05 * w @ w

    data = (x, y, jnp.tile(jnp.array([1.0, -1.0]), 15))
    w = jnp.zeros(5)
    for _ in range(30):  # Newton
        w -= jnp.linalg.solve(jax.hessian(logistic)(w, data), jax.grad(logistic)(w, data))
    found = max_stable_lr(logistic, w, data, rule="sgd", batch_size=3)
    assert "Hessians of the examples" in found.method
    each = jax.vmap(lambda *e: jax.hessian(logistic)(w, tuple(a[None] for a in e)))(*data)
    hessians = np.asarray(each)
    eigen = np.linalg.eigh(hessians.mean(0))
    exact = mean_square_limit(
        linear_rule("sgd"), dense_curvatures(eigen[0], eigen[1].T @ hessians @ eigen[1]), 27 / (3 * 29)
    )
    assert found.value == pytest.approx(exact, rel=1e-6)
    with pytest.raises(InvalidInput, match="mean-square"):
        max_stable_lr(logistic, w, data, batch_size=3, criterion="almost-sure")


@pytest.mark.slow
def test_batch_sharpness_away_from_a_minimum(fitted):
    params, data = fitted
    moved = jax.tree.map(lambda a: 1.5 * a, params)
    with pytest.raises(InvalidInput, match="still applies"):
        max_stable_lr(network_loss, moved, data, batch_size=3)
    found = max_stable_lr(network_loss, moved, data, batch_size=3, criterion="batch-sharpness")
    flat, unravel = jax.flatten_util.ravel_pytree(moved)
    quotients = []
    for batch in itertools.combinations(range(12), 3):
        part = jax.tree.map(lambda a, batch=batch: a[np.array(batch)], data)
        slope = jax.grad(lambda w, part=part: network_loss(unravel(w), part))
        g, image = jax.jvp(slope, (flat,), (slope(flat),))
        quotients.append(float(g @ image / (g @ g)))
    # 64 draws of 220 batches: five standard errors, a false alarm in two million
    assert abs(found.value - 2 / np.mean(quotients)) < 5 * found.stderr
    assert max_stable_lr(network_loss, moved, data, criterion="deterministic").criterion == "deterministic"


def test_the_criterion_that_still_applies_is_named():
    def saddle(w, batch):
        return jnp.mean(batch) * (w[0] ** 2 - 0.5 * w[1] ** 2)

    def dome(w, batch):
        return -jnp.mean(batch) * jnp.sum(w**2)

    ones = jnp.ones(6)
    with pytest.raises(InvalidInput, match=r"no minimum.*deterministic"):
        max_stable_lr(saddle, jnp.zeros(2), ones, batch_size=2)
    assert max_stable_lr(saddle, jnp.zeros(2), ones, rule="gd").value == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match="not positive"):
        max_stable_lr(dome, jnp.zeros(2), ones, rule="gd")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rule": "lion"}, "rule='lion' is not known"),
        ({"rule": "sgd", "momentum": 0.9}, "momentum=0.9 is not an option"),
        ({"rule": "sgdm", "momentum": 1.0}, "outside"),
        ({"rule": "sgd", "batch_size": 4}, "batch_size=4"),
        ({"rule": "sgdm", "batch_size": 1, "criterion": "almost-sure"}, "plain SGD"),
        ({"rule": "sgd", "batch_size": 1, "criterion": "gap"}, "criterion='gap' is not known"),
        ({"rule": "sgd", "opt_state": optax.adam(0.1).init(jnp.zeros(3))}, "has none"),
        ({"rule": "adam", "opt_state": optax.adam(0.1).init(jnp.zeros(3))}, "no update"),
        ({"rule": "adam", "opt_state": optax.sgd(0.1).init(jnp.zeros(3))}, "0 states"),
        ({"data": (DATA[0], jnp.zeros(4))}, "leading axes"),
        ({"loss": lambda w, x, y: x @ w - y}, r"the shape \(\d+,\).*scalar"),
        ({"loss": lambda w: jnp.sum(w)}, "cannot be evaluated"),
        ({"params": jnp.zeros(5)}, "cannot be evaluated"),
        ({"loss": lambda w, x, y: jnp.mean(x @ w) / 0.0}, "not finite"),
        ({"loss": 3.0}, "not callable"),
        ({"params": jnp.zeros(3, int)}, "dtype"),
    ],
)
def test_refusals(arguments, sentence):
    given = {"loss": regression, "params": jnp.zeros(3), "data": DATA, **arguments}
    with pytest.raises(InvalidInput, match=sentence), np.errstate(all="ignore"):
        max_stable_lr(given.pop("loss"), given.pop("params"), given.pop("data"), **given)


def test_another_call_on_the_same_loss_compiles_nothing_and_forgets_the_last_point():
    """A threshold is asked for again and again while weights move: the compiled loss is kept, the weights are not."""
    x, y = jnp.sqrt(jnp.array([[3.0, 0.5], [0.2, 1.0], [1.0, 1.0]])), jnp.zeros(3)

    def loss(w, x, y):
        return 0.5 * jnp.mean((x @ (w - w**3 / 3) - y) ** 2)

    kept = programs(objective(loss, (x, y)), jnp.zeros(2))
    points = (jnp.zeros(2), jnp.full(2, 3.0**0.5))  # two minima: slopes 1 and -2 of w - w^3/3
    first, second = (max_stable_lr(loss, w, (x, y), batch_size=1) for w in points)
    assert second.value == pytest.approx(first.value / 4, rel=1e-5)  # the cutoff of the sketch
    compiled = [kept.product._cache_size(), kept.factors._cache_size(), kept.images._cache_size()]
    assert min(compiled) >= 1
    assert max_stable_lr(loss, points[0], (x, y), batch_size=2).value > first.value
    assert [kept.product._cache_size(), kept.factors._cache_size(), kept.images._cache_size()] == compiled


def test_adam_at_rest_where_every_example_is_fitted_warns_that_it_would_divide_by_eps():
    with pytest.warns(AccuracyWarning, match="pass opt_state"):
        found = max_stable_lr(regression, jnp.zeros(3), DATA, rule="adam")
    assert found.value == pytest.approx(38e-8 / 4, rel=1e-6)  # eps = 1e-8
