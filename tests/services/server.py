"""Servers that all processes of a test run share, and that end with the run."""

import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import pytest

from tests.made_once import made_once

START_SECONDS = 30
_LOOK_AGAIN_SECONDS = 0.02
# The process that began the test run: under xdist the parent of the test processes. Asked at once:
# a test process whose run was killed has another parent, which would keep servers for ever.
_RUN_PID = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


@dataclass(frozen=True)
class Plan:
    """What to start: a command line for each server, and the ports that then must answer."""

    commands: Sequence[Sequence[str]]
    ports: Sequence[int]


def new_bucket() -> str:
    """A name that no other test process takes."""
    return f"millrace-test-{uuid.uuid4().hex[:12]}"


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def shared_server(
    factory: pytest.TempPathFactory, name: str, plan: Callable[[Path], Plan]
) -> Sequence[int]:
    """The ports of the servers that `plan` asks for, started by whichever test process is first.

    Their keeper (`tests.services.keeper`) ends them when the process that began the test run is
    gone, however it ended.
    """

    def start(folder: Path) -> None:
        planned = plan(folder)
        (folder / "plan.json").write_text(json.dumps(asdict(planned)))
        argv = [sys.executable, "-m", "tests.services.keeper", str(_RUN_PID), str(folder)]
        # Not Popen: the keeper outlives this process, and Popen would warn of that.
        keeper = os.posix_spawn(sys.executable, argv, os.environ, setsid=True)
        await_ports(planned.ports, lambda: os.waitpid(keeper, os.WNOHANG)[0] == 0, folder)

    folder = made_once(factory, name, start)
    ports: Sequence[int] = json.loads((folder / "plan.json").read_text())["ports"]
    return ports


def await_ports(ports: Sequence[int], is_running: Callable[[], bool], folder: Path) -> None:
    """Return when all ports answer; RuntimeError with the logs in `folder` if the server ends."""
    pause = Event()
    for port in ports:
        for _ in range(round(START_SECONDS / _LOOK_AGAIN_SECONDS)):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if not is_running():
                raise RuntimeError(f"the server ended; {logs(folder)}")
            pause.wait(_LOOK_AGAIN_SECONDS)
        else:
            raise RuntimeError(
                f"port {port} does not answer after {START_SECONDS} s; {logs(folder)}"
            )


def logs(folder: Path) -> str:
    """The ends of all logs in a folder."""
    return "\n".join(
        f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log"))
    )
