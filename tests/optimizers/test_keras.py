"""CAEO for Keras held against the JAX form on shared networks, against dense Hessians, and through Keras's own life."""

import doctest

import jax
import numpy as np
import optax
import pytest

from eos_sde.optimizers import caeo, curvature, refresh, rule, runaway
from solvers.errors import InvalidInput

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed; it comes with the extra 'tensorflow'"
)
keras = pytest.importorskip("keras", reason="Keras is not installed; it comes with the extra 'tensorflow'")

from eos_sde.optimizers.keras import CAEO, CurvatureModel, CurvatureTraining, optimizer, threefry, training  # noqa: E402
from eos_sde.optimizers.keras.hessian import linearize  # noqa: E402
from tests.optimizers.keras_runs import (  # noqa: E402
    AGREEMENT,
    OFTEN,
    Log,
    agree,
    compute_in,
    network,
    quadratic,
    with_jax,
    with_keras,
)

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def single_precision_afterwards():
    """Keras computes losses in its global dtype, which the tests of double precision change."""
    yield
    compute_in("float32")


@pytest.mark.parametrize(
    ("dtype", "tolerance", "jit", "settings"),
    [
        ("float64", 1e-11, False, {}),
        ("float64", 1e-11, False, {"curvature": curvature.lanczos(mix=0.0), "refresh": OFTEN}),
        ("float64", 1e-7, True, {"curvature": curvature.power(), "momentum": 0.3, "refresh": OFTEN}),
        ("float32", AGREEMENT, True, {}),
        (
            "float64",
            1e-11,
            False,
            {
                "momentum": 0.3,
                "nesterov": True,
                "refresh": 3,
                "use_error_bound": True,
                "delta": 0.5,
            },
        ),
        (
            "float64",
            1e-11,
            False,
            {"momentum": 0.5, "momentum_edge": True, "refresh": 2, "use_error_bound": True},
        ),
        pytest.param(
            "float32",
            AGREEMENT,
            False,
            {"momentum": 0.5, "nesterov": True, "momentum_edge": True, "refresh": 2},
            marks=pytest.mark.slow,
        ),
        ("float64", 1e-11, False, {"refresh": refresh.budget(bend=True, share=2.0)}),
        ("float64", 1e-11, False, {"lipschitz": 2.0, "refresh": 3}),
        pytest.param("float32", AGREEMENT, True, {"lipschitz": 2.0, "refresh": 3}, marks=pytest.mark.slow),
    ],
    ids=[
        "default",
        "lanczos",
        "power-momentum-xla",
        "default-single-xla",
        "nesterov-refresh-bound",
        "edge-of-momentum",
        "edge-of-nesterov-single",
        "bend",
        "certified",
        "certified-single-xla",
    ],
)
def test_the_numbers_of_jax_on_a_shared_network(dtype, tolerance, jit, settings):
    """40 updates, full batch, equal but for rounding; where refreshed by budget, most without a measurement.

    In double precision rounding (1e-16) has five decades to grow in; XLA decomposes the small matrix by an iteration
    of its own, to a tolerance between single and double precision. Negative control: another start vector is told
    apart, though it estimates well.
    """
    shared = network(dtype)
    theirs = with_jax(shared, 40, **settings)
    ours, model = with_keras(shared, 40, jit=jit, **settings)
    agree(ours, theirs, tolerance)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=tolerance)
    assert ours.monitor["measured"] > 3  # the cap was at work
    if not isinstance(model.optimizer.refresh, int):
        between = ours.staleness[1:] > 0
        assert 20 < np.sum(between) < 39  # measured at the first update, at most of others not
        assert np.all(np.diff(ours.sharpness)[between] != 0)  # followed, not held
    other = with_jax(shared, 1, **settings, seed=1)
    assert abs(other.sharpness[0] / theirs.sharpness[0] - 1) > tolerance


def test_the_numbers_of_jax_on_batches():
    """Three passes over four batches: the curvature is that of the batch at hand."""
    shared = network("float64")
    theirs = with_jax(shared, 12, batch=8, refresh=1)
    ours, _ = with_keras(shared, 3, batch=8, refresh=1)
    agree(ours, theirs, 1e-11)
    whole = with_jax(shared, 12, refresh=1)
    assert np.max(np.abs(ours.sharpness / whole.sharpness - 1)) > 0.05  # negative control


