"""Every small task under every tool; settings, sizes and refusals that the kinds of tasks have in common."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eos_sde import bridge
from eos_sde.bridge.covariance import per_example_modes
from eos_sde.bridge.escape import constant_loss
from eos_sde.bridge.losses import cross_entropy, half_squared_error, output_curvature
from eos_sde.bridge.minimum import find_minimum
from eos_sde.bridge.spectrum import random_block, top_modes
from solvers.errors import InvalidInput

TINY = {
    "fashion-mlp": {"examples": 24, "hidden": (4,), "pool": 7},
    "digits-mlp": {"examples": 24, "hidden": (4,), "pool": 2},
    "fashion-cnn": {"examples": 24, "hidden": (4,), "pool": 7, "channels": 2},
    "shakespeare-transformer": {
        "examples": 21,
        "context": 3,
        "width": 4,
        "blocks": 1,
        "test_examples": 5,
        "activation": "tanh",
        "eta": 0.1,
    },
    "cifar-resnet": {
        "examples": 20,
        "test_examples": 10,
        "pool": 8,
        "channels": 4,
        "stages": 1,
        "activation": "tanh",
        "eta": 0.05,
    },
    "chars74k-cnn": {
        "examples": 20,
        "test_examples": 4,
        "side": 8,
        "channels": 2,
        "hidden": (3,),
        "eta": 0.1,
    },
    "imagefolder-vit": {
        "examples": 12,
        "test_examples": 2,
        "side": 8,
        "patch": 4,
        "width": 4,
        "blocks": 1,
        "heads": 1,
        "eta": 0.05,
    },
    "pubmed-bert": {
        "examples": 21,
        "context": 4,
        "width": 4,
        "blocks": 1,
        "heads": 1,
        "test_examples": 5,
        "eta": 0.1,
    },
    "deep-linear": {"examples": 24, "hidden": (4,), "inputs": 4, "spectrum": (1.0, 0.5), "eta": 0.2},
    "chebyshev": {"width": 12},
    "landscape-xyzw": {},
    "uv-catapult": {"width": 6, "eta": 0.5},
}


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Random data in the forms that the tasks of the user's data read: name of the task to path."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    arrays = {
        f"{kind}_{part}": rng.integers(0, high, size, dtype=np.uint8)
        for part, n in (("train", 40), ("test", 20))
        for kind, high, size in (("x", 256, (n, 32, 32, 3)), ("y", 10, (n,)))
    }
    np.savez(root / "random.npz", **arrays)
    strokes = {c: rng.integers(0, 99, (13, 2, 4, 2)).tolist() for c in "1Zz"}
    (root / "strokes.json").write_text(json.dumps(strokes))
    for name in ("n0", "n1"):
        (root / "images" / name).mkdir(parents=True)
        for k in range(11):
            image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            image.save(root / "images" / name / f"{k:02d}.png")
    (root / "text.txt").write_bytes(bytes(rng.integers(97, 123, 400).tolist()))
    return {
        "cifar-resnet": root / "random.npz",
        "chars74k-cnn": root / "strokes.json",
        "imagefolder-vit": root / "images",
        "pubmed-bert": root / "text.txt",
    }


def tiny(name, own_data, **settings):
    path = {"path": own_data[name]} if name in own_data else {}
    return bridge.load_task(name, **(TINY[name] | path | settings))


OWN = ("cifar-resnet", "chars74k-cnn", "imagefolder-vit", "pubmed-bert")
ALL = [
    name if name == "landscape-xyzw" else pytest.param(name, marks=pytest.mark.slow)
    for name in bridge.tasks()
]


def dense_sharpness(task, start):
    return np.linalg.eigvalsh(jax.jit(jax.hessian(task.loss))(start))[-1]


@pytest.mark.parametrize("name", ALL)
def test_runs_of_every_task(name, own_data):
    """A run starts at the loss of the task and the sharpness of the dense Hessian."""
    task = tiny(name, own_data)
    start = np.asarray(task.init(0))
    run = bridge.record(task, "sgd", steps=2, seed=0, every=2, batch_size=min(2, task.n))
    assert np.isclose(run["loss"][0, 0], jax.jit(task.loss)(start), rtol=1e-12)
    assert np.isfinite(run["batch_sharpness"]).all()
    # Lanczos stops at a residual of 1 %, an error of its square over the relative gap
    assert np.isclose(run["sharpness"][0, 0], dense_sharpness(task, start), rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_calibrations_of_every_task(name, own_data):
    """The eigenvalue, and the second of the derivatives along its vector, are those of the dense Hessian."""
    task = tiny(name, own_data)
    start = np.asarray(task.init(0))
    calibration = bridge.calibrate(task, start, batch_size=min(2, task.n), k=2)
    truth = dense_sharpness(task, start)
    assert np.isclose(calibration["eigenvalue"][0], truth, rtol=1e-6)
    assert np.isclose(calibration["curvature"], truth, rtol=1e-6)
    assert np.isfinite(calibration["noise_covariance"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_flows_of_every_task(name, own_data):
    """A flow starts at the sharpness and loss of its checkpoint, or says that it is a catapult."""
    task = tiny(name, own_data)
    start, loss = np.asarray(task.init(0)), jax.jit(task.loss)
    settings = {"steps": 2, "save_every": 2, "stride": 2, "modes": 2}
    full = bridge.central_flow(task, start, **settings)
    noisy = bridge.stochastic_central_flow(task, start, batch_size=min(2, task.n), **settings)
    sharpness = float(top_modes(task, jnp.asarray(start), 2)[0][0])
    for flow in (full, noisy):
        if flow.attrs["stopped"]:
            assert task.eta * sharpness > 2
            continue
        assert flow["step"].size == 2
        assert np.isclose(flow["loss"][0], loss(start), rtol=1e-12)
        assert np.isclose(flow["sharpness"][0], sharpness, rtol=1e-4)  # the block is converged to 1e-3
        assert flow["loss"][-1] < flow["loss"][0]


@pytest.mark.slow
def test_few_weights_take_the_default_number_of_modes(own_data):
    task = tiny("landscape-xyzw", own_data, eta=0.05)
    start = np.asarray(task.init(0))
    values, vectors, residuals = top_modes(task, jnp.asarray(start), 16)
    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(task.loss))(start))[::-1][:16]
    assert values.shape == residuals.shape == dense.shape
    assert vectors.shape == (4, 4)
    assert np.allclose(values, dense, rtol=0, atol=1e-12 * abs(dense).max())
    assert bridge.central_flow(task, start, steps=5, save_every=5)["step"].size == 2
    calibration = bridge.calibrate(task, start, batch_size=1)
    assert calibration["eigenvalue"].size == 4
    assert float(calibration["noise_covariance"].sum()) == 0  # one example: no batch noise
    assert np.isnan(calibration["alpha_stderr"])


@pytest.mark.parametrize("rule", ["sgd", "sgdm", "adam"])
@pytest.mark.slow
def test_flows_with_batches_carry_all_of_few_weights(rule):
    """12 weights, 16 modes asked for: all are carried, nothing is outside, and no loss is unresolved."""
    task = bridge.load_task("chebyshev", width=4)
    start = np.asarray(task.init(0))
    flow = bridge.stochastic_central_flow(
        task, start, rule=rule, batch_size=4, eta=0.01, steps=10, save_every=5
    )
    assert task.size == 12
    assert flow["step"].size == 3
    assert np.all(flow["mean_loss"][1:] > flow["loss"][1:])
    assert rule != "sgd" or np.all(flow["unresolved_loss"] == 0)


@pytest.mark.slow
def test_jackknife_over_few_examples():
    """From 2 to 19 examples each is a group: the error of alpha is the textbook jackknife's."""
    task = bridge.load_task("digits-mlp", examples=5, hidden=(2,), pool=4)
    theta = jnp.asarray(task.init(0))
    calibration = bridge.calibrate(task, theta, batch_size=2, k=2)
    u = jnp.asarray(calibration["eigenvector"].values[0])

    @jax.jit
    def alpha(weights):
        def loss(w):
            return weights @ task.per_example_loss(w)

        g = jax.grad(loss)(theta)
        s = jax.grad(lambda w: u @ jax.jvp(jax.grad(loss), (w,), (u,))[1])(theta)
        return -(g @ s - (g @ u) * (s @ u))

    left_out = np.array([alpha((1 - np.eye(5)[i]) / 4) for i in range(5)])
    assert np.isclose(calibration["alpha"], alpha(np.full(5, 0.2)), rtol=1e-9)
    assert np.isclose(calibration["alpha_stderr"], np.sqrt(4 * left_out.var()), rtol=1e-9)


