import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from millrace import manifest as manifests
from millrace.errors import CorruptError, NotFoundError
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile


@pytest.fixture
def local(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(str(tmp_path))


def build(storage: FsspecStorage, key: str = "0" * 64, **facts: object) -> Manifest:
    file = StoredFile.written(storage, f"p/shards/{key[:16]}/train.zst", b"content")
    return Manifest(
        "p", "shards", key, inputs={"source_files": "abc"}, files=(file,), facts=facts, usd=0.5
    )


def test_a_manifest_reads_back_equal(storage: FsspecStorage) -> None:
    made = build(storage, num_samples=3, splits={"train": [1, 2.5, None, "ü"]})

    published = manifests.publish(storage, made)

    assert published == made
    assert manifests.read(storage, made.path) == made
    assert manifests.find(storage, "p", "shards", made.key) == made


def test_a_manifest_with_numbers_as_keys_is_read_as_it_was_sealed(local: FsspecStorage) -> None:
    made = build(local, seconds=dict.fromkeys(range(12), 0.5))

    published = manifests.publish(local, made)

    assert manifests.read(local, made.path).digest == published.digest == made.digest


def test_the_digest_is_of_files_and_facts_alone(local: FsspecStorage) -> None:
    made = build(local, a=1)

    same = replace(made, seconds=9.0, usd=9.0, made_at="later", measured={"rate": 1})
    other_facts = replace(made, facts={"a": 2})
    other_file = replace(made, files=(replace(made.files[0], sha256="0" * 64),))

    assert same.digest == made.digest
    assert len({made.digest, other_facts.digest, other_file.digest}) == 3


def test_the_first_to_publish_wins_and_the_second_is_told(storage: FsspecStorage) -> None:
    first, second = build(storage, by="first"), build(storage, by="second")

    manifests.publish(storage, first)
    returned = manifests.publish(storage, second)

    assert returned == first
    assert manifests.read(storage, first.path) == first


def test_all_who_race_to_publish_go_on_with_the_same_manifest(storage: FsspecStorage) -> None:
    candidates = [build(storage, by=number) for number in range(6)]

    with ThreadPoolExecutor(6) as pool:
        returned = list(
            pool.map(lambda made: manifests.publish(FsspecStorage(storage.url), made), candidates)
        )

    assert len({made.digest for made in returned}) == 1


def test_what_was_never_published_is_not_found(storage: FsspecStorage) -> None:
    assert manifests.find(storage, "p", "shards", "f" * 64) is None


def test_current_without_any_says_what_to_materialize(storage: FsspecStorage) -> None:
    with pytest.raises(NotFoundError, match="none has been published"):
        manifests.current(storage, "p", "shards")


def test_current_is_what_was_pointed_at_last(storage: FsspecStorage) -> None:
    first, second = build(storage, key="1" * 64), build(storage, key="2" * 64)
    for made in (first, second):
        manifests.publish(storage, made)

    manifests.point(storage, second)
    manifests.point(storage, first)

    assert manifests.current(storage, "p", "shards") == first


@pytest.mark.parametrize("torn", [b"", b"{", b"null", b"[]", b"{}", b'{"manifest"', b"\xff\xfe"])
def test_a_torn_pointer_is_an_error_that_names_it(local: FsspecStorage, torn: bytes) -> None:
    local.write("p/shards/current.json", torn)

    with pytest.raises(CorruptError, match=r"p/shards/current\.json"):
        manifests.current(local, "p", "shards")


def test_a_manifest_torn_anywhere_is_an_error_that_names_it(local: FsspecStorage) -> None:
    data = build(local, a=1).to_bytes()

    for length in range(len(data)):
        with pytest.raises(CorruptError, match="read the manifest somewhere"):
            Manifest.from_bytes(data[:length], "somewhere")


def test_a_manifest_with_any_bit_flipped_is_an_error_or_the_same(local: FsspecStorage) -> None:
    made = build(local, a=1, text="some words", number=1.5)
    data = made.to_bytes()
    rng = np.random.default_rng(0)

    num_refused = 0
    for place in rng.choice(len(data) * 8, 600, replace=False).tolist():
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert Manifest.from_bytes(bytes(flipped), "somewhere") == made
        except CorruptError:
            num_refused += 1

    assert num_refused > 500  # only white space may change unnoticed


@pytest.mark.parametrize("field", ["key", "inputs", "measured", "usd", "digest", "seal"])
def test_a_manifest_with_any_field_changed_is_refused(local: FsspecStorage, field: str) -> None:
    body = json.loads(build(local, a=1).to_bytes())
    body[field] = {"other": 1} if isinstance(body[field], dict) else "other"

    with pytest.raises(CorruptError, match="Delete it and materialize the asset again"):
        Manifest.from_bytes(json.dumps(body).encode(), "somewhere")


def test_a_manifest_of_another_format_is_refused(local: FsspecStorage) -> None:
    body = json.loads(build(local).to_bytes())
    body["format"] = manifests.FORMAT + 1

    with pytest.raises(CorruptError, match=f"format {manifests.FORMAT + 1}"):
        Manifest.from_bytes(json.dumps(body).encode(), "somewhere")


def test_a_manifest_finds_its_files_by_name(local: FsspecStorage) -> None:
    made = build(local)

    assert made.file("train.zst").read(local) == b"content"
    with pytest.raises(CorruptError, match=r"find test\.zst in p/shards/"):
        made.file("test.zst")


def test_a_manifest_without_its_files_is_found_no_more(storage: FsspecStorage) -> None:
    made = manifests.publish(storage, build(storage))
    storage.delete(made.files[0].path)

    assert manifests.find(storage, "p", "shards", made.key) is None
    assert made.path not in storage.list("p")


def test_a_manifest_with_a_file_of_another_size_is_found_no_more(storage: FsspecStorage) -> None:
    made = manifests.publish(storage, build(storage))
    storage.write(made.files[0].path, b"other size")

    assert manifests.find(storage, "p", "shards", made.key) is None


def test_publishing_again_replaces_a_manifest_whose_files_are_lost(local: FsspecStorage) -> None:
    first = manifests.publish(local, build(local, by="first"))
    local.delete(first.files[0].path)
    other = StoredFile.written(local, f"{first.folder}/other.zst", b"other")
    second = replace(first, files=(other,), facts={"by": "second"})

    assert manifests.publish(local, second) == second
    assert manifests.find(local, "p", "shards", first.key) == second


def test_publishing_equal_files_again_replaces_those_that_were_damaged(
    local: FsspecStorage,
) -> None:
    first = manifests.publish(local, build(local))
    local.write(first.files[0].path, b"contenT")

    again = manifests.publish(local, build(local))

    assert again.digest == first.digest
    assert again.file("train.zst").read(local) == b"content"


def test_two_runs_of_one_key_with_other_bits_leave_the_first_whole(storage: FsspecStorage) -> None:
    path = f"p/checkpoint/{'1' * 16}/weights.safetensors"
    files = [StoredFile.written(storage, path, data) for data in (b"first", b"other")]
    first, other = (Manifest("p", "checkpoint", "1" * 64, files=(file,)) for file in files)

    manifests.publish(storage, first)
    adopted = manifests.publish(storage, other)

    assert adopted == first
    assert adopted.file("weights.safetensors").read(storage) == b"first"
    assert other.file("weights.safetensors").read(storage) == b"other"


def test_a_pointer_to_a_manifest_that_is_gone_says_what_to_materialize(
    local: FsspecStorage,
) -> None:
    made = manifests.publish(local, build(local))
    manifests.point(local, made)
    local.delete(made.path)

    with pytest.raises(NotFoundError, match=r"is gone\. Materialize p/shards again"):
        manifests.current(local, "p", "shards")
