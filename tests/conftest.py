"""Stores of every kind, and builders of small pipelines, for all tests."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from millrace.job import Job
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

pytest_plugins = (
    "tests.engine_fixtures",
    "tests.fault_fixtures",
    "tests.peer_fixtures",
    "tests.services.azurite",
    "tests.services.gcs",
    "tests.services.postgres",
    "tests.services.swift",
)

STORES = (
    "local",
    "memory",
    "s3",
    pytest.param("azure", marks=pytest.mark.services),
    pytest.param("gcs", marks=pytest.mark.services),
)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C arrives here and in children, also where a shell started the tests to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is fetched from remote stores is kept in a folder of this test process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind in turn."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue(f'{request.param}_url')}/{uuid.uuid4().hex}"


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
