"""IDX, the format of MNIST: an array of images in one file, their labels in the one beside it."""

import io
import math
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from millrace.data.formats.opened import Found, Located, Opened
from millrace.data.listing import labels_beside
from millrace.errors import SourceError
from millrace.storage import FsspecStorage

_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(opened: Opened) -> Found:
    """A record for each image: `image`, an array (height, width), and `label`, a whole number.

    `train-images-idx3-ubyte.gz` has its labels in `train-labels-idx1-ubyte.gz`.
    """
    labels = _labels(opened)
    num_images, images = _entries(opened)
    if num_images != len(labels):
        raise SourceError(
            f"read {opened.file.path} with its labels",
            f"there are {num_images} images and {len(labels)} labels",
            "Put the two files of one data set beside each other",
        )
    for number, (image, label) in enumerate(zip(images, labels, strict=True), 1):
        yield Located(opened.record(number), {"image": image, "label": label})


def _labels(opened: Opened) -> list[Any]:
    url = labels_beside(opened.file.url)
    if not url:
        raise SourceError(
            f"read {opened.file.path} as images in IDX",
            "its name is not that of images, so that of their labels is not known",
            "Call the two as MNIST does: train-images-idx3-ubyte and train-labels-idx1-ubyte",
        )
    data = FsspecStorage(url).read("")  # a store of one object, at ""
    beside = Opened(opened.file, opened.source, io.BytesIO(data), ())
    return [label.item() for label in _entries(beside)[1]]


def _entries(opened: Opened) -> tuple[int, Iterator[npt.NDArray[Any]]]:
    """How many entries there are along the first axis, and each of them.

    Raises:
        ValueError: It is no IDX, or ends too soon.
        SourceError: An entry is longer than a record may be.
    """
    stream = opened.stream()
    magic = _exactly(stream, 4)
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
        raise ValueError(f"it begins with {magic.hex(' ')}, IDX with 00 00 and a type")
    sizes = np.frombuffer(_exactly(stream, 4 * magic[3]), ">u4").tolist()
    dtype = np.dtype(_DTYPES[magic[2]])
    num_bytes = math.prod(sizes[1:]) * dtype.itemsize
    if num_bytes > opened.source.max_record_bytes:
        raise opened.oversized(opened.record(1))

    def entries() -> Iterator[npt.NDArray[Any]]:
        for _ in range(sizes[0]):
            entry = np.frombuffer(_exactly(stream, num_bytes), dtype).reshape(sizes[1:])
            yield entry.astype(dtype.newbyteorder("="), copy=False)
        if stream.read(1):
            raise ValueError(f"it goes on after the {sizes[0]} entries that it tells of")

    return sizes[0], entries()


def _exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    """As many bytes; a read may return fewer than it was asked for."""
    data = stream.read(num_bytes)
    while len(data) < num_bytes and (more := stream.read(num_bytes - len(data))):
        data += more
    if len(data) < num_bytes:
        raise ValueError("it ends before its last entry does")
    return data
