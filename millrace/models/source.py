"""The user's own network file: found and read without loading torch."""

import hashlib
from pathlib import Path

from millrace.errors import SpecError
from millrace.spec import CustomNetwork, Network


def source_path(network: CustomNetwork, folder: str) -> Path:
    """Where the file lies; SpecError if it is missing."""
    path = Path(folder, network.file_name)
    if not path.is_file():
        raise SpecError(
            f"load the network {network.name}",
            f"{path} does not exist",
            "Correct `network.name`, or put the file beside the pipeline's defs.yaml",
        )
    return path


def source_digest(network: Network, folder: str) -> str:
    """SHA-256 (hex) of the user's code that the network needs; empty for ours."""
    if not isinstance(network, CustomNetwork):
        return ""
    return hashlib.sha256(source_path(network, folder).read_bytes()).hexdigest()
