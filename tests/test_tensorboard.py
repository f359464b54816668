import struct
from pathlib import Path

import pytest

from millrace.train.tensorboard import EventFile, _masked_checksum


def test_the_checksum_is_the_one_of_the_format() -> None:
    # CRC-32C of "123456789" is e3069283 (RFC 3720); the format turns it and adds a constant.
    turned = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF

    assert struct.unpack("<I", _masked_checksum(b"123456789")) == ((turned + 0xA282EAD8) % 2**32,)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    events = EventFile(step=150, time=1000.5)
    events.add(160, {"loss/train_loss": 0.25, "speed/mfu": 0.5}, time=1001.0)
    events.add(100000, {"loss/train_loss": 0.125}, time=1002.0)
    path = tmp_path / events.name
    path.write_bytes(events.to_bytes())

    first, session, *told = loader.LegacyEventFileLoader(str(path)).Load()

    assert first.file_version == "brain.Event:2"
    assert (session.session_log.status, session.step) == (session.session_log.START, 150)
    assert [
        (event.step, event.wall_time, {v.tag: v.simple_value for v in event.summary.value})
        for event in told
    ] == [
        (160, 1001.0, {"loss/train_loss": 0.25, "speed/mfu": 0.5}),
        (100000, 1002.0, {"loss/train_loss": 0.125}),
    ]


def test_every_record_carries_its_length_and_checksums() -> None:
    events = EventFile(step=0, time=1.0)
    events.add(300, {"a": -1.5}, time=2.0)
    data, records = events.to_bytes(), []

    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert data[8:12] == _masked_checksum(data[:8])
        assert data[12 + length : 16 + length] == _masked_checksum(body)
        records.append(body)
        data = data[16 + length :]

    assert len(records) == 3
    assert records[2].endswith(struct.pack("<f", -1.5))
    assert events.name.startswith("events.out.tfevents.")
