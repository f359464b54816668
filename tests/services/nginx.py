"""A CDN's edge on loopback: nginx as a caching proxy with ranges before a bucket of Swift."""

import getpass
import os
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

# What is written once is kept for long, in slices, so that a range fetches no whole object.
# Pointers and manifests (*.json) may change: they are asked for again after a second, and served
# as last seen when the bucket does not answer. docs/stores.md tells users the same.
_CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=store:8m max_size=1g inactive=30d use_temp_path=off;
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_cache store;
    proxy_cache_lock on;
    proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504;
    proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
    add_header X-Cache $upstream_cache_status;
    location / {{
      slice 1m;
      proxy_set_header Range $slice_range;
      proxy_cache_key $uri$slice_range;
      proxy_cache_valid 200 206 30d;
      proxy_pass {origin};
    }}
    location ~ \\.json$ {{
      proxy_cache_key $uri;
      proxy_cache_valid 200 1s;
      rewrite ^(.*)$ {prefix}$1 break;
      proxy_pass {origin_server};
    }}
  }}
}}
"""


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
        stack.enter_context(swift.s3_environment(planned.ports[-1]))
        S3FileSystem().chmod(swift.BUCKET, acl="public-read")
        port = free_port()
        (folder / "nginx").mkdir()
        configuration = folder / "nginx" / "nginx.conf"
        configuration.write_text(_configured(folder / "nginx", port, planned.ports[-1]))
        command = [program, "-c", str(configuration), "-e", str(folder / "nginx" / "error.log")]
        _started(stack, Plan([command], [port]), folder / "nginx")
        yield Edge(f"http://127.0.0.1:{port}", f"s3://{swift.BUCKET}", origin)


def _started(stack: ExitStack, plan: Plan, folder: Path) -> list[subprocess.Popen[bytes]]:
    servers = []
    for number, command in enumerate(plan.commands):
        log = stack.enter_context((folder / f"{number}.log").open("wb"))
        servers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
        stack.callback(stop, servers[-1])
    await_ports(plan.ports, lambda: all(server.poll() is None for server in servers), folder)
    return servers


def _configured(folder: Path, port: int, origin_port: int) -> str:
    # Started by root, nginx would serve as a user who may not enter the test's folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    server, prefix = f"http://127.0.0.1:{origin_port}", f"{swift.ACCOUNT_PATH}/{swift.BUCKET}"
    return _CONFIGURATION.format(
        folder=folder,
        port=port,
        user=user,
        origin=f"{server}{prefix}/",
        origin_server=server,
        prefix=prefix,
    )
