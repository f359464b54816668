import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from millrace.data.columns import Field
from millrace.data.fields import build_encoder
from millrace.data.images import decoded, decoded_bytes
from millrace.data.values import LabelIndex, UnusableRecordError, Value
from millrace.spec import ClassificationTask, LanguageModelTask


def text_encoder(block_bytes: int = 4) -> Any:
    return build_encoder(LanguageModelTask(kind="language_model", block_bytes=block_bytes))


def array_encoder(*shape: int, inputs: tuple[str, ...] = ()) -> Any:
    return build_encoder(ClassificationTask(kind="classification", shape=shape, inputs=inputs))


def png(size: tuple[int, int], mode: str = "RGB", color: Any = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(1, 20))
def test_the_blocks_of_a_text_joined_are_the_text(texts: list[str], block_bytes: int) -> None:
    encoder = text_encoder(block_bytes)
    values = [encoder.extract({"text": text}) for text in texts]

    columns = encoder.samples(values, LabelIndex())

    kept = np.arange(block_bytes) < columns["length"][:, None]
    assert columns["tokens"][kept].tobytes() == "".join(texts).encode()
    assert not columns["tokens"][~kept].any()
    assert all(0 < length <= block_bytes for length in columns["length"])


def test_an_empty_text_has_no_samples_and_changes_no_other() -> None:
    encoder = text_encoder()
    values = [encoder.extract({"text": text}) for text in ("", "abcde", "", "fg", "")]

    columns = encoder.samples(values, LabelIndex())

    assert columns["length"].tolist() == [4, 1, 2]
    assert columns["record"].tolist() == [values[1].split_id] * 2 + [values[3].split_id]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"body": "x", "id": 1}, "no field `text`; the record has body, id"),
        ({}, "no field `text`; the record has none"),
        ({"text": None}, "field `text` is null"),
        ({"text": 3}, "field `text` is int, text is needed"),
        ({"text": b"x"}, "field `text` is bytes, text is needed"),
        ({"text": "\ud800"}, "field `text` is not valid text"),
    ],
)
def test_a_record_without_usable_text_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        text_encoder().extract(record)


def token_encoder(vocabulary: int = 1000, block_tokens: int = 4) -> Any:
    return build_encoder(
        LanguageModelTask(
            kind="language_model", tokens="ids", vocabulary=vocabulary, block_tokens=block_tokens
        )
    )


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (50257, "uint16"),
                              (65537, "uint32")]
)  # fmt: skip
def test_the_blocks_of_token_ids_joined_are_the_ids(vocabulary: int, dtype: str) -> None:
    encoder, rng = token_encoder(vocabulary), np.random.default_rng(0)
    lists = [rng.integers(0, vocabulary, size).tolist() for size in (1, 4, 9)]
    lists.append([0, vocabulary - 1])

    columns = encoder.samples([encoder.extract({"ids": ids}) for ids in lists], LabelIndex())

    kept = np.arange(4) < columns["length"][:, None]
    assert encoder.fields["tokens"] == Field(dtype, (4,))
    assert columns["tokens"].dtype == dtype
    assert columns["tokens"][kept].tolist() == [each for ids in lists for each in ids]
    assert columns["length"].tolist() == [1, 4, 4, 4, 1, 2]
    assert len(np.unique(columns["record"])) == 4


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (None, "field `ids` is null"),
        ("1 2", "field `ids` is str, a list of token ids is needed"),
        ([1, 1000, 2], "field `ids` holds 1000, ids are whole numbers from 0 to 999"),
        ([1, -1], "field `ids` holds -1, ids are"),
        ([1, 2.5, 3], "field `ids` holds 2.5, ids are"),
        ([2.0], "field `ids` holds 2.0, ids are"),
        ([1, "2"], "field `ids` holds '2', ids are"),
        ([1, None], "field `ids` holds None, ids are"),
        ([True, False], "field `ids` holds True, ids are"),
        ([[1], [2]], r"field `ids` holds \[1\], ids are"),
        ([[1], [2, 3]], r"field `ids` holds \[1\], ids are"),
        ([1, 10**30], "field `ids` holds 1000000000000000000000000000000, ids are"),
    ],
)
def test_a_record_without_usable_token_ids_says_why(ids: Any, reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        token_encoder().extract({"ids": ids})


def test_token_ids_may_come_as_an_array() -> None:
    encoder = token_encoder()

    found = encoder.extract({"ids": np.array([3, 999], np.int64)})

    assert found == encoder.extract({"ids": [3, 999]})
    assert encoder.extract({"ids": np.zeros(0)}) == Value(b"")
    with pytest.raises(UnusableRecordError, match=r"field `ids` holds 1\.0"):
        encoder.extract({"ids": np.array([1.0, 2.5])})


def test_an_empty_list_of_token_ids_is_an_empty_text() -> None:
    assert token_encoder().extract({"ids": []}) == Value(b"")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"a": 1, "b": 2}, "no field `label`"),
        ({"a": 1, "b": 2, "label": None}, "field `label` is null"),
        ({"a": 1, "b": 2, "label": ""}, "field `label` is '', a label is printable text"),
        ({"a": 1, "b": 2, "label": "\ud800"}, "a label is printable text"),
        ({"a": 1, "b": 2, "label": [1]}, "field `label` is list, a label is text or a number"),
        ({"a": 1, "label": "x"}, r"1 inputs do not fill the shape \[2\]"),
        ({"a": 1, "b": 2, "c": 3, "label": "x"}, r"3 inputs do not fill the shape \[2\]"),
        ({"a": 1, "b": "two", "label": "x"}, "field `b` is 'two', a number is needed"),
        ({"a": 1, "b": None, "label": "x"}, "field `b` is null"),
        ({"a": 1, "b": [2], "label": "x"}, r"field `b` is \[2\], a number is needed"),
        ({"a": 1, "b": float("nan"), "label": "x"}, "field `b` is nan, a finite number"),
        ({"a": "inf", "b": 2, "label": "x"}, "field `a` is inf, a finite number"),
        ({"a": 1, "b": 1e39, "label": "x"}, r"field `b` is 1e\+39, a finite number"),
        ({"a": 1, "b": 10**400, "label": "x"}, "field `b` is 1000.*, a number is needed"),
    ],
)
def test_a_record_without_usable_numbers_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        array_encoder(2).extract(record)


