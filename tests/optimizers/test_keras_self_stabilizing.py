"""Self-stabilizing CAEO for Keras held against the JAX form, through Keras's own life, and as a cure of the runaway."""

import doctest

import numpy as np
import pytest

from eos_sde.bridge.datasets import load_dataset
from eos_sde.optimizers import curvature, refresh, self_stabilizing_caeo
from solvers.errors import InvalidInput

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed; it comes with the extra 'tensorflow'"
)
keras = pytest.importorskip("keras", reason="Keras is not installed; it comes with the extra 'tensorflow'")

from eos_sde.optimizers.keras import CAEO, CurvatureModel, SelfStabilizingCAEO, self_stabilizing  # noqa: E402
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
CURVATURES = np.array([0.5, 5.0, 10.0])


@pytest.fixture(autouse=True)
def single_precision_afterwards():
    """Keras computes losses in its global dtype, which the tests of double precision change."""
    yield
    compute_in("float32")


def both(shared, epochs, batch, *, jit=False, **settings):
    """Train by both forms, for as many updates."""
    steps = epochs * (1 if batch is None else len(shared.inputs) // batch)
    theirs = with_jax(shared, steps, make=self_stabilizing_caeo, batch=batch, **settings)
    ours, _ = with_keras(shared, epochs, kind=SelfStabilizingCAEO, batch=batch, jit=jit, **settings)
    return ours, theirs


@pytest.mark.parametrize(
    ("dtype", "tolerance", "epochs", "batch", "settings"),
    [
        ("float64", 1e-9, 20, 8, {"rate": 1.0}),
        pytest.param(
            "float64", 1e-9, 15, 8,
            {"rate": 1.0, "least_growth": 0.1, "growth": 0.5, "use_error_bound": True, "refresh": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "float64", 1e-9, 40, None, {"release": "always", "refresh": OFTEN, "curvature": curvature.power()},
            marks=pytest.mark.slow,
        ),
        pytest.param("float32", AGREEMENT, 40, None, {"jit": True}, marks=pytest.mark.slow),
    ],
    ids=["batches", "floor-bound-refresh", "always-budget-power", "single-xla"],
)  # fmt: skip
def test_the_numbers_of_jax_on_a_shared_network(dtype, tolerance, epochs, batch, settings):
    """On batches the margin is given up and taken back: the decisions are equal, and the numbers but for rounding.

    An oscillation that grows by up to a factor of two an update multiplies rounding errors as well: those of double
    precision, 1e-16, have seven decades to grow in.
    """
    ours, theirs = both(network(dtype), epochs, batch, **settings)
    agree(ours, theirs, tolerance)
    np.testing.assert_array_equal(ours.cure[:, 3], theirs.cure[:, 3])
    for column in range(3):
        scale = np.max(np.abs(theirs.cure[:, column]))
        np.testing.assert_allclose(
            ours.cure[:, column], theirs.cure[:, column], rtol=10 * tolerance, atol=10 * tolerance * scale
        )
    turns = np.diff(ours.cure[:, 3])
    if batch is not None:
        assert {-1.0, 1.0} <= set(turns)  # released, and kept again
    else:
        assert np.mean(ours.cure[:, 3]) > 0.9
    held, _ = with_keras(network(dtype), 3, rate=settings.get("rate", 4.0), refresh=1, batch=batch)
    assert (
        abs(held.rate[-1] / ours.rate[len(held.rate) - 1] - 1) > tolerance
    )  # negative control: not plain CAEO


def test_the_directional_sharpness_of_a_quadratic_is_exact_and_followed():
    """Diagonal curvatures: g'Hg/|g|^2 in closed form where measured, and with the old rest in between."""
    variable = keras.Variable([1.0, 1.0, 1.0], dtype="float64")
    made = SelfStabilizingCAEO(0.1, refresh=2)
    for measured in (True, False, True):
        gradient = CURVATURES * variable.numpy()
        square = gradient @ gradient
        share = gradient[2] ** 2 / square
        rest = gradient[:2] ** 2 @ CURVATURES[:2] / (gradient[:2] @ gradient[:2])
        old = rest if measured else float(made.rest)
        made.minimize(quadratic(variable, CURVATURES), [variable])
        assert float(made.rest) == pytest.approx(old, rel=1e-9)
        assert float(made.directional_sharpness) == pytest.approx(share * 10.0 + (1 - share) * old, rel=1e-9)


@pytest.mark.parametrize(("noisy", "rates"), [(True, [0.19] * 5), (False, [0.19, 0.19, 0.3, 0.3, 0.3])])
def test_noise_keeps_the_margin_and_drift_releases_it(noisy, rates):
    """A constant slope: from the third update on the rate is at the bound (2 + 1)/10. One that turns keeps 1.9/10."""
    variable = keras.Variable([0.0, 0.0, 0.01, 0.0], dtype="float64")
    made, seen = SelfStabilizingCAEO(0.5), []
    for sign in (1.0, 1.0, -1.0, -1.0, 1.0) if noisy else (1.0,) * 5:
        made.minimize(lambda s=sign: drift(variable, s), [variable])
        seen.append(float(made.rate))
    np.testing.assert_allclose(seen, rates, rtol=1e-9)
    assert bool(made.released.numpy()) is not noisy


def drift(variable, sign):
    curvatures = tf.constant([0.5, 5.0, 10.0, 0.0], tf.float64)
    return 0.5 * tf.reduce_sum(curvatures * tf.square(variable)) + 0.3 * sign * variable[3]


def test_eager_compiled_and_xla_are_one_optimizer():
    """Three ways to run the same updates, in single precision: equal but for rounding."""

    def after_updates(compiled):
        variable = keras.Variable([1.0, 0.5, 0.1])
        made = SelfStabilizingCAEO(0.5, release="always", refresh=2)
        made.build([variable])
        step = compiled(lambda: made.minimize(quadratic(variable, CURVATURES)))
        for _ in range(5):
            step()
        return [*variable.numpy(), float(made.rate), float(made.directional_sharpness)]

    eager = after_updates(lambda step: step)
    for jit in (False, True):
        compiled = after_updates(lambda step, jit=jit: tf.function(step, autograph=False, jit_compile=jit))
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-7)


def test_zero_gradients_give_zero_updates_and_a_failed_measurement_passes():
    variable, broken = keras.Variable([0.0, 0.0, 0.0]), tf.Variable(1.0)
    made = SelfStabilizingCAEO(0.3, release="always")
    made.minimize(lambda: broken * quadratic(variable, CURVATURES)(), [variable])
    np.testing.assert_array_equal(variable.numpy(), np.zeros(3))
    assert float(made.rate) == pytest.approx(0.2)
    broken.assign(float("nan"))
    made.minimize(lambda: broken * quadratic(variable, CURVATURES)())
    assert np.isnan(float(made.rate))
    assert np.isfinite(float(made.rest))
    assert np.isfinite(float(made.descent))
    broken.assign(1.0)
    variable.assign([1.0, 1.0, 1.0])
    made.minimize(lambda: broken * quadratic(variable, CURVATURES)())
    assert float(made.sharpness) == pytest.approx(10.0, rel=1e-5)
    assert np.isfinite(float(made.rate))


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)  # Keras's own
def test_a_saved_model_goes_on_as_if_nothing_had_happened(tmp_path):
    """Through the .keras file, at a moment when the margin is given up and the running mean is remembered."""
    shared, settings = network("float32"), {"kind": SelfStabilizingCAEO, "delta": 0.4, "refresh": 2}
    whole, _ = with_keras(shared, 12, **settings)
    first, model = with_keras(shared, 5, **settings)
    assert first.cure[-1, 3] == 1
    model.save(tmp_path / "model.keras")
    loaded, log = keras.saving.load_model(tmp_path / "model.keras"), Log()
    assert type(loaded.optimizer) is SelfStabilizingCAEO
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for mine, yours in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), yours.numpy())
    data = {"x": shared.inputs, "y": shared.targets, "batch_size": 32, "shuffle": False}
    loaded.fit(**data, epochs=7, verbose=0, callbacks=[log])
    after = np.array(log.rows, float)
    np.testing.assert_array_equal(after[:, 1], whole.sharpness[5:])
    np.testing.assert_array_equal(after[:, 2], whole.rate[5:])
    np.testing.assert_array_equal(np.array(log.cure), whole.cure[5:])


