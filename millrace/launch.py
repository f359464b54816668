"""Start a process of ours, follow its events, and leave nothing of it behind.

    follow("train", job) --> python -m millrace train JOB --> its own children (ranks, workers)
        events and log lines <-- standard output

Each process ties itself to its parent, so a kill -9 anywhere takes down everything below it;
leaving `follow` early (a cancelled run) stops the whole tree.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from millrace.errors import (
    MillraceError,
    ProcessDiedError,
    ProcessFailedError,
    StorageError,
    from_event,
)
from millrace.job import Job
from millrace.telemetry import parse

GRACE_SECONDS = 3.0
TAIL_LINES = 30
_PARENT = "MILLRACE_PARENT_PID"
_PR_SET_PDEATHSIG = 1
# glibc hands large freed blocks back to the system, and every page of the next step's tensors is
# faulted in again. Children that compute keep what they have freed; those that read and pack need
# memory only in passing, and give it back.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def tie_to_parent(parent: int = 0) -> None:
    """From now on, die when the parent does (SIGKILL).

    Linux signals it; elsewhere a thread watches. The parent's death before this call is noticed
    through the pid that it left in the environment.

    Args:
        parent: Pid of the parent; 0 takes it from the environment, or failing that the system.
    """
    parent = parent or int(os.environ.get(_PARENT, "0")) or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def environment_of_child(*, keeps_memory: bool = True) -> dict[str, str]:
    """This process's environment, with its pid for `tie_to_parent` in the child."""
    return {
        **(_MALLOC if keeps_memory else {}),
        **os.environ,
        _PARENT: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }


def follow(verb: str, job: Job) -> Iterator[dict[str, Any]]:
    """Run `python -m millrace VERB` on a job and yield its events; log lines come as `log` events.

    Raises:
        MillraceError: The error that the process emitted, as its own kind.
        ProcessDiedError: It was killed.
        ProcessFailedError: It ended with an error that is not Millrace's.
    """
    path = write_job(job, verb)
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", verb, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment_of_child(keeps_memory=verb not in ("ingest", "pack")),
        start_new_session=True,
    )
    assert process.stdout is not None, "stdout is a pipe"
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    failure: MillraceError | None = None
    try:
        for line in process.stdout:
            if not line.strip():
                continue
            event = parse(line)
            if event is None:
                tail.append(line.rstrip())
                event = {"event": "log", "message": line.rstrip()}
            if event["event"] == "error":
                failure = failure or from_event(event)
            else:
                yield event
        code = process.wait()
    finally:
        _stop(process)
        path.unlink(missing_ok=True)
    if failure is not None:
        raise failure
    if code:
        asked = f"run `millrace {verb}` for {job.pipeline}"
        words = "its last words:\n" + "\n".join(tail) + "\n"
        if code < 0:
            sign = signal.Signals(-code).name
            again = "Run it again: it goes on from what it last published"
            raise ProcessDiedError(asked, f"it was killed by {sign}; {words}", again)
        again = "If the network is your own, look there; else it is a bug of Millrace: report it"
        raise ProcessFailedError(asked, f"it exited with {code}; {words}", again)


def write_job(job: Job, verb: str) -> Path:
    """Write a job where its process reads it; the file holds no secrets."""
    path = Path(job.work, "jobs", f"{job.pipeline}-{verb}-{os.getpid()}-{time.time_ns()}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(job.model_dump_json())
    except OSError as error:
        raise StorageError(
            f"use {job.work} for studies and scratch",
            str(error),
            "Set MILLRACE_WORK to a folder that can be written to",
        ) from error
    return path


def _stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the process and its group, then SIGKILL to what is left."""
    for sign, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.stdout is not None:
        process.stdout.close()
