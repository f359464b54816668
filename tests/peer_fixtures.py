"""Programs run beside the peers' libraries, in an interpreter of their own: a plugin for tests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RunPeer = Callable[..., str]
"""(program, its arguments) -> what it prints."""


@pytest.fixture
def run_peer(tmp_path: Path) -> RunPeer:
    """Runs a program among the peers; the test is skipped where they are not installed."""
    told = os.environ.get("MILLRACE_PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
    if not Path(told).is_file():
        pytest.skip(f"there are no peers at {told}: `make peers` installs them")

    def run(program: str, *arguments: object) -> str:
        path = tmp_path / "peer.py"
        path.write_text(program)
        found = subprocess.run(
            [told, str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT / "benchmarks" / "peers"),
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "1",
            },
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    return run
