"""Open the fsspec file system behind a URL, with time limits of our own."""

from typing import Any

import fsspec

_S3_OPTIONS = {
    # The defaults wait a minute for a connection and five times that for a stalled body. We alone
    # try again: with botocore's and s3fs's own attempts inside ours, an endpoint that swallows
    # packets took 70 s to be reported.
    "config_kwargs": {
        "connect_timeout": 2,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1},
    },
    "use_listings_cache": False,
}


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system behind a URL, with our time limits, and the URL's path on it."""
    is_s3 = url.startswith("s3://")
    filesystem, path = fsspec.core.url_to_fs(url, **(_S3_OPTIONS if is_s3 else {}))
    if is_s3:
        filesystem.retries = 1  # s3fs takes no argument for it
    return filesystem, path
