"""Forms of one rule: their names, what is refused of them, and that a form changes what it says and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.bridge.losses import cross_entropy
from eos_sde.optimizers import curvature
from eos_sde.trials import CONTENDERS, Trial, compare, split_task, train
from eos_sde.trials.batch_order import ordered_batches
from eos_sde.trials.contenders import contender
from solvers.errors import InvalidInput
from tests.trials.conftest import TINY


def test_a_name_with_settings_is_the_rule_with_these():
    form = contender("caeo:delta=-0.05,refresh=50,estimator=hutchinson,use-error-bound=true")
    assert (form.rule, form.delta, form.centre, form.steady) == (
        "caeo",
        -0.05,
        CONTENDERS["caeo"].centre,
        True,
    )
    assert form.options == {"refresh": 50, "estimator": "hutchinson", "use_error_bound": True}
    assert contender("caeo-momentum:delta=0").options == CONTENDERS["caeo-momentum"].options
    assert contender("sgd:schedule=warmup-cosine").schedule == "warmup-cosine"
    assert contender("caeo:estimator=lanczos,refresh=auto,delta=0.1") == CONTENDERS["caeo"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("caeo", "caeoo:delta=1"), "rule='caeoo' is not known here"),
        (("caeo", "caeo:delta"), "'delta' must be setting=value"),
        (("caeo", "caeo:"), "must be setting=value"),
        (("caeo", "caeo:delta=0,delta=1"), "gives delta twice"),
        (("caeo", "caeo:eta=1"), "sets eta, which is what is tuned"),
        (("caeo", "l4:alpha=0.1"), "sets alpha, which is what is tuned"),
        (("caeo", "sgdm:delta=0.5"), "delta is a setting of caeo and caeo-ss"),
        (("caeo", "sgdm:estimator=kfac"), "estimator='kfac' is for the rules that measure the sharpness"),
        (("caeo", "caeo:delta=0.1"), r"different ones \(caeo and caeo:delta=0.1 are the same\)"),
        (
            ("caeo", "caeo:estimator=ritz"),
            "'caeo:estimator=ritz': estimator='ritz' is not known: choose one of lanczos",
        ),
        (("caeo", "caeo:delta=2"), "'caeo:delta=2': delta must be a finite number below 2"),
        (("caeo", "caeo:refresh=0"), "'caeo:refresh=0': refresh must be a positive whole number"),
        (("caeo", "caeo:fresh=3"), "'caeo:fresh=3': .* does not take one of the options"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(tmp_path, rules, words):
    with pytest.raises(InvalidInput, match=words):
        compare("digits-mlp", store=tmp_path, rules=rules, reference="caeo", task_settings=TINY, steps=20, rows=10,
                batch_size=8)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_network_that_does_not_tell_its_layers_is_no_case_for_kfac():
    settings = {"examples": 20, "test_examples": 5, "context": 6, "width": 8, "blocks": 1}
    trial = Trial("shakespeare-transformer", "caeo", steps=2, every=1, batch_size=4, task_settings=settings,
                  options={"estimator": "kfac"})  # fmt: skip
    with pytest.raises(InvalidInput, match="which shakespeare-transformer does not tell"):
        trial.check()


@pytest.mark.parametrize(
    ("name", "kept"), [("lanczos", "LanczosState"), ("hutchinson", "SamplingState"), ("kfac", "KfacState")]
)
def test_the_name_of_an_estimator_is_what_the_rule_measures_by(tiny, name, kept):
    trial = tiny(options={"estimator": name})
    state = trial.transformation().init(jnp.zeros(split_task(trial).training.size))
    assert type(state.curvature).__name__ == kept


def _first_batch(trial):
    task = split_task(trial).training
    (batch,) = ordered_batches(trial.seed, 0, 1, examples=task.n, batch_size=trial.batch_size)
    return task, task.x[batch], task.y[batch]


@pytest.mark.slow
def test_kfac_sees_the_layers_and_the_batch_of_the_update(tiny):
    """The rate of the first update, from layers written by hand on that batch; on another batch it is another."""
    trial = tiny(eta=1e3, steps=1, every=1, options={"estimator": "kfac", "refresh": 1})
    task, x, y = _first_batch(trial)

    def rate(x, y):
        def model(theta, layers):
            module = task.network.unravel(theta)
            hidden = jnp.tanh(layers.dense("one", x, module.weights[0], module.biases[0]))
            return layers.dense("two", hidden, module.weights[1], module.biases[1])

        estimator = curvature.kfac(model, lambda outputs: jnp.mean(cross_entropy(outputs, y)))
        theta = task.init(trial.seed)
        state = estimator.init(theta, jax.random.PRNGKey(trial.seed))
        product = jax.linearize(jax.grad(lambda w: task.loss(w, x, y)), theta)[1]
        return 1.9 / float(estimator.update(product, theta, state)[0])

    run = train(trial)
    assert rate(x[::-1] * 0.5, y) != pytest.approx(rate(x, y), rel=0.01)
    np.testing.assert_allclose(run["learning_rate"][-1], rate(x, y), rtol=1e-9)
    assert run["products"][-1] == 3  # one, and four backward passes at a third each


@pytest.mark.slow
@pytest.mark.parametrize("task", ["digits-mlp", "fashion-cnn"])
def test_layers_told_or_not_the_outputs_are_the_same_bits(task):
    from eos_sde.bridge import load_task
    from eos_sde.optimizers.curvature.layers import Layers

    loaded = load_task(task, examples=20, test_examples=10)
    theta = loaded.init(1)
    with jax.enable_x64(True):
        layers = Layers()
        told = loaded.network.layered(theta, loaded.x, layers)
        np.testing.assert_array_equal(told, loaded.network.apply(theta, loaded.x))
    assert sum(matrix.size for matrix in layers.weights.values()) == loaded.size


@pytest.mark.slow
def test_estimators_rank_as_they_should(tiny):
    """On one batch: Hutchinson's upper bound throttles most; a random quotient misses the top, and hardly does."""
    rates = {}
    for name in ("lanczos", "power", "random_rayleigh", "hutchinson"):
        trial = tiny(eta=1e3, steps=1, every=1, options={"estimator": name, "refresh": 1})
        rates[name] = float(train(trial)["learning_rate"][-1])
    task, x, y = _first_batch(trial)
    exact = 1.9 / np.linalg.eigvalsh(jax.hessian(lambda w: task.loss(w, x, y))(task.init(3)))[-1]
    assert rates["lanczos"] == pytest.approx(exact, rel=0.03)  # its tolerance, 2 %
    assert rates["power"] == pytest.approx(exact, rel=0.2)
    assert rates["hutchinson"] < 0.8 * exact
    assert rates["random_rayleigh"] > 2 * exact


@pytest.mark.slow
def test_a_comparison_of_forms_runs_whole(tmp_path):
    rules = ("caeo", "caeo:estimator=kfac", "caeo:estimator=hutchinson,refresh=5", "caeo:delta=-0.05", "sgdm")
    found = compare("digits-mlp", store=tmp_path, rules=rules, reference="caeo", task_settings=TINY, steps=20, rows=10,
                    batch_size=8, seeds=3, tuning_seeds=1, points=3)  # fmt: skip
    assert tuple(found["rule"].values) == rules
    np.testing.assert_array_equal(found["tuning_knob"][:4], found["tuning_knob"].values[[0, 0, 0, 0]])
    assert len(list(tmp_path.glob("runs/caeo-estimator-kfac-*/run.nc"))) == 3 + 3
