"""The S3 server of the tests behind a proxy that injects faults."""

import os
import uuid
from collections.abc import Iterator

import pytest
from s3fs import S3FileSystem

from millrace.storage import FsspecStorage
from tests.fault_proxy import FaultProxy, running


@pytest.fixture(scope="module")
def direct(s3_url: str) -> FsspecStorage:
    """An empty store without the proxy: the truth."""
    storage = FsspecStorage(f"{s3_url}/{uuid.uuid4().hex}")
    storage.list("")  # connects while the environment names the server itself
    return storage


@pytest.fixture(scope="module")
def proxy(s3_url: str) -> Iterator[FaultProxy]:
    """The proxy alone."""
    assert s3_url
    with running(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def through_proxy(direct: FsspecStorage, proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, which every store that is opened from now on goes through."""
    assert direct.url
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        # s3fs keeps instances, and with them the endpoint they were made for.
        S3FileSystem.clear_instance_cache()
        yield proxy
    S3FileSystem.clear_instance_cache()
