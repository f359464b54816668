"""Read, write, list and delete on an S3 server through one client, as told by lines of JSON.

    python stores.py {millrace,s3fs,boto3,obstore} BUCKET

The endpoint and the keys come from the environment. Each line of standard input is one operation
(`id`, `operation`, `path`, and `data`, the bytes to write in hex); each line of standard output is
its outcome. Clients are used as their documentation shows them, with their own defaults.
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AT_ONCE = 8
START, END = 1000, 40_000
Act = Callable[[str, bytes], Any]
"""From path and the object's bytes to what was read or listed. The bytes are what is to be written;
of what is read, only a client that proves may look at them."""


def main() -> None:
    """Serve operations until standard input ends."""
    build = {"millrace": millrace, "s3fs": s3fs, "boto3": boto3, "obstore": obstore}
    operations, version = build[sys.argv[1]](sys.argv[2])
    operations["list"]("", b"")  # connects before anything goes wrong
    tell({"version": version})
    pool = ThreadPoolExecutor(AT_ONCE)
    for line in sys.stdin:
        pool.submit(run, operations, json.loads(line))
    os._exit(0)  # what hangs is not waited for


_printing = threading.Lock()


def tell(what: dict[str, Any]) -> None:
    """One line of output, whole even when threads talk at once."""
    with _printing:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def run(operations: dict[str, Act], asked: dict[str, str]) -> None:
    """One operation and its outcome."""
    tell({"id": asked["id"], "started": True})
    try:
        found = operations[asked["operation"]](asked["path"], bytes.fromhex(asked["data"]))
    except BaseException as error:  # noqa: BLE001  whatever a client raises is its outcome
        text = " ".join(str(error).split())
        kinds = [kind.__name__ for kind in type(error).__mro__]
        tell({"id": asked["id"], "error": type(error).__name__, "kinds": kinds, "text": text})
        return
    if isinstance(found, bytes | bytearray | memoryview):
        tell({"id": asked["id"], "sha256": hashlib.sha256(found).hexdigest()})
    else:
        tell({"id": asked["id"], "found": found})


def millrace(bucket: str) -> tuple[dict[str, Act], str]:
    """Ours, with proofs as the pipeline reads, and a patience that fits the benchmark's budget."""
    from millrace.deadline import Patience
    from millrace.errors import CorruptError
    from millrace.storage import FsspecStorage, StoredFile

    storage = FsspecStorage(f"s3://{bucket}", Patience(attempt_seconds=4.0, total_seconds=16.0))

    def read(path: str, data: bytes) -> bytes:
        return StoredFile(path, len(data), hashlib.sha256(data).hexdigest()).read(storage)

    def read_range(path: str, data: bytes) -> bytes:
        digest = hashlib.sha256(data[START:END]).hexdigest()

        def prove(found: bytes) -> None:
            if hashlib.sha256(found).hexdigest() != digest:
                raise CorruptError(f"read {path} from {START}", "another digest", "Try again")

        return storage.read(path, START, END, prove=prove)

    operations: dict[str, Act] = {
        "read": read,
        "read_range": read_range,
        "write": storage.write,
        "create": lambda path, data: storage.write(path, data, if_absent=True),
        "list": lambda path, _: storage.list(path),
        "delete": lambda path, _: storage.delete(path),
    }
    return operations, "this checkout"


def s3fs(bucket: str) -> tuple[dict[str, Act], str]:
    """The fsspec file system for S3."""
    import s3fs as package

    # A client of its own for each operation: botocore counts failures against later attempts.
    def fresh() -> Any:
        return package.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def found(path: str, _: bytes) -> dict[str, int]:
        listed = fresh().find(f"{bucket}/{path}", detail=True)
        return {name.partition("/")[2]: one["size"] for name, one in listed.items()}

    operations: dict[str, Act] = {
        "read": lambda path, _: fresh().cat_file(f"{bucket}/{path}"),
        "read_range": lambda path, _: fresh().cat_file(f"{bucket}/{path}", start=START, end=END),
        "write": lambda path, data: fresh().pipe_file(f"{bucket}/{path}", data) and None,
        "create": lambda path, data: (
            fresh().pipe_file(f"{bucket}/{path}", data, mode="create") and None
        ),
        "list": found,
        "delete": lambda path, _: fresh().rm_file(f"{bucket}/{path}"),
    }
    return operations, package.__version__


def boto3(bucket: str) -> tuple[dict[str, Act], str]:
    """Amazon's own client."""
    import boto3 as package

    # A client of its own for each operation: botocore counts failures against later attempts.
    def fresh() -> Any:
        return package.Session().client("s3")

    def get(path: str, **more: str) -> bytes:
        data: bytes = fresh().get_object(Bucket=bucket, Key=path, **more)["Body"].read()
        return data

    def put(path: str, data: bytes, **more: str) -> None:
        fresh().put_object(Bucket=bucket, Key=path, Body=data, **more)

    def found(path: str, _: bytes) -> dict[str, int]:
        pages = fresh().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=path)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}

    operations: dict[str, Act] = {
        "read": lambda path, _: get(path),
        "read_range": lambda path, _: get(path, Range=f"bytes={START}-{END - 1}"),
        "write": put,
        "create": lambda path, data: put(path, data, IfNoneMatch="*"),
        "list": found,
        "delete": lambda path, _: fresh().delete_object(Bucket=bucket, Key=path) and None,
    }
    return operations, package.__version__


def obstore(bucket: str) -> tuple[dict[str, Act], str]:
    """The Rust object_store crate's client."""
    import obstore as package
    from obstore.store import S3Store

    store = S3Store(
        bucket,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        region=os.environ["AWS_DEFAULT_REGION"],
        client_options={"allow_http": True},
    )

    def found(path: str, _: bytes) -> dict[str, int]:
        return {one["path"]: one["size"] for part in store.list(path) for one in part}

    operations: dict[str, Act] = {
        "read": lambda path, _: bytes(store.get(path).bytes()),
        "read_range": lambda path, _: bytes(store.get_range(path, start=START, end=END)),
        "write": lambda path, data: store.put(path, data) and None,
        "create": lambda path, data: store.put(path, data, mode="create") and None,
        "list": found,
        "delete": lambda path, _: store.delete(path),
    }
    return operations, package.__version__


if __name__ == "__main__":
    main()
