"""Divide source files among the sources of a mixture: each to the first key that matches it."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from millrace.errors import SourceError

WHOLE = ""
"""The one source of what is not mixed."""


def divide(paths: Sequence[str], globs: Mapping[str, str]) -> dict[str, list[int]]:
    """Numbers of the files of each source, in order; sources in the order of their keys.

    Args:
        paths: Of the files as listed.
        globs: By key, in the order in which they are tried; without one all files are of WHOLE.

    Raises:
        SourceError: A file that no key matches, or a key that is left without files.
    """
    if not globs:
        return {WHOLE: list(range(len(paths)))}
    found: dict[str, list[int]] = {key: [] for key in sorted(globs)}
    asked = f"divide {len(paths)} files among the keys of `train.mix`"
    for number, path in enumerate(paths):
        key = next((key for key, glob in globs.items() if fnmatchcase(path, glob)), None)
        if key is None:
            raise SourceError(
                asked,
                f"{path} matches none of {', '.join(globs)}",
                "Add a key for it (`*` takes what is left), or leave it out by `source.exclude`",
            )
        found[key].append(number)
    if without := [key for key, numbers in found.items() if not numbers]:
        raise SourceError(
            asked,
            f"none is left for `{without[0]}`; the first is {paths[0]}",
            "Correct the key, or put it before the one that takes its files",
        )
    return found
