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


def test_the_cost_of_several_manifests_is_their_sum(local: FsspecStorage) -> None:
    assert manifests.total_usd([build(local), build(local)]) == 1.0
