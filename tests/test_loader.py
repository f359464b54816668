from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from millrace.data.loader import StreamDataset
from millrace.data.samples import Samples
from millrace.data.stream import Stream
from millrace.storage import FsspecStorage
from tests.test_stream import publish


def open_stream(url: str) -> Stream:
    storage = FsspecStorage(url)
    return Stream(Samples(storage, publish(storage), "train"), 12, seed=3)


def records(dataset: StreamDataset, num_workers: int = 0) -> list[list[int]]:
    context = "spawn" if num_workers else None
    loader = DataLoader(
        dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context
    )
    return [batch["record"].tolist() for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_the_streams_own_batches(tmp_path: Path, num_workers: int) -> None:
    stream = open_stream(str(tmp_path))
    expected = [next(stream)["record"].tolist() for _ in range(stream.steps_per_epoch)]
    stream.close()

    found = records(StreamDataset(partial(open_stream, str(tmp_path))), num_workers)

    assert found == expected


def test_a_data_loader_goes_on_where_its_consumer_stopped(tmp_path: Path) -> None:
    opened = partial(open_stream, str(tmp_path))
    whole = records(StreamDataset(opened, num_steps=20))

    assert records(StreamDataset(opened, start_step=5, num_steps=4)) == whole[5:9]
    assert records(StreamDataset(opened, start_step=3)) == whole[3:8]  # to the end of the epoch
    assert records(StreamDataset(opened, start_step=11)) == whole[11:16]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_epoch_has_an_order_of_its_own(tmp_path: Path, num_workers: int) -> None:
    opened = partial(open_stream, str(tmp_path))
    dataset, passes = StreamDataset(opened), []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        passes.append(records(dataset, num_workers))

    assert passes[0] + passes[1] == records(StreamDataset(opened, num_steps=16))
    assert passes[0] != passes[1]


def test_columns_come_as_tensors_on_the_streams_memory(tmp_path: Path) -> None:
    (batch,) = DataLoader(
        StreamDataset(partial(open_stream, str(tmp_path)), num_steps=1), batch_size=None
    )

    assert batch["inputs"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
    assert batch["record"].dtype == torch.int64
    assert batch["text"] == [b"t%d" % n * (n % 4) for n in batch["record"].tolist()]
