"""What compressors and counts of n-grams need for texts, in bits."""

import lzma
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zstandard

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

ZSTD_LEVEL = 19
XZ_PRESET = 9
NGRAM_CONTEXT = 5
"""Bytes of context; with the predicted byte an n-gram must fit into 64 bits."""


def compressed_bits(texts: Sequence[bytes]) -> dict[str, Floats]:
    """Bits that compressors need, by baseline, for each text.

    `zstd-19` and `xz-9` compress each text by itself, as a model sees it; the `-solid` ones
    compress all texts as one, so that each text may point into those before it; their bits are
    shared out by length.
    """
    whole, lengths = b"".join(texts), np.array([len(text) for text in texts], np.float64)

    def zstd(text: bytes) -> int:
        return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)) * 8

    def xz(text: bytes) -> int:
        return len(lzma.compress(text, preset=XZ_PRESET)) * 8

    share = lengths / max(1, len(whole))
    return {
        f"zstd-{ZSTD_LEVEL}": np.array([zstd(text) for text in texts], np.float64),
        f"xz-{XZ_PRESET}": np.array([xz(text) for text in texts], np.float64),
        f"zstd-{ZSTD_LEVEL}-solid": zstd(whole) * share,
        f"xz-{XZ_PRESET}-solid": xz(whole) * share,
    }


def ngram_bits(train: Sequence[bytes], texts: Sequence[bytes]) -> Floats:
    """Bits each text needs under a byte n-gram model of the training texts.

    Orders 0 to NGRAM_CONTEXT are interpolated by Witten and Bell (1991): a context seen N times
    with T different continuations gives the next lower order the weight T / (N + T).
    """
    known, asked = _joined(train), _joined(texts)
    counted = _is_text(train)
    probability = np.full(len(asked), 1 / 256)
    for context in range(NGRAM_CONTEXT + 1):
        learned = _windows(known, context)[counted[context:]]
        ngrams, counts = np.unique(learned, return_counts=True)
        histories, firsts = np.unique(ngrams >> np.uint64(8), return_index=True)
        totals = np.add.reduceat(counts, firsts)
        kinds = np.diff(np.append(firsts, len(ngrams)))
        windows = _windows(asked, context)
        seen = _lookup(ngrams, windows, counts)
        total = _lookup(histories, windows >> np.uint64(8), totals)
        kind = _lookup(histories, windows >> np.uint64(8), kinds)
        lower = probability[context:]
        mixed = (seen + kind * lower) / np.maximum(total + kind, 1)
        probability[context:] = np.where(total > 0, mixed, lower)
    bits = -np.log2(probability)
    ends = np.cumsum([len(text) + NGRAM_CONTEXT for text in texts])
    return np.array(
        [bits[end - len(text) : end].sum() for text, end in zip(texts, ends, strict=True)]
    )


def _joined(texts: Sequence[bytes]) -> Bytes:
    """All texts in a row, each preceded by zeros so that no context reaches into another text."""
    gap = bytes(NGRAM_CONTEXT)
    return np.frombuffer(b"".join(gap + text for text in texts), np.uint8)


def _is_text(texts: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Which bytes of the joined texts are theirs, not the zeros between them."""
    return np.concatenate([np.arange(-NGRAM_CONTEXT, len(text)) >= 0 for text in texts])


def _windows(data: Bytes, context: int) -> npt.NDArray[np.uint64]:
    """Each byte from position `context` on, with the `context` bytes before it, as one number."""
    size = len(data) - context
    windows = np.zeros(size, np.uint64)
    for i in range(context + 1):
        windows = (windows << np.uint64(8)) | data[i : i + size]
    return windows


def _lookup(
    keys: npt.NDArray[np.uint64], asked: npt.NDArray[np.uint64], values: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The value of each asked key in a sorted table, 0 where it is missing."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
