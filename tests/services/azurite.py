"""Azure's blob storage on loopback: Azurite, Microsoft's own emulator, from npm."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.server import Plan, free_port, new_bucket, shared_server

# Published by Microsoft; every Azurite has it.
_ACCOUNT, _KEY = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)


@pytest.fixture(scope="session")
def azure_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container on Azurite, named by the environment as a user's would be."""
    if importlib.util.find_spec("adlfs") is None:
        pytest.skip("adlfs is not installed: pip install 'millrace[azure]'")
    program = find_azurite()
    (port,) = shared_server(tmp_path_factory, "azurite", lambda _: plan(program))
    # Imported here: an extra.
    from millrace.azure import AzureFileSystem  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(port))
        AzureFileSystem.clear_instance_cache()
        container = new_bucket()
        AzureFileSystem().mkdir(container)
        yield f"abfs://{container}"
        AzureFileSystem.clear_instance_cache()


def find_azurite() -> str:
    """The program, where `make test-services` puts it or on the path; else the test is skipped."""
    ours = Path(sys.prefix) / "npm" / "node_modules" / ".bin"
    program = shutil.which("azurite-blob", path=str(ours)) or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install --prefix .venv/npm azurite")
    return program


def plan(program: str) -> Plan:
    """One process that keeps all blobs in memory."""
    port = free_port()
    options = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    return Plan([[program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]], [port])


def connection_string(port: int) -> str:
    """What names Azurite on `port` to a client of Azure."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
    )
