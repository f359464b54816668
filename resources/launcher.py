"""A run launcher that notices dead run workers, so that run monitoring can fail and retry them."""

import os
from pathlib import Path

from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

PROC = Path("/proc")


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher with a health check: is the run worker's process still there?"""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Tell the monitor that it may ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Running, or not found when the worker's process is gone or a zombie."""
        pid = self._worker_pid(run)
        if pid is None or _is_alive(pid):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"process {pid} is gone")

    def _worker_pid(self, run: DagsterRun) -> int | None:
        """Pid that the worker told in its first engine event."""
        events = self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        for entry in events:
            if entry.dagster_event is not None:
                metadata = entry.dagster_event.engine_event_data.metadata
                if (pid := metadata.get("pid")) is not None:
                    return int(str(pid.value))
        return None


def _is_alive(pid: int) -> bool:
    """Whether the process runs; where there is no /proc (macOS), a zombie counts as running."""
    if not PROC.is_dir():
        return _takes_signals(pid)
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True
