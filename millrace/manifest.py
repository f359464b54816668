"""Manifests: the JSON that names and proves what a step made, written last.

    <pipeline>/<noun>/<key>/manifest.json     what was made for this key (spec + inputs)
    <pipeline>/<noun>/current.json            which key is current

A thing with a manifest is whole. The key is known before the work, so what exists is not made
again; the digest is known after it, and is the asset's data version.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from millrace.errors import CorruptError, ExistsError, NotFoundError
from millrace.frozen import digest
from millrace.storage import Storage, StoredFile

FORMAT = 1
KEY_CHARS = 16


@dataclass(frozen=True)
class Manifest:
    """What one step made: the files, the facts, where it came from and what it took."""

    pipeline: str
    noun: str
    key: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Noun to digest of what it was made from."""
    files: tuple[StoredFile, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known about it: the same for the same spec and inputs."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What was measured while it was made (seconds, rates): differs from run to run."""
    seconds: float = 0.0
    usd: float = 0.0
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def digest(self) -> str:
        """Content digest: of the files and the facts, whoever made them, whenever."""
        files = sorted((file.path.rsplit("/", 1)[-1], file.sha256) for file in self.files)
        return digest(self.noun, files, self.facts)

    @property
    def folder(self) -> str:
        """Path below the store of what the manifest names."""
        return folder(self.pipeline, self.noun, self.key)

    @property
    def path(self) -> str:
        """Path below the store of the manifest itself."""
        return f"{self.folder}/manifest.json"

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.num_bytes for file in self.files)

    def file(self, name: str) -> StoredFile:
        """The file called `name`; a CorruptError if the manifest has none."""
        for file in self.files:
            if file.path.rsplit("/", 1)[-1] == name:
                return file
        raise CorruptError(f"find {name} in {self.path}", "it is not listed", "Make it anew")

    def to_bytes(self) -> bytes:
        """JSON with the content digest and a seal over all of it inside, for `from_bytes`."""
        body = asdict(self) | {"format": FORMAT, "digest": self.digest}
        return json.dumps(body | {"seal": digest(body)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> "Manifest":
        """Inverse of `to_bytes`; CorruptError if the JSON is torn or not what was sealed."""
        try:
            body = json.loads(data)
            told = body.pop("seal")
            found, version = digest(body), body.pop("format")
            del body["digest"]
            body["files"] = tuple(StoredFile.from_dict(file) for file in body["files"])
            manifest = cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(
                f"read the manifest {path}", f"it is no manifest of ours ({error})", _DELETE
            ) from error
        if version != FORMAT or told != found:
            raise CorruptError(
                f"read the manifest {path} (format {FORMAT}, sealed {told})",
                f"it has format {version}, and its content hashes to {found}",
                _DELETE,
            )
        return manifest


_DELETE = "Delete it and materialize the asset again"


def folder(pipeline: str, noun: str, key: str) -> str:
    """Where the thing with this key lies below the store."""
    return f"{pipeline}/{noun}/{key[:KEY_CHARS]}"


def read(storage: Storage, path: str) -> Manifest:
    """The manifest at `path`, fetched again where its seal does not fit."""

    def prove(data: bytes) -> None:
        Manifest.from_bytes(data, path)

    return Manifest.from_bytes(storage.read(path, prove=prove), path)


def find(storage: Storage, pipeline: str, noun: str, key: str) -> Manifest | None:
    """What has been published under this key and is still whole, if anything.

    A manifest whose files are gone, or not of the size it says, is deleted: what it named is then
    made again. Damage that keeps the size shows only when a file is read.
    """
    try:
        made = read(storage, f"{folder(pipeline, noun, key)}/manifest.json")
    except NotFoundError:
        return None
    if _lacks_files(storage, made):
        storage.delete(made.path)
        return None
    return made


def publish(storage: Storage, manifest: Manifest) -> Manifest:
    """Make the manifest appear; if another run published the key first, theirs is returned.

    Theirs is replaced where its files are lost, or damaged: equal files were then found at its
    paths with other bytes, and so written to other paths.
    """
    try:
        storage.write(manifest.path, manifest.to_bytes(), if_absent=True)
    except ExistsError:
        theirs = find(storage, manifest.pipeline, manifest.noun, manifest.key)
        if theirs and (theirs.digest != manifest.digest or theirs.files == manifest.files):
            return theirs
        storage.write(manifest.path, manifest.to_bytes())
    return manifest


def _lacks_files(storage: Storage, manifest: Manifest) -> bool:
    """Whether a file is gone or of another size, told by listing each folder once."""
    sizes: dict[str, int] = {}
    for parent in sorted({file.path.rpartition("/")[0] for file in manifest.files}):
        sizes |= storage.list(parent)
    return any(sizes.get(file.path) != file.num_bytes for file in manifest.files)


def point(storage: Storage, manifest: Manifest) -> None:
    """Make this the current one of its pipeline and noun."""
    pointer = {"manifest": manifest.path, "digest": manifest.digest}
    sealed = json.dumps(pointer | {"seal": digest(pointer)}).encode()
    storage.write(_pointer(manifest.pipeline, manifest.noun), sealed)


def current(storage: Storage, pipeline: str, noun: str) -> Manifest:
    """The current one; NotFoundError if the pipeline has none yet."""
    path = _pointer(pipeline, noun)
    name = f"{storage.url}/{path}"

    def prove(data: bytes) -> None:
        _target(data, name)

    try:
        target, told = _target(storage.read(path, prove=prove), name)
    except NotFoundError as error:
        raise NotFoundError(
            f"find the current {noun} of {pipeline} in {storage.url}",
            "none has been published",
            f"Materialize {pipeline}/{noun} first",
        ) from error
    try:
        made = read(storage, target)
    except NotFoundError as error:
        raise NotFoundError(
            f"find the current {noun} of {pipeline} in {storage.url}",
            f"{target} is gone",
            f"Materialize {pipeline}/{noun} again",
        ) from error
    if made.digest != told:
        raise CorruptError(
            f"read {storage.url}/{target} (digest {told})", f"its digest is {made.digest}", _DELETE
        )
    return made


def _target(data: bytes, name: str) -> tuple[str, str]:
    """Path and digest of the manifest that a pointer names; CorruptError if its seal is broken."""
    try:
        pointer = json.loads(data)
        told, found = pointer.pop("seal"), digest(pointer)
        target = str(pointer["manifest"]), str(pointer["digest"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"read the pointer {name}", f"it is no pointer of ours ({error})", _DELETE
        ) from error
    if told != found:
        raise CorruptError(
            f"read the pointer {name} (sealed {told})", f"its content hashes to {found}", _DELETE
        )
    return target


def _pointer(pipeline: str, noun: str) -> str:
    return f"{pipeline}/{noun}/current.json"
