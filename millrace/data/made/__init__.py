"""Made data: a module for each kind of records, all of which a seed decides."""

from collections.abc import Callable, Iterator
from typing import Any

from millrace.data.made import motifs, regular_graphs

MADE: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "motifs": motifs.records,
    "regular_graphs": regular_graphs.records,
}
"""`synthetic://NAME?parameter=value`: what makes the records; every parameter has a default."""
