"""An S3 server with real conditional writes: OpenStack Swift and its S3 API, from pip alone."""

import importlib.util
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from tests.services.server import Plan, free_port, new_bucket, shared_server

ACCOUNT_PATH = "/v1/AUTH_test"
"""Where Swift's own API shows the buckets of this account."""
KEYS = {
    "AWS_ACCESS_KEY_ID": "test:tester",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_RINGS = ("account", "container", "object")
_PROXY = """\
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on an S3 server on loopback, named by the environment as a user's would be."""
    skip_unless_installed()
    *_, port = shared_server(tmp_path_factory, "swift", plan)
    with s3_environment(port) as bucket:
        yield f"s3://{bucket}"


def skip_unless_installed() -> None:
    """Skip the test where Swift cannot run."""
    if sys.platform != "linux":
        pytest.skip("OpenStack Swift, our S3 server, runs on Linux only")
    if importlib.util.find_spec("swift") is None:
        pytest.skip("OpenStack Swift, our S3 server, is not installed: pip install swift pyeclib")


@contextmanager
def s3_environment(port: int) -> Iterator[str]:
    """A new bucket, while the environment names the server on `port`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
            patch.setenv(name, value)
        # s3fs keeps instances, and with them the endpoint they were made for.
        S3FileSystem.clear_instance_cache()
        bucket = new_bucket()
        S3FileSystem().mkdir(bucket)
        yield bucket
        S3FileSystem.clear_instance_cache()


def plan(folder: Path) -> Plan:
    """Configuration of one device and one replica in `folder`; the last port is the S3 server's."""
    ports = {name: free_port() for name in (*_RINGS, "proxy")}
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = millrace\n"
        "[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    for name, port in ports.items():
        (folder / f"{name}.conf").write_text(
            _defaults(folder, name, port) + (_PROXY if name == "proxy" else _storage(name))
        )
    rings = [f"{name}={ports[name]}" for name in _RINGS]
    command = [sys.executable, "-W", "ignore", "-m", "tests.services.swift_rings"]
    subprocess.run([*command, str(folder), *rings], check=True)
    bin_folder = Path(sys.executable).parent
    return Plan(
        [
            [sys.executable, "-W", "ignore", str(bin_folder / f"swift-{name}-server"), str(conf)]
            for name in ports
            for conf in [folder / f"{name}.conf"]
        ],
        list(ports.values()),
    )


def _defaults(folder: Path, name: str, port: int) -> str:
    # Swift looks whether an object exists, then writes it: two steps. Of 40 races of 16 writers 31
    # had more than one winner, until the object server took one request at a time; then none had.
    num_clients = 1 if name == "object" else 256
    return (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\n"
        f"user = {pwd.getpwuid(os.getuid()).pw_name}\nswift_dir = {folder}\n"
        f"devices = {folder}/devices\nmount_check = false\ndisable_fallocate = true\n"
        f"log_level = WARNING\nlog_address = {folder}/no-syslog\nmax_clients = {num_clients}\n"
    )


def _storage(name: str) -> str:
    return (
        f"[pipeline:main]\npipeline = {name}-server\n"
        f"[app:{name}-server]\nuse = egg:swift#{name}\nrecon_cache_path = .\n"
    )