def test_the_certified_rate_is_that_of_the_step_that_is_made():
    """With clipped gradients the path is shorter: as in a chain of optax, and unlike without clipping."""
    shared, settings = network("float64"), {"lipschitz": 2.0, "refresh": 4}

    def clipped(rate, **settings):
        return optax.chain(optax.clip_by_global_norm(0.1), caeo(rate, **settings))

    theirs = with_jax(shared, 9, make=clipped, **settings)
    ours, model = with_keras(shared, 9, global_clipnorm=0.1, **settings)
    agree(ours, theirs, 1e-11)
    lengths = (
        0.1 * ours.rate[8:]
    )  # gradients were longer than 0.1: clipped to it; measured at the last update
    assert float(model.optimizer.travelled) == pytest.approx(lengths.sum(), rel=1e-9)
    free, _ = with_keras(shared, 1, **settings)
    assert free.rate[0] < 0.99 * ours.rate[0]  # negative control
    assert np.all(np.diff(ours.loss) < 0)


def test_the_edge_of_momentum():
    """The cap is the edge times 1 - delta/2, and the monitor's edge moves with it."""
    for nesterov, factor in ((False, 1.9), (True, 1.9 / 2.8)):
        variable = keras.Variable([1.0, 1.0, 1.0], dtype="float64")
        made = CAEO(5.0, momentum=0.9, nesterov=nesterov, momentum_edge=True, refresh=1)
        made.minimize(quadratic(variable), [variable])
        assert float(made.rate) == pytest.approx(factor * 1.9 / 10.0, rel=1e-9)


def test_the_sharpness_is_that_of_the_dense_hessian():
    """First update, tol 1e-6: the error is at most the square of the residual over the gap, 1e-9 and less."""
    shared = network("float64")
    ours, model = with_keras(shared, 1, curvature=curvature.lanczos(tol=1e-6, restarts=40))
    flat, unravel = jax.flatten_util.ravel_pytree(shared.weights)
    dense = np.linalg.eigvalsh(jax.hessian(lambda vector: shared.loss(unravel(vector)))(flat))
    assert ours.sharpness[0] == pytest.approx(dense[-1], rel=1e-9)
    assert ours.rate[0] == pytest.approx(rule.learning_rate(4.0, dense[-1], 0.1), rel=1e-9)
    assert float(model.optimizer.residual) <= 1e-6 * dense[-1]


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_random_numbers_are_those_of_jax(seed):
    """The hash is exact. The inverse error functions lose a few roundings of u^2, which is near 1 in the tails.

    An error e of u moves the normal number x by sqrt(pi/2) exp(x^2/2) e.
    """
    theirs, ours = jax.random.PRNGKey(seed), tf.constant(threefry.key(seed))
    for mine, yours in zip(threefry.split(ours), jax.random.split(theirs), strict=True):
        np.testing.assert_array_equal(mine, yours)
    for dtype, rounding in (("float32", 6e-8), ("float64", 1.1e-16)):
        mine = threefry.normal(ours, 4001, tf.as_dtype(dtype)).numpy()
        yours = np.asarray(jax.random.normal(theirs, (4001,), dtype))
        errors = 16 * rounding * (np.abs(yours) + np.sqrt(np.pi / 2) * np.exp(yours**2 / 2))
        assert np.all(np.abs(mine - yours) <= errors)
        assert len(np.unique(mine)) > 3900


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)  # Keras's own
def test_a_saved_model_goes_on_as_if_nothing_had_happened(tmp_path):
    """Through the .keras file, with a momentum trace, a warm start, and an estimate that is being followed."""
    shared = network("float32")
    settings = {"momentum": 0.5, "delta": 0.4}
    whole, _ = with_keras(shared, 14, **settings)
    first, model = with_keras(shared, 5, **settings)
    model.save(tmp_path / "model.keras")
    loaded, log = keras.saving.load_model(tmp_path / "model.keras"), Log()
    assert type(loaded) is CurvatureModel
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert int(loaded.optimizer.staleness.numpy()) == first.staleness[-1] > 0
    for mine, yours in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), yours.numpy())
    loaded.fit(
        shared.inputs, shared.targets, batch_size=32, epochs=9, shuffle=False, verbose=0, callbacks=[log]
    )
    after = np.array(log.rows, float)
    assert 0 in whole.staleness[5:]  # measured again
    np.testing.assert_array_equal(after[:, 1], whole.sharpness[5:])
    np.testing.assert_array_equal(after[:, 2], whole.rate[5:])


