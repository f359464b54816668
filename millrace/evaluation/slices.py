"""Slices: test records divided by a property, so that each part can be judged by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from millrace.evaluation.intervals import Numbers
from millrace.evaluation.origins import Origins

NUM_LENGTHS = 4
MOST_SLICES = 20
"""Of one property, classes apart: the smallest beyond are put together."""
REST = "(others)"


@dataclass(frozen=True, eq=False)
class Slices:
    """Test records divided by one property.

    Args:
        names: Of the slices.
        number: (records,) each record's slice.
    """

    names: Sequence[str]
    number: Numbers


def by_class(labels: Numbers, classes: Sequence[str]) -> Slices:
    """A slice for each class that occurs among the records' labels."""
    present, number = np.unique(labels, return_inverse=True)
    return Slices([classes[label] for label in present], number)


def by_folder(origins: Origins) -> Slices:
    """A slice for each folder of source files; `.` is where the url's fixed part ends."""
    return by_name([path.rpartition("/")[0] or "." for path in origins.paths], origins.file)


def by_source(origins: Origins) -> Slices:
    """A slice for each named source, whose name the listed paths begin with."""
    return by_name([path.partition("/")[0] for path in origins.paths], origins.file)


def by_name(names: Sequence[str], number: Numbers) -> Slices:
    """A slice for each name, in their order; the smallest beyond MOST_SLICES are put together.

    Args:
        names: One or several times each.
        number: (records,) the place of each record's name.
    """
    distinct, place = np.unique(np.array(names), return_inverse=True)
    of_record = place[number]
    counts = np.bincount(of_record, minlength=len(distinct))
    ranked = np.argsort(-counts, kind="stable")
    present = ranked[counts[ranked] > 0]
    kept = np.sort(present[: MOST_SLICES - 1] if len(present) > MOST_SLICES else present)
    slice_of = np.full(len(distinct), len(kept))
    slice_of[kept] = np.arange(len(kept))
    rest = [REST] if len(kept) < len(present) else []
    return Slices([*distinct[kept].tolist(), *rest], slice_of[of_record])


def by_length(lengths: Numbers, unit: str) -> Slices:
    """Quarters of the records by length, fewer where many are equally long."""
    shares = np.arange(1, NUM_LENGTHS) / NUM_LENGTHS
    ends = np.unique(np.quantile(lengths, shares, method="lower"))
    ends = ends[ends < lengths.max()]
    names = [f"up to {end:,} {unit}" for end in ends.tolist()]
    names.append(f"above {ends[-1]:,} {unit}" if len(ends) else f"{lengths[0]:,} {unit}")
    return Slices(names, np.searchsorted(ends, lengths))
