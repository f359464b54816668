"""Keep servers running as long as a test run: `python -m tests.services.keeper PID FOLDER`."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Event

LOOK_AGAIN_SECONDS = 0.2
STOP_SECONDS = 5


def keep(run_pid: int, folder: Path) -> None:
    """Start the commands of `folder`/plan.json; end them when `run_pid` or one of them ends."""
    commands = json.loads((folder / "plan.json").read_text())["commands"]
    ended = Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with ExitStack() as stack:
        servers = []
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}.log").open("ab"))
            servers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
            stack.callback(stop, servers[-1])
        while _is_alive(run_pid) and all(server.poll() is None for server in servers):
            if ended.wait(LOOK_AGAIN_SECONDS):
                break


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server, by force if it does not go."""
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    keep(int(sys.argv[1]), Path(sys.argv[2]))
