"""A stream as torch's DataLoader takes it: an iterable data set of whole batches."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from millrace.data.columns import Columns, Ragged
from millrace.data.stream import Stream

Batch = dict[str, torch.Tensor | list[bytes]]


class StreamDataset(IterableDataset[Batch]):
    """The batches of a stream from a step on, an epoch or as many steps as asked for.

    `DataLoader(StreamDataset(open_stream, start_step=step), batch_size=None)` gives the stream's
    own batches in its own order, whatever `num_workers`: worker w of n serves every n-th step.
    Threads do the work, so workers rarely pay: each one decodes all frames. The place is the
    consumer's: call `set_epoch` before each pass, or every pass is the same; to resume, count the
    batches and begin there again. Start workers by `spawn`: file systems do not outlive a fork.

    Args:
        open_stream: Opens the stream; called in the process that reads it, for a file system must
            not be used on both sides of a fork.
        start_step: The first step to serve.
        num_steps: How many; 0 goes to the end of the epoch that `start_step` lies in.
    """

    def __init__(
        self, open_stream: Callable[[], Stream], *, start_step: int = 0, num_steps: int = 0
    ) -> None:
        super().__init__()
        self._open, self.start_step, self._num_steps = open_stream, start_step, num_steps
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Serve this epoch in the next pass; workers that outlive a pass do not learn of it."""
        self._epoch, self.start_step = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        stream = self._open()
        try:
            per_epoch = stream.steps_per_epoch
            left = self._num_steps or per_epoch - self.start_step % per_epoch
            worker = get_worker_info()
            first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
            stream.seek(self._epoch * per_epoch + self.start_step + first, stride)
            for _ in range(first, left, stride):
                yield tensors(next(stream))
        finally:
            stream.close()


def tensors(columns: Columns) -> Batch:
    """Arrays as tensors on the same memory, ragged columns as lists of bytes."""
    return {
        name: column.tolist() if isinstance(column, Ragged) else _tensor(column)
        for name, column in columns.items()
    }


def _tensor(array: np.ndarray) -> torch.Tensor:
    # Ids are unsigned; torch collates and indexes signed numbers of that width only.
    return torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array)
