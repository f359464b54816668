"""Stores of every kind, and builders of small pipelines, for all tests."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from millrace.job import Job
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

pytest_plugins = ("tests.engine_fixtures", "tests.fault_fixtures", "tests.peer_fixtures")

BUCKET = "millrace-test"
STORES = ("local", "memory", "s3")


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A bucket on an S3-API server on loopback, named by the environment as a user's would be."""
    # Imported here: it costs a second that only the tests on S3 should pay.
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # s3fs keeps instances, and with them the endpoint they were made for.
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
        S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind in turn."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3_url')}/{uuid.uuid4().hex}"


@pytest.fixture
def storage(store_url: str) -> FsspecStorage:
    return FsspecStorage(store_url)


@pytest.fixture
def messy() -> Path:
    """The folder of awkward files beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "messy"
    if not folder.is_dir():
        pytest.skip(f"{os.path.relpath(folder)} is absent")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the local source files that are opened from now on, in order."""
    names: list[str] = []
    open_file = LocalFileSystem.open

    def open_and_note(self: LocalFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        if Path(path).parent.name == "source":
            names.append(Path(path).name)
        return open_file(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "open", open_and_note)
    return names


BuildSpec = Callable[..., PipelineSpec]
BuildJob = Callable[..., Job]


@pytest.fixture
def build_spec() -> BuildSpec:
    """A pipeline of texts, with whole sections replaced or merged as the test says."""

    def build(**sections: Any) -> PipelineSpec:
        values: dict[str, Any] = {
            "source": {"url": "*"},
            "task": {"kind": "language_model", "block_bytes": 16},
            "split": {"validation": 0.2, "test": 0.2},
            "network": {"name": "model.py:Net", "width": 32},
            "train": {"steps": 5, "batch": 4},
            "search": {
                "space": {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
            },
        }
        return PipelineSpec.model_validate(values | sections)

    return build


@pytest.fixture
def build_job(build_spec: BuildSpec, tmp_path: Path) -> BuildJob:
    """A job of that pipeline over the files in `tmp_path / "source"`."""

    def build(store: str = "", **sections: Any) -> Job:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        return Job(
            pipeline="p",
            folder=str(folder),
            spec=build_spec(**sections),
            store=store or str(tmp_path / "store"),
            work=str(tmp_path / "work"),
        )

    return build