def test_the_configuration_makes_the_same_optimizer_again():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    made = CAEO(
        schedule, delta=-0.1, curvature=curvature.power(iterations=3), refresh=refresh.budget(tol=0.1),
        momentum=0.9, nesterov=True, momentum_edge=True, use_error_bound=True, seed=5, name="mine", clipnorm=1.0,
    )  # fmt: skip
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert type(again) is CAEO
    assert again.get_config() == made.get_config()
    assert again.curvature == curvature.power(iterations=3)
    assert again.refresh == refresh.budget(tol=0.1)
    assert again.clipnorm == 1.0
    plain = CAEO.from_config({"learning_rate": 0.25})
    assert plain.refresh == refresh.budget()
    assert plain.curvature == refresh.default_estimator(refresh.budget())
    numbered = CAEO.from_config(CAEO(refresh=2, lipschitz=3.0).get_config())
    assert (numbered.refresh, numbered.lipschitz) == (2, 3.0)
    assert numbered.curvature == curvature.lanczos()


def test_schedules_and_changed_rates_are_the_base_rate():
    """On a flat quadratic the base rate itself is used: that of the schedule at the updates made so far."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.05])
    variable = keras.Variable([1.0, 1.0, 1.0])
    made, rates = CAEO(schedule), []
    for _ in range(4):
        made.minimize(quadratic(variable), [variable])
        rates.append(float(made.rate))
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.05, 0.05], rtol=1e-6)
    plain = CAEO(0.1)
    plain.minimize(quadratic(variable), [variable])
    plain.learning_rate = 7.0
    plain.minimize(quadratic(variable))
    assert float(plain.rate) == pytest.approx(1.9 / 10.0, rel=1e-5)


def test_a_failed_measurement_is_seen_and_passes():
    """A NaN curvature gives a NaN rate; with the loss repaired the next measurement is good."""
    variable, broken = keras.Variable([1.0, 1.0, 1.0]), tf.Variable(1.0)
    made = CAEO(0.5)
    made.minimize(lambda: broken * quadratic(variable)(), [variable])
    broken.assign(float("nan"))
    made.minimize(lambda: broken * quadratic(variable)())
    assert np.isnan(float(made.rate))
    broken.assign(1.0)
    variable.assign([1.0, 1.0, 1.0])
    made.minimize(lambda: broken * quadratic(variable)())
    assert float(made.sharpness) == pytest.approx(10.0, rel=1e-5)


@pytest.mark.parametrize(("shown", "expected"), [(True, np.exp(0.4)), (False, 1.0)])
def test_the_slope_is_needed_to_follow(shown, expected):
    """At y = 0 the Hessian is diag(0, exp(x)): followed exactly, and held where only its products are shown."""
    x, y = (keras.Variable(0.0, dtype="float64") for _ in range(2))
    made = CAEO(1.0, refresh=refresh.budget(tol=0.9))
    for place in (0.0, 0.0, 0.4):
        x.assign(place)
        found = linearize(lambda: 0.5 * tf.exp(x.value) * tf.square(y.value), [x, y])
        made.apply(found.gradients, [x, y], product=found.product, slope=found.slope if shown else None)
    assert int(made.staleness) == 1
    assert float(made.sharpness) == pytest.approx(expected, rel=1e-9)


def test_the_runaway_is_seen_where_the_other_form_sees_it():
    """The curvature rises by 1 % an update under a binding cap: an alarm after about RISE/0.01 and a window."""
    variable = keras.Variable([1.0, 1.0, 1.0], dtype="float64")
    stretch = tf.Variable(1.0, dtype=tf.float64)
    made, monitor, alarms = CAEO(0.5, refresh=1), runaway.start(), []

    @tf.function(autograph=False)
    def update():
        made.minimize(lambda: stretch * quadratic(variable)(), [variable])
        stretch.assign(1.01 * stretch)

    for _ in range(90):
        update()
        monitor = runaway.watch(monitor, float(made.sharpness), bool(made.capped.numpy()), edge=4.0)
        alarms.append((bool(made.runaway.numpy()), bool(monitor.runaway)))
    ours, theirs = np.array(alarms).T
    np.testing.assert_array_equal(ours, theirs)
    assert 22 < np.argmax(ours) < 75
    for name, value in monitor._asdict().items():
        np.testing.assert_allclose(made._monitor[name].numpy(), value, rtol=1e-12, err_msg=name)


def test_embeddings_dropout_and_unused_variables():
    """Sparse gradients, random masks, and a variable outside the loss, under ``fit`` with XLA as Keras chooses."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), dtype="int32")
    hidden = keras.layers.Dropout(0.3)(keras.layers.Flatten()(keras.layers.Embedding(10, 3)(inputs)))

    class Wide(CurvatureTraining, keras.Model):
        pass

    model = Wide(inputs, keras.layers.Dense(1)(hidden))
    model.compile(CAEO(0.5), loss="mse", metrics=["mae"])
    words = np.random.default_rng(2).integers(0, 10, (40, 4))
    history = model.fit(words, words.mean(axis=1), batch_size=20, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "mae"}
    assert float(model.optimizer.sharpness) > 0

    used, unused = keras.Variable([1.0, 1.0, 1.0]), keras.Variable([3.0])
    made = CAEO(0.5, refresh=1)
    made.minimize(quadratic(used), [used, unused])
    assert float(made.sharpness) == pytest.approx(10.0, rel=1e-5)
    assert float(unused.value[0]) == 3.0


