"""Scalars as TensorBoard's event files, on any store: a file for each attempt, written whole.

file    records of: length (8 bytes), its checksum (4), an Event, its checksum (4)
Event   protocol buffer: 1 wall time (double), 2 step, 3 version, 5 Summary, 7 SessionLog
"""

import struct
from collections.abc import Mapping

_POLYNOMIAL = 0x82F63B78
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
_START = 1
VERSION = b"brain.Event:2"


class EventFile:
    """The bytes of one event file, growing.

    Args:
        step: From which it goes on: what an earlier attempt told of later steps is not shown.
        time: Seconds since 1970.
    """

    def __init__(self, step: int, time: float) -> None:
        session = _field(1, _VARINT, _START)
        self._records = [
            _record(_field(1, _DOUBLE, time) + _field(3, _BYTES, VERSION)),
            _record(_event(step, time) + _field(7, _BYTES, session)),
        ]
        self.name = f"events.out.tfevents.{int(time):010d}.step-{step:08d}"

    def add(self, step: int, scalars: Mapping[str, float], time: float) -> None:
        """Add scalars of a step, by tag."""
        summary = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FLOAT, value))
            for tag, value in scalars.items()
        )
        self._records.append(_record(_event(step, time) + _field(5, _BYTES, summary)))

    def to_bytes(self) -> bytes:
        """The whole file so far."""
        return b"".join(self._records)


def _event(step: int, time: float) -> bytes:
    return _field(1, _DOUBLE, time) + _field(2, _VARINT, step)


def _field(number: int, kind: int, value: "float | bytes") -> bytes:
    key = _varint(number << 3 | kind)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if kind == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if kind == _DOUBLE else "<f", value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_checksum(length) + data + _masked_checksum(data)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901  it is what turns
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
