import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

from millrace.data.listing import list_source
from millrace.data.records import Located, Record, Rejection, read_records
from millrace.errors import SourceError
from millrace.spec import SourceSpec

Found = list[Located | Rejection]
Read = Callable[..., Found]
TEXTS = [f"record {number}: ü, €, 😀" for number in range(300)]
JSONL = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstandard.compress,
}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes a file into the folder `here` and reads its records."""

    def read_bytes(name: str, data: bytes, needs: tuple[str, ...] = (), **source: Any) -> Found:
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        spec = SourceSpec(url=str(path), **source)
        (file,) = list_source(spec, "/")
        return list(read_records(file, spec, needs))

    return read_bytes


def records(found: Found) -> list[Record]:
    """The records of a reading without any rejection."""
    assert [item for item in found if isinstance(item, Rejection)] == []
    return [item.record for item in found if isinstance(item, Located)]


def in_here(path: str) -> Record:
    """The fields of a record that say where its file lies, of a file in `here`."""
    return {"path": path, "label": "here", "top_folder": ""}


def texts(found: Found) -> list[str]:
    return [record["text"] for record in records(found)]


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_is_read_by_line(read: Read, suffix: str) -> None:
    data = COMPRESS[suffix]("\n".join(TEXTS).encode())

    found = read(f"a.txt{suffix}", data)

    assert texts(found) == TEXTS
    assert found[2].where == f"a.txt{suffix}:3"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_is_read_by_file(read: Read, suffix: str) -> None:
    data = COMPRESS[suffix]("\n".join(TEXTS).encode())

    found = read(f"a.txt{suffix}", data, records="file")

    assert records(found) == [{"text": "\n".join(TEXTS), **in_here(f"a.txt{suffix}")}]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_is_read_by_line(read: Read, suffix: str) -> None:
    found = read(f"a.jsonl{suffix}", COMPRESS[suffix](JSONL))

    assert records(found) == [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_csv_takes_its_names_from_the_header(read: Read, suffix: str) -> None:
    rows = [{"a": str(i), "b": f'"{i}",\n{text}'} for i, text in enumerate(TEXTS)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["a", "b"])
    writer.writeheader()
    writer.writerows(rows)

    found = read(f"a.csv{suffix}", COMPRESS[suffix](buffer.getvalue().encode()))

    assert records(found) == rows
    assert found[2].where == f"a.csv{suffix}:6"


def test_csv_without_a_header_is_named_by_number(read: Read) -> None:
    assert records(read("a.csv", b"1,x\n2,y\n", header=False)) == [
        {"0": "1", "1": "x"},
        {"0": "2", "1": "y"},
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_lines_may_end_in_any_way(read: Read, newline: str, last: bool) -> None:
    data = newline.join(["a,b", "1,2", "", '"x y",4']) + newline * last

    assert records(read("a.csv", data.encode())) == [{"a": "1", "b": "2"}, {"a": "x y", "b": "4"}]


def test_parquet_is_read_with_its_types(read: Read) -> None:
    data = parquet({"id": list(range(3000)), "text": TEXTS * 10}, row_group_size=700)

    found = read("a.parquet", data)

    assert records(found) == [{"id": i, "text": text} for i, text in enumerate(TEXTS * 10)]
    assert found[1999].where == "a.parquet, record 2000"


def test_an_image_is_labelled_by_its_folder(read: Read) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (255, 0, 0)).save(buffer, "PNG")

    (record,) = records(read("cats/1.png", buffer.getvalue()))

    folders = {"label": "cats", "path": "1.png", "top_folder": ""}
    assert record == {"image": buffer.getvalue(), **folders}


def test_a_record_knows_the_folder_of_its_file_and_the_first_of_its_listed_path(
    tmp_path: Path,
) -> None:
    for name in ("poems/old/ode.txt", "tales/wolf.txt", "note.txt"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    def folders(url: Any, pattern: str) -> list[tuple[str, str]]:
        urls = {name: f"{tmp_path}/{place}{pattern}" for name, place in url.items()}
        spec = SourceSpec(url=urls.get("", urls), records="file")
        found = [item for file in list_source(spec, "/") for item in read_records(file, spec)]
        return [(record["label"], record["top_folder"]) for record in records(found)]

    assert folders({"": "texts"}, "/**/*.txt") == [
        ("texts", ""),
        ("old", "poems"),
        ("tales", "tales"),
    ]
    assert folders({"x": "texts/poems", "y": "texts/tales"}, "/**/*.txt") == [
        ("old", "x"), ("tales", "y"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", COMPRESS)
def test_fasta_is_read_by_title(read: Read, suffix: str) -> None:
    data = b">one first of two\r\nACGT\r\nTTT\r\n\r\n>two\nGG\n>\nAC"

    found = read(f"a.fna{suffix}", COMPRESS[suffix](data))

    file = in_here(f"a.fna{suffix}")
    assert records(found) == [
        {"id": "one", "description": "first of two", "sequence": "ACGTTTT"} | file,
        {"id": "two", "description": "", "sequence": "GG"} | file,
        {"id": "", "description": "", "sequence": "AC"} | file,
    ]
    assert [item.where for item in found] == [f"a.fna{suffix}:{line}" for line in (1, 5, 7)]


def test_a_fasta_title_without_a_sequence_is_rejected(read: Read) -> None:
    found = read("a.fa", b">one\n>two\nAC\n>three\n")

    assert [item.where for item in found if isinstance(item, Rejection)] == ["a.fa:1", "a.fa:4"]


def test_a_fasta_sequence_with_a_bad_line_is_rejected_whole(read: Read) -> None:
    found = read("a.fa", b">one\nAC\n\xff\nGT\n>two\nAC\n")

    assert found[0] == Rejection(
        "a.fa:1", "byte 0xff at offset 8 is not valid utf-8: check `source.encoding`"
    )
    last = {"id": "two", "description": "", "sequence": "AC"}
    assert records(found[1:]) == [last | in_here("a.fa")]


def test_fasta_that_starts_without_a_title_is_an_error(read: Read) -> None:
    with pytest.raises(SourceError, match=r"a\.fa as FASTA: line 2 precedes any > title"):
        read("a.fa", b"\nACGT\n")


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\0\0"),
        ("utf-32-be", b"\0\0\xfe\xff"),
    ],
)
def test_a_byte_order_mark_decides_the_encoding_and_is_no_text(
    read: Read, encoding: str, mark: bytes
) -> None:
    # U+0A0A and U+010A have a byte that is a line feed's.
    lines = ["first", "\u0a0a\u010a", *TEXTS]

    def encoded(text: str) -> bytes:
        return mark + text.encode(encoding)

    whole = "\r\n".join(lines)
    assert texts(read("a.txt", encoded(whole))) == lines
    assert texts(read("b.txt", encoded(whole), records="file")) == [whole]
    assert records(read("a.jsonl", encoded('{"a": "ü"}\n'))) == [{"a": "ü"}]
    assert records(read("a.csv", encoded("a,b\r\nü,2\r\n"))) == [{"a": "ü", "b": "2"}]
    assert records(read("a.fa", encoded(">a\nAC")))[0]["id"] == "a"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-be", "utf-8-sig"])
def test_the_declared_encoding_is_used_without_a_mark(read: Read, encoding: str) -> None:
    data = "ä\nö\n".encode({"utf-16": "utf-16-le", "utf-8-sig": "utf-8"}.get(encoding, encoding))

    assert texts(read("a.txt", data, encoding=encoding)) == ["ä", "ö"]


def test_an_undecodable_line_is_rejected_with_its_place(read: Read) -> None:
    data = b"good\nb\xe4d\ngood\n"
    reason = "byte 0xe4 at offset 6 is not valid utf-8: check `source.encoding`"

    assert read("a.txt", data)[1] == Rejection("a.txt:2", reason)
    assert read("b.txt", data, records="file") == [Rejection("b.txt", reason)]
    assert read("a.csv", b"col" + data[4:])[0] == Rejection(
        "a.csv:2", reason.replace("offset 6", "offset 5")
    )


def test_lines_end_at_line_feeds_alone(read: Read) -> None:
    data = "a\nb\r\nc\rd\x0be\x0cf\x85g\u2028h\n".encode()

    assert texts(read("a.txt", data)) == ["a", "b", "c\rd\x0be\x0cf\x85g\u2028h"]


def test_nul_bytes_are_text(read: Read) -> None:
    assert texts(read("a.txt", b"a\0b\n\0\n")) == ["a\0b", "\0"]
    assert records(read("a.csv", b"a,b\n1\0,2\n")) == [{"a": "1\0", "b": "2"}]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.fa"])
@pytest.mark.parametrize("data", [b"", b"\n\n\n", b"\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_records(read: Read, name: str, data: bytes) -> None:
    assert read(name, data) == []


def test_an_empty_file_is_no_record_as_a_whole(read: Read) -> None:
    assert read("a.txt", b"", records="file") == []


def test_a_parquet_file_without_rows_has_no_records(read: Read) -> None:
    assert read("a.parquet", parquet({"text": pa.array([], pa.string())}), ("text",)) == []


def test_bad_json_is_rejected_by_line_and_the_rest_is_kept(read: Read) -> None:
    deep = b"[" * 100_000
    data = b'{"a": 1}\n{"a": \nnot json\n[1]\n3\n' + deep + b'\n{"a": 2}'

    found = read("a.jsonl", data)

    rejected = [item for item in found if isinstance(item, Rejection)]
    assert [item.where for item in rejected] == [f"a.jsonl:{line}" for line in range(2, 7)]
    assert rejected[2].reason == "a JSON object is expected, not list"
    assert records([found[0], found[-1]]) == [{"a": 1}, {"a": 2}]


def test_a_csv_row_of_another_width_is_rejected_by_its_first_line(read: Read) -> None:
    found = read("a.csv", b'a,b\n"x\ny",2\n\n"1\n2\n3"\n4,5\n')

    assert found[1] == Rejection("a.csv:5", "1 fields where 2 are expected")
    assert records([found[0], found[2]]) == [{"a": "x\ny", "b": "2"}, {"a": "4", "b": "5"}]


def test_a_csv_with_a_torn_quote_is_an_error_that_names_the_line(read: Read) -> None:
    with pytest.raises(SourceError, match=r"read a\.csv:3 as CSV: unexpected end of data"):
        read("a.csv", b'a,b\n1,2\n3,"4\n5,6\n')


def test_a_csv_that_names_a_column_twice_is_refused(read: Read) -> None:
    with pytest.raises(SourceError, match="names a column twice: a, b, a"):
        read("a.csv", b"a,b,a\n1,2,3\n")


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.csv", b"body,label\nx,1\n"), ("a.parquet", parquet({"body": ["x"], "label": [1]}))],
)
def test_a_file_without_a_needed_column_is_one_error_that_names_it(
    read: Read, name: str, data: bytes
) -> None:
    with pytest.raises(
        SourceError, match=f"find column `text` in {name}: its columns are body, label"
    ):
        read(name, data, ("text", "label"))


def test_an_oversized_record_is_an_error_that_names_its_place(read: Read) -> None:
    limit = {"max_record_bytes": 1000}
    long = b"x" * 1001

    for name, data, place in (
        ("a.txt", b"short\n" + long + b"\nshort\n", "a.txt:2"),
        ("b.txt", b"short\n" + long, "b.txt:2"),
        ("c.txt.gz", gzip.compress(b"x" * 10_000_000), "c.txt.gz:1"),
        ("a.jsonl", b'{"a": "' + long + b'"}', "a.jsonl:1"),
        ("a.csv", b"a\n1\n" + long, "a.csv:3"),
        ("a.fa", b">a\nAC\n>b\n" + b"ACGTACGT\n" * 200, "a.fa:3"),
        ("a.parquet", parquet({"text": ["x", "x" * 1001]}), "a.parquet, record 2"),
        ("a.png", long, "a.png"),
    ):
        with pytest.raises(SourceError, match="longer than max_record_bytes") as caught:
            read(name, data, **limit)
        assert caught.value.asked == f"read the record at {place}"
    with pytest.raises(SourceError, match=r"record at d\.txt: it is longer"):
        read("d.txt", long, records="file", **limit)


def test_a_record_of_exactly_the_limit_is_read(read: Read) -> None:
    assert texts(read("a.txt", b"x" * 1000 + b"\ny", max_record_bytes=1000)) == ["x" * 1000, "y"]


def test_a_csv_field_over_many_lines_is_bounded_too(read: Read) -> None:
    with pytest.raises(SourceError, match=r"a\.csv:2 as CSV: field larger than field limit"):
        read("a.csv", b'a\n"' + b"1234567\n" * 1000, max_record_bytes=1000)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_torn_compressed_file_is_an_error_that_names_it(read: Read, suffix: str) -> None:
    whole = COMPRESS[suffix](JSONL)

    for length in range(8, len(whole), len(whole) // 25):
        with pytest.raises(SourceError, match=rf"read the source file a\.jsonl{suffix}"):
            read(f"a.jsonl{suffix}", whole[:length])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_flipped_bit_in_a_compressed_file_never_passes_unnoticed(read: Read, suffix: str) -> None:
    whole = (
        COMPRESS[suffix](JSONL)
        if suffix == ".gz"
        else zstandard.ZstdCompressor(write_checksum=True).compress(JSONL)
    )
    expected, rng = records(read("whole.jsonl", JSONL)), np.random.default_rng(0)

    num_refused = 0
    for place in rng.choice(len(whole) * 8, 60, replace=False).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        try:
            found = read(f"a.jsonl{suffix}", bytes(flipped))
        except SourceError:
            num_refused += 1
        else:
            # Without its first bytes a file is read as plain text, of which nothing is usable.
            is_garbage = all(isinstance(item, Rejection) for item in found)
            assert is_garbage or records(found) == expected

    assert num_refused > 50  # a header's time stamp or name proves nothing


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_joined_compressed_files_are_one(read: Read, suffix: str) -> None:
    data = COMPRESS[suffix](b"a\nb\n") + COMPRESS[suffix](b"c\n")

    assert texts(read(f"a.txt{suffix}", data)) == ["a", "b", "c"]


def test_compression_is_told_by_content_not_by_name(read: Read) -> None:
    assert texts(read("a.txt.gz", b"plain\n")) == ["plain"]
    assert texts(read("a.txt", gzip.compress(b"packed\n"))) == ["packed"]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all", parquet({"a": [1]})[:-9]])
def test_a_damaged_parquet_file_is_an_error_that_names_it(read: Read, data: bytes) -> None:
    with pytest.raises(SourceError, match=r"read the source file a\.parquet \(\d+ bytes\)"):
        read("a.parquet", data)


def test_an_unknown_extension_is_an_error_that_lists_the_known(read: Read) -> None:
    with pytest.raises(SourceError, match=r"`docx` is none of .*parquet.*Set `source\.format`"):
        read("a.docx", b"")


def test_the_declared_format_overrules_the_extension(read: Read) -> None:
    assert records(read("a.data", b'{"a": 1}', format="jsonl")) == [{"a": 1}]


def test_a_file_removed_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    source = SourceSpec(url=str(path))
    (file,) = list_source(source, "/")
    path.unlink()

    with pytest.raises(SourceError, match=r"a\.txt \(1 bytes\): it is gone"):
        list(read_records(file, source))


CSV_SPECTRUM = {
    "simple": ("a,b,c\n1,2,3\n", [{"a": "1", "b": "2", "c": "3"}]),
    "empty": ('a,b\n1,""\n"",4\n', [{"a": "1", "b": ""}, {"a": "", "b": "4"}]),
    "comma": ('a,b\nJohn,"x, y"\n', [{"a": "John", "b": "x, y"}]),
    "quotes": ('a,b\n1,"ha ""ha"" ha"\n', [{"a": "1", "b": 'ha "ha" ha'}]),
    "newlines": ('a,b\r\n"x \r\ny",5\r\n', [{"a": "x \r\ny", "b": "5"}]),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV_SPECTRUM)
def test_csv_is_read_as_rfc_4180_says(read: Read, case: str) -> None:
    data, expected = CSV_SPECTRUM[case]

    assert records(read("a.csv", data.encode())) == expected


def test_csv_spectrum_is_read_right(messy: Path) -> None:
    cases = sorted((messy / "csv-spectrum" / "csvs").glob("*.csv"))
    assert cases

    for case in cases:
        source = SourceSpec(url=str(case))
        (file,) = list_source(source, "/")
        text = (messy / "csv-spectrum" / "json" / f"{case.stem}.json").read_text()
        # The files as they were downloaded have lost their CRs, which the answers still have.
        expected = json.loads(text.replace(r"\r\n", r"\n"))
        assert records(list(read_records(file, source))) == expected, case.name


def test_naughty_strings_come_through_as_they_are(messy: Path) -> None:
    path = messy / "naughty-strings" / "blns.txt"
    source = SourceSpec(url=str(path))
    (file,) = list_source(source, "/")

    lines = [line.removesuffix("\r") for line in path.read_bytes().decode().split("\n")]

    assert texts(list(read_records(file, source))) == [line for line in lines if line]
