import lzma
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.baselines.classification import logistic_correct, majority_correct
from millrace.baselines.compression import NGRAM_CONTEXT, compressed_bits, ngram_bits

Counts = dict[bytes, Counter[int]]


def count(texts: Sequence[bytes]) -> Counts:
    counts: Counts = defaultdict(Counter)
    for text in texts:
        padded = bytes(NGRAM_CONTEXT) + text
        for at in range(NGRAM_CONTEXT, len(padded)):
            for order in range(NGRAM_CONTEXT + 1):
                counts[padded[at - order : at]][padded[at]] += 1
    return counts


def probability(counts: Counts, context: bytes, byte: int) -> float:
    """Witten and Bell's estimate, written down as they define it."""
    lower = probability(counts, context[1:], byte) if context else 1 / 256
    if context not in counts:
        return lower
    seen = counts[context]
    return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))


def bits(counts: Counts, text: bytes) -> float:
    padded = bytes(NGRAM_CONTEXT) + text
    return sum(
        -math.log2(probability(counts, padded[at - NGRAM_CONTEXT : at], padded[at]))
        for at in range(NGRAM_CONTEXT, len(padded))
    )


texts = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=5)
few_letters = st.lists(
    st.text("ab\0", min_size=1, max_size=40).map(str.encode), min_size=1, max_size=5
)


@settings(deadline=None)
@given(texts | few_letters, texts | few_letters)
def test_ngram_bits_are_those_of_the_definition(train: list[bytes], asked: list[bytes]) -> None:
    counts = count(train)

    found = ngram_bits(train, asked)

    np.testing.assert_allclose(found, [bits(counts, text) for text in asked], rtol=1e-9)


def test_compressors_take_each_text_alone_or_all_as_one() -> None:
    draw = random.Random(0)  # noqa: S311  a fixed seed, not a secret
    asked = [" ".join(draw.choices(["mill", "race", "water"], k=100)).encode() for _ in range(3)]
    whole = b"".join(asked)

    found = compressed_bits(asked)

    compress = zstandard.ZstdCompressor(level=19).compress
    assert found["zstd-19"].tolist() == [8 * len(compress(text)) for text in asked]
    assert found["xz-9"].tolist() == [8 * len(lzma.compress(text, preset=9)) for text in asked]
    assert found["zstd-19-solid"].sum() == pytest.approx(8 * len(compress(whole)))
    assert found["xz-9-solid"].sum() == pytest.approx(8 * len(lzma.compress(whole, preset=9)))
    shares = found["zstd-19-solid"] / [len(text) for text in asked]
    assert shares.max() == pytest.approx(shares.min())


def test_the_majority_is_that_of_the_training_labels() -> None:
    found = majority_correct(np.array([2, 2, 1]), np.array([1, 1, 2]))

    assert found.tolist() == [0, 0, 1]


def test_logistic_regression_finds_a_line_between_two_clouds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    points = (rng.normal(size=(200, 1, 2)) + 4 * labels[:, None, None]).astype(np.float32)

    found = logistic_correct(points[:100], labels[:100], points[100:], labels[100:])

    assert found.mean() > 0.95


def test_logistic_regression_of_a_single_class_says_that_class() -> None:
    points = np.zeros((3, 2), np.float32)

    found = logistic_correct(points, np.array([1, 1, 1]), points, np.array([1, 0, 1]))

    assert found.tolist() == [1, 0, 1]
