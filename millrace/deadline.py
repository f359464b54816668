"""How long an operation on a store may take and how often it is tried: per attempt and in all."""

import asyncio
import errno
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from millrace.errors import CorruptError, MillraceError

T = TypeVar("T")

PROOF_ATTEMPTS = 5
"""Of a read whose bytes are not what they should be: a bit flipped in flight heals, a rotten disk
does not."""
DOUBTFUL_ATTEMPTS = 2
"""Of what a remote store calls missing or forbidden. A proxy or a node that lags says so once;
asking twice costs 0.1 s where it is true."""
# Asking again changes nothing: wrong kinds of thing, a full or read-only disk.
_FINAL = (IsADirectoryError, NotADirectoryError, FileExistsError, NotImplementedError)
_FINAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG)


class OverdueError(Exception):
    """An attempt took longer than it may."""


@dataclass(frozen=True)
class Patience:
    """How long and how often. The defaults give up a dead store after a minute."""

    attempts: int = 5
    attempt_seconds: float = 10.0
    """One attempt's, beside what its bytes take."""
    total_seconds: float = 60.0
    """All attempts' and the pauses between them, beside what the bytes of each attempt take."""
    slowest_bytes_per_second: float = 2.0**18
    """What a store may take for the bytes. A trickle below it counts as a stall."""
    first_pause_seconds: float = 0.1
    """Before the second attempt; doubled before each later one, and jittered by half."""

    def attempt_limit(self, num_bytes: int) -> float:
        """Seconds that one attempt to move `num_bytes` may take."""
        return self.attempt_seconds + num_bytes / self.slowest_bytes_per_second

    def total_limit(self, num_bytes: int) -> float:
        """Seconds that all attempts may take together."""
        return self.total_seconds + self.attempts * num_bytes / self.slowest_bytes_per_second

    def num_attempts(self, error: Exception, *, is_remote: bool) -> int:
        """How many attempts an operation that met `error` is worth."""
        if isinstance(error, _FINAL) or getattr(error, "errno", None) in _FINAL_ERRNOS:
            return 1
        if isinstance(error, FileNotFoundError | PermissionError):
            return min(self.attempts, DOUBTFUL_ATTEMPTS if is_remote else 1)
        if isinstance(error, CorruptError):
            return min(self.attempts, PROOF_ATTEMPTS)
        return 1 if isinstance(error, MillraceError) else self.attempts

    def pause_seconds(self, attempt: int) -> float:
        """Before the attempt that follows number `attempt` (from 1)."""
        jitter = random.uniform(0.5, 1.5)  # noqa: S311  jitter, not a secret
        return self.first_pause_seconds * 2.0 ** (attempt - 1) * jitter


PATIENCE = Patience()


def persist(
    act: Callable[[float], T], patience: Patience, num_bytes: int = 0, *, is_remote: bool = True
) -> T:
    """`act`, given the seconds it may take; again after a pause for errors that may pass.

    Raises:
        Exception: The last error of `act`, when it is final or the attempts or the time are over.
    """
    end = time.monotonic() + patience.total_limit(num_bytes)
    for attempt in count(1):
        left = end - time.monotonic()
        try:
            return act(min(left, patience.attempt_limit(num_bytes)))
        except Exception as error:
            # Each backend has errors of its own (botocore, aiohttp, OSError); which of them may
            # pass is told by what they are not.
            pause = patience.pause_seconds(attempt)
            is_spent = attempt >= patience.num_attempts(error, is_remote=is_remote)
            if is_spent or time.monotonic() + pause >= end:
                raise
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What `work` gives; cancelled, with an OverdueError, if it takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise OverdueError(f"no whole answer within {seconds:.1f} s") from error
        raise
