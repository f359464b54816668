"""PostgreSQL on loopback, from the system's packages, for studies that are recorded in it."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services.server import Plan, free_port, shared_server


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty database, with the driver that `millrace[postgres]` brings."""
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install 'millrace[postgres]'")
    programs = find_programs()
    (port,) = shared_server(tmp_path_factory, "postgres", lambda folder: plan(programs, folder))
    return f"postgresql+psycopg2://millrace:secret@127.0.0.1:{port}/postgres"


def find_programs() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1]


def plan(programs: Path, folder: Path) -> Plan:
    """A server of a fresh cluster. It refuses to run as root, so root becomes another user."""
    port, data = free_port(), folder / "data"
    become: list[str] = []
    if os.geteuid() == 0:
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres", "postgres")
    made = [*become, str(programs / "initdb"), "-D", str(data), "-U", "millrace", "--no-sync"]
    subprocess.run([*made, "--auth=trust"], check=True, capture_output=True, cwd="/")
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    options += ["-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    return Plan([[*become, str(programs / "postgres"), "-D", str(data), *options]], [port])
