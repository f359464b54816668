"""MNIST's files: images in one, their labels in another beside it."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.data.fields import build_encoder
from millrace.data.listing import labels_beside, list_source
from millrace.data.records import Located, read_records
from millrace.data.values import UnusableRecordError
from millrace.errors import SourceError
from millrace.spec import ClassificationTask, SourceSpec

IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array: np.ndarray[Any, Any], kind: int = 8) -> bytes:
    head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def write(folder: Path, images: bytes, labels: bytes, end: str = "-ubyte") -> None:
    (folder / f"train-images-idx3{end}").write_bytes(images)
    (folder / f"train-labels-idx1{end}").write_bytes(labels)


def read(folder: Path, **fields: Any) -> list[dict[str, Any]]:
    source = SourceSpec.model_validate({"url": "*", **fields})
    found = [
        each for file in list_source(source, str(folder)) for each in read_records(file, source)
    ]
    return [each.record for each in found if isinstance(each, Located)]


@pytest.mark.parametrize("is_packed", [False, True])
def test_each_image_comes_with_its_label(tmp_path: Path, is_packed: bool) -> None:
    pack, end = (gzip.compress, "-ubyte.gz") if is_packed else (bytes, "-ubyte")
    write(tmp_path, pack(idx(IMAGES)), pack(idx(LABELS)), end)

    found = read(tmp_path)

    assert [record["label"] for record in found] == LABELS.tolist()
    np.testing.assert_array_equal(np.stack([record["image"] for record in found]), IMAGES)


def test_numbers_of_other_types_come_in_this_machines_order_of_bytes(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES.astype(">f4"), 13), idx(LABELS.astype(">i4"), 12))

    found = read(tmp_path)

    assert [record["label"] for record in found] == LABELS.tolist()
    assert found[1]["image"].dtype == np.dtype("=f4")
    assert found[1]["image"].tolist() == IMAGES[1].tolist()


def test_a_pair_is_listed_as_one_file_that_changes_with_either(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    source = SourceSpec(url="*")

    (before,) = list_source(source, str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    (after,) = list_source(source, str(tmp_path))

    assert before.path == after.path == "train-images-idx3-ubyte"
    assert before.fingerprint != after.fingerprint


def test_images_without_labels_are_an_error_that_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))

    with pytest.raises(SourceError, match="there is no train-labels-idx1-ubyte"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (idx(IMAGES), idx(LABELS[:4]), "5 images and 4 labels"),
        (idx(IMAGES)[:-1], idx(LABELS), "it ends before its last entry"),
        (idx(IMAGES) + b"x", idx(LABELS), "it goes on after the 5 entries"),
        (idx(IMAGES), idx(LABELS)[:-1], "it ends before its last entry"),
        (b"PK\3\4 and more", idx(LABELS), "it begins with 50 4b 03 04"),
        (b"\0\0", idx(LABELS), "it ends before its last entry"),
        (idx(IMAGES), b"\0\0\7\1", "it begins with 00 00 07 01"),
    ],
)
def test_a_damaged_pair_is_one_error(
    tmp_path: Path, images: bytes, labels: bytes, found: str
) -> None:
    write(tmp_path, images, labels)

    with pytest.raises(SourceError, match=found):
        read(tmp_path)


def test_an_image_beyond_the_limit_of_a_record_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))

    with pytest.raises(SourceError, match="max_record_bytes"):
        read(tmp_path, max_record_bytes=5)


def test_labels_are_looked_for_under_the_name_of_their_images() -> None:
    assert labels_beside("s3://b/t10k-images-idx3-ubyte.gz") == "s3://b/t10k-labels-idx1-ubyte.gz"
    assert labels_beside("images/x.images.idx3-ubyte") == "images/x.labels.idx1-ubyte"
    assert labels_beside("images/cat.png") == ""


def test_an_image_that_is_an_array_becomes_pixels_of_the_shape_asked_for() -> None:
    def stored(image: np.ndarray[Any, Any], *shape: int, images: str = "pixels") -> bytes:
        task = ClassificationTask.model_validate(
            {"kind": "classification", "images": images, "shape": shape}
        )
        return build_encoder(task).extract({"image": image, "label": 1}).inputs

    color = np.stack([IMAGES[0], IMAGES[1], IMAGES[2]], axis=2)

    assert stored(IMAGES[1], 1, 3, 2) == IMAGES[1].tobytes()
    assert stored(IMAGES[1][:, :, None], 1, 3, 2) == IMAGES[1].tobytes()
    assert stored(color, 3, 3, 2) == IMAGES[:3].tobytes()
    assert stored(np.full((9, 9), 7, np.uint8), 3, 2, 2) == bytes([7] * 12)
    with pytest.raises(UnusableRecordError, match=r"an array of float32 \[3, 2\] is no image"):
        stored(IMAGES[1].astype(np.float32), 1, 3, 2)
    with pytest.raises(UnusableRecordError, match=r"an array of uint8 \[3, 2, 2\] is no image"):
        stored(color[:, :, :2], 1, 3, 2)
    with pytest.raises(UnusableRecordError, match=r"set `task\.images: pixels`"):
        stored(IMAGES[1], 1, 3, 2, images="coded")
