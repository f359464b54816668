"""SIGTERM as a notice: a spot machine is taken back soon, or a launcher wants to stop."""

import signal
import threading
from types import FrameType, TracebackType

STOPPED = 128 + signal.SIGTERM
"""Exit status of a rank that has heeded a notice; there is a checkpoint to go on from."""


class Notice:
    """From entering to leaving, SIGTERM is noted instead of ending the process."""

    def __init__(self) -> None:
        self.has_come = False
        self._before: signal.Handlers | object = signal.SIG_DFL

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]  # what signal() itself gave

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.has_come = True
