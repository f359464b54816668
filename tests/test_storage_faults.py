"""Every fault with every operation: the right bytes or an error of ours, and never a hang.

A range that is read without a proof is left out: only its length can be checked (docs/stores.md).
"""

import hashlib
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from millrace.deadline import Patience
from millrace.errors import (
    CorruptError,
    DeadlineError,
    ExistsError,
    MillraceError,
    NotFoundError,
    StorageError,
)
from millrace.storage import FsspecStorage, StoredFile
from tests.fault_proxy import AFTER, BEFORE, Fault, FaultProxy

DATA = random.Random(1).randbytes(50_000)  # noqa: S311  test data
OTHER = DATA[::-1]
START, END = 1000, 40_000
RETURNS_WITHIN_SECONDS = 60
"""Far beyond every deadline here: only to end a test that would hang."""
ONCE = Patience(attempt_seconds=0.8, total_seconds=20.0, first_pause_seconds=0.01)
FOR_EVER = Patience(attempts=2, attempt_seconds=0.2, total_seconds=0.6, first_pause_seconds=0.01)
CODES = (400, 403, 404, 429, 500, 503)
LASTING_CODES = (403, 404, 503)
HANGS = ("hang", "stall", "trickle")


@pytest.fixture(scope="module")
def shared(direct: FsspecStorage, through_proxy: FaultProxy) -> FsspecStorage:
    """The same store through the proxy: s3fs takes the endpoint from the environment, once."""
    assert through_proxy.url == os.environ["AWS_ENDPOINT_URL"]
    storage = FsspecStorage(direct.url, ONCE)
    storage.list("")
    return storage


@pytest.fixture
def faulty(shared: FsspecStorage, proxy: FaultProxy) -> Iterator[FsspecStorage]:
    shared.patience = ONCE
    proxy.seen.clear()
    yield shared
    proxy.faults = []


def prove_range(data: bytes) -> None:
    if data != DATA[START:END]:
        raise CorruptError(f"read bytes {START} to {END}", "other bytes", "Try again")


@dataclass(frozen=True)
class Operation:
    """An operation on the object `path`, the requests it lives by, and how to tell that it worked.

    `act` goes through the proxy; `check` looks at what it returned and at the store itself.
    """

    method: str
    act: Callable[[FsspecStorage, str], object]
    check: Callable[[FsspecStorage, str, object], bool]
    exists: bool = True


def stored_file(path: str) -> StoredFile:
    return StoredFile(path, len(DATA), hashlib.sha256(DATA).hexdigest())


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


OPERATIONS = {
    "read": Operation(
        "GET", lambda storage, path: storage.read(path), lambda _d, _p, data: data == DATA
    ),
    "read_range": Operation(
        "GET",
        lambda storage, path: storage.read(path, START, END, prove=prove_range),
        lambda _d, _p, data: data == DATA[START:END],
    ),
    "stored_file": Operation(
        "GET",
        lambda storage, path: stored_file(path).read(storage),
        lambda _d, _p, data: data == DATA,
    ),
    "write": Operation(
        "PUT",
        lambda storage, path: storage.write(path, OTHER),
        lambda direct, path, _: direct.read(path) == OTHER,
    ),
    "create": Operation(
        "PUT",
        lambda storage, path: storage.write(path, OTHER, if_absent=True),
        lambda direct, path, _: direct.read(path) == OTHER,
        exists=False,
    ),
    "list": Operation(
        "GET",
        lambda storage, path: storage.list(folder_of(path)),
        lambda direct, path, found: found == direct.list(folder_of(path)) != {},
    ),
    "delete": Operation(
        "DELETE",
        lambda storage, path: storage.delete(path),
        lambda direct, path, _: path not in direct.list(folder_of(path)),
    ),
}


def prepare(direct: FsspecStorage, operation: Operation) -> str:
    path = f"{uuid.uuid4().hex}/object"
    if operation.exists:
        direct.write(path, DATA)
    return path


def outcome(act: Callable[[], object]) -> object:
    """What `act` returns, or the error of ours that it raises."""
    found: Future[object] = Future()

    def run() -> None:
        try:
            found.set_result(act())
        except MillraceError as error:
            found.set_result(error)
        except BaseException as error:
            found.set_exception(error)
            raise

    # A daemon: it may hang, and must not keep the tests from ending.
    threading.Thread(target=run, daemon=True).start()
    return found.result(RETURNS_WITHIN_SECONDS)


def faults(codes: tuple[int, ...]) -> Iterator[tuple[str, str, int]]:
    for name, operation in OPERATIONS.items():
        writes = operation.method == "PUT"
        for kind in (*BEFORE, *AFTER):
            if kind == "damage_request" and not writes:
                continue
            # An answer without a body has nothing to damage but itself.
            if kind in AFTER and kind != "lose_reply" and operation.method != "GET":
                continue
            for code in codes if kind == "status" else (0,):
                yield name, kind, code


@pytest.mark.parametrize(("name", "kind", "code"), list(faults(CODES)))
def test_a_fault_that_passes_costs_time_and_nothing_else(
    direct: FsspecStorage,
    proxy: FaultProxy,
    faulty: FsspecStorage,
    name: str,
    kind: str,
    code: int,
) -> None:
    operation = OPERATIONS[name]
    path = prepare(direct, operation)
    fault = Fault(kind, method=operation.method, times=1, code=code)
    proxy.faults = [fault]

    result = outcome(lambda: operation.act(faulty, path))

    assert fault.met == 1
    assert operation.check(direct, path, result)


@pytest.mark.parametrize(("name", "kind", "code"), list(faults(LASTING_CODES)))
def test_a_fault_for_ever_ends_in_the_right_bytes_or_a_clear_error(
    direct: FsspecStorage,
    proxy: FaultProxy,
    faulty: FsspecStorage,
    name: str,
    kind: str,
    code: int,
) -> None:
    operation = OPERATIONS[name]
    path = prepare(direct, operation)
    faulty.patience = FOR_EVER
    proxy.faults = [Fault(kind, method=operation.method, code=code)]

    result = outcome(lambda: operation.act(faulty, path))

    if isinstance(result, MillraceError):
        assert folder_of(path) in str(result) or name == "read_range"
        assert not isinstance(result, ExistsError)
        assert isinstance(result, DeadlineError) or kind not in HANGS
    else:
        assert operation.check(direct, path, result)


@pytest.mark.parametrize("name", ["read", "stored_file", "write", "create"])
@pytest.mark.parametrize("kind", ["status", "drop", "rst", "hang", "lose_reply"])
@pytest.mark.parametrize("times", [1, 10**6])
def test_a_fault_of_the_look_at_an_object_is_no_worse(
    direct: FsspecStorage,
    proxy: FaultProxy,
    faulty: FsspecStorage,
    name: str,
    kind: str,
    times: int,
) -> None:
    operation = OPERATIONS[name]
    path = prepare(direct, operation)
    faulty.patience = ONCE if times == 1 else FOR_EVER
    proxy.faults = [Fault(kind, method="HEAD", times=times)]

    result = outcome(lambda: operation.act(faulty, path))

    if times == 1:
        assert operation.check(direct, path, result)
    else:
        assert isinstance(result, StorageError)
        assert not isinstance(result, ExistsError | NotFoundError)
        assert path in str(result)