@pytest.mark.slow
def test_per_example_matrices_of_sequences(own_data):
    """Gradients and Gauss-Newton matrices in a frame, against Jacobians and dense matrices of all outputs."""
    entropy, squared = (
        tiny("shakespeare-transformer", own_data, examples=3, context=2, loss=loss)
        for loss in ("cross-entropy", "half-squared-error")
    )
    theta = entropy.init(1)
    frame = random_block(entropy.size, 3, seed=1)
    along = lambda s: entropy.apply(theta + frame @ s)  # noqa: E731
    tangents = np.asarray(jax.jit(jax.jacfwd(along))(jnp.zeros(3))).reshape(3, 130, 3)
    outputs = np.asarray(jax.jit(along)(jnp.zeros(3)))
    p = np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True)
    hot = np.eye(65)[entropy.y]
    for task, slope in ((entropy, p - hot), (squared, outputs - hot)):
        gradients, curvatures = jax.jit(per_example_modes, static_argnums=0)(task, theta, frame)
        dense = np.zeros((3, 130, 130))
        for t, block in enumerate((slice(65), slice(65, 130))):
            of_softmax = np.einsum("ni,ij->nij", p[:, t], np.eye(65)) - np.einsum(
                "ni,nj->nij", p[:, t], p[:, t]
            )
            dense[:, block, block] = (of_softmax if task is entropy else np.eye(65)) / 2
        made = output_curvature(task.loss_name, jnp.asarray(outputs), task.y)
        assert np.allclose(made, dense, rtol=0, atol=1e-15)
        exact = np.einsum("nc,nck->nk", slope.reshape(3, 130) / 2, tangents)
        assert np.allclose(gradients, exact, rtol=0, atol=1e-13)
        exact = np.einsum("nci,ncd,ndj->nij", tangents, dense, tangents)
        assert np.allclose(curvatures, exact, rtol=0, atol=1e-13)