def test_inputs_stand_in_natural_order_whatever_the_records_order() -> None:
    encoder = array_encoder(3)

    value = encoder.extract({"x10": 10, "label": "a", "x2": 2, "x1": "1"})

    assert np.frombuffer(value.inputs, np.float32).tolist() == [1, 2, 10]
    assert value == encoder.extract({"label": "a", "x1": 1, "x2": 2.0, "x10": 10})


def test_named_inputs_stand_as_named() -> None:
    encoder = array_encoder(2, inputs=("b", "a"))

    value = encoder.extract({"a": 1, "b": 2, "c": "no number", "label": True})

    assert np.frombuffer(value.inputs, np.float32).tolist() == [2, 1]
    assert encoder.needs == ("label", "b", "a")


def test_labels_are_numbered_by_first_sight() -> None:
    encoder, labels = array_encoder(1), LabelIndex()
    values = [encoder.extract({"a": i, "label": label}) for i, label in enumerate("zazb")]

    columns = encoder.samples(values, labels)

    assert labels.classes == ["z", "a", "b"]
    assert columns["label"].tolist() == [0, 1, 0, 2]
    assert columns["inputs"].tolist() == [[0], [1], [2], [3]]


def image_encoder(*shape: int, images: str = "pixels") -> Any:
    return build_encoder(
        ClassificationTask.model_validate(
            {"kind": "classification", "shape": shape, "images": images}
        )
    )


def test_an_image_becomes_channels_first_and_is_resized_to_the_shape() -> None:
    encoder = image_encoder(3, 2, 4)
    records = [png((8, 4), color=(255, 128, 0)), png((4, 2), color=(1, 2, 3))]
    values = [encoder.extract({"image": data, "label": "x"}) for data in records]

    inputs = encoder.samples(values, LabelIndex())["inputs"]

    colors = np.array([[255, 128, 0], [1, 2, 3]], np.uint8)
    assert encoder.fields["inputs"] == Field("uint8", (3, 2, 4))
    assert inputs.dtype == np.uint8
    assert inputs.shape == (2, 3, 2, 4)
    assert (inputs == colors[:, :, None, None]).all()


def test_a_coded_image_is_kept_as_it_came() -> None:
    encoder = image_encoder(3, 2, 4, images="coded")
    records = [png((8, 4), color=(255, 128, 0)), png((4, 2), color=(1, 2, 3))]
    values = [encoder.extract({"image": data, "label": "x"}) for data in records]

    columns = encoder.samples(values, LabelIndex())
    (found,) = decoded([columns], encoder.fields)

    assert encoder.fields["inputs"] == Field("image", (3, 2, 4))
    assert columns["inputs"].tolist() == records
    assert found["inputs"][:, :, 1, 2].tolist() == [[255, 128, 0], [1, 2, 3]]
    assert found["record"] is columns["record"]
    assert decoded_bytes(encoder.fields) == 24


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_an_image_of_any_mode_is_read_in_gray(mode: str) -> None:
    value = image_encoder(1, 2, 2).extract({"image": png((2, 2), mode), "label": "x"})

    assert value.inputs == bytes(4)


@pytest.mark.parametrize("images", ["pixels", "coded"])
def test_a_damaged_image_is_unusable_and_nothing_worse(images: str) -> None:
    noise = np.random.default_rng(0).bytes(64 * 64 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), noise).save(buffer, "PNG")
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    encoder = image_encoder(3, 64, 64, images=images)

    num_refused = 0
    for place in [*range(40), *rng.choice(len(whole), 100, replace=False).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        for data in (bytes(damaged), whole[:place]):
            try:
                encoder.extract({"image": data, "label": "x"})
            except UnusableRecordError:
                num_refused += 1

    assert num_refused > 140


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"label": "x"}, "no field `image`; the record has label"),
        ({"image": None, "label": "x"}, "field `image` is null"),
        ({"image": "a.png", "label": "x"}, "field `image` is str, an image's bytes are needed"),
        ({"image": b"a.png", "label": "x"}, "not a readable image"),
        ({"image": b"a.png"}, "no field `label`"),
    ],
)
def test_a_record_without_a_usable_image_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        image_encoder(3, 2, 2).extract(record)


def test_an_image_among_numbers_says_what_to_set() -> None:
    with pytest.raises(UnusableRecordError, match=r"it is an image: set `task.images: pixels`"):
        array_encoder(64).extract({"image": png((8, 8)), "label": "x"})


def test_ids_tell_equal_inputs_and_equal_records_apart() -> None:
    a, b, c = Value(b"x", "1"), Value(b"x", "2"), Value(b"y", "1")

    assert a.split_id == b.split_id != c.split_id
    assert len({a.content_id, b.content_id, c.content_id}) == 3
