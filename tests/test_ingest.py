import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace import manifest as manifests
from millrace.data.fields import build_encoder
from millrace.data.ingest import SHOWN_REJECTIONS, ingest, load_ids, read_values
from millrace.data.listing import list_source
from millrace.data.records import Rejection
from millrace.data.values import Value
from millrace.errors import SourceError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage

BuildJob = Callable[..., Job]


def jsonl(*texts: Any) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def put(job: Job, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = Path(job.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def publish(job: Job) -> Manifest:
    """Ingest, publish and make current, as a run does."""
    storage = FsspecStorage(job.store)
    made = manifests.publish(storage, ingest(job))
    manifests.point(storage, made)
    return made


def test_the_profile_counts_files_records_and_duplicates(
    build_job: BuildJob, store_url: str
) -> None:
    job = build_job(store_url, source={"url": "*"})
    put(job, {"a.jsonl": jsonl("x", "y", "x"), "b.jsonl.gz": gzip.compress(jsonl("y", "z"))})

    made = publish(job)

    assert made.facts["num_records"] == 5
    assert made.facts["num_duplicates"] == 2
    assert made.facts["num_rejected"] == 0
    assert [file["records"] for file in made.facts["files"]] == [[0, 3], [3, 5]]
    assert load_ids(FsspecStorage(store_url), made).shape == (5, 2)


def test_only_new_and_changed_files_are_read_again(build_job: BuildJob, opened: list[str]) -> None:
    job = build_job(source={"url": "*"})
    put(job, {f"{number}.jsonl": jsonl(f"text {number}") for number in range(5)})
    publish(job)
    assert sorted(opened) == [f"{number}.jsonl" for number in range(5)]

    opened.clear()
    again = publish(job)
    assert opened == []

    put(job, {"2.jsonl": jsonl("changed text"), "new.jsonl": jsonl("new")})
    Path(job.folder, "4.jsonl").unlink()
    changed = publish(job)

    assert sorted(opened) == ["2.jsonl", "new.jsonl"]
    assert changed.facts["num_records"] == 5
    assert changed.digest != again.digest


def test_a_second_ingestion_of_the_same_files_is_the_same_manifest(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*"})
    put(job, {"a.jsonl": jsonl("x", "y")})

    first, second = publish(job), publish(job)

    assert (first.key, first.digest) == (second.key, second.digest)


def test_a_touched_file_is_read_once_and_changes_no_digest(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = build_job(source={"url": "*"})
    put(job, {"a.jsonl": jsonl("x", "y")})
    first = publish(job)
    opened.clear()

    Path(job.folder, "a.jsonl").touch()
    touched = publish(job)
    publish(job)

    assert opened == ["a.jsonl"]
    assert touched.digest == first.digest


def test_another_way_of_reading_reads_all_again(build_job: BuildJob, opened: list[str]) -> None:
    files = {"a.txt": b"x\ny\n"}
    by_line = build_job(source={"url": "*"})
    put(by_line, files)
    publish(by_line)
    opened.clear()

    whole = publish(build_job(source={"url": "*", "records": "file"}))

    assert opened == ["a.txt"]
    assert whole.facts["num_records"] == 1


@pytest.mark.parametrize("damage", ["delete", "flip", "tear the manifest", "tear the pointer"])
def test_a_damaged_profile_is_made_anew(build_job: BuildJob, damage: str) -> None:
    job = build_job(source={"url": "*"})
    put(job, {"a.jsonl": jsonl("x", "y")})
    storage = FsspecStorage(job.store)
    first = publish(job)
    ids = first.file("records.npy").path
    match damage:
        case "delete":
            storage.delete(ids)
        case "flip":
            storage.write(ids, storage.read(ids)[:-1] + b"?")
        case "tear the manifest":
            storage.write(first.path, storage.read(first.path)[:-9])
        case _:
            storage.write("p/source_files/current.json", b"{")

    again = ingest(job)

    assert again.digest == first.digest
    assert len(load_ids(storage, again)) == 2


def test_an_empty_text_is_passed_over_like_an_empty_line(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*", "max_rejected": 0})
    put(job, {"a.jsonl": jsonl("", "x", ""), "b.csv": b'text,n\n"",1\ny,2\n'})

    made = publish(job)

    assert (made.facts["num_records"], made.facts["num_rejected"]) == (2, 0)


def test_rejected_records_are_reported_with_file_and_line(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*", "max_rejected": 0.9})
    put(
        job,
        {
            "a.jsonl": jsonl("good") + b"not json\n\n" + jsonl(None, 7, "good too"),
            "b.csv": b'text\n"two\nlines"\n1,2\n',
            "c.txt": b"fine\n\xff\n",
        },
    )

    made = publish(job)

    found = {where: reason for file in made.facts["files"] for where, reason in file["rejections"]}
    assert made.facts["num_rejected"] == 5
    assert set(found) == {"a.jsonl:2", "a.jsonl:4", "a.jsonl:5", "b.csv:4", "c.txt:2"}
    assert found["a.jsonl:4"] == "field `text` is null"
    assert found["a.jsonl:5"] == "field `text` is int, text is needed"


def test_rejections_are_counted_again_without_being_read_again(
    build_job: BuildJob, opened: list[str]
) -> None:
    job = build_job(source={"url": "*", "max_rejected": 0.9})
    put(job, {"a.jsonl": jsonl("good") + b"bad\n", "b.jsonl": jsonl("other")})
    first = publish(job)
    opened.clear()

    put(job, {"c.jsonl": jsonl("new")})
    second = publish(job)

    assert opened == ["c.jsonl"]
    assert second.facts["num_rejected"] == 1
    assert second.facts["files"][0] == first.facts["files"][0]


def test_more_rejections_than_are_shown_are_still_counted(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*", "max_rejected": 0.99})
    put(job, {"a.jsonl": jsonl("good") + b"bad\n" * (SHOWN_REJECTIONS + 7)})

    counts = [publish(job).facts["num_rejected"] for _ in range(2)]

    assert counts == [SHOWN_REJECTIONS + 7] * 2


def test_too_many_rejections_are_an_error_that_shows_some(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*"})
    put(job, {"a.jsonl": jsonl("good", None, *["good"] * 8)})

    with pytest.raises(SourceError, match=r"1 of 10 rejected \(a\.jsonl:2: field `text` is null\)"):
        ingest(job)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.jsonl": b""}, "none: 0 rejected"),
        ({"a.jsonl": b"\n\n"}, "none: 0 rejected"),
        ({"a.jsonl": jsonl("", "")}, "none: 0 rejected"),
        ({"a.jsonl": jsonl(None)}, r"none: 1 rejected \(a\.jsonl:1: field `text` is null\)"),
        ({"a.jsonl": b'{"body": "x"}'}, r"no field `text`; the record has body"),
    ],
)
def test_no_usable_record_is_an_error(
    build_job: BuildJob, files: dict[str, bytes], reason: str
) -> None:
    job = build_job(source={"url": "*"})
    put(job, files)

    with pytest.raises(SourceError, match=reason):
        ingest(job)


def test_an_empty_file_among_others_is_recorded_as_empty(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*"})
    put(job, {"a.jsonl": b"", "b.jsonl": jsonl("x")})

    made = publish(job)

    assert [(file["path"], file["records"]) for file in made.facts["files"]] == [
        ("a.jsonl", [0, 0]),
        ("b.jsonl", [0, 1]),
    ]


def test_a_damaged_file_stops_all_and_leaves_what_was_published(build_job: BuildJob) -> None:
    job = build_job(source={"url": "*"})
    storage = FsspecStorage(job.store)
    put(job, {"a.jsonl": jsonl("x")})
    before = publish(job)
    stored = storage.list("")

    put(job, {"b.jsonl.gz": gzip.compress(jsonl("y", "z"))[:-5]})
    with pytest.raises(SourceError, match=r"b\.jsonl\.gz"):
        ingest(job)

    assert storage.list("") == stored
    assert manifests.current(storage, "p", "source_files") == before


# What `expect` says: records and the lines rejected, or the error.
MESSY: dict[str, tuple[int, list[int]]] = {
    "good.jsonl": (149, []),
    "empty.jsonl": (0, []),
    "only_newlines.jsonl": (0, []),
    "no_final_newline.jsonl": (149, []),
    "crlf.jsonl": (149, []),
    "bom.jsonl": (149, []),
    "bad_lines.jsonl": (145, [4, 8, 10, 12]),
    "dup_rows.jsonl": (298, []),
    "good.jsonl.gz": (149, []),
    "gz_named_but_plain.jsonl.gz": (149, []),
    "good.jsonl.zst": (149, []),
    "utf16le_bom.txt": (112, []),
    "latin1.txt": (0, list(range(1, 51))),
    "nul_bytes.txt": (30, []),
    "mixed_newlines.txt": (3, []),
    "good.parquet": (149, []),
    "zero_rows.parquet": (0, []),
    "null_text.parquet": (2, [2]),
}
MESSY_ERRORS = {
    "truncated.jsonl.gz": "read the source file truncated.jsonl.gz",
    "bitflip.jsonl.gz": "read the source file bitflip.jsonl.gz",
    "long_line_32MiB.txt.gz": "read the record at long_line_32MiB.txt.gz:1: it is longer",
    "other_schema.parquet": "find column `text` in other_schema.parquet",
}


def test_every_messy_file_is_in_the_table(messy: Path) -> None:
    expected = json.loads((messy / "expected.json").read_text())

    assert {entry["file"] for entry in expected} == {*MESSY, *MESSY_ERRORS}


def read_messy(job: Job) -> list[Value | Rejection]:
    (file,) = list_source(job.spec.source, job.folder)
    return list(read_values(file, job, build_encoder(job.spec.task)))


@pytest.mark.parametrize("name", MESSY)
def test_a_messy_file_gives_the_records_and_rejections_expected(
    build_job: BuildJob, messy: Path, name: str
) -> None:
    num_records, places = MESSY[name]

    values = read_messy(build_job(source={"url": str(messy / name)}))

    rejected = [value.where for value in values if isinstance(value, Rejection)]
    between = ", record " if name.endswith("parquet") else ":"
    assert len(values) - len(rejected) == num_records
    assert rejected == [f"{name}{between}{place}" for place in places]


@pytest.mark.parametrize("name", MESSY_ERRORS)
def test_a_messy_file_gives_the_error_expected(build_job: BuildJob, messy: Path, name: str) -> None:
    with pytest.raises(SourceError, match=re.escape(MESSY_ERRORS[name])):
        read_messy(build_job(source={"url": str(messy / name)}))


def test_a_messy_file_in_its_declared_encoding_is_read_whole(
    build_job: BuildJob, messy: Path
) -> None:
    job = build_job(source={"url": str(messy / "latin1.txt"), "encoding": "latin-1"})

    values = read_messy(job)

    assert {value.inputs.decode() for value in values if isinstance(value, Value)} == {
        "Año señor café naïve £"
    }
    assert len(values) == 50


def test_messy_duplicates_are_counted_and_the_mark_is_no_text(
    build_job: BuildJob, messy: Path
) -> None:
    names = ("dup_rows", "bom", "crlf", "good", "no_final_newline")
    job = build_job(source={"url": str(messy / "*.jsonl"), "exclude": ["[!dbcgn]*", "bad*"]})

    made = publish(job)

    paths = [file["path"] for file in made.facts["files"]]
    assert paths == sorted(f"{name}.jsonl" for name in names)
    assert made.facts["num_records"] - made.facts["num_duplicates"] == 149
