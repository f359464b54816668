"""WebDataset tars as source files: written by the library, by tarfile, and damaged."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
import zstandard
from PIL import Image

from millrace.data.fields import build_encoder
from millrace.data.listing import list_source
from millrace.data.records import Located, Record, Rejection, format_of, read_records
from millrace.data.values import UnusableRecordError
from millrace.errors import SourceError
from millrace.spec import ClassificationTask, SourceSpec

Found = list[Located | Rejection]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def tar(files: Mapping[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(folder: Path, data: bytes, name: str = "a.tar", **source: Any) -> Found:
    path = folder / name
    path.write_bytes(data)
    spec = SourceSpec(url=str(path), **source)
    (file,) = list_source(spec, "/")
    return list(read_records(file, spec))


def records(found: Sequence[Located | Rejection]) -> list[Record]:
    assert [item for item in found if isinstance(item, Rejection)] == []
    return [item.record for item in found if isinstance(item, Located)]


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


FILES = {
    "x/0001.txt": "grün".encode(), "x/0001.cls": b"7\n", "x/0001.json": b'{"stars": 4, "a": [1]}',
    "x/0001.NPY": npy(np.arange(6).reshape(2, 3)), "x/0001.jpg": b"as it came",
    "x/0001.seg.png": b"mask", "x/0001.pkl": b"never opened",
    "x/0002.json": b"[1, 2]", "x/0002.text": b"",
    "y/0002.int": b"-3",
}  # fmt: skip


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_files_of_one_key_are_a_record(tmp_path: Path, suffix: str, tar_format: int) -> None:
    found = read(tmp_path, COMPRESS[suffix](tar(FILES, tar_format)), f"a.tar{suffix}")

    assert [item.where for item in found] == [
        f"a.tar{suffix}, {key}" for key in ("x/0001", "x/0002", "y/0002")
    ]
    first, *others = records(found)
    assert first.pop("npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first == {
        "__key__": "x/0001", "txt": "grün", "cls": 7, "stars": 4, "a": [1],
        "image": b"as it came", "seg.png": b"mask", "pkl": b"never opened",
    }  # fmt: skip
    assert others == [
        {"__key__": "x/0002", "json": [1, 2], "text": ""},
        {"__key__": "y/0002", "int": -3},
    ]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_the_library_writes_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"b.tar{suffix}"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(50):
            writer.write(
                {
                    "__key__": f"{i:06}", "txt": f"text {i}", "cls": i % 3, "json": {"i": i},
                    "npy": np.full((2, 2), i, np.float32), "png": np.full((4, 4, 3), i / 50),
                }
            )  # fmt: skip
    found = records(read(tmp_path, path.read_bytes(), path.name))

    assert [record["__key__"] for record in found] == [f"{i:06}" for i in range(50)]
    for i, record in enumerate(found):
        assert (record["txt"], record["cls"], record["i"]) == (f"text {i}", i % 3, i)
        assert np.array_equal(record["npy"], np.full((2, 2), i))
        with Image.open(io.BytesIO(record["image"])) as image:
            assert image.size == (4, 4)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_keys_whole(tmp_path: Path, tar_format: int) -> None:
    names = ["a" * 300 + ".txt", "é/" + "ü" * 200 + ".txt", "0.txt"]

    found = records(read(tmp_path, tar(dict.fromkeys(names, b"t"), tar_format)))

    assert [record["__key__"] + ".txt" for record in found] == names


def test_what_is_no_file_of_a_sample_is_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, size in (
            ("d.txt/", tarfile.DIRTYPE, 0), ("s.txt", tarfile.SYMTYPE, 0),
            ("h.txt", tarfile.LNKTYPE, 0), ("README", tarfile.REGTYPE, 5),
            (".hidden.txt", tarfile.REGTYPE, 5), ("__info__.json", tarfile.REGTYPE, 5),
            ("__meta__.txt", tarfile.REGTYPE, 5), ("0.txt", tarfile.REGTYPE, 5),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, size
            info.linkname = "../" * 100 + "etc/passwd" if size == 0 else ""
            archive.addfile(info, io.BytesIO(b"hello"))

    assert records(read(tmp_path, buffer.getvalue())) == [{"__key__": "0", "txt": "hello"}]


def test_names_are_never_paths(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ["../out.txt", "/abs/c.txt", "a/../../b.txt", "c\nd.txt"]

    found = read(inside, tar(dict.fromkeys(names, b"t")))

    assert [record["__key__"] + ".txt" for record in records(found)] == names
    assert found[3].where == r"a.tar, 'c\nd'"
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in inside.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(("name", "data"), [
    ("a.txt", b"\xff"), ("a.cls", b"seven"), ("a.json", b"{"), ("a.json", b"[" * 10**5),
    ("a.npy", b"junk"), ("a.npy", npy(np.arange(9))[:-1]), ("a.npy", npy(np.arange(9)) + b"."),
    ("a.npy", npy(np.array([{}, 1], object))), ("a.npy", b""),
    ("a.npy", npy(np.zeros(2)).replace(b"(2,)", b"(9,)")),
    ("a.npy", npy(np.zeros((1, 1))).replace(b"(1, 1)", b"(-1,1)")),
])  # fmt: skip
def test_a_file_that_cannot_be_read_rejects_its_record_alone(
    tmp_path: Path, name: str, data: bytes
) -> None:
    found = read(tmp_path, tar({name: data, "b.txt": b"good"}))

    assert isinstance(found[0], Rejection)
    assert found[0].where == "a.tar, a"
    assert f".{name[2:]} cannot be read" in found[0].reason
    assert records(found[1:]) == [{"__key__": "b", "txt": "good"}]


def test_a_damaged_header_of_an_array_is_a_rejection_or_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = b"(){}[],:'\"0123456789eE.-+<>|TF \\"
    files = {}
    for i in range(2000):
        data = bytearray(npy(np.zeros((2, 3), np.float32)))
        for at in rng.integers(0, 80, size=3):
            data[at] = letters[int(rng.integers(len(letters)))]
        files[f"{i}.npy"] = bytes(data)
    huge = npy(np.zeros((0, 10))).replace(b"(0, 10), }" + b" " * 30, b"(0, " + b"9" * 33 + b"), }")
    assert b"9" * 33 in huge
    files |= {"huge.npy": huge, "fields.npy": npy(np.zeros(2, [("x", "i4")]))}
    files["whole.npy"] = npy(np.ones(2))

    found = read(tmp_path, tar(files))

    assert len(found) == 2003
    assert isinstance(found[2000], Rejection)
    assert isinstance(found[2001], Rejection)
    assert isinstance(found[2002], Located)


@pytest.mark.parametrize(("files", "field"), [
    ({"a.jpg": b"", "a.png": b""}, "image"), ({"a.txt": b"", "a.TXT": b""}, "txt"),
    ({"a.cls": b"1", "a.json": b'{"cls": 2}'}, "cls"), ({"a.json": b'{"__key__": 1}'}, "__key__"),
])  # fmt: skip
def test_a_field_told_twice_rejects_the_record(
    tmp_path: Path, files: dict[str, bytes], field: str
) -> None:
    (found,) = read(tmp_path, tar(files))

    assert isinstance(found, Rejection)
    assert found.reason == f"it has the field `{field}` twice"


def test_arrays_of_every_kind_and_order_are_read(tmp_path: Path) -> None:
    arrays: list[npt.NDArray[Any]] = [
        np.arange(12, dtype=">i2").reshape(3, 4), np.asfortranarray(np.eye(3)),
        np.zeros((0, 4)), np.array(3, np.float32), np.array([True, False]),
    ]  # fmt: skip

    found = records(read(tmp_path, tar({f"{i}.npy": npy(a) for i, a in enumerate(arrays)})))

    for record, array in zip(found, arrays, strict=True):
        assert np.array_equal(record["npy"], array)
        assert record["npy"].dtype == array.dtype


def test_a_record_beyond_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = tar({"a.txt": bytes(60), "b.txt": bytes(60), "b.bin": bytes(60)})

    assert len(read(tmp_path, data, max_record_bytes=120)) == 2
    with pytest.raises(SourceError, match=r"the record at a\.tar, b: .*max_record_bytes"):
        read(tmp_path, data, max_record_bytes=119)


def test_a_lying_size_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.bin")
    info.size = 2**60
    header = info.tobuf(tarfile.GNU_FORMAT)

    with pytest.raises(SourceError, match="max_record_bytes"):
        read(tmp_path, header)


def test_every_truncation_is_an_error_with_file_and_offset(tmp_path: Path) -> None:
    data = tar({"a.txt": b"x" * 700, "b" * 120 + ".txt": b"y"}, tarfile.GNU_FORMAT)
    end = data.rstrip(b"\0")

    for size in (0, 1, 511, 512, 513, 1200, 1536, 2048, 2100, len(end) - 1, len(end)):
        with pytest.raises(SourceError, match=r"a\.tar as tar: it ends .* at byte \d+"):
            read(tmp_path, data[:size])


def test_arrays_without_numbers_are_refused(tmp_path: Path) -> None:
    arrays = [np.array(["a", "b"]), np.zeros(2, complex)]
    encoder = build_encoder(
        ClassificationTask(kind="classification", label="cls", inputs=("npy",), shape=(2,))
    )

    for array in arrays:
        (record,) = records(read(tmp_path, tar({"0.npy": npy(array), "0.cls": b"1"})))
        with pytest.raises(UnusableRecordError, match="a number is needed"):
            encoder.extract(record)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_torn_compression_is_an_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    data = COMPRESS[suffix](tar({"a.bin": rng.bytes(9999)}))

    with pytest.raises(SourceError, match=rf"a\.tar\{suffix}"):
        read(tmp_path, data[:-2000], f"a.tar{suffix}")


def test_a_header_that_is_none_is_an_error_with_its_offset(tmp_path: Path) -> None:
    data = bytearray(tar({"a.txt": b"x", "b.txt": b"y"}))
    data[1024 + 20] ^= 1

    with pytest.raises(SourceError, match=r"a\.tar as tar: no header .*, at byte 1024"):
        read(tmp_path, bytes(data))


@pytest.mark.parametrize("kind", [b"S", b"V", b"M"])
def test_a_member_of_a_kind_that_is_not_known_is_an_error(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a.txt")
    info.type = kind

    with pytest.raises(SourceError, match=r"a member of type .*, at byte 0"):
        read(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_a_name_of_endless_length_is_an_error(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40

    with pytest.raises(SourceError, match="a name of"):
        read(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_random_damage_is_an_error_or_a_rejection_and_never_a_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    good = tar(FILES, tarfile.PAX_FORMAT)
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(len(good), size=3):
            data[at] = int(rng.integers(256))
        try:
            found = read(tmp_path, bytes(data))
        except SourceError:
            continue
        assert len(found) <= 4


def test_the_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstandard.compress(tar({f"{i}.bin": bytes(10**5) for i in range(300)})))
    spec = SourceSpec(url=str(path))
    (file,) = list_source(spec, "/")

    tracemalloc.start()
    count = 0
    for found in read_records(file, spec):
        assert isinstance(found, Located)
        count += len(found.record["bin"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 300 * 10**5
    assert peak < 20 * 10**5


def test_the_format_goes_by_the_extension(tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar.gz", "A.TAR.ZST"):
        (tmp_path / name).touch()
    spec = SourceSpec(url=str(tmp_path))

    assert {format_of(file, spec) for file in list_source(spec, "/")} == {"webdataset"}


def test_a_task_takes_images_and_arrays_out_of_tars(tmp_path: Path) -> None:
    files = {
        "0.png": png(200), "0.cls": b"3",
        "1.npy": npy(np.arange(6, dtype=np.uint16)), "1.json": json.dumps({"cls": "b"}).encode(),
    }  # fmt: skip
    image, array = records(read(tmp_path, tar(files)))

    of_image = build_encoder(
        ClassificationTask(kind="classification", label="cls", images="pixels", shape=(3, 2, 2))
    )
    of_array = build_encoder(
        ClassificationTask(kind="classification", label="cls", inputs=("npy",), shape=(2, 3))
    )

    assert of_image.extract(image).label == "3"
    assert of_image.extract(image).inputs == bytes([200] * 12)
    assert of_array.extract(array).label == "b"
    assert np.frombuffer(of_array.extract(array).inputs, np.float32).tolist() == [0, 1, 2, 3, 4, 5]
