"""Which split a record belongs to, by its content alone, and which of its copies is kept."""

import numpy as np
import numpy.typing as npt

from millrace.spec import SplitSpec

SPLITS = ("train", "validation", "test")
Kept = npt.NDArray[np.bool_]


def draw_splits(split_ids: npt.NDArray[np.uint64], spec: SplitSpec) -> npt.NDArray[np.int8]:
    """Index into SPLITS for each record, from its id alone: a record never changes split.

    The id is mixed with the seed by splitmix64 (Steele, Lea and Flood 2014) and read as a number
    in [0, 1): the lowest `test` share is the test split, the next `validation` share validation.
    """
    with np.errstate(over="ignore"):
        mixed = split_ids + np.uint64((spec.seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    place = mixed / 2.0**64
    return np.where(
        place < spec.test, 2, np.where(place < spec.test + spec.validation, 1, 0)
    ).astype(np.int8)


def first_of_each(content_ids: npt.NDArray[np.uint64]) -> Kept:
    """True for the first record of each content, False for its exact duplicates."""
    kept = np.zeros(len(content_ids), bool)
    kept[np.unique(content_ids, return_index=True)[1]] = True
    return kept


def count_overlap(split_ids: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8]) -> int:
    """How many inputs occur in more than one split."""
    pairs = np.unique(np.stack([split_ids, splits.astype(np.uint64)], axis=1), axis=0)
    return len(pairs) - len(np.unique(pairs[:, 0]))