def test_losses_of_classes_and_sequences_by_hand():
    rng = np.random.default_rng(0)
    outputs, classes = jnp.asarray(rng.standard_normal((4, 5, 3))), jnp.asarray(rng.integers(0, 3, (4, 5)))
    hot = np.eye(3)[classes]
    logs = np.log(np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True))
    for targets in (classes, jnp.asarray(hot)):
        assert np.allclose(
            cross_entropy(outputs, targets), -(hot * logs).sum(axis=2).mean(axis=1), rtol=1e-13
        )
        squared = 0.5 * ((np.asarray(outputs) - hot) ** 2).sum(axis=2).mean(axis=1)
        assert np.allclose(half_squared_error(outputs, targets), squared, rtol=1e-13)
    assert np.allclose(
        cross_entropy(outputs[:, 0], classes[:, 0]), -(hot * logs).sum(axis=2)[:, 0], rtol=1e-13
    )


def test_best_constant_of_sequences_is_the_entropy_of_the_characters(own_data):
    task = tiny("shakespeare-transformer", own_data)
    counts = np.bincount(np.asarray(task.y).ravel())
    p = counts[counts > 0] / counts.sum()
    with pytest.raises(InvalidInput, match="no minimum"):
        find_minimum(task, seed=0)
    if len(counts) == 65 and counts.all():
        assert np.isclose(constant_loss(task), -(p * np.log(p)).sum(), rtol=1e-12)
    squared = tiny("shakespeare-transformer", own_data, loss="half-squared-error")
    assert np.isclose(constant_loss(squared), (1 - (p**2).sum()) / 2, rtol=1e-12)


@pytest.mark.parametrize("name", bridge.tasks())
def test_sizes_are_visible_and_overridden(name, own_data):
    small, large = bridge.task_defaults(name), bridge.task_defaults(name, size="large")
    assert (small["size"], large["size"]) == ("small", "large")
    assert set(small) == set(large)
    assert large["examples"] > small["examples"]
    task = tiny(name, own_data, size="large", seed=3)
    assert task.settings["size"] == "large"
    assert task.settings["examples"] == TINY[name].get("examples", large["examples"])
    for key in set(large) - set(TINY[name]) - {"path", "seed"}:
        assert task.settings[key] == large[key]


@pytest.mark.parametrize(
    "name",
    [
        "fashion-cnn",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("shakespeare-transformer", *OWN)),
    ],
)
def test_classifiers_have_both_losses(name, own_data):
    for loss in ("half-squared-error", "cross-entropy"):
        task = tiny(name, own_data, loss=loss)
        gradient = jax.jit(jax.grad(task.loss))(task.init(0))
        assert float(jnp.linalg.norm(gradient)) > 0
        assert gradient.dtype == jnp.float64


