"""Text, JSONL and FASTA: records of lines. Lines end at LF alone."""

import json
from dataclasses import dataclass

from millrace.data.formats.opened import DAMAGED, Found, Located, Opened, Rejection, undecodable
from millrace.errors import SourceError


def read_text(opened: Opened) -> Found:
    """A record for each line, or one for the file."""
    if opened.source.records == "file":
        yield from _read_whole_text(opened)
        return
    for found in opened.texts():
        if isinstance(found, Rejection):
            yield found
        elif found[1]:
            yield Located(opened.at(found[0]), {"text": found[1]})


def _read_whole_text(opened: Opened) -> Found:
    data, path = opened.whole(), opened.file.path
    encoding, mark = opened.encoding(data)
    try:
        text = data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        yield Rejection(path, undecodable(error, mark, encoding))
        return
    if text:
        yield Located(path, {"text": text, **opened.folders()})


def read_jsonl(opened: Opened) -> Found:
    """A record for each line that holds a JSON object."""
    for found in opened.texts():
        if isinstance(found, Rejection):
            yield found
            continue
        number, line = found
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Rejection(opened.at(number), f"not JSON: {error}")
            continue
        if isinstance(record, dict):
            yield Located(opened.at(number), record)
        else:
            kind = type(record).__name__
            yield Rejection(opened.at(number), f"a JSON object is expected, not {kind}")


def read_fasta(opened: Opened) -> Found:
    """A record for each title and the sequence below it."""
    sequence: _Sequence | None = None
    for found in opened.texts():
        if isinstance(found, Rejection):
            if sequence is None:
                yield found
            else:
                sequence.flaw = found.reason
            continue
        number, line = found[0], found[1].strip()
        if line.startswith(">"):
            if sequence:
                yield sequence.located()
            sequence = _Sequence(opened.at(number), line[1:].strip(), [], opened.folders())
        elif line and sequence is None:
            raise SourceError(
                f"read {opened.file.path} as FASTA", f"line {number} precedes any > title", DAMAGED
            )
        elif line and sequence:
            sequence.parts.append(line)
            sequence.num_bytes += len(line)
            if sequence.num_bytes > opened.source.max_record_bytes:
                raise opened.oversized(sequence.where)
    if sequence:
        yield sequence.located()


@dataclass
class _Sequence:
    """A FASTA record while its lines are read."""

    where: str
    title: str
    parts: list[str]
    folders: dict[str, str]
    num_bytes: int = 0
    flaw: str = ""

    def located(self) -> Located | Rejection:
        if self.flaw or not self.parts:
            return Rejection(self.where, self.flaw or "a title without a sequence")
        name, _, description = self.title.partition(" ")
        record = {"id": name, "description": description, "sequence": "".join(self.parts)}
        return Located(self.where, record | self.folders)
