"""Objects of an S3 server: large ones go up in parts, and every ETag that proves is made use of."""

import asyncio
import contextlib
import hashlib
from typing import Any

from millrace.deadline import within
from millrace.objects import GRACE_SECONDS, RemoteObjects, Told

PART_BYTES = 32 * 2**20
"""An object longer than this goes up in parts of this size."""
PARTS_AT_ONCE = 4
PART_ATTEMPTS = 3


class S3Objects(RemoteObjects):
    """Objects of an S3 server, over s3fs.

    The parts are sent here and not by s3fs's `pipe_file`, which leaves an upload behind when it is
    cancelled and sends everything again when one part fails.
    """

    reports_absence = False

    async def _tell(self, key: str) -> Told:
        # s3fs's own `info` hides the encryption and lists after each 404.
        head = await self._call("head_object", key)
        kms = str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
        has_mark = not kms and "SSECustomerAlgorithm" not in head
        mark = str(head.get("ETag", "")).strip('"').lower()
        return Told(int(head["ContentLength"]), mark if has_mark else "")

    async def _put(self, key: str, data: bytes, *, if_absent: bool) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if len(data) <= PART_BYTES:
            await self._call("put_object", key, Body=data, **condition)
            return
        upload = (await self._call("create_multipart_upload", key))["UploadId"]
        try:
            marks = await self._send_parts(key, upload, data)
            parts = [{"PartNumber": i, "ETag": mark} for i, mark in enumerate(marks, start=1)]
            await self._call(
                "complete_multipart_upload",
                key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except BaseException:
            # Cancelled, too: storage that no listing shows would be paid for until someone looks.
            with contextlib.suppress(Exception):
                abort = self._call("abort_multipart_upload", key, UploadId=upload)
                await within(GRACE_SECONDS / 2, abort)
            raise

    async def _send_parts(self, key: str, upload: str, data: bytes) -> list[str]:
        places = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(number: int, start: int) -> str:
            body = data[start : start + PART_BYTES]
            for attempt in range(1, PART_ATTEMPTS + 1):
                try:
                    async with places:
                        sent = await self._call(
                            "upload_part", key, UploadId=upload, PartNumber=number, Body=body
                        )
                    return str(sent["ETag"])
                except Exception:
                    # As in `deadline.persist`: a lost part is sent again, not the whole object.
                    if attempt == PART_ATTEMPTS:
                        raise
            raise AssertionError("the last attempt returns or raises")

        tasks = [
            asyncio.ensure_future(send(number, start))
            for number, start in enumerate(range(0, len(data), PART_BYTES), start=1)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _list(self, key: str) -> dict[str, int]:
        found = await self._fs._lsdir(key, delimiter="")
        return {one["name"]: int(one["size"]) for one in found if not one["name"].endswith("/")}

    async def _call(self, method: str, key: str, **more: Any) -> dict[str, Any]:
        bucket, name, _ = self._fs.split_path(key)
        answer: dict[str, Any] = await self._fs._call_s3(method, Bucket=bucket, Key=name, **more)
        return answer


def parts_mark(data: bytes) -> str:
    """The ETag of an object that `S3Objects` wrote in parts."""
    starts = range(0, len(data), PART_BYTES)
    digests = b"".join(_md5(data[start : start + PART_BYTES]).digest() for start in starts)
    return f"{_md5(digests).hexdigest()}-{len(starts)}"


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
