"""Events: one JSON object per line on standard output, from any process to whoever follows it.

A line that starts with `{"event":` is an event; every other line that is not
blank is a log line and passes through.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
_MARK = '{"event": '
_lock = threading.Lock()


def emit(event: str, **fields: Any) -> None:
    """Write one event, on a line of its own whatever a library left unfinished before it."""
    line = "\n" + json.dumps({"event": event, **fields}) + "\n"
    with _lock:  # one write per line, or two threads' lines would mix
        sys.stdout.write(line)
        sys.stdout.flush()


def log(message: str) -> None:
    """Write one log line."""
    emit("log", message=message)


def parse(line: str) -> dict[str, Any] | None:
    """The event on a line, if it is one."""
    if not line.startswith(_MARK):
        return None
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event


@dataclass
class Progress:
    """Emits a `progress` event every few seconds, with the rate and the seconds left."""

    what: str
    total: int
    done: int = 0
    every_seconds: float = 5.0
    usd_per_hour: float = 0.0
    seconds_before: float = 0.0
    """Of earlier attempts: they have cost money too."""
    started: float = field(default_factory=time.monotonic)
    _start_at: int = field(init=False)
    _said: float = field(init=False)

    def __post_init__(self) -> None:
        self._start_at, self._said = self.done, self.started

    def step(self, passed: T, **fields: Any) -> T:
        """Count one, say so if it is time, and hand `passed` on."""
        is_due = self.is_due()
        self.done += 1
        if is_due:
            self.tell(**fields)
        return passed

    def is_due(self) -> bool:
        """Whether the next step will say so."""
        is_late = time.monotonic() - self._said >= self.every_seconds
        return is_late or self.done + 1 == self.total

    @property
    def usd(self) -> float:
        """Dollars so far, of earlier attempts too."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return seconds / 3600 * self.usd_per_hour

    def tell(self, **fields: Any) -> None:
        """Emit how far it is, with whatever else is to be said."""
        self._said = time.monotonic()
        elapsed = self._said - self.started
        rate = (self.done - self._start_at) / max(elapsed, 1e-9)
        emit(
            "progress",
            what=self.what,
            done=self.done,
            total=self.total,
            per_second=round(rate, 3),
            eta_seconds=round((self.total - self.done) / max(rate, 1e-9), 1),
            usd=round(self.usd, 6),
            **fields,
        )
