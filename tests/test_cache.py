import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.data import cache as caches
from millrace.data.cache import ChunkCache, is_remote
from millrace.data.columns import join
from millrace.data.samples import Samples
from millrace.data.stream import Stream
from millrace.errors import CorruptError, SpecError
from millrace.storage import FsspecStorage
from tests.test_stream import NUM_SAMPLES, publish, take

ROOT = Path(__file__).parents[1]


class Fetcher:
    """Gives bytes and counts how often it is asked."""

    def __init__(self, data: bytes) -> None:
        self.data, self.times = data, 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.data


@pytest.fixture
def cache(tmp_path: Path) -> ChunkCache:
    return ChunkCache(tmp_path / "cache", 1000)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_chunk_is_fetched_once(cache: ChunkCache) -> None:
    fetch = Fetcher(b"0123456789")

    assert cache.read("a", 2, 5, fetch) == b"234"
    assert cache.read("a", 0, 10, fetch) == b"0123456789"
    assert fetch.times == 1
    assert cache.holds("a")


def test_a_dropped_chunk_is_fetched_again(cache: ChunkCache) -> None:
    cache.read("a", 0, 1, Fetcher(b"wrong"))

    cache.drop("a")

    assert cache.read("a", 0, 5, Fetcher(b"right")) == b"right"


def test_the_chunk_used_longest_ago_makes_room(cache: ChunkCache, tmp_path: Path) -> None:
    for name in "abc":
        cache.read(name, 0, 1, Fetcher(bytes(300)))
        os.utime(tmp_path / "cache" / name, ns=(0, ord(name)))
    cache.read("a", 0, 1, Fetcher(b""))  # used again: b is now the one used longest ago

    cache.read("d", 0, 1, Fetcher(bytes(300)))

    assert names(tmp_path / "cache") == {"a", "c", "d"}


def test_the_budget_is_kept_whoever_filled_the_folder(tmp_path: Path) -> None:
    for number in range(20):
        ChunkCache(tmp_path, 1000).read(f"c{number}", 0, 1, Fetcher(bytes(150)))

    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_what_a_killed_process_left_half_written_goes_in_time(tmp_path: Path) -> None:
    for name, age in ((".old.partial", 2 * caches.ABANDONED_SECONDS), (".new.partial", 0)):
        (tmp_path / name).write_bytes(bytes(800))
        now = (tmp_path / name).stat().st_mtime
        os.utime(tmp_path / name, (now - age, now - age))

    ChunkCache(tmp_path, 1000).read("a", 0, 1, Fetcher(bytes(900)))

    assert names(tmp_path) == {".new.partial", "a"}


def test_many_threads_cost_one_fetch(cache: ChunkCache) -> None:
    fetching, let_go = threading.Event(), threading.Event()
    fetch = Fetcher(b"data")

    def slow() -> bytes:
        fetching.set()
        let_go.wait()
        return fetch()

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.read, "a", 0, 4, slow) for _ in range(8)]
        fetching.wait()
        let_go.set()
        assert {part.result() for part in found} == {b"data"}
    assert fetch.times == 1


FETCH_AND_DIE = """
import os, sys
from pathlib import Path
from millrace.data.cache import ChunkCache

def fetch():
    print("fetching", flush=True)
    sys.stdin.readline()

ChunkCache(Path(sys.argv[1]), 1000).read("a", 0, 4, fetch)
"""


