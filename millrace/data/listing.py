"""List the source files behind a URL or glob, each with a fingerprint, reading none of them."""

import fnmatch
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from millrace.data import synthetic
from millrace.deadline import Patience, persist
from millrace.errors import SourceError
from millrace.filesystem import open_filesystem
from millrace.frozen import digest
from millrace.objects import agreed, run
from millrace.sources import GLOB
from millrace.spec import SourceSpec

PATIENCE = Patience(attempts=3, attempt_seconds=120.0, total_seconds=300.0)
"""With remote places: S3 lists 1,000 objects in about 0.1 s, and a source may have millions."""
# What stores call the mark that changes when an object's bytes do.
_VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "created",
)  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """A file as listed: its path (below the listing's root), where to open it, and its version.

    Where the source names several URLs, the path begins with the name.
    """

    path: str
    url: str
    num_bytes: int
    fingerprint: str
    """Digest of size and version mark: unchanged means the file need not be read again. Empty where
    the place tells no version (plain HTTP servers): such a file is read every time."""


def list_source(source: SourceSpec, base: str) -> list[SourceFile]:
    """All files the source names, sorted by path.

    Args:
        source: The URLs or globs and what to leave out.
        base: Folder that relative paths start from.

    Raises:
        SourceError: Nothing matches a URL, or the place cannot be reached or read.
    """
    files = [
        _named(file, name, url) if name else file
        for name, url in source.urls.items()
        for file in _list_url(url, source, base)
    ]
    return sorted(_with_labels(files), key=lambda file: file.path)


def labels_beside(path: str) -> str:
    """Path or URL of the file with the labels of IDX images; empty if the name is of none."""
    folder, slash, name = path.rpartition("/")
    found = re.fullmatch(r"(.*)images([.-])idx3(-ubyte(?:\.(?:gz|zst))?)", name)
    return f"{folder}{slash}{found[1]}labels{found[2]}idx1{found[3]}" if found else ""


