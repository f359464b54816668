"""A rank as the launchers start it: how it ends tells whether another attempt is worth it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.errors import MillraceError, StoppedError
from millrace.job import Job
from millrace.telemetry import log
from millrace.train.notice import STOPPED

PEER_LOST = 75
"""Exit status of a rank that lost another one (EX_TEMPFAIL); its own part was well."""
# gloo has no exception of its own; these are the words of its losses and time limits.
_LOST_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Socket Timeout",
    "No route to host",
    "failed to connect",
    "connectFullMesh failed",
)


def is_worth_another(code: int) -> bool:
    """Whether a rank that ended with this status died, rather than failed."""
    return code < 0 or code in (PEER_LOST, STOPPED)


def run_member(job: Job) -> None:
    """Run a rank.

    Raises:
        SystemExit: With PEER_LOST, when another rank has gone; with STOPPED, when told to stop.
        MillraceError: As the rank does; it is also left for the launcher.
    """
    # Imported here: the launcher asks this module about exit statuses, and needs no model.
    from millrace.train.rank import run_rank  # noqa: PLC0415

    try:
        with losing_others():
            run_rank(job)
    except MillraceError as error:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            told = {"message": str(error), "timestamp": int(time.time())}
            Path(path).write_text(json.dumps(told | {"millrace": error.to_event()}))
        if isinstance(error, StoppedError):
            raise SystemExit(STOPPED) from error
        raise


@contextmanager
def losing_others() -> Iterator[None]:
    """What this rank does beside others, the loss of which is no error of its own.

    Raises:
        SystemExit: With PEER_LOST, when another rank has gone.
    """
    try:
        yield
    except RuntimeError as error:  # torch's own kinds of a lost connection derive from it
        if not lost_another(error):
            raise
        log(f"lost another rank: {str(error).splitlines()[0]}")
        raise SystemExit(PEER_LOST) from error


def lost_another(error: RuntimeError) -> bool:
    """Whether an error of torch says that another rank is gone, or silent for too long."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = {"DistNetworkError", "DistBackendError", "DistStoreError"}
    return bool(kinds & known) or any(words in str(error) for words in _LOST_WORDS)
