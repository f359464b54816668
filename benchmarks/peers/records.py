"""One data set's records, mapped from the files that `benchmarks/data_sets.py` wrote."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Records:
    """Arrays in memory-mapped files.

    Attributes:
        arrays: For text `data` (uint8) and `offsets` (int64, one more than records); for tokens
            `tokens` (uint16, records x 512); for images `image` (uint8, records x 32 x 32 x 3) and
            `label` (int64).
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.arrays: dict[str, npt.NDArray[Any]] = {
            path.stem: np.load(path, mmap_mode="r")
            for path in sorted(Path(folder, name).glob("*.npy"))
        }

    def __len__(self) -> int:
        if self.name == "text":
            return len(self.arrays["offsets"]) - 1
        return len(next(iter(self.arrays.values())))

    @property
    def raw_bytes(self) -> int:
        """Of the records themselves."""
        names = self.arrays.keys() - {"offsets"}
        return sum(self.arrays[name].nbytes for name in names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """A record as Python and numpy have it, copied."""
        if self.name == "text":
            start, stop = self.arrays["offsets"][i : i + 2].tolist()
            return {"text": self.arrays["data"][start:stop].tobytes().decode()}
        found: dict[str, Any] = {name: np.array(array[i]) for name, array in self.arrays.items()}
        return found | ({"label": int(found["label"])} if "label" in found else {})

    def step(self, num_bytes: int) -> int:
        """How many records are about so many bytes."""
        return max(1, num_bytes * len(self) // self.raw_bytes)
