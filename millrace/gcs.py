"""Google's object storage, each request sent once and each object in one."""

from typing import Any

from gcsfs.core import GCSFileSystem


class GcsFileSystem(GCSFileSystem):  # type: ignore[misc]  # gcsfs has no types
    """gcsfs without attempts of its own, and without uploads in parts.

    Derived from the plain class: gcsfs's default one asks Google's control API over gRPC, before
    the first request to a bucket, whether it is zonal, also where an emulator stands in for Google.
    """

    # gcsfs tries six times over 31 s and takes no argument for it: its request undecorated.
    _request = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)

    async def _pipe_file(self, path: str, data: bytes, **options: Any) -> Any:
        # In parts (from 50 MiB on) fake-gcs-server forgets that the object must be new, and what
        # is cancelled leaves an upload behind; one request does neither.
        return await super()._pipe_file(path, data, **{"chunksize": len(data) + 1} | options)
