"""Open the fsspec file system behind a URL, with time limits of our own and no second attempts."""

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import fsspec

from millrace.errors import StorageError

CONNECT_SECONDS = 2
READ_SECONDS = 30
"""Longest silence of a store in the middle of an answer."""

Opened = tuple[Any, str]


def open_filesystem(url: str) -> Opened:
    """The fsspec file system behind a URL, with our time limits, and the URL's path on it.

    We alone try again: with the attempts of s3fs and botocore inside ours, an endpoint that
    swallows packets took 70 s to be reported. Nor are listings kept: other processes write too.

    An opened file system owns a thread, and fsspec keeps it for the next call. A forked process
    cannot use it (RuntimeError: not fork-safe); start processes anew, as `millrace.launch` does.

    Raises:
        StorageError: Its package is not installed, or the environment names no account.
        ValueError: Nothing is known by the URL's scheme.
    """
    scheme, separator, _ = url.partition("://")
    open_known = _OPENERS.get(scheme) if separator else None
    if open_known is None:
        opened: Opened = fsspec.core.url_to_fs(url)
        return opened
    try:
        return open_known(url)
    except ImportError as error:
        raise StorageError(f"open {url}", str(error), _INSTALL[scheme]) from error


def _open_s3(url: str) -> Opened:
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    filesystem, path = fsspec.core.url_to_fs(
        url,
        config_kwargs={
            # The defaults wait a minute for a connection, five times that for a stalled body.
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 1},
        },
        # botocore does not know AWS_REGION, which every other SDK of Amazon's reads.
        client_kwargs={"region_name": region} if region else {},
        use_listings_cache=False,
    )
    filesystem.retries = 1  # s3fs takes no argument for it
    return filesystem, path


def _open_gcs(url: str) -> Opened:
    from millrace.gcs import GcsFileSystem  # noqa: PLC0415  an extra, and it takes a second

    filesystem = GcsFileSystem(requests_timeout=_timeout(), use_listings_cache=False)
    return filesystem, filesystem._strip_protocol(url)


def _open_azure(url: str) -> Opened:
    from millrace.azure import AzureFileSystem  # noqa: PLC0415  an extra

    try:
        filesystem = AzureFileSystem(
            **AzureFileSystem._get_kwargs_from_urls(url),
            connection_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            use_listings_cache=False,
        )
    except ValueError as error:
        raise StorageError(f"open {url}", str(error), what_to_check(url)) from error
    return filesystem, filesystem._strip_protocol(url)


def _open_http(url: str) -> Opened:
    from millrace.web import WebFileSystem  # noqa: PLC0415  aiohttp takes a quarter of a second

    return WebFileSystem(client_kwargs={"timeout": _timeout()}), url


def _timeout() -> Any:
    import aiohttp  # noqa: PLC0415  only those on GCS or HTTP pay for it

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)


_OPENERS: dict[str, Callable[[str], Opened]] = {
    "s3": _open_s3,
    "s3a": _open_s3,
    "gs": _open_gcs,
    "gcs": _open_gcs,
    "abfs": _open_azure,
    "abfss": _open_azure,
    "az": _open_azure,
    "http": _open_http,
    "https": _open_http,
}
_INSTALL = (
    dict.fromkeys(("gs", "gcs"), "Install it: pip install 'millrace[gcs]'")
    | dict.fromkeys(("abfs", "abfss", "az"), "Install it: pip install 'millrace[azure]'")
    | dict.fromkeys(("s3", "s3a", "http", "https"), "Install it: pip install s3fs")
)


def join(root: str, path: str) -> str:
    """The key of an object `path` below the root that `open_filesystem` gave."""
    return f"{root}/{quote(path) if _is_web(root) else path}"


def refuse_unless_read(verb: str, url: str, asked: str) -> None:
    """StorageError if a store at `url` cannot do this: plain HTTP only reads."""
    if _is_web(url) and verb != "read":
        found = (
            "plain HTTP has no listing" if verb == "list" else "a store behind HTTP is read-only"
        )
        raise StorageError(asked, found, f"To {verb}, open the bucket behind it: s3://, gs://, ..")


def what_to_check(url: str) -> str:
    """What a reader should look at when the store at `url` cannot be reached or refuses."""
    scheme, separator, _ = url.partition("://")
    return _CHECKS.get(scheme if separator else "", _CHECK_FOLDER)


_CHECK_FOLDER = "Check the path, its permissions and the free space"
_CHECK_GCS = (
    "Check the bucket's name, GOOGLE_APPLICATION_CREDENTIALS (or `gcloud auth application-default "
    "login`), and that the account may use the bucket"
)
_CHECK_AZURE = (
    "Check the container's name, and AZURE_STORAGE_CONNECTION_STRING, or "
    "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY"
)
_CHECKS = {
    "s3": "Check the bucket's name, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, and that the endpoint answers",
    **dict.fromkeys(("gs", "gcs"), _CHECK_GCS),
    **dict.fromkeys(("abfs", "abfss", "az"), _CHECK_AZURE),
    **dict.fromkeys(("http", "https"), "Check the URL, and that the server answers"),
}


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))
