"""File systems are opened with our limits: what is missing is named, nobody else tries again."""

import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from millrace.errors import ExistsError, StorageError
from millrace.filesystem import open_filesystem
from millrace.storage import FsspecStorage
from tests.services.azurite import connection_string
from tests.services.web import WebFolder, web_folder


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("gs://bucket/store", "gcsfs", "gcs"),
        ("abfs://container/store", "adlfs", "azure"),
        ("az://container/store", "adlfs", "azure"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    for module in (package, f"{package}.core"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"millrace.{extra}", raising=False)

    with pytest.raises(StorageError) as caught:
        FsspecStorage(url)

    assert caught.value.asked == f"open {url}"
    assert package in caught.value.found
    assert caught.value.fix == f"Install it: pip install 'millrace[{extra}]'"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebFolder]:
    with web_folder(tmp_path) as server:
        yield server


@pytest.fixture
def refused_url(
    request: pytest.FixtureRequest, web: WebFolder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A store of the kind that the test asks for, on a server that is unable to answer."""
    web.refusal = HTTPStatus.SERVICE_UNAVAILABLE
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(web.server_port))
    url = request.param.format(web=web.url)
    _forget_instances()
    yield url
    _forget_instances()


def _forget_instances() -> None:
    """fsspec keeps instances, and with them the endpoint they were made for."""
    classes = [AbstractFileSystem]
    for known in classes:
        classes += known.__subclasses__()
        known.clear_instance_cache()


@pytest.mark.parametrize(
    "refused_url",
    [
        "{web}/store",
        "s3://bucket/store",
        pytest.param("gs://bucket/store", marks=pytest.mark.services),
        pytest.param("abfs://container/store", marks=pytest.mark.services),
    ],
    indirect=True,
)
def test_a_refused_read_is_one_request(refused_url: str, web: WebFolder) -> None:
    if refused_url.startswith("gs:"):
        pytest.importorskip("gcsfs")
    if refused_url.startswith("abfs:"):
        pytest.importorskip("adlfs")
    filesystem, path = open_filesystem(refused_url)

    with pytest.raises(Exception, match=r"503|[Uu]navailable|refused|busy|error"):
        filesystem.cat_file(f"{path}/a")

    assert len(web.requests) == 1, web.requests


@pytest.mark.services
def test_without_an_account_azure_says_which_variables_name_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("adlfs")
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    _forget_instances()

    with pytest.raises(StorageError, match="or AZURE_STORAGE_ACCOUNT_NAME with"):
        FsspecStorage("abfs://container/store")


@pytest.mark.services
# gcsfs and Azure's client hand aiohttp plain bytes, which it warns of above a megabyte.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
def test_a_large_conditional_write_leaves_the_first_in_place(storage: FsspecStorage) -> None:
    size = 101 * 2**20  # s3fs sends it in three parts, gcsfs would in three, adlfs in two or more
    first, second = (np.random.default_rng(seed).bytes(size) for seed in range(2))
    storage.write("large", first, if_absent=True)

    with pytest.raises(ExistsError):
        storage.write("large", second, if_absent=True)

    assert storage.read("large") == first


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-west-3"}, "eu-west-3"),
        ({"AWS_DEFAULT_REGION": "eu-north-1", "AWS_REGION": "eu-west-3"}, "eu-north-1"),
    ],
)
def test_the_region_of_s3_is_named_by_either_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], region: str
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    S3FileSystem.clear_instance_cache()

    filesystem, path = open_filesystem("s3://bucket/store")
    signed = filesystem.sign(f"{path}/a")

    S3FileSystem.clear_instance_cache()
    assert region in signed


def test_a_web_store_is_a_url_and_not_a_path() -> None:
    filesystem, path = open_filesystem("https://cdn.example.org/store")

    assert path == "https://cdn.example.org/store"
    assert "https" in filesystem.protocol
