"""The transformer and its text, the residual network, and CIFAR from files made here in the official forms."""

import gzip
import hashlib
import io
import pickle
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde import bridge
from eos_sde.bridge.cifar import load_cifar
from eos_sde.bridge.datasets import verified_bytes
from eos_sde.bridge.text import shakespeare
from solvers.errors import InvalidInput


def small_transformer(**settings):
    return bridge.load_task(
        "shakespeare-transformer",
        **({"examples": 6, "context": 8, "width": 8, "blocks": 2, "test_examples": 4} | settings),
    )


@pytest.mark.slow
def test_transformer_is_causal():
    """Outputs at a position do not change with later tokens, and do with its own and earlier ones."""
    task = small_transformer()
    theta, apply = task.init(0), jax.jit(task.apply)
    before = np.asarray(apply(theta, task.x))
    assert before.shape == (6, 8, 65)
    assert task.output_shape == (8, 65)
    assert task.outputs == 520
    for place in range(8):
        changed = np.asarray(apply(theta, task.x.at[:, place].set((task.x[:, place] + 1) % 65)))
        assert np.array_equal(changed[:, :place], before[:, :place])
        moved = np.abs(changed[:, place:] - before[:, place:]).max(axis=(0, 2))
        assert np.all(moved > 1e-6)


def test_transformer_has_as_many_weights_as_its_parts():
    task = small_transformer()
    block = 4 * 8 + 8 * 24 + 8 * 8 + 8 * 32 + 32 + 32 * 8 + 8
    assert task.size == 65 * 8 + 8 * 8 + 2 * block + 2 * 8 + 8 * 65


@pytest.mark.slow
def test_transformer_attends_by_hand():
    """One block and one head in numpy, with the attention summed position by position."""
    task = small_transformer(blocks=1, heads=1, activation="tanh", examples=2)
    arrays = task.network.unravel(task.init(3))
    block = arrays.blocks[0]

    def norm(z, part):
        spread = np.sqrt(z.var(axis=-1, keepdims=True) + 1e-5)
        return (z - z.mean(axis=-1, keepdims=True)) / spread * np.asarray(part.scale) + np.asarray(part.shift)

    for tokens, outputs in zip(
        np.asarray(task.x), np.asarray(jax.jit(task.apply)(task.init(3))), strict=True
    ):
        stream = np.asarray(arrays.tokens)[tokens] + np.asarray(arrays.positions)
        query, key, value = np.split(norm(stream, block.attention_norm) @ np.asarray(block.mixing), 3, axis=1)
        heard = np.zeros_like(stream)
        for t in range(8):
            weights = np.exp(key[: t + 1] @ query[t] / 8**0.5)
            heard[t] = weights @ value[: t + 1] / weights.sum()
        stream = stream + heard @ np.asarray(block.output)
        inner = np.tanh(
            norm(stream, block.mlp_norm) @ np.asarray(block.expand) + np.asarray(block.expand_bias)
        )
        stream = stream + inner @ np.asarray(block.contract) + np.asarray(block.contract_bias)
        assert np.allclose(norm(stream, arrays.norm) @ np.asarray(arrays.unembedding), outputs, atol=1e-12)


@pytest.mark.slow
def test_accuracy_of_sequences_is_per_position():
    task = small_transformer()
    theta = task.init(0)
    right = np.argmax(np.asarray(jax.jit(task.apply)(theta)), axis=2) == np.asarray(task.y)
    accuracy = jax.jit(task.accuracy, static_argnames="part")(theta, part="train")
    assert np.isclose(accuracy, right.sum() / 48)


def test_text_and_windows():
    raw = gzip.decompress(verified_bytes("tinyshakespeare.txt.gz"))
    origin = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert hashlib.sha256(raw).hexdigest() == origin  # of the text as distributed
    text = shakespeare()
    assert len(text.characters) == 65
    whole = "".join(text.characters[k] for k in np.concatenate([text.train, text.test]))
    assert whole == raw.decode("ascii")
    x, y = text.windows(7, 10)
    assert np.array_equal(x[:, 1:], y[:, :-1])
    for row, following in zip(x, y, strict=True):
        letters = "".join(text.characters[k] for k in [*row, following[-1]])
        assert letters in whole[: len(text.train)]
    last = text.windows(len(text.test) - 10, 10, "test")[1]
    assert np.array_equal(last[-1], text.test[-10:])


def images(n, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, classes, n)


