"""Two hosts on one machine: network namespaces, joined by a cable that can be cut."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from millrace.job import Job
from tests.pipelines_for_tests import ROOT

ADDRESSES = ("10.99.0.1", "10.99.0.2")
_INTERFACE = "cable"


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)  # noqa: S607  found on the PATH, as a person would


@dataclass(frozen=True)
class TwoHosts:
    """The namespaces of two hosts; the first has number 0."""

    names: tuple[str, str]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(
        self, host: int, *command: str, output: Path | None = None, **variables: str
    ) -> "subprocess.Popen[str]":
        """Start a command of ours on a host, its output piped or in a file."""
        with contextlib.ExitStack() as stack:
            stdout = stack.enter_context(output.open("a")) if output else subprocess.PIPE
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], sys.executable, *command],  # noqa: S607  as above
                env=os.environ | self.environment(host) | variables,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def environment(self, host: int) -> dict[str, str]:
        """What a cluster would tell this host; one thread, so that bits compare."""
        return {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MILLRACE_NNODES": "2",
            "MILLRACE_NODE_RANK": str(host),
            "MILLRACE_RDZV_ENDPOINT": f"{ADDRESSES[0]}:29400",
            "MILLRACE_COLLECTIVE_SECONDS": "30",
            # Of the cluster that a test starts, made up here: Ray lets nobody in without one.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def wait_for(self, host: int, port: int) -> None:
        """Return when something listens on a port of a host."""
        deadline = time.monotonic() + 180
        while f":{port} " not in _ip("netns", "exec", self.names[host], "ss", "-ltn").stdout:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)

    def cut(self) -> None:
        """Cut the cable: nothing arrives any more, and nobody is told."""
        assert not _ip("-n", self.names[1], "link", "set", _INTERFACE, "down").returncode


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts; the test is skipped where this machine does not allow them."""
    mark = uuid.uuid4().hex[:6]
    names = (f"mra{mark}", f"mrb{mark}")
    try:
        tried = _ip("netns", "add", names[0])
    except FileNotFoundError:
        pytest.skip("the command `ip` is missing: apt-get install iproute2")
    if tried.returncode:
        pytest.skip(f"network namespaces are not allowed here: {tried.stderr.strip()}")
    try:
        _lay_cable(names)
        hosts = TwoHosts(names)
        try:
            yield hosts
        finally:
            hosts.close()
    finally:
        for name in names:
            for pid in _ip("netns", "pids", name).stdout.split():
                subprocess.run(["kill", "-9", pid], check=False)  # noqa: S607  as above
            _ip("netns", "del", name)


def _lay_cable(names: tuple[str, str]) -> None:
    steps = [
        ("netns", "add", names[1]),
        ("-n", names[0], "link", "add", _INTERFACE, "type", "veth",
         "peer", "name", _INTERFACE, "netns", names[1]),
    ]  # fmt: skip
    for name, address in zip(names, ADDRESSES, strict=True):
        steps += [
            ("-n", name, "addr", "add", f"{address}/24", "dev", _INTERFACE),
            ("-n", name, "link", "set", "lo", "up"),
            ("-n", name, "link", "set", _INTERFACE, "up"),
        ]
    for step in steps:
        done = _ip(*step)
        assert not done.returncode, done.stderr


def write(job: Job, path: Path, **changes: Any) -> str:
    """Write a job, with changes, where a follower reads it."""
    path.write_text(job.model_copy(update=changes).model_dump_json())
    return str(path)
