"""Where test records come from: their source files, and their places in these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from millrace.data.ingest import load_ids
from millrace.evaluation.intervals import Numbers
from millrace.manifest import Manifest
from millrace.storage import Storage


@dataclass(frozen=True, eq=False)
class Origins:
    """Where records come from; of equal ones the first is meant, for it is the one that is kept.

    Args:
        paths: Of all source files, as listed.
        file: (records,) the number of each record's file.
        place: (records,) which of its file's usable records it is, from 1 on.
        row: (records,) which of all usable records it is, from 0 on.
    """

    paths: Sequence[str]
    file: Numbers
    place: Numbers
    row: Numbers

    @classmethod
    def find(
        cls, storage: Storage, source_files: Manifest, records: npt.NDArray[np.uint64]
    ) -> "Origins":
        """The origins of records, by their ids in the shards."""
        ids = load_ids(storage, source_files)[:, 0]
        order = np.argsort(ids, kind="stable")
        rows = order[np.minimum(np.searchsorted(ids, records, sorter=order), len(ids) - 1)]
        assert np.array_equal(ids[rows], records), "shards are made of the listed source files"
        entries = source_files.facts["files"]
        starts = np.array([entry["records"][0] for entry in entries], np.int64)
        file = np.searchsorted(starts, rows, side="right") - 1  # the last of several is not empty
        paths = [entry["path"] for entry in entries]
        return cls(paths, file, rows - starts[file] + 1, rows)
