"""A CDN's edge on loopback: nginx as a caching proxy with ranges before a bucket of Swift."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from tests.services import swift
from tests.services.keeper import stop
from tests.services.server import Plan, await_ports, free_port

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"


@dataclass(frozen=True)
class Edge:
    """nginx, and the bucket behind it."""

    url: str
    """Where nginx shows the bucket."""
    bucket_url: str
    """The bucket itself, to write to."""
    origin: subprocess.Popen[bytes]
    """Swift's proxy server: without it nginx reaches nothing."""


@contextmanager
def edge(folder: Path) -> Iterator[Edge]:
    """A bucket of an own Swift, so that a test may end it, and nginx before it."""
    swift.skip_unless_installed()
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    with ExitStack() as stack:
        (folder / "swift").mkdir()
        planned = swift.plan(folder / "swift")
        *_, origin = _started(stack, planned, folder / "swift")
        bucket = stack.enter_context(swift.s3_environment(planned.ports[-1]))
        S3FileSystem().chmod(bucket, acl="public-read")
        port = free_port()
        (folder / "nginx").mkdir()
        configuration = folder / "nginx" / "nginx.conf"
        configuration.write_text(_configured(folder / "nginx", port, planned.ports[-1], bucket))
        command = [program, "-c", str(configuration), "-e", str(folder / "nginx" / "error.log")]
        _started(stack, Plan([command], [port]), folder / "nginx")
        yield Edge(f"http://127.0.0.1:{port}", f"s3://{bucket}", origin)


def _started(stack: ExitStack, plan: Plan, folder: Path) -> list[subprocess.Popen[bytes]]:
    servers = []
    for number, command in enumerate(plan.commands):
        log = stack.enter_context((folder / f"{number}.log").open("wb"))
        servers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
        stack.callback(stop, servers[-1])
    await_ports(plan.ports, lambda: all(server.poll() is None for server in servers), folder)
    return servers


def _configured(folder: Path, port: int, origin_port: int, bucket: str) -> str:
    """The configuration that docs/stores.md shows, for this folder, these ports and this bucket."""
    found = re.search(
        r"<!-- nginx -->\n```nginx\n(.*?)```\n<!-- /nginx -->", PAGE.read_text(), re.DOTALL
    )
    assert found is not None, f"{PAGE} has a block nginx"
    shown = found[1]
    for old, new in {
        "/var/cache/nginx/store": f"{folder}/cache",
        "listen 80;": f"listen 127.0.0.1:{port}; rewrite ^(.*)$ {swift.ACCOUNT_PATH}/{bucket}$1;",
        "https://bucket.s3.amazonaws.com": f"http://127.0.0.1:{origin_port}",
    }.items():
        assert old in shown, f"{PAGE} shows {old}"
        shown = shown.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    # Started by root, nginx would serve as a user who may not enter the test's folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    return (
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; {user}\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{shown}}}\n"
    )
