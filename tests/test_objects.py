import asyncio
import hashlib
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem

from millrace.errors import CorruptError
from millrace.objects import RemoteObjects, agreed, first_answer, http_status


class ResourceExistsError(Exception):
    """As Azure's client calls it."""


class Azure(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """As adlfs takes and gives things."""

    protocol = ("abfs", "az", "abfss")
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}

    async def _pipe_file(self, path: str, value: bytes, overwrite: bool = True) -> None:
        if not overwrite and path in self.blobs:
            raise ResourceExistsError
        self.blobs[path] = value

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.blobs:
            raise FileNotFoundError(path)
        data = self.blobs[path]
        md5 = bytearray(hashlib.md5(data, usedforsecurity=False).digest())
        return {"name": path, "type": "file", "size": len(data), "content_md5": md5}

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        return self.blobs[path][start:end]


def test_azure_is_asked_not_to_overwrite_in_its_own_words() -> None:
    azure = Azure()
    objects = RemoteObjects(azure)

    objects.write("a", b"first", if_absent=True, seconds=5)
    with pytest.raises(FileExistsError):
        objects.write("a", b"second", if_absent=True, seconds=5)

    assert azure.blobs == {"a": b"first"}


def test_the_md5_that_a_store_tells_is_taken_as_it_comes() -> None:
    objects = RemoteObjects(Azure())
    objects.write("a", b"first", if_absent=False, seconds=5)

    assert objects.tell("a", 5).md5 == hashlib.md5(b"first", usedforsecurity=False).hexdigest()


def test_a_range_of_another_length_is_corrupt() -> None:
    objects = RemoteObjects(Azure())
    objects.write("a", b"first", if_absent=False, seconds=5)

    assert objects.read("a", 1, 3, 5) == b"ir"
    with pytest.raises(CorruptError, match="bytes 1 to 9 of a: the store sent 4 bytes"):
        objects.read("a", 1, 9, 5)


TRUTH = {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("listings", "expected"),
    [
        ([TRUTH, TRUTH], TRUTH),
        ([TRUTH, {"a": 1, "c": 2}, TRUTH], TRUTH),
        ([{"a": 9, "b": 2}, TRUTH, TRUTH], TRUTH),
        ([{"a": 9, "b": 2}, {"a": 1, "b": 8}, TRUTH], TRUTH),
        ([TRUTH, TRUTH | {"new": 3}, TRUTH | {"new": 3}], TRUTH | {"new": 3}),
        ([TRUTH | {"old": 3}, TRUTH, TRUTH], TRUTH),
    ],
)
def test_a_listing_is_what_two_of_three_agree_on(
    listings: list[dict[str, int]], expected: dict[str, int]
) -> None:
    answers = iter(listings)

    async def listing() -> dict[str, int]:
        return next(answers)

    assert asyncio.run(agreed(listing)) == expected
    assert next(answers, None) is None


def test_the_first_success_of_a_hedged_call_counts() -> None:
    asked: list[None] = []
    second_asked, first_failed = asyncio.Event(), asyncio.Event()

    async def fetch() -> int:
        asked.append(None)
        if len(asked) == 1:
            await second_asked.wait()
            first_failed.set()
            raise ConnectionResetError
        second_asked.set()
        await first_failed.wait()
        return len(asked)

    assert asyncio.run(first_answer(fetch, 0.01)) == 2


def test_a_quick_answer_is_not_asked_for_again() -> None:
    asked: list[None] = []

    async def fetch() -> int:
        asked.append(None)
        return len(asked)

    assert asyncio.run(first_answer(fetch, 5.0)) == 1
    assert len(asked) == 1


def test_the_http_status_is_found_where_each_client_puts_it() -> None:
    class BotoError(Exception):
        response = {"ResponseMetadata": {"HTTPStatusCode": 412}}  # noqa: RUF012  as botocore has it

    class GcsError(Exception):
        code = 404

    wrapped = OSError("translated")
    wrapped.__cause__ = BotoError()

    assert http_status(wrapped) == 412
    assert http_status(GcsError()) == 404
    assert http_status(OSError("reset")) is None
