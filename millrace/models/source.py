"""The user's own network: its file, or a model's folder, found and read without loading torch."""

import hashlib
from functools import lru_cache
from pathlib import Path

from millrace.errors import SpecError
from millrace.spec import CustomNetwork, HuggingFaceNetwork, Network


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


def model_folder(network: HuggingFaceNetwork, folder: str) -> Path | None:
    """Where a model lies on this machine; None for one of the hub."""
    path = Path(folder, network.place)
    return path if path.is_dir() else None


def source_digest(network: Network, folder: str) -> str:
    """SHA-256 (hex) of the user's code, or model, that the network needs; empty for ours."""
    if isinstance(network, HuggingFaceNetwork):
        return _model_digest(network, folder)
    if not isinstance(network, CustomNetwork):
        return ""
    return hashlib.sha256(source_path(network, folder).read_bytes()).hexdigest()


def _model_digest(network: HuggingFaceNetwork, folder: str) -> str:
    """Of the names and contents of a local model's files; of a name and revision on the hub."""
    local = model_folder(network, folder)
    if local is None:
        return hashlib.sha256(f"{network.place}@{network.revision}".encode()).hexdigest()
    found = hashlib.sha256()
    for path in sorted(local.iterdir()):
        if path.is_file():
            stat = path.stat()
            found.update(_file_digest(str(path), stat.st_size, stat.st_mtime_ns))
    return found.hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: str, _num_bytes: int, _changed_ns: int) -> bytes:
    """Of a file's name and content; kept, as weights are large and digests often asked for."""
    with Path(path).open("rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    return Path(path).name.encode() + b"\0" + content