@contextmanager
def fetching_process(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in the middle of fetching a chunk into the cache."""
    command = [sys.executable, "-c", FETCH_AND_DIE, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None, "stdout is a pipe"
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_killed_while_it_fetches_holds_up_nobody(
    cache: ChunkCache, tmp_path: Path
) -> None:
    with fetching_process(tmp_path / "cache") as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.read, "a", 0, 4, Fetcher(b"data"))
        process.kill()
        assert waiting.result() == b"data"


def test_a_process_that_stalls_while_it_fetches_is_not_waited_for_for_ever(
    cache: ChunkCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "WAIT_SECONDS", 0.05)

    with fetching_process(tmp_path / "cache"):
        assert cache.read("a", 0, 4, Fetcher(b"data")) == b"data"


def test_a_folder_that_cannot_be_made_costs_the_cache_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = ChunkCache(tmp_path / "file" / "cache", 1000)

    assert cache.read("a", 1, 3, Fetcher(b"data")) == b"at"
    assert "fetched without it" in capsys.readouterr().out


def test_a_full_disk_costs_the_cache_alone(
    cache: ChunkCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_path: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)

    assert cache.read("a", 1, 3, Fetcher(b"data")) == b"at"
    assert "No space left on device" in capsys.readouterr().out


def test_the_environment_names_folder_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path))
    monkeypatch.setenv("MILLRACE_CACHE_BYTES", "12345")

    cache = ChunkCache.from_environment()

    assert cache.budget_bytes == 12345
    cache.read("a", 0, 1, Fetcher(b"data"))
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("told", ["", "-1", "16G", "1e9"])
def test_a_budget_that_is_no_number_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_CACHE_BYTES", told)

    with pytest.raises(SpecError, match=r"MILLRACE_CACHE_BYTES: it is .* whole number of bytes"):
        ChunkCache.from_environment()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", True),
        ("https://host/store", True),
        ("/a/path", False),
        ("file:///a/path", False),
        ("memory://a", False),
    ],
)
def test_only_remote_stores_are_cached(url: str, expected: bool) -> None:
    assert is_remote(url) is expected


Remote = Callable[[], Samples]


@pytest.fixture
def remote(s3_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Remote:
    """Opens the same small data set on S3, through one cache folder."""
    storage = FsspecStorage(f"{s3_url}/{abs(hash(request.node.name))}")
    made = publish(storage)
    return lambda: Samples(storage, made, "train", ChunkCache(tmp_path / "cache", 10**6))


def test_every_process_of_a_node_reads_what_one_has_fetched(remote: Remote, tmp_path: Path) -> None:
    first = remote()
    whole = join(first.batches(100))
    stored = {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()}

    again = join(remote().batches(100))

    assert again["record"].tolist() == whole["record"].tolist() == list(range(NUM_SAMPLES))
    assert len(stored) == len(first.chunk_starts)
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()} == stored


def test_a_damaged_chunk_in_the_cache_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    expected = join(remote().batches(100))["record"].tolist()
    for path in (tmp_path / "cache").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) - len(data) % 7])  # some are cut short as well

    assert join(remote().batches(100))["record"].tolist() == expected


def test_a_chunk_damaged_on_the_store_is_an_error_naming_shard_frame_and_offset(
    s3_url: str, tmp_path: Path
) -> None:
    storage = FsspecStorage(f"{s3_url}/damaged")
    made = publish(storage)
    path = made.files[0].path
    data = bytearray(storage.read(path))
    data[len(data) // 2] ^= 1
    storage.write(path, bytes(data))
    samples = Samples(storage, made, "train", ChunkCache(tmp_path, 10**6))

    with pytest.raises(CorruptError, match=rf"frame \d+ of {path} at byte \d+"):
        list(samples.batches(100))


def test_a_remote_stream_gives_the_batches_of_a_local_one(remote: Remote, tmp_path: Path) -> None:
    storage = FsspecStorage(str(tmp_path / "store"))
    found = []
    for samples in (remote(), Samples(storage, publish(storage), "train")):
        stream = Stream(samples, 12, seed=3)
        found.append(take(stream, 20))
        stream.close()

    assert found[0] == found[1]


def test_a_budget_smaller_than_a_chunk_is_refused(s3_url: str, tmp_path: Path) -> None:
    storage = FsspecStorage(f"{s3_url}/small")
    made = publish(storage)

    with pytest.raises(SpecError, match=r"its budget is 10 bytes.*Raise MILLRACE_CACHE_BYTES"):
        Samples(storage, made, "train", ChunkCache(tmp_path, 10))


def test_a_budget_of_a_few_chunks_is_enough(s3_url: str, tmp_path: Path) -> None:
    storage = FsspecStorage(f"{s3_url}/few")
    made = publish(storage)
    largest = max(shard["file"]["num_bytes"] for shard in made.facts["shards"])
    samples = Samples(storage, made, "train", ChunkCache(tmp_path, largest))
    local = FsspecStorage(str(tmp_path / "store"))

    found = []
    for source in (samples, Samples(local, publish(local), "train")):
        stream = Stream(source, 12, seed=3)
        found.append(take(stream, 20))
        stream.close()

    assert found[0] == found[1]


def test_other_shards_have_other_chunks(remote: Remote) -> None:
    samples = remote()
    shard = samples._shards[0]
    other = replace(shard, file=replace(shard.file, sha256="0" * 64))
    before = samples._chunk_name(0)

    samples._shards[0] = other

    assert samples._chunk_name(0) != before
