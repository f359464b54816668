"""An S3 server for a benchmark: OpenStack Swift on loopback, as the tests have it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from s3fs import S3FileSystem

from tests.services.keeper import stop
from tests.services.server import await_ports
from tests.services.swift import KEYS, plan

BUCKET = "millrace-benchmark"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an empty bucket, which the environment names until the block ends."""
    before = dict(os.environ)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-s3-")))
        planned = plan(folder)
        servers = []
        for number, command in enumerate(planned.commands):
            log = stack.enter_context((folder / f"{number}.log").open("ab"))
            servers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
            stack.callback(stop, servers[-1])
        await_ports(planned.ports, lambda: all(one.poll() is None for one in servers), folder)
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{planned.ports[-1]}"}
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir(BUCKET)
        try:
            yield f"s3://{BUCKET}"
        finally:
            S3FileSystem.clear_instance_cache()
            os.environ.clear()
            os.environ.update(before)
