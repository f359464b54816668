"""Coded images (JPEG, PNG) to pixels."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from millrace.data.columns import Columns, Field, Ragged
from millrace.data.workers import num_cores
from millrace.errors import CorruptError

Pixels = npt.NDArray[np.uint8]


def pixels(data: bytes, shape: tuple[int, ...]) -> Pixels:
    """An image as uint8 (channels, height, width), resized where the shape asks for it.

    Args:
        data: JPEG, PNG or another format that Pillow reads.
        shape: 1 or 3 channels, height, width.

    Raises:
        ValueError: It is no readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _fitted(image, shape)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error


def array_pixels(image: npt.NDArray[Any], shape: tuple[int, ...]) -> Pixels:
    """The same of an image that came as an array (height, width) or (height, width, 1 or 3).

    Raises:
        ValueError: It is no such array of uint8.
    """
    plain = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if (
        image.dtype != np.uint8
        or not (plain.ndim == 2 or plain.shape[2:] == (3,))
        or not image.size
    ):
        raise ValueError(
            f"an array of {image.dtype} {list(image.shape)} is no image: uint8 [height, width] or "
            "[height, width, 3] is needed"
        )
    return _fitted(Image.fromarray(np.ascontiguousarray(plain)), shape)


def _fitted(image: Image.Image, shape: tuple[int, ...]) -> Pixels:
    channels, height, width = shape
    sized = image.convert("L" if channels == 1 else "RGB")
    if sized.size != (width, height):
        sized = sized.resize((width, height))
    found = np.asarray(sized, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(found.transpose(2, 0, 1))


def decode_images(coded: Ragged, shape: tuple[int, ...], pool: Executor) -> Pixels:
    """Coded images as uint8 (images, channels, height, width), decoded in the pool's threads.

    Raises:
        CorruptError: One of them cannot be read.
    """
    found = np.empty((len(coded), *shape), np.uint8)

    def decode(place: int, data: bytes) -> None:
        found[place] = pixels(data, shape)

    try:
        for decoded in [pool.submit(decode, i, data) for i, data in enumerate(coded.tolist())]:
            decoded.result()
    except ValueError as error:
        raise CorruptError(
            "decode the images of a batch", str(error), "It was stored so: pack the data again"
        ) from error
    return found


def decoded(batches: Iterable[Columns], fields: Mapping[str, Field]) -> Iterator[Columns]:
    """The batches with coded images as pixels, all cores decoding; other columns as they are."""
    shapes = {name: told.shape for name, told in fields.items() if told.dtype == "image"}
    if not shapes:
        yield from batches
        return
    with ThreadPoolExecutor(num_cores(), thread_name_prefix="images") as pool:
        for columns in batches:
            yield columns | {
                name: decode_images(columns[name], shape, pool) for name, shape in shapes.items()
            }


def decoded_bytes(fields: Mapping[str, Field]) -> int:
    """Bytes of one sample's coded images once they are decoded."""
    return sum(math.prod(told.shape) for told in fields.values() if told.dtype == "image")
