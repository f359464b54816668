"""Frozen description of a pipeline's source: which files hold the records and how to read them."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from millrace.frozen import Fraction, Frozen, PositiveInt, Url, unknown_key

GLOB = frozenset("*?[")
"""Characters that make a pattern of a path."""
# What pydantic puts into the place of an error; neither can be a key of the YAML.
_ONE, _NAMED = "one url", "named urls"


def _url_tag(value: Any) -> str:
    return _NAMED if isinstance(value, Mapping) else _ONE


def _check_name(name: Any) -> Any:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or not isinstance(name, str):
        raise ValueError(f"`{name}` is no name: letters, digits and _, no digit first")
    return name


Name = Annotated[str, BeforeValidator(_check_name)]
NamedUrls = Annotated[dict[Name, Url], Field(min_length=1)]


class SourceSpec(Frozen):
    """Which files hold the records and how to read them."""

    url: Annotated[
        Annotated[Url, Tag(_ONE)] | Annotated[NamedUrls, Tag(_NAMED)], Discriminator(_url_tag)
    ]
    """A file, folder or glob: any fsspec URL, a path relative to the pipeline's folder,
    `stdlib://GLOB` (the running interpreter's library), `package://NAME/GLOB`, or
    `synthetic://NAME?parameter=value` for records that are made ([docs/data.md](data.md)).
    Credentials belong into the environment. Several have names, `{wiki: URL, code: URL}`: their
    files are listed as `wiki/PATH` and `code/PATH`."""
    exclude: tuple[str, ...] = ()
    """Globs of paths to leave out, matched against the path below the url's fixed part."""
    format: Literal[
        "auto", "text", "jsonl", "csv", "parquet", "image", "fasta", "webdataset", "idx"
    ] = "auto"
    """`auto` goes by the extension (`webdataset` is tar; `idx` the pairs of MNIST's kind,
    `*-images-idx3-ubyte` and `*-labels-idx1-ubyte`); compression (gz, zst) is told by the first
    bytes."""
    records: Literal["line", "file"] = "line"
    """Text only: whether a line (ended by LF) or a whole file is one record; empty ones are
    none."""
    encoding: str = "utf-8"
    """Of text, JSONL and CSV; a byte-order mark overrules it."""
    header: bool = True
    """CSV only: whether the first row names the columns; else they are named 0, 1, 2, ..."""
    max_record_bytes: PositiveInt = 16 * 2**20
    """A longer record is an error that names the file."""
    max_rejected: Fraction = 0.05
    """The largest share of records that may be rejected before the whole step fails."""

    @model_validator(mode="after")
    def _know_the_encoding(self) -> "SourceSpec":
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"encoding: `{self.encoding}` is no text encoding of Python's; "
                "common ones are utf-8, latin-1, cp1252, utf-16"
            ) from None
        return self

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each name; a single one's name is empty."""
        return {"": self.url} if isinstance(self.url, str) else self.url

    @property
    def place(self) -> str:
        """The URL, or all of them with their names, for people to read."""
        if isinstance(self.url, str):
            return self.url
        return ", ".join(f"{name}: {url}" for name, url in self.url.items())

    def globs(self, keys: Iterable[str]) -> dict[str, str]:
        """The glob over listed paths that each key of a mixture stands for: `wiki` for `wiki/*`.

        Raises:
            ValueError: A key names no source, or two keys stand for one glob.
        """
        names = () if isinstance(self.url, str) else tuple(self.url)
        found: dict[str, str] = {}
        for key in keys:
            head = key.partition("/")[0]
            if names and head not in names and not GLOB & set(head):
                raise ValueError(unknown_key(head, names, "source"))
            glob = f"{key}/*" if key in names else key
            if same := [other for other, taken in found.items() if taken == glob]:
                raise ValueError(f"`{same[0]}` and `{key}` both stand for `{glob}`")
            found[key] = glob
        return found
