"""`dagster dev` as `make ui` starts it: a killed run is retried, a cancelled one stops."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.test_pipelines import DAGSTER, ROOT, Site, make_site

T = TypeVar("T")
LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector: {
  repositoryLocationName: "pipelines", repositoryName: "__repository__", pipelineName: "digits"}})
  { ... on LaunchRunSuccess { run { runId } } } }"""
RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"


def wait_for(look: Callable[[], T], seconds: float) -> T:
    """What `look` returns once it is true; nothing tells us when another process gets there."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{look} was not true within {seconds} s"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Server:
    """A running `dagster dev` on a site of its own."""

    site: Site
    port: int

    def ask(self, query: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  the same
            found: dict[str, Any] = json.load(answer)["data"]
        return found

    def is_up(self) -> bool:
        try:
            return "pipelines" in str(
                self.ask("{ workspaceOrError { ... on Workspace { locationEntries { id } } } }")
            )
        except OSError:
            return False

    def statuses(self) -> list[str]:
        """Of all runs, the newest first."""
        return [run["status"] for run in self.ask(RUNS)["runsOrError"]["results"]]

    def train(self) -> str:
        """Launch digits and wait for its first checkpoint; the run's id."""
        run = str(self.ask(LAUNCH)["launchRun"]["run"]["runId"])
        folder = Path(self.site.store, "digits", "checkpoint")
        wait_for(lambda: list(folder.glob("*/step-*/manifest.json")), 120)
        return run

    def steps(self) -> list[int]:
        """Pids of the engine's processes."""
        return [pid for pid in self.site.processes() if b"millrace" in _command(pid)]

    def run_worker(self) -> int:
        """Pid of the process that executes the run: the parent of the training's."""
        launcher = next(pid for pid in self.steps() if b"\0train\0" in _command(pid))
        stat = Path(f"/proc/{launcher}/stat").read_text()
        return int(stat.rsplit(")", 1)[1].split()[1])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    site = make_site(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(DAGSTER), "dev", "-m", "pipelines", "-h", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=site.environment, stdout=log, stderr=log, start_new_session=True
        )
        started = Server(site, port)
        try:
            wait_for(started.is_up, 60)
            yield started
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def test_a_killed_run_is_noticed_and_retried_and_a_cancelled_one_stops_its_tree(
    server: Server,
) -> None:
    server.train()
    os.kill(server.run_worker(), signal.SIGKILL)
    wait_for(lambda: not server.steps(), 5)
    wait_for(lambda: server.statuses() == ["SUCCESS", "FAILURE"], 120)
    (made,) = Path(server.site.store, "digits", "checkpoint").glob("*/manifest.json")
    assert json.loads(made.read_text())["measured"]["resumed_at"] >= 100

    made.unlink()
    run = server.train()
    server.ask(f'mutation {{ terminateRun(runId: "{run}") {{ __typename }} }}')
    wait_for(lambda: not server.steps(), 5)
    wait_for(lambda: server.statuses()[0] == "CANCELED", 30)
