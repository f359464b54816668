"""A stream's batches on the device: the next one is copied while this one is trained on."""

import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from millrace.data.stream import Stream
from millrace.train.objective import to_batch
from millrace.train.scores import Batch


class Feed:
    """Takes batches from a stream and knows how long it had to wait for them.

    Args:
        stream: Of this rank's share of each step.
        device: Where batches are wanted.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        is_cuda = device.type == "cuda"
        self._copying = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]  # torch leaves it so
        self._ahead: Batch | None = None
        self.waited_seconds = 0.0
        """In `next(stream)`, all in all: the share of it in the time of steps is the data stall."""

    def seek(self, step: int) -> None:
        """Go to a step."""
        self._stream.seek(step)
        self._ahead = None

    def take(self) -> Batch:
        """The next batch, on the device."""
        batch, self._ahead = self._ahead or self._load(), None
        if self._copying is not None:
            present = torch.cuda.current_stream(self._device)
            present.wait_stream(self._copying)  # the device waits, not this process
            for tensor in batch.values():
                tensor.record_stream(present)
        return batch

    def fetch(self) -> None:
        """Start to copy the batch after; to be called when the device has enough to do.

        Without a GPU there is nothing to copy, and the stream's own threads assemble it anyway.
        """
        if self._copying is not None:
            self._ahead = self._load()

    def _load(self) -> Batch:
        start = time.perf_counter()
        columns = next(self._stream)
        self.waited_seconds += time.perf_counter() - start
        if self._copying is None:
            return to_batch(columns, self._device)
        with torch.cuda.stream(self._copying):
            return to_batch(columns, self._device, pinned=True)


def parts(batch: Batch, number: int) -> Iterator[Batch]:
    """A batch cut into microbatches of nearly equal size."""
    if number == 1:
        yield batch
        return
    size = len(next(iter(batch.values())))
    cuts = np.linspace(0, size, number + 1).astype(int).tolist()
    for start, stop in pairwise(cuts):
        yield {name: tensor[start:stop] for name, tensor in batch.items()}
