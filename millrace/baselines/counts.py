"""What texts consist of, counted: n-grams of bytes and of words, hashed into a fixed number."""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

GRAM_BYTES = 6
"""Of DNA there are 4,096 different ones."""
BUCKETS = 2**18
WORD = re.compile(rb"[\w\x80-\xff]+|[^\w\s]")
MULTIPLIER = np.uint64(0x2545F4914F6CDD1D)  # odd; spreads a number over the high bits

Counts = Any
"""(texts, 2 * BUCKETS), sparse: first of n-grams of bytes, then of words."""


def count(texts: Sequence[bytes]) -> Counts:
    """How often each text holds each n-gram: of 6 bytes, of one word and of two words."""
    # Imported here: it costs time that other tasks need not pay.
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    found = [np.concatenate([_byte_grams(text), _word_grams(text) + BUCKETS]) for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(buckets) for buckets in found])])
    columns = np.concatenate([*found, np.zeros(0, np.int64)])
    ones = np.ones(len(columns), np.float32)
    matrix = csr_matrix((ones, columns, starts), (len(texts), 2 * BUCKETS))
    matrix.sum_duplicates()
    return matrix


def _byte_grams(text: bytes) -> npt.NDArray[np.int64]:
    """A bucket for each run of GRAM_BYTES bytes; of a shorter text, for the whole of it."""
    data = np.frombuffer(text, np.uint8)
    size = max(1, len(data) - GRAM_BYTES + 1)
    grams = np.zeros(size, np.uint64)
    for start in range(min(GRAM_BYTES, len(data))):
        grams = (grams << np.uint64(8)) | data[start : start + size]
    return _buckets(grams)


def _word_grams(text: bytes) -> npt.NDArray[np.int64]:
    """A bucket for each word in lower case, and for each two in a row."""
    words = np.array([zlib.crc32(word) for word in WORD.findall(text.lower())], np.uint64)
    pairs = (words[:-1] << np.uint64(32)) | words[1:]
    return _buckets(np.concatenate([words, pairs]))


def _buckets(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (numbers * MULTIPLIER >> np.uint64(46)).astype(np.int64)
    return found
