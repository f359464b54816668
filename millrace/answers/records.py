"""The records that a released model is asked about, each answered by one line."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from millrace.data.listing import list_source
from millrace.data.records import Located, Rejection, read_records
from millrace.data.values import UnusableRecordError
from millrace.spec import SourceSpec


def answer_records(
    source: SourceSpec, path: str | None, told: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> int:
    """Print the answer to each record, or why there is none; 0 if every record was answered.

    Args:
        source: How the records of the pipeline are read.
        path: A file of records like the source's; None: JSON lines on standard input.
        told: The answer to one record; UnusableRecordError if it lacks what the model needs.
    """
    failed = False
    for found in _records(source, path):
        answer = _answer(found, told)
        print_line(json.dumps(answer))
        failed |= "error" in answer
    return int(failed)


def _answer(
    found: Located | Rejection, told: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    if isinstance(found, Rejection):
        return {"error": f"{found.where}: {found.reason}"}
    try:
        return told(found.record)
    except UnusableRecordError as error:
        return {"error": f"{found.where}: {error}"}


def _records(source: SourceSpec, path: str | None) -> Iterator[Located | Rejection]:
    if path is None:
        for number, line in enumerate(sys.stdin, 1):
            yield _parse(line, f"standard input, line {number}")
        return
    asked = source.model_copy(update={"url": path, "exclude": (), "format": "auto"})
    for file in list_source(asked, str(Path.cwd())):
        yield from read_records(file, asked)


def _parse(line: str, where: str) -> Located | Rejection:
    try:
        record = json.loads(line)
    except ValueError as error:
        return Rejection(where, f"not JSON: {error}")
    if not isinstance(record, dict):
        return Rejection(where, f"a JSON object is needed, not {type(record).__name__}")
    return Located(where, record)


def print_line(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")