def test_the_configuration_makes_the_same_optimizer_again():
    made = SelfStabilizingCAEO(
        0.5, delta=0.2, growth=0.5, least_growth=0.05, release="always", curvature=curvature.power(iterations=3),
        refresh=refresh.budget(tol=0.1), use_error_bound=True, seed=5, name="mine", use_ema=True,
    )  # fmt: skip
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert type(again) is SelfStabilizingCAEO
    assert again.get_config() == made.get_config()
    assert (again.growth, again.least_growth, again.release) == (0.5, 0.05, "always")
    assert again.curvature == curvature.power(iterations=3)
    plain = SelfStabilizingCAEO.from_config({"learning_rate": 0.25})
    assert (plain.refresh, plain.curvature) == (1, curvature.lanczos())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"delta": 2.0}, "delta must be a finite number below 2"),
        ({"growth": -0.1}, "growth must be a finite number of at least 0"),
        ({"growth": "much"}, "growth must be a single number"),
        ({"least_growth": 1.5}, r"least_growth=1\.5 must be at most growth"),
        ({"release": "never"}, "release must be one of descent, always"),
        ({"curvature": curvature.hutchinson()}, "other estimators exist for JAX only"),
        ({"momentum": 0.9}, "momentum=0.9 is no setting of SelfStabilizingCAEO; the edge is that of a step along"),
        ({"global_clipnorm": 1.0}, "global_clipnorm=1.0 is no setting of SelfStabilizingCAEO; the edge is"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 is no setting of SelfStabilizingCAEO; add the decay to the loss"),
        ({"speed": 1}, "speed=1 is no setting of SelfStabilizingCAEO; of Keras's own it takes ema_momentum"),
    ],
)  # fmt: skip
def test_refused_settings(settings, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        SelfStabilizingCAEO(**settings)


def test_refused_calls():
    variable = keras.Variable([1.0, 1.0, 1.0])
    found = linearize(quadratic(variable), [variable])
    with pytest.raises(InvalidInput, match="product is missing: SelfStabilizingCAEO measures the Hessian"):
        SelfStabilizingCAEO(0.1).apply(found.gradients, [variable])
    with (
        tf.distribute.OneDeviceStrategy("/cpu:0").scope(),
        pytest.raises(InvalidInput, match="SelfStabilizingCAEO measures the curvature on one device"),
    ):
        SelfStabilizingCAEO(0.1).minimize(quadratic(variable), [variable])


@pytest.mark.slow
def test_a_network_runs_away_is_seen_and_is_cured():
    """A convolution of swish units and a dense layer on 100 coarse pictures of clothes, full batch.

    The base rate is half as much again as the one at whose edge the start lies. Without the cure the alarm is on at the
    end: by its definition the sharpness is a quarter above its least. With it no alarm comes in the second half, the
    sharpness ends lower by more than that quarter, and the loss is no higher. Nothing was chosen on this network.
    """
    images, labels = load_dataset("fashion", source="subset").balanced(100)
    pictures = images.reshape(100, 7, 4, 7, 4).mean(axis=(2, 4))[..., None].astype("float32")
    targets = np.eye(10, dtype="float32")[labels]

    def train(kind, rate, steps):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((7, 7, 1))
        hidden = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, strides=2, activation="swish")(inputs))
        model, log, seen = CurvatureModel(inputs, keras.layers.Dense(10)(hidden)), Log(), []
        model.compile(kind(rate, refresh=1), loss="mse", jit_compile=False)
        alarms = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, **__: seen.append(bool(model.optimizer.runaway.numpy()))
        )
        model.fit(pictures, targets, batch_size=100, epochs=steps, verbose=0, callbacks=[log, alarms])
        loss, sharpness = np.array(log.rows).T[:2]
        return loss, sharpness, np.array(seen)

    _, start, _ = train(CAEO, 1e-3, 1)
    base = 1.5 * 2.0 / start[0]
    loss, sharpness, alarms = train(CAEO, base, 600)
    cured_loss, cured_sharpness, cured_alarms = train(SelfStabilizingCAEO, base, 600)
    end = np.mean(cured_sharpness[-50:])
    assert np.all(alarms[-50:])
    assert not np.any(cured_alarms[300:])
    assert np.mean(sharpness[-50:]) > 1.25 * end
    assert base * end < 3
    assert np.mean(cured_loss[-50:]) < np.mean(loss[-50:])


def test_docstring_examples():
    result = doctest.testmod(self_stabilizing)
    assert result.attempted > 0
    assert result.failed == 0