def _with_labels(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Files of IDX labels go with their images, whose version is of both.

    Raises:
        SourceError: Images have no labels, or labels no images.
    """
    by_path = {file.path: file for file in files}
    pairs = {path: labels for path in by_path if (labels := labels_beside(path))}
    for images, labels in pairs.items():
        if labels not in by_path:
            raise SourceError(
                f"list the labels of {images}",
                f"there is no {labels}",
                "Put it beside, and let `source.url` match both",
            )
        versions = by_path[images].fingerprint, by_path[labels].fingerprint
        by_path[images] = replace(
            by_path[images], fingerprint=digest(*versions) if all(versions) else ""
        )
    return [file for path, file in by_path.items() if path not in pairs.values()]


def _named(file: SourceFile, name: str, url: str) -> SourceFile:
    """The file with its source's name before its path.

    The version is of the URL too: a name that comes to stand for another place has new files,
    while the others' are not read again.
    """
    fingerprint = file.fingerprint and digest(file.fingerprint, url)
    return replace(file, path=f"{name}/{file.path}", fingerprint=fingerprint)


def _list_url(url: str, source: SourceSpec, base: str) -> list[SourceFile]:
    if url.startswith(synthetic.SCHEME):
        made = synthetic.fingerprint(url), synthetic.num_bytes(url)
        return [SourceFile(synthetic.name_of(url), url, made[1], made[0])]
    root, pattern = resolve(url, base)
    asked = f"list the source {url}"
    try:
        filesystem, root_path = open_filesystem(root)
        if isinstance(filesystem, AsyncFileSystem):
            files = _list_remote(filesystem, root_path, pattern)
        else:
            found = _walk(filesystem, root_path, pattern)
            files = [_describe(filesystem, root_path, *one) for one in found]
        if isinstance(filesystem, LocalFileSystem) and (not pattern or "**" in pattern):
            _refuse_unreadable(root_path, source)
    except FileNotFoundError as error:
        raise SourceError(asked, f"{root} does not exist", "Check the url") from error
    except Exception as error:
        # Every backend raises its own errors; at this edge they all mean the same to the user.
        raise SourceError(
            asked,
            f"{type(error).__name__}: {error}",
            "Check the url, its credentials and permissions",
        ) from error
    kept = [file for file in files if _is_wanted(file.path, source)]
    if not kept:
        left_out = f" ({len(files)} are hidden or left out by `exclude`)" if files else ""
        raise SourceError(asked, f"no file matches{left_out}", "Check the glob and `exclude`")
    return kept


def locate(source: SourceSpec, base: str, path: str) -> str:
    """The URL of a file that `list_source` gave this path, without listing anything."""
    name, _, inside = ("", "", path) if isinstance(source.url, str) else path.partition("/")
    if source.urls[name].startswith(synthetic.SCHEME):
        return source.urls[name]
    root, pattern = resolve(source.urls[name], base)
    filesystem, root_path = open_filesystem(root)
    is_root = (
        not pattern and inside == _below(root_path, root_path) and filesystem.isfile(root_path)
    )
    url: str = filesystem.unstrip_protocol(
        root_path if is_root else f"{root_path.rstrip('/')}/{inside}"
    )
    return url


def resolve(url: str, base: str) -> tuple[str, str]:
    """The fixed root of a source URL and the glob below it ("" for a file or folder)."""
    scheme, separator, rest = url.partition("://")
    if scheme == "stdlib" and separator:
        return sysconfig.get_paths()["stdlib"], rest or "**/*.py"
    if scheme == "package" and separator:
        name, _, pattern = rest.partition("/")
        return _cut(f"{_package_folder(name)}/{pattern}")
    if not separator:
        url = os.path.normpath(Path(base, Path(url).expanduser()).absolute())
    return _cut(url)


def _cut(url: str) -> tuple[str, str]:
    """Split before the first path component with a wildcard."""
    parts = url.split("/")
    for i, part in enumerate(parts):
        if GLOB & set(part):
            return "/".join(parts[:i]) or "/", "/".join(parts[i:])
    return url, ""


def _package_folder(name: str) -> str:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"find the package {name}", "it is not installed", f"Install it: pip install {name}"
        )
    return str(next(iter(spec.submodule_search_locations)))


def _walk(filesystem: Any, root: str, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(filesystem, LocalFileSystem) or not pattern:
        filesystem.info(root)  # a missing root is an error here, not an empty answer
    if pattern:
        found = filesystem.glob(f"{root.rstrip('/')}/{pattern}", detail=True)
    else:
        found = filesystem.find(root, detail=True)
    for path, info in found.items():
        if info["type"] == "file":
            yield path, info
        elif info.get("islink") and filesystem.isfile(path):
            yield path, filesystem.info(path)  # of what the link leads to


def _list_remote(filesystem: Any, root: str, pattern: str) -> list[SourceFile]:
    async def listed() -> dict[str, SourceFile]:
        if pattern:
            found = await filesystem._glob(f"{root.rstrip('/')}/{pattern}", detail=True)
        else:
            await filesystem._info(root)  # a missing root is an error here, not an empty answer
            found = await filesystem._find(root, detail=True)
        return {
            path: _describe(filesystem, root, path, info)
            for path, info in found.items()
            if info["type"] == "file"
        }

    found = persist(lambda seconds: run(filesystem, lambda: agreed(listed), seconds), PATIENCE)
    return list(found.values())


def _describe(filesystem: Any, root: str, path: str, info: dict[str, Any]) -> SourceFile:
    return SourceFile(
        path=_below(path, root),
        url=filesystem.unstrip_protocol(path),
        num_bytes=int(info["size"]),
        fingerprint=_fingerprint(info),
    )


def _refuse_unreadable(root: str, source: SourceSpec) -> None:
    """Raise for a folder that may not be read: fsspec lists it as if it were empty."""

    def refuse(error: OSError) -> None:
        is_wanted = _is_wanted(f"{_below(str(error.filename), root)}/", source)
        if isinstance(error, PermissionError) and is_wanted:
            raise error

    for _ in os.walk(root, onerror=refuse):
        pass


def _fingerprint(info: dict[str, Any]) -> str:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return digest(int(info["size"]), version) if version else ""


def _below(path: str, root: str) -> str:
    inside = path.removeprefix(root.rstrip("/")).lstrip("/")
    return inside or path.rsplit("/", 1)[-1]


def _is_wanted(path: str, source: SourceSpec) -> bool:
    hidden = any(part.startswith((".", "_SUCCESS", "_temporary")) for part in path.split("/"))
    return not hidden and not any(fnmatch.fnmatch(path, pattern) for pattern in source.exclude)
