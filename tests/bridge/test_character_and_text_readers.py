"""Chars74k as strokes, trajectories and images, and plain text as tokens: made here in the official forms."""

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from eos_sde import bridge
from eos_sde.bridge.encoders import VisionTransformer
from eos_sde.bridge.masked_text import masked_windows
from eos_sde.bridge.readers.chars74k import CHARACTERS, load_chars74k
from eos_sde.bridge.readers.plain_text import Tokens, read_text, text_tokens
from eos_sde.bridge.readers.strokes import drawn, stroke_dictionary, trajectory
from solvers.errors import InvalidInput


def strokes_of(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(100, 500, (points, 2)).tolist() for points in (5, 3)]


def matlab(strokes):
    """As the official trajectory files: a cell of column vectors for rows, then one for columns."""
    cells = []
    for name, axis in (("rows", 1), ("cols", 0)):
        vectors = [
            "[" + "\r\n".join(f"{point[axis]:.7e}" for point in stroke) + "\r\n];" for stroke in strokes
        ]
        cells.append(f"{name} = {{" + "\r\n".join(vectors) + "};\r\n")
    return "".join(cells).encode()


def page(strokes):
    """As the official images: black on white, 1200 x 900."""
    image = Image.new("RGB", (1200, 900), (255, 255, 255))
    for stroke in strokes:
        ImageDraw.Draw(image).line([tuple(point) for point in stroke], (0, 0, 0), 40, joint="curve")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Three classes of six drawings, as EnglishHnd, and the same strokes as JSON."""
    root, whole = tmp_path_factory.mktemp("chars") / "English" / "Hnd", {}
    for sample in (1, 11, 37):
        drawings = [strokes_of(100 * sample + number) for number in range(1, 7)]
        whole[CHARACTERS[sample - 1]] = drawings
        for form, write in (("Img", page), ("Trj", matlab)):
            folder = root / form / f"Sample{sample:03d}"
            folder.mkdir(parents=True)
            for number, strokes in enumerate(drawings, 1):
                mark, end = ("-", "png") if form == "Img" else ("_", "m")
                (folder / f"img{sample:03d}{mark}{number:03d}.{end}").write_bytes(write(strokes))
    (root.parent.parent / "strokes.json.gz").write_bytes(gzip.compress(json.dumps(whole).encode()))
    return root.parent.parent


def test_the_forms_of_chars74k_hold_the_same_drawings(official):
    """Trajectories and JSON give the same images; those of the photographed page look alike."""
    plain, folder = load_chars74k(official / "strokes.json.gz"), load_chars74k(official / "English")
    pages = load_chars74k(official / "English", form="images")
    assert plain.labels.tolist() == folder.labels.tolist() == pages.labels.tolist()
    assert sorted(set(plain.labels.tolist())) == [CHARACTERS.index(c) for c in "0Aa"]
    assert plain.numbers.tolist() == [1, 2, 3, 4, 5, 6] * 3
    assert plain.part("test").tolist() == [5, 11, 17]
    images, labels = plain.chosen("train", 6, 16)
    assert labels.tolist() == [0, 10, 36, 0, 10, 36]
    assert np.array_equal(folder.chosen("train", 6, 16)[0], images)
    for one, other in zip(images, pages.chosen("train", 6, 16)[0], strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8
    with pytest.raises(InvalidInput, match="examples=16 must lie between 1 and 15, the train drawings"):
        plain.chosen("train", 16, 16)


def test_some_of_the_characters_are_classes_of_their_own(official):
    """The drawings of "A" and "a" as classes 0 and 26 of the letters; a part without drawings is refused."""
    whole = load_chars74k(official / "strokes.json.gz")
    letters = whole.only("letters")
    assert letters.labels.tolist() == [0] * 6 + [26] * 6
    assert letters.characters == CHARACTERS[10:]
    assert np.array_equal(letters.chosen("train", 4, 16)[0], whole.chosen("train", 6, 16)[0][[1, 2, 4, 5]])
    assert whole.only("digits").labels.tolist() == [0] * 6
    assert whole.only("all") is whole
    with pytest.raises(InvalidInput, match="characters='vowels' is not known: choose one of all, digits"):
        whole.only("vowels")
    with pytest.raises(InvalidInput, match=r"characters='capitals': .* has no drawing of ABC"):
        whole.only("small").only("capitals")
    task = bridge.load_task("chars74k-cnn", path=official / "strokes.json.gz", characters="small", examples=5,
                            test_examples=1, side=8)  # fmt: skip
    assert task.y.shape == (5, 26)
    assert "(small)" in task.source


@pytest.mark.parametrize("form", ["strokes", "images"])
def test_the_archive_is_read_as_its_folder(form, official, tmp_path):
    path = tmp_path / "EnglishHnd.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(official / "English", "English")
    for part in ("train", "test"):
        one, other = (
            load_chars74k(where, form=form).chosen(part, 3, 12) for where in (path, official / "English")
        )
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(InvalidInput, match=r"EnglishHnd.tgz is a broken archive"):
        load_chars74k(path, form=form)


def test_lines_are_drawn_where_they_are():
    """A level line from edge to edge of a box of 10 pixels, one thick: by hand."""
    image = drawn([np.array([[0.0, 0.0], [100.0, 0.0]])], 10, thickness=1.0)
    assert np.allclose(image[4:6, 2:8], 0.5)  # middles half a pixel away on either side
    assert image[:4].max() == image[6:].max() == 0
    dot = drawn([np.array([[7.0, 7.0]])], 9, thickness=2.0)
    assert dot[4, 4] == 1
    assert dot.sum() < 6
    tall = drawn([np.array([[0.0, 0.0], [0.0, 100.0]])], 10, thickness=1.0)
    assert np.allclose(tall, image.T)
    upper = drawn([np.array([[0.0, 0.0], [100.0, 0.0]]), np.array([[0.0, 100.0]])], 10, thickness=1.0)
    assert upper[:3].sum() > 3 * upper[7:].sum()  # y goes down


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no cell cols"),
        (matlab(strokes_of(0))[:60], "has no cell cols"),
        (b"rows = {[1 2];}; cols = {[1 x];};", "something else than numbers in cols"),
        (b"rows = {[1 2];}; cols = {[1];};", r"strokes of \[1\] points in cols and of \[2\] in rows"),
        (b"rows = {}; cols = {};", "has no stroke"),
        (b"rows = {[];}; cols = {[];};", "has no stroke, one without points"),
        (b"rows = {[nan];}; cols = {[1];};", "not finite"),
    ],
)
def test_other_trajectories_are_refused(content, message):
    with pytest.raises(InvalidInput, match=f"^here.*{message}"):
        trajectory(content, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0)[:-3], "is a broken gzip file"),
        (b"\x1f\x8bnothing", "is a broken gzip file"),
        (b'{"A": [', "is no JSON at byte 7"),
        (b"[1, 2]", "is no JSON object"),
        (b'{"A": 3}', "is no JSON object"),
        (b'{"A": [[[[1, 2]]], [[[1, 2, 3]]]]}', "drawing 2 of 'A' in here is no list of strokes"),
        (b'{"A": [[[["x", 2]]]]}', "drawing 1 of 'A' in here is no list of strokes"),
        (b'{"A": [[]]}', "drawing 1 of 'A' in here has no stroke"),
        (b'{"A": [7]}', "drawing 1 of 'A' in here is no list of strokes"),
    ],
)
def test_other_json_is_refused(content, message):
    with pytest.raises(InvalidInput, match=message):
        stroke_dictionary(content, "here")


def test_other_places_are_refused(tmp_path):
    for made, words in (
        (lambda: bridge.load_task("chars74k-cnn"), r"chars74k-cnn needs the setting path=.*--data"),
        (lambda: load_chars74k(tmp_path / "nowhere"), "nowhere does not exist"),
        (lambda: load_chars74k(tmp_path), "holds no file such as img001_001.m nor img001-001.png"),
        (lambda: load_chars74k(tmp_path, form="images"), "holds no file such as img001-001.png"),
        (lambda: load_chars74k(tmp_path, form="pictures"), "form='pictures' is not known"),
    ):
        with pytest.raises(InvalidInput, match=words):
            made()
    (tmp_path / "a.json").write_text('{"!": []}')
    with pytest.raises(InvalidInput, match="has drawings of '!'"):
        load_chars74k(tmp_path / "a.json")
    with pytest.raises(InvalidInput, match="form='images' needs the official files"):
        load_chars74k(tmp_path / "a.json", form="images")
    (tmp_path / "notes").write_text("no archive")
    with pytest.raises(InvalidInput, match="is no folder, tar archive or JSON file"):
        load_chars74k(tmp_path / "notes")
    wrong = tmp_path / "Img" / "Sample002"
    wrong.mkdir(parents=True)
    (wrong / "img003-001.png").write_bytes(page(strokes_of(0)))
    with pytest.raises(InvalidInput, match=r"Sample002/img003-001.png in .* in the folder of its sample"):
        load_chars74k(tmp_path)
    for folder in ("Good", "Bad"):
        (tmp_path / "two" / folder).mkdir(parents=True)
        (tmp_path / "two" / folder / "img001-001.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"holds both Bad/img001-001.png and Good/img001-001.png"):
        load_chars74k(tmp_path / "two")


def test_texts_are_read_in_order_and_no_further_than_told(tmp_path, monkeypatch):
    """In the order of their names, whatever the order in which the file system tells them."""
    told = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, what: sorted(told(self, what), reverse=True))
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("λ lysis", encoding="utf-8")
    (tmp_path / "b" / "c.txt.gz").write_bytes(gzip.compress(b"phage"))
    (tmp_path / "d.xml").write_text("<no/>")
    whole = "λ lysis\nphage".encode()
    assert read_text(tmp_path, 100) == whole
    assert read_text(tmp_path, 11) == whole[:11]
    assert read_text(tmp_path / "a.txt", 3) == "λ ".encode()
    (tmp_path / "a.txt").write_text("lλ", encoding="utf-8")
    assert read_text(tmp_path, 2) == b"l"  # the limit cuts a character, and nothing follows it
    (tmp_path / "a.txt").write_text("λ lysis", encoding="utf-8")
    tokens = text_tokens(tmp_path, limit=100)
    assert bytes(tokens.tokens.tolist()) == whole
    assert (tokens.vocabulary, tokens.mask) == (257, 256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"abc\x00", "has a zero at byte 3: it is no text"),
        (b"ab\xffc", "is no UTF-8 text at byte 2"),
        (b"ab" + "λ".encode()[:1], "is no UTF-8 text at byte 2"),
    ],
)
def test_other_texts_are_refused(content, message, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_text(path, 1000)
    assert "a.txt" in str(caught.value)


def test_missing_and_broken_texts_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"pubmed-bert needs the setting path=.*articles"):
        bridge.load_task("pubmed-bert")
    with pytest.raises(InvalidInput, match=r"holds no .txt or .txt.gz file"):
        read_text(tmp_path, 10)
    with pytest.raises(InvalidInput, match="nowhere does not exist"):
        read_text(tmp_path / "nowhere", 10)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(range(65, 91)) * 99)[:-9])
    with pytest.raises(InvalidInput, match=r"a.txt.gz is a broken gzip file"):
        read_text(tmp_path, 10_000)


VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "phage", "ly", "##sis", "##s", ".")


def test_word_pieces_are_those_of_bert(tmp_path):
    """The longest piece first, lower case, punctuation apart, what has no pieces unknown; by hand."""
    pytest.importorskip("tokenizers")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (tmp_path / "a.txt").write_text("The phages.\n\nlysis virus")
    found = text_tokens(tmp_path / "a.txt", vocabulary=tmp_path / "vocab.txt", limit=1000)
    assert [VOCABULARY[k] for k in found.tokens] == ["the", "phage", "##s", ".", "ly", "##sis", "[UNK]"]
    assert (found.vocabulary, found.mask, found.special) == (11, 4, (0, 1, 2, 3, 4))
    (tmp_path / "short.txt").write_text("the\nphage\n")
    with pytest.raises(InvalidInput, match=r"short.txt has no line \[UNK\]"):
        text_tokens(tmp_path / "a.txt", vocabulary=tmp_path / "short.txt", limit=1000)
    with pytest.raises(InvalidInput, match=r"vocabulary=.*none.txt does not exist"):
        text_tokens(tmp_path / "a.txt", vocabulary=tmp_path / "none.txt", limit=1000)


def test_word_pieces_without_their_library_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text("the phage")
    with pytest.raises(
        InvalidInput, match=r"needs the library tokenizers: pip install 'eos-sde\[word-pieces\]'"
    ):
        text_tokens(tmp_path / "a.txt", vocabulary=tmp_path / "vocab.txt", limit=1000)


def test_masking_asks_for_what_stood_there():
    """8000 places asked for: 0.8 masked, 0.1 another token, 0.1 as they are.

    Binomial: standard deviations 0.0045 and 0.0034; five of them, a false alarm in 1e6 runs, and the seed is fixed.
    """
    plain = np.random.default_rng(0).integers(0, 50, 20_000).astype(np.int32)
    text = Tokens(plain, 51, 50, (50,), "made up")
    x, y = masked_windows(text, slice(0, 18_000), 1000, 40, 8, seed=1)
    shown, places = x[:, :40], x[:, 40:]
    starts = np.arange(1000) * (18_000 - 40 + 1) // 1000
    windows = plain[starts[:, None] + np.arange(40)]
    assert np.array_equal(np.take_along_axis(windows, places, axis=1), y)
    assert np.all(np.diff(places, axis=1) > 0)
    rest = np.ones((1000, 40), bool)
    np.put_along_axis(rest, places, False, axis=1)
    assert np.array_equal(shown[rest], windows[rest])
    put = np.take_along_axis(shown, places, axis=1)
    assert abs((put == 50).mean() - 0.8) < 5 * 0.0045
    # another token is drawn from all 50 and is the true one in 1 of 50 cases
    assert abs(((put != 50) & (put != y)).mean() - 0.1 * 0.98) < 5 * 0.0034
    assert abs(np.bincount(places.ravel(), minlength=40) / 1000 - 0.2).max() < 5 * (0.16 / 1000) ** 0.5
    assert np.array_equal(masked_windows(text, slice(0, 18_000), 1000, 40, 8, seed=1)[0], x)
    assert not np.array_equal(masked_windows(text, slice(0, 18_000), 1000, 40, 8, seed=2)[0], x)
    with pytest.raises(InvalidInput, match="must lie between 1 and the 11 starts"):
        masked_windows(text, slice(0, 50), 12, 40, 8, seed=1)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 500).tolist()))
    return bridge.load_task(
        "pubmed-bert", path=path, examples=6, test_examples=3, context=8, masked=0.25, width=8
    )


@pytest.mark.slow
def test_the_encoder_sees_both_sides_and_tells_of_the_masked_places(masked):
    """The outputs at a masked place move with every token of the window, before and behind."""
    task, theta = masked, masked.init(0)
    apply = jax.jit(task.apply)
    before = np.asarray(apply(theta, task.x))
    assert before.shape == (6, 2, 257)
    for place in range(8):
        changed = np.asarray(apply(theta, task.x.at[:, place].set((task.x[:, place] + 1) % 256)))
        assert np.abs(changed - before).max(axis=2).min() > 1e-6
    turned = jnp.concatenate([task.x[:, :8], task.x[:, 9:], task.x[:, 8:9]], axis=1)
    assert np.allclose(apply(theta, turned), before[:, ::-1], rtol=0, atol=1e-12)
    logs = before - np.log(np.exp(before).sum(axis=2, keepdims=True))
    expected = -np.take_along_axis(logs, np.asarray(task.y)[..., None], axis=2).mean()
    assert np.isclose(jax.jit(task.loss)(theta), expected, rtol=1e-12)


class Numbered(eqx.Module):
    """In place of an encoder: each patch times its number, so that their order shows in the mean."""

    def __call__(self, stream):
        return stream * jnp.arange(1, stream.shape[1] + 1)[:, None]


@pytest.mark.slow
def test_patches_tile_the_image():
    """The vision transformer's stream is made of the right pixels: against patches cut one by one."""
    net = VisionTransformer(6, 3, 2, 4, 1, 1, "tanh", key=jax.random.key(0))
    net = eqx.tree_at(lambda whole: whole.encoder, net, Numbered())
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 3))
    mean = 0
    for k, (i, j) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
        cut = x[:, i : i + 3, j : j + 3].reshape(2, -1)
        mean = mean + (k + 1) / 4 * (cut @ np.asarray(net.patches) + np.asarray(net.places)[k])
    out = jax.jit(lambda x: net(x))(jnp.asarray(x.reshape(2, -1)))
    assert np.allclose(out, mean @ np.asarray(net.head), rtol=0, atol=1e-12)
