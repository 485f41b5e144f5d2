"""Class folders and TFRecord files in the official layouts, made here and by others, whole and broken."""

import base64
import io
import struct

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from eos_sde import bridge
from eos_sde.bridge.image_folder_tasks import open_images
from eos_sde.bridge.readers.decoding import ink, square
from eos_sde.bridge.readers.labelled import first_rows, pixels
from eos_sde.bridge.readers.tf_example import features
from eos_sde.bridge.readers.tfrecord import masked_checksum, record_file
from solvers.errors import InvalidInput

GOLDEN = base64.b64decode(
    "rgAAAAAAAADGc58dCqsBCloKDWltYWdlL2VuY29kZWQSSQpHCkWJUE5HDQoaCgAAAA1JSERSAAAAAQAAAAEIAgAAAJB3U94AAAAMSURBVHicY+AS"
    "kQMAAGgAPVQIo/cAAAAASUVORK5CYIIKGgoKaW1hZ2UvYmJveBIMEgoKCAAAAD8AAIA+ChoKEWltYWdlL2NsYXNzL2xhYmVsEgUaAwoBAQoVCgxp"
    "bWFnZS9oZWlnaHQSBRoDCgEBJSSx/64AAAAAAAAAxnOfHQqrAQpaCg1pbWFnZS9lbmNvZGVkEkkKRwpFiVBORw0KGgoAAAANSUhEUgAAAAEAAAAB"
    "CAIAAACQd1PeAAAADElEQVR4nGPQMLIBAAEcAJevsGkbAAAAAElFTkSuQmCCChoKCmltYWdlL2Jib3gSDBIKCggAAAA/AACAPgoaChFpbWFnZS9j"
    "bGFzcy9sYWJlbBIFGgMKAQIKFQoMaW1hZ2UvaGVpZ2h0EgUaAwoBAQWBvf4="
)
"""Two records by `TFRecordWriter` of the package tfrecord 1.14.6, whose checksums are those of the package crc32c."""


def encoded(colour, form="PNG", size=(10, 8), mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, form)
    return stream.getvalue()


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**given):
    """A tf.train.Example by hand: bytes and integers."""
    entries = b""
    for name, value in given.items():
        kind = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value)))
        entries += field(1, field(1, name.replace("_", "/").encode()) + field(2, kind))
    return field(1, entries)


def framed(*contents):
    """Records, with checksums by another road than the reader's: rotation as two products."""
    whole = b""
    for content in contents:
        head = struct.pack("<Q", len(content))
        for part in (head, content):
            crc = int.from_bytes(google_crc32c.Checksum(part).digest(), "big")
            turned = crc // 2**15 + crc % 2**15 * 2**17
            whole += part + struct.pack("<I", (turned + 0xA282EAD8) % 2**32)
    return whole


def records(colours, first=1):
    return framed(
        *(
            example(image_encoded=encoded(colour, "JPEG"), image_class_label=label + first)
            for colour, label in colours
        )
    )