def test_another_optimizer_trains_as_in_keras():
    shared, weights = network("float32"), []
    for kind in (CurvatureModel, keras.Model):
        template = shared.model("float32")
        model = kind(template.inputs, template.outputs)
        model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
        model.fit(shared.inputs, shared.targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for mine, yours in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": None}, "learning_rate must be a number or a schedule of Keras, got None"),
        ({"learning_rate": -0.1}, "learning_rate must be positive and finite, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite"),
        ({"learning_rate": "fast"}, "learning_rate must be a single number, got 'fast'"),
        ({"learning_rate": [0.1, 0.2]}, "learning_rate must be a single number"),
        ({"learning_rate": optax.cosine_decay_schedule(0.1, 10)}, "as optax's schedules do"),
        ({"delta": 2.0}, "delta must be a finite number below 2"),
        ({"delta": None}, "delta must be a number"),
        ({"refresh": 0}, "refresh must be a positive whole number"),
        ({"refresh": float("inf")}, "refresh must be a positive whole number"),
        ({"refresh": "often"}, r"refresh must be .* 'auto' or refresh\.budget"),
        ({"refresh": refresh.Every(2)}, "other policies exist for JAX only"),
        ({"momentum": "heavy"}, "momentum must lie in"),
        ({"lipschitz": -1.0, "refresh": 1}, "lipschitz must be a finite number"),
        ({"lipschitz": 1.0}, "give refresh a number of updates"),
        ({"lipschitz": 1.0, "refresh": 1, "momentum": 0.9}, "leave momentum=0.9 out"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"curvature": curvature.hutchinson()}, "other estimators exist for JAX only"),
        ({"curvature": "lanczos"}, "curvature must be curvature.lanczos"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 is no setting of CAEO; add the decay to the loss"),
        ({"gradient_accumulation_steps": 2}, "use a larger batch"),
        ({"speed": 1}, "speed=1 is no setting of CAEO; of Keras's own it takes clipnorm"),
    ],
)
def test_refused_settings(settings, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        CAEO(**settings)


def test_refused_calls():
    variable, whole = keras.Variable([1.0, 1.0, 1.0]), keras.Variable([1, 2], dtype="int32")
    with pytest.raises(InvalidInput, match="variables must be given at the first call"):
        CAEO(0.1).minimize(quadratic(variable))
    with pytest.raises(InvalidInput, match="loss must be a function"):
        CAEO(0.1).minimize(tf.constant(1.0), [variable])
    with pytest.raises(InvalidInput, match=r"loss must return a scalar, got the shape \(3,\)"):
        CAEO(0.1).minimize(lambda: variable**2, [variable])
    with pytest.raises(InvalidInput, match="of dtype int32: curvature is defined for real"):
        CAEO(0.1).build([whole])
    with pytest.raises(InvalidInput, match="variables holds no numbers"):
        CAEO(0.1).build([])
    made = CAEO(0.1)
    made.minimize(quadratic(variable), [variable])
    other = keras.Variable([1.0, 1.0, 1.0])
    with pytest.raises(InvalidInput, match="make a new optimizer for others"):
        made.minimize(quadratic(other), [other])
    with (
        tf.distribute.OneDeviceStrategy("/cpu:0").scope(),
        pytest.raises(InvalidInput, match=r"leave the scope of tf\.distribute"),
    ):
        made.minimize(quadratic(variable))


def test_a_plain_model_is_told_what_to_use():
    template = network("float32").model("float32")
    model = keras.Model(template.inputs, template.outputs)
    model.compile(CAEO(0.1), loss="mse", jit_compile=False)
    with pytest.raises(InvalidInput, match=r"build the model as eos_sde\.optimizers\.keras\.CurvatureModel"):
        model.fit(np.zeros((4, 5)), np.zeros((4, 3)), verbose=0)


@pytest.mark.parametrize("module", [optimizer, training])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
