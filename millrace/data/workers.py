"""Work through items on every core: in worker processes where there is enough to do, else here.

    items --> one at a time to each worker, over a pipe of its own --> results as they come

Parsing records holds Python's lock, so threads would share one core. Workers are started afresh,
since fsspec does not outlive a fork; what goes over a pipe are our own frozen dataclasses.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from millrace.errors import MillraceError, ProcessDiedError, ProcessFailedError, from_event
from millrace.launch import environment_of_child, tie_to_parent

T = TypeVar("T")
R = TypeVar("R")
WORTH_BYTES = 8 * 2**20
"""Source bytes from which on workers pay: to start one costs half a second of a core, in which
about as many bytes are parsed."""


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_workers(num_items: int, num_bytes: int, urls: Sequence[str]) -> int:
    """Processes worth starting; 1 means that this one does it all.

    Args:
        num_items: To be worked through.
        num_bytes: Of source that they stand for.
        urls: Of what they are read from and written to.
    """
    is_shared = not any("memory:" in url for url in urls)  # such a store is each process's own
    if num_bytes <= WORTH_BYTES or not is_shared:
        return 1
    return max(1, min(num_cores(), num_items))


@dataclass(frozen=True)
class Task(Generic[T, R]):
    """What is done with each item.

    Args:
        work: Takes an item; a module's function or a `functools.partial` of one.
        describe: Names an item in an error, as in "pack a.jsonl".
    """

    work: Callable[[T], R]
    describe: Callable[[T], str]


def work_through(task: Task[T, R], items: Sequence[T], size: int) -> Iterator[tuple[int, R]]:
    """Each item's number and result, in the order in which they are done.

    Args:
        task: What to do with each item.
        items: Handed out in order.
        size: Worker processes; with 1 everything is done in this process.

    Raises:
        MillraceError: The error that the task raised, as its own kind.
        ProcessDiedError: A worker was killed.
        ProcessFailedError: The task raised another error in a worker.
    """
    if size <= 1:
        for number, item in enumerate(items):
            yield number, task.work(item)
        return
    waiting = deque(range(len(items)))
    workers: list[_Worker] = []
    try:
        workers.extend(_Worker(task.work) for _ in range(min(size, len(items))))
        for worker in workers:
            worker.take(waiting.popleft(), items, task)
        while busy := {worker.pipe: worker for worker in workers if worker.number >= 0}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # `wait` returns what it was given
                number = worker.number
                found = worker.receive(items, task)
                worker.number = -1
                if waiting:
                    worker.take(waiting.popleft(), items, task)
                yield number, found
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.number = -1
        """Of the item it works on; -1 for none."""
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:  # closed here once the process has it, or its end would not be noticed
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment_of_child(keeps_memory=False),
            )
        self.pipe.send(work)

    def take(self, number: int, items: Sequence[T], task: Task[T, R]) -> None:
        self.number = number
        try:
            self.pipe.send(items[number])
        except OSError as error:
            raise self._died(task.describe(items[number])) from error

    def receive(self, items: Sequence[T], task: Task[T, R]) -> R:
        asked = task.describe(items[self.number])
        try:
            kind, found = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died(asked) from error
        if kind == "error":
            raise from_event(found)
        if kind == "failed":
            raise ProcessFailedError(
                asked, f"it failed with\n{found}", "It is a bug of Millrace: report it"
            )
        result: R = found
        return result

    def end(self) -> None:
        """Kill it; what it worked on is not published."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()

    def _died(self, asked: str) -> ProcessDiedError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return ProcessDiedError(
            asked,
            f"the worker process {how}",
            "If memory ran out, give it more or fewer cores (taskset). Run it again: it goes on "
            "from what is published",
        )


def serve(descriptor: int) -> None:
    """A worker's life: take an item, work on it, answer; until the pipe is closed."""
    tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError):
        work = pipe.recv()
        while True:
            pipe.send(_answer(work, pipe.recv()))


def _answer(work: Callable[[Any], Any], item: object) -> tuple[str, Any]:
    try:
        return "done", work(item)
    except MillraceError as error:
        return "error", error.to_event()
    except Exception:  # noqa: BLE001  the parent raises it
        return "failed", traceback.format_exc()
