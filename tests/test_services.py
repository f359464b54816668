"""The servers that tests start end with them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.server import await_ports, free_port

ENDS_WITHIN_SECONDS = 20


@pytest.fixture
def run() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of a test run."""
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:
        yield process


def keep(run_pid: int, folder: Path, port: int, *command: str) -> subprocess.Popen[bytes]:
    plan = {"commands": [[*command, str(port)]], "ports": [port]}
    (folder / "plan.json").write_text(json.dumps(plan))
    keeping = [sys.executable, "-m", "tests.services.keeper", str(run_pid), str(folder)]
    return subprocess.Popen(keeping)


def test_a_server_ends_with_the_run_that_started_it_even_if_that_is_killed(
    run: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    port = free_port()
    server = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1")
    with keep(run.pid, tmp_path, port, *server) as keeper:
        await_ports([port], lambda: keeper.poll() is None, tmp_path)

        os.kill(run.pid, signal.SIGKILL)
        run.wait()

        assert keeper.wait(ENDS_WITHIN_SECONDS) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_fails_to_start_shows_its_log(
    run: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    port = free_port()
    server = (sys.executable, "-c", "raise SystemExit('no disk')")
    with (
        keep(run.pid, tmp_path, port, *server) as keeper,
        pytest.raises(RuntimeError, match=r"the server ended; [\s\S]*no disk"),
    ):
        await_ports([port], lambda: keeper.poll() is None, tmp_path)