@pytest.fixture
def folders(tmp_path):
    """Two classes, as ImageNet: 3 + 2 training images, 1 + 1 validation images, of colours that tell them apart."""
    for part, counts in (("train", (3, 2)), ("val", (1, 1))):
        for label, (name, count) in enumerate(zip(("n01440764", "n01443537"), counts, strict=True)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                content = encoded((40 * k, 200 * label, 128), "JPEG" if k else "PNG")
                (folder / f"{name}_{k}.JPEG").write_bytes(content)
    (tmp_path / "train" / "n01440764" / "notes.txt").write_text("not an image")
    return tmp_path


def test_class_folders_in_the_layout_of_imagenet(folders):
    training, testing = open_images(folders)
    assert training.classes == testing.classes == ("n01440764", "n01443537")
    assert training.labels.tolist() == [0, 0, 0, 1, 1]
    images, labels = pixels(training, np.arange(5), 4)
    assert images.shape == (5, 4, 4, 3)
    assert labels.tolist() == training.labels.tolist()
    # a JPEG of one colour comes back within a few levels: rounding of YCbCr and of one DC coefficient each
    told = [(0, 0, 128), (40, 0, 128), (80, 0, 128), (0, 200, 128), (40, 200, 128)]
    assert np.abs(images.astype(int) - np.array(told)[:, None, None]).max() <= 4
    assert first_rows(training, 3).tolist() == [0, 3, 1]
    assert len(testing) == 2


def test_folders_without_parts_hold_out_the_tenth_image(tmp_path):
    for name, count in (("a", 20), ("b", 3)):
        (tmp_path / name).mkdir()
        for k in range(count):
            (tmp_path / name / f"{k:02d}.png").write_bytes(encoded((k, 0, 0)))
    training, testing = open_images(tmp_path)
    assert [testing.encoded(k)[2].rsplit("/", 2)[1:] for k in range(3)] == [
        ["a", "09.png"],
        ["a", "19.png"],
        ["b", "02.png"],
    ]
    assert len(training) == 20


def test_squares_are_cut_from_the_middle_and_any_mode_becomes_colour():
    wide = Image.new("RGB", (12, 4), (255, 0, 0))
    wide.paste((0, 0, 255), (4, 0, 8, 4))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    assert np.array_equal(square(stream.getvalue(), 4, "here"), np.broadcast_to([0, 0, 255], (4, 4, 3)))
    assert square(encoded(100, mode="L"), 2, "here")[0, 0].tolist() == [100, 100, 100]
    assert square(encoded((0, 0, 0, 0), "JPEG", mode="CMYK"), 2, "here").min() >= 250


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes; cannot identify it"),
        (b"GIF89a" + bytes(50), "cannot identify it"),
        (encoded((1, 2, 3))[:50], r"is no whole JPEG or PNG image \(50 bytes"),
        (encoded((1, 2, 3), "JPEG", (64, 64))[:-30], "is no whole JPEG or PNG image"),
        (encoded((1, 2, 3))[:45] + b"\xff" * 8 + encoded((1, 2, 3))[53:], "is no whole JPEG or PNG image"),
    ],
)
def test_broken_images_are_refused_by_name(content, message, folders):
    name = folders / "train" / "n01443537" / "n01443537_1.JPEG"
    name.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        bridge.load_task("imagefolder-vit", path=folders, examples=5)
    assert str(caught.value).startswith(str(name))
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(folders, tmp_path_factory):
    with pytest.raises(InvalidInput, match=r"imagefolder-vit needs the setting path=.*image-net.org"):
        bridge.load_task("imagefolder-vit")
    with pytest.raises(InvalidInput, match=r"nowhere is no folder"):
        open_images(folders / "nowhere")
    with pytest.raises(InvalidInput, match=r"classes=3 and path=.* has 2"):
        open_images(folders, classes=3)
    (folders / "val" / "n09").mkdir()
    with pytest.raises(InvalidInput, match="n09 is a class that the training images do not have"):
        open_images(folders)
    (folders / "val" / "n09").rmdir()
    (folders / "train" / "n09").mkdir()
    with pytest.raises(InvalidInput, match="train/n09 holds no image"):
        open_images(folders)
    flat = tmp_path_factory.mktemp("flat")
    (flat / "train" / "a").mkdir(parents=True)
    (flat / "train" / "a" / "1.png").write_bytes(encoded((0, 0, 0)))
    with pytest.raises(InvalidInput, match="has a folder train and none of val, validation, test"):
        open_images(flat)
    (flat / "val").mkdir()
    (flat / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(encoded((0, 0, 0)))
    with pytest.raises(InvalidInput, match="val holds no folder of a class"):
        open_images(flat)


def test_records_of_another_writer(tmp_path):
    """Against the package tfrecord, and the check value of CRC-32C, 0xe3069283 for the digits 1 to 9 (RFC 3720)."""
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert masked_checksum(b"123456789") == 0xC78AB0E5
    path = tmp_path / "golden.tfrecord"
    path.write_bytes(GOLDEN)
    file = record_file(path)
    assert file.lengths.tolist() == [174, 174]
    for number, (colour, label) in enumerate((((10, 20, 30), 1), ((40, 50, 60), 2))):
        found = features(file.content(number), "here")
        assert found["image/class/label"] == [label]
        assert found["image/bbox"] == [0.5, 0.25]
        assert square(found["image/encoded"][0], 1, "here").tolist() == [[list(colour)]]


@pytest.mark.parametrize("first", [1, 0])
def test_sharded_records(first, tmp_path):
    """The labels of TensorFlow's conversions begin at 1, those of TensorFlow Datasets, of another name, at 0."""
    colours = [((60 * k, 0, 0), k % 3) for k in range(5)]

    def made(part):
        if first:
            return records(part)
        return framed(*(example(image=encoded(colour), label=label) for colour, label in part))

    for number, part in enumerate((colours[:2], colours[2:])):
        (tmp_path / f"train-{number:05d}-of-00002").write_bytes(made(part))
    (tmp_path / "validation-00000-of-00001").write_bytes(made(colours[:1]))
    training, testing = open_images(tmp_path, classes=3)
    images, labels = pixels(training, np.arange(5), 2)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert np.abs(images[:, 0, 0, 0].astype(int) - 60 * np.arange(5)).max() <= 4
    assert len(testing) == 1
    task = bridge.load_task(
        "imagefolder-vit", path=tmp_path, classes=3, examples=4, side=8, patch=4, blocks=1
    )
    assert np.argmax(task.y, axis=1).tolist() == [0, 1, 2, 0]


def test_broken_records_are_refused_by_file_record_and_byte(tmp_path):
    good = records([((0, 0, 0), 0), ((9, 9, 9), 1)])
    train, second = tmp_path / "train-00000-of-00001", len(records([((0, 0, 0), 0)]))
    (tmp_path / "validation-00000-of-00001").write_bytes(good)

    def refusal(content, classes=2):
        train.write_bytes(content)
        training, _ = open_images(tmp_path, classes=classes)
        return pixels(training, np.arange(len(training)), 2)

    def spoiled(at):
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    assert len(refusal(good)[1]) == 2
    here = f"{train}, record 1 at byte {second}"
    for content, message in (
        (spoiled(second + 20), f"{here} does not fit its checksum"),
        (spoiled(len(good) - 1), f"{here} does not fit its checksum"),
        (spoiled(second + 3), f"{here} has a length that does not fit its checksum: get"),
        (good[:-5], f"{here} should have .* bytes and the file ends before"),
        (good[: second + 7], f"{here} is cut short"),
        (b"\x1f\x8b" + good, "record 0 at byte 0 has a length .* is this a TFRecord file, not compressed"),
        (framed(b"\xff\xff"), "record 0 at byte 0 is no tf.train.Example"),
        (
            framed(example(image_encoded=b"x")),
            "has the features image/encoded: image/encoded with image/class/label",
        ),
        (framed(example(image_encoded=b"x", image_class_label=0)), "label=0: it must lie between 1 and 2"),
        (records([((0, 0, 0), 2)]), "label=3: it must lie between 1 and 2, with classes=2"),
        (framed(example(image_encoded=7, image_class_label=1)), "must have one image"),
        (framed(example(image_encoded=b"x", image_class_label=1)), "record 0 at byte 0 is no whole JPEG"),
        (b"", "hold no record"),
    ):
        with pytest.raises(InvalidInput, match=message) as caught:
            refusal(content)
        assert "\n" not in str(caught.value)


def test_missing_shards_and_unknown_classes_are_refused(tmp_path):
    (tmp_path / "train-00000-of-00002").write_bytes(records([((0, 0, 0), 0)]))
    with pytest.raises(InvalidInput, match="do not tell the classes: give classes=1000"):
        open_images(tmp_path)
    with pytest.raises(InvalidInput, match="train-00001-of-00002 is missing: get all 2 shards"):
        open_images(tmp_path, classes=2)
    (tmp_path / "train-00001-of-00002").write_bytes(records([((0, 0, 0), 0)]))
    with pytest.raises(InvalidInput, match="has no TFRecord file of the test images"):
        open_images(tmp_path, classes=2)


def test_ink_is_cut_out_and_fitted():
    """A black bar, 40 wide and 20 high, on white: 8 by 4 white pixels in the middle of ten by ten."""
    page = Image.new("RGB", (120, 90), (255, 255, 255))
    page.paste((0, 0, 0), (50, 60, 90, 80))
    stream = io.BytesIO()
    page.save(stream, "PNG")
    expected = np.zeros((10, 10))
    expected[3:7, 1:9] = 1
    assert np.array_equal(ink(stream.getvalue(), 10, "here"), expected)
    with pytest.raises(InvalidInput, match="here has no pixel darker than mid-grey"):
        ink(encoded((255, 255, 255)), 10, "here")
