"""DNA with planted motifs: which two half-sites stand together says the class."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

LETTERS = np.frombuffer(b"ACGT", np.uint8)
HALF_LETTERS = 6
GAP_LETTERS = 4
LEAST_LETTERS = 2 * (2 * HALF_LETTERS + GAP_LETTERS + 2 * HALF_LETTERS)
"""Twice what is planted."""
LEAST_DISTANCE = 4
"""Letters in which any two halves differ."""

Numbers = npt.NDArray[np.int64]
"""Letters as 0 to 3."""


def records(
    *,
    records: int = 4000,
    letters: int = 120,
    decoys: float = 0.5,
    noise: float = 0.05,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Sequences as {"sequence": "ACGT...", "label": "a1"}, of four classes a1, a2, b1 and b2.

    As many transcription factors bind in pairs, a site is a left half (a or b), GAP_LETTERS of any
    letters, and a right half (1 or 2). A sequence has one site, which is its class, and each of the
    two other halves with a chance, anywhere else. So the halves by themselves say little, and with
    `decoys` at 1 nothing: it takes a look at a whole site.

    Args:
        records: Sequences to make.
        letters: Of each sequence.
        decoys: Chance of each of the other halves.
        noise: Chance of each planted letter to be drawn anew.
        seed: Of them all, halves included.

    Raises:
        ValueError: Too few records or letters, or what is to be a chance is none.
    """
    if records < 1 or letters < LEAST_LETTERS:
        raise ValueError(
            f"records {records} and letters {letters}: 1 and {LEAST_LETTERS} are the least"
        )
    if not (0 <= decoys <= 1 and 0 <= noise <= 1):
        raise ValueError(f"decoys {decoys} and noise {noise}: a chance is from 0 to 1")
    rng = np.random.default_rng(seed)
    halves = _distinct_halves(rng)
    classes = list(product("ab", "12"))
    for _ in range(records):
        left, right = classes[rng.integers(len(classes))]
        others = [half for half in "ab12" if half not in (left, right) and rng.random() < decoys]
        gap = rng.integers(4, size=GAP_LETTERS)
        site = [_noisy(halves[left], noise, rng), gap, _noisy(halves[right], noise, rng)]
        planted = [np.concatenate(site)] + [_noisy(halves[half], noise, rng) for half in others]
        sequence = _scattered(planted, letters, rng)
        yield {"sequence": LETTERS[sequence].tobytes().decode(), "label": left + right}


def _distinct_halves(rng: np.random.Generator) -> dict[str, Numbers]:
    """Four halves, any two of which differ in LEAST_DISTANCE letters or more."""
    while True:
        drawn = rng.integers(4, size=(4, HALF_LETTERS))
        distances = (drawn[:, None] != drawn).sum(2) + HALF_LETTERS * np.eye(4, dtype=np.int64)
        if distances.min() >= LEAST_DISTANCE:
            return dict(zip("ab12", drawn, strict=True))


def _noisy(planted: Numbers, noise: float, rng: np.random.Generator) -> Numbers:
    anew = rng.integers(4, size=len(planted))
    return np.where(rng.random(len(planted)) < noise, anew, planted)


def _scattered(planted: Sequence[Numbers], letters: int, rng: np.random.Generator) -> Numbers:
    """The planted pieces in random order at random places of random letters, none over another."""
    spare = letters - sum(map(len, planted))
    cuts = np.sort(rng.integers(spare + 1, size=len(planted)))
    pieces = np.split(rng.integers(4, size=spare), cuts)
    mixed = [pieces[0]]
    for number, piece in zip(rng.permutation(len(planted)), pieces[1:], strict=True):
        mixed += [planted[number], piece]
    return np.concatenate(mixed)