def planes(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def binary(pixels, labels, classes):
    heads = (
        [labels.astype(np.uint8)]
        if classes == 10
        else [labels.astype(np.uint8) // 5, labels.astype(np.uint8)]
    )
    return np.concatenate([np.stack(heads, axis=1), planes(pixels)], axis=1).tobytes()


def pickled(pixels, labels, classes, protocol):
    """As the official files: byte strings for keys."""
    key = b"labels" if classes == 10 else b"fine_labels"
    content = {b"batch_label": b"made up", key: labels.tolist(), b"data": planes(pixels)}
    if classes == 100:
        content[b"coarse_labels"] = (labels // 5).tolist()
    return pickle.dumps(content, protocol=protocol)


def official(classes, form, protocol=2):
    """Files of a made-up set, and its images and labels."""
    names = (["data_batch_1", "data_batch_2"], "test_batch") if classes == 10 else (["train"], "test")
    suffix = ".bin" if form == "binary" else ""
    parts = [images(12, classes, seed) for seed in range(len(names[0]) + 1)]
    write = binary if form == "binary" else lambda *part: pickled(*part, protocol)
    files = {
        f"{name}{suffix}": write(*part, classes)
        for name, part in zip([*names[0], names[1]], parts, strict=True)
    }
    train = [np.concatenate(both) for both in zip(*parts[:-1], strict=True)]
    return files, train, parts[-1]


def check(data, train, test, classes):
    assert np.array_equal(np.rint(data.x_train * 255), train[0])
    assert np.array_equal(data.y_train, train[1])
    assert np.array_equal(np.rint(data.x_test * 255), test[0])
    assert np.array_equal(data.y_test, test[1])
    assert len(data.classes) == classes


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(("form", "protocol"), [("binary", 0), ("python", 2), ("python", 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_official_forms(classes, form, protocol, packed, tmp_path):
    files, train, test = official(classes, form, protocol)
    if packed:
        path = tmp_path / "cifar.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"cifar-batches/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        path = tmp_path
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    check(load_cifar(path), train, test, classes)


def test_npz_and_the_task(tmp_path):
    train, test = images(30, 10, 0), images(10, 10, 1)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1][:, None])
    check(load_cifar(path), train, test, 10)
    task = bridge.load_task("cifar-resnet", path=str(path), examples=20, test_examples=10, pool=8, stages=1)
    x = np.asarray(task.x).reshape(20, 4, 4, 3)
    assert np.allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    assert np.unique(np.asarray(task.y)).tolist() == [0, 1]
    assert "mine.npz" in task.description


class Harmful:
    """What a pickle should not be able to do."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_runs_nothing(tmp_path, capsys):
    (tmp_path / "test").write_bytes(pickle.dumps({b"data": Harmful()}, protocol=2))
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Harmful()}, protocol=2))
    with pytest.raises(InvalidInput, match=r"the pickle asks for \w+.print, which no batch of CIFAR needs"):
        load_cifar(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "is no Python batch of CIFAR"),
        (pickle.dumps([1, 2]), "holds no data"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, protocol=2), "unsigned bytes"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, protocol=2),
            "one whole number",
        ),
        (pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [0, 1]}, protocol=2), "holds no data"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2), "from 0 to 9"),
    ],
)
def test_other_pickles_are_refused(content, message, tmp_path):
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        load_cifar(tmp_path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="holds no data_batch_1 with test_batch"):
        load_cifar(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InvalidInput, match="no folder, tar archive or npz"):
        load_cifar(tmp_path / "notes.txt")
    np.savez(tmp_path / "half.npz", x_train=np.zeros(3))
    with pytest.raises(InvalidInput, match="has no array y_train"):
        load_cifar(tmp_path / "half.npz")
    short = tmp_path / "short"
    short.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (short / name).write_bytes(b"\x00" * 100)
    with pytest.raises(InvalidInput, match="has 100 bytes, no multiple of 3073"):
        load_cifar(short)


@pytest.mark.slow
def test_examples_do_not_meet_in_the_residual_network(tmp_path):
    """The outputs of an image are the same whatever else is in the batch; two stages, a projection, a pooling."""
    train, test = images(20, 10, 0), images(10, 10, 1)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    task = bridge.load_task(
        "cifar-resnet", path=path, examples=12, test_examples=10, pool=4, channels=4, blocks=2
    )
    theta, apply = task.init(0), jax.jit(task.apply)
    together = np.asarray(apply(theta, task.x))
    alone = np.concatenate([apply(theta, task.x[i : i + 1]) for i in range(12)])
    assert np.allclose(together, alone, rtol=0, atol=1e-12)
    first = 9 * 3 * 4
    same, wider = 2 * 9 * 16 + 4 * 4, 9 * 4 * 8 + 9 * 64 + 4 * 8 + 2 * 4 + 2 * 8
    assert task.size == first + 2 * same + wider + (2 * 9 * 64 + 4 * 8) + 2 * 8 + 8 * 10 + 10


def test_convolution_by_hand():
    """Against correlations of scipy with zeros around the image."""
    from scipy.signal import correlate2d

    from eos_sde.bridge.residual_network import Convolution

    layer = Convolution(2, 3, 1.0, key=jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 2))
    kernel = np.asarray(layer.kernel).reshape(3, 3, 2, 3)
    for image, out in zip(x, np.asarray(layer(jnp.asarray(x))), strict=True):
        for k in range(3):
            expected = sum(correlate2d(image[:, :, c], kernel[:, :, c, k], mode="same") for c in range(2))
            assert np.allclose(out[:, :, k], expected, atol=1e-12)
