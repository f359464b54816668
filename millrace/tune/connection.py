"""What joins a worker to the pool: bytes both ways, and how it ended."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from millrace.launch import environment_of_child


class Connection(Protocol):
    """A worker that has been started, wherever it runs."""

    def fileno(self) -> int:
        """Of what is readable when the worker has said something, or can say no more."""
        ...

    def write(self, data: bytes) -> None:
        """Tell it something; a dead one does not hear it."""
        ...

    def wait(self) -> int:
        """Its exit status, once it can say no more; below 0 where it was killed."""
        ...

    def bury(self) -> None:
        """Kill it if it lives, paused or not, and free what it held."""
        ...


Start = Callable[[], Connection]
"""Starts a worker."""


@dataclass(frozen=True)
class Place:
    """Where a study's workers run, and how many of them have room there."""

    start: Start
    num_workers: int
    num_machines: int = 1


class LocalWorker:
    """A worker process of this machine, a `Connection`.

    Args:
        job_path: The study's job, as its workers read it.
    """

    def __init__(self, job_path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "millrace", "worker", str(job_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=environment_of_child(),
        )

    def fileno(self) -> int:
        """Of its output."""
        return self._output.fileno()

    def write(self, data: bytes) -> None:
        """To its input."""
        assert self._process.stdin is not None, "stdin is a pipe"
        with contextlib.suppress(BrokenPipeError):  # dead: its closed output is acted upon
            self._process.stdin.write(data)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait()

    def bury(self) -> None:
        """Kill it and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._output):
            if pipe is not None:
                pipe.close()

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None, "stdout is a pipe"
        return self._process.stdout
