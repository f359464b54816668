"""A tokenizer, learned or given: texts to token ids, and ids back to bytes.

The file is `tokenizer.json` of the `tokenizers` library, byte-level: every id stands for some
bytes, so any text is encoded without loss, and ids are decoded without the library.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace import manifest as manifests
from millrace.errors import SpecError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, Storage
from millrace.tasks import FileTokenizer, LanguageModelTask, Task

NOUN = "tokenizer"
FILE = "tokenizer.json"

Ids = npt.NDArray[np.int64]


class Tokenizer:
    """Texts to ids.

    Args:
        data: The file.

    Raises:
        SpecError: The `tokenizers` library is not installed.
    """

    def __init__(self, data: bytes) -> None:
        self._encoder = load_library().Tokenizer.from_str(data.decode())

    def encode(self, texts: Sequence[bytes]) -> list[Ids]:
        """The ids of each text (UTF-8)."""
        found = self._encoder.encode_batch_fast(
            [text.decode() for text in texts], add_special_tokens=False
        )
        return [np.array(each.ids, np.int64) for each in found]


def load_library() -> Any:
    """The `tokenizers` library; SpecError if it is not installed."""
    try:
        import tokenizers  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SpecError(
            "learn or use a tokenizer (task.tokenizer)",
            str(error),
            "Install it: pip install 'millrace[tokenizers]', or leave `task.tokenizer` out",
        ) from error
    return tokenizers


def bytes_of_ids(data: bytes) -> list[bytes]:
    """The bytes that each id of the tokenizer in a file stands for, by id.

    Raises:
        KeyError: It is no byte-level one.
    """
    told = json.loads(data)
    vocabulary: dict[str, int] = told["model"]["vocab"]
    added = {each["id"]: each["content"].encode() for each in told.get("added_tokens", ())}
    found = [b""] * (1 + max((*vocabulary.values(), *added)))
    for text, number in vocabulary.items():
        if number not in added:
            found[number] = bytes(_BYTES[character] for character in text)
    for number, content in added.items():  # they stand for their own text, marks of models too
        found[number] = content
    return found


def given_file(tokenizer: FileTokenizer, folder: str) -> bytes:
    """The file that a task names, from the pipeline's folder.

    Raises:
        SpecError: It cannot be read.
    """
    path = Path(folder, tokenizer.path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"take the tokenizer {tokenizer.path}",
            str(error),
            "Correct `task.tokenizer.path`, or put the file beside the pipeline's defs.yaml",
        ) from error


def given_digest(task: Task, folder: str) -> str:
    """SHA-256 (hex) of the file that a task names; empty where it names none."""
    if not isinstance(task, LanguageModelTask) or not isinstance(task.tokenizer, FileTokenizer):
        return ""
    return hashlib.sha256(given_file(task.tokenizer, folder)).hexdigest()


def _printable_bytes() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for, as GPT-2 has it.

    Printable bytes of Latin-1 stand for themselves; the others follow from character 256 on.
    """
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    characters = [*map(chr, kept), *(chr(256 + place) for place in range(len(others)))]
    return dict(zip(characters, [*kept, *others], strict=True))


_BYTES = _printable_bytes()


def tokenizer_of_job(job: Job) -> bytes:
    """The file of the tokenizer that the job's samples are encoded with; empty if none is."""
    if NOUN not in job.inputs:
        return b""
    storage = FsspecStorage(job.store)
    return manifests.read(storage, job.inputs[NOUN]).file(FILE).read(storage)


def tokenizer_of_shards(storage: Storage, shards: Manifest) -> bytes:
    """The file of the tokenizer that the samples were encoded with; empty if none was."""
    if NOUN not in shards.inputs:
        return b""
    return shards.file(FILE).read(storage)