def test_descriptions_name_data_and_licence():
    text = {name: bridge.describe_task(name) for name in bridge.tasks()}
    for name, line in text.items():
        assert "\n" not in line
        assert "weights" in line
        assert "example" in line
        assert "eta = " in line
        assert "licence" in line or "needs path" in line or "data: " in line, name
    assert "cs.toronto.edu" in text["cifar-resnet"]
    assert "public domain" in text["shakespeare-transformer"]
    assert "EnglishHnd.tgz" in text["chars74k-cnn"]
    assert "image-net.org" in text["imagefolder-vit"]
    assert "PubMed Central" in text["pubmed-bert"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "digits-mlp", "size": "huge"}, "size='huge' is not known: choose one of small, large"),
        ({"name": "deep-linear", "loss": "cross-entropy"}, "is for classes and deep-linear is a regression"),
        ({"name": "landscape-xyzw", "loss": "cross-entropy"}, "choose half-squared-error"),
        (
            {"name": "deep-linear", "spectrum": (1.0,) * 9},
            "must be from 1 to inputs=8 finite singular values",
        ),
        ({"name": "deep-linear", "examples": 8}, "examples=8 must be more than inputs=8"),
        ({"name": "deep-linear", "hidden": (2,)}, "at least as wide as the 4 outputs"),
        ({"name": "deep-linear", "noise": -1.0}, "noise=-1.0 must be a finite number of at least 0"),
        ({"name": "chebyshev", "degree": 0}, "degree=0 must be a positive integer"),
        ({"name": "chebyshev", "eta": float("nan")}, "eta=nan must be a positive"),
        ({"name": "landscape-xyzw", "tied": 1}, "tied=1 must be True"),
        ({"name": "landscape-xyzw", "start": (1.0,)}, "must be two finite numbers"),
        ({"name": "shakespeare-transformer", "heads": 3}, "heads=3 must divide width=16"),
        ({"name": "shakespeare-transformer", "context": 2_000_000}, "the 0 starts in the train text"),
        ({"name": "shakespeare-transformer", "activation": "sine"}, "activation='sine'"),
        ({"name": "cifar-resnet"}, r"needs the setting path=.*cs.toronto.edu"),
        ({"name": "cifar-resnet", "path": "nowhere"}, "path=.*nowhere does not exist"),
        ({"name": "cifar-resnet", "pool": 5}, "pool=5 must divide the image size 32"),
        ({"name": "cifar-resnet", "path": 3}, "path=3 must be a path"),
        ({"name": "chars74k-cnn", "side": 7, "path": "x"}, "side=7 must be an integer of at least 8"),
        ({"name": "chars74k-cnn", "smoothing": 1.0, "path": "x"}, "smoothing=1.0 must lie"),
        (
            {"name": "imagefolder-vit", "classes": 1, "path": "x"},
            "classes=1 must be an integer of at least 2",
        ),
        (
            {"name": "imagefolder-vit", "augment": "crop-flip", "path": "x"},
            "augment='crop-flip' is for batches that are streamed: give stream=true too, or augment=none",
        ),
        (
            {"name": "imagefolder-vit", "stream": True, "augment": "mixup", "path": "x"},
            "augment='mixup' is not known: choose one of none, crop-flip",
        ),
        ({"name": "pubmed-bert", "masked": 1.0, "path": "x"}, "masked=1.0 must lie between 0 and 1"),
        ({"name": "pubmed-bert", "bytes": 0, "path": "x"}, "bytes=0 must be a positive integer"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        bridge.load_task(**settings)
    assert "\n" not in str(caught.value)


def test_what_a_task_cannot_do_is_refused(own_data):
    with pytest.raises(InvalidInput, match="the replay needs one-hot classes of images, not chebyshev"):
        bridge.replay("chebyshev")
    with pytest.raises(InvalidInput, match="not cifar-resnet: choose one of fashion-mlp, digits-mlp"):
        bridge.replay("cifar-resnet")
    with pytest.raises(InvalidInput, match="deep-linear has no small version"):
        bridge.interpolation_task("deep-linear")
    task = tiny("uv-catapult", own_data)
    with pytest.raises(InvalidInput, match="uv-catapult is a regression"):
        task.accuracy(task.init(0))
