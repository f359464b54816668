"""Made data as a source: `synthetic://NAME?parameter=value` stands for records made when read."""

import inspect
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from millrace.data.made import MADE
from millrace.errors import SourceError
from millrace.frozen import digest, unknown_key

SCHEME = "synthetic://"
VERSION = 1
"""To be raised where the same URL comes to stand for other records."""
_FIX = f"Write it as {SCHEME}NAME?parameter=value&parameter=value"


def name_of(url: str) -> str:
    """Which kind of records the URL names."""
    return url.removeprefix(SCHEME).partition("?")[0].strip("/")


def fingerprint(url: str) -> str:
    """Of the records: who makes them, and from what."""
    return digest(VERSION, name_of(url), _parameters(url))


def num_bytes(url: str) -> int:
    """What the records would take as JSON lines; they are made to be counted."""
    return sum(len(json.dumps(record)) + 1 for record in make(url))


def make(url: str) -> Iterator[dict[str, Any]]:
    """The records, the same ones each time.

    Raises:
        SourceError: There is no such kind or parameter, or no records of these parameters.
    """
    try:
        yield from MADE[name_of(url)](**_parameters(url))
    except ValueError as error:
        raise _refused(url, str(error)) from error


def _parameters(url: str) -> dict[str, Any]:
    """All parameters that the records are made from, the defaults among them."""
    name, query = name_of(url), url.partition("?")[2]
    if name not in MADE:
        raise _refused(url, unknown_key(name, list(MADE), "kind"))
    found = {key: told.default for key, told in inspect.signature(MADE[name]).parameters.items()}
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise _refused(url, str(error)) from error
    for key, text in given:
        if key not in found:
            raise _refused(url, unknown_key(key, list(found), "parameter"))
        kind = type(found[key])
        try:
            found[key] = kind(text)
        except ValueError as error:
            raise _refused(url, f"{key} is `{text}`, no {kind.__name__}") from error
    return found


def _refused(url: str, found: str) -> SourceError:
    return SourceError(f"make the records of {url}", found, _FIX)
