"""The message tf.train.Example, for protobuf without TensorFlow."""

from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from solvers.errors import InvalidInput

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "tensorflow"
_LISTS = {"BytesList": _FIELD.TYPE_BYTES, "FloatList": _FIELD.TYPE_FLOAT, "Int64List": _FIELD.TYPE_INT64}


@lru_cache(maxsize=1)
def _example() -> Any:
    """The class of the message, from a pool of its own: TensorFlow may be loaded beside it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package=_PACKAGE, syntax="proto3")
    for name, kind in _LISTS.items():
        file.message_type.add(name=name).field.add(
            name="value", number=1, label=_FIELD.LABEL_REPEATED, type=kind
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        feature.field.add(
            name=field, number=number, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
            type_name=f".{_PACKAGE}.{name}", oneof_index=0,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.Feature",
    )  # fmt: skip
    features.field.add(
        name="feature", number=1, label=_FIELD.LABEL_REPEATED, type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.Features.FeatureEntry",
    )  # fmt: skip
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.Features",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def features(content: bytes, where: str) -> dict[str, list[Any]]:
    """Features of a serialised tf.train.Example.

    Parameters
    ----------
    content : bytes
        The message.
    where : str
        For the sentence if it is none.

    Returns
    -------
    dict
        Name to list of bytes, floats or integers.

    Raises
    ------
    InvalidInput
        If it is no such message.
    """
    try:
        message = _example().FromString(content)
    except DecodeError as error:
        raise InvalidInput(f"{where} is no tf.train.Example") from error
    found = {}
    for name, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = [] if kind is None else list(getattr(feature, kind).value)
    return found
