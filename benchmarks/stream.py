"""Samples/s of shuffled epochs, local and from S3: ours against MDS, litdata and others.

    python -m benchmarks.stream [--runs 3] [--peer-python PATH] [--quick]

Batches of 256 as torch tensors, or lists of str. The limit is zstd decoding our own frames in one
thread. S3 is OpenStack Swift on this machine; without it only the local folder is measured.
"""

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from s3fs import S3FileSystem

from benchmarks import data_sets
from benchmarks.contest import Asked, Outcome, Setting, Told, hold, parse, run, settings_lines
from benchmarks.result import Bar, Bars, Series, Table, write
from benchmarks.s3_server import s3_server

SHARD_BYTES = 16 * 2**20
WRITERS = ("millrace", "mds", "litdata", "litdata_tokens", "webdataset", "parquet", "lance")
RIVALS = ("mds", "litdata", "litdata_tokens")
"""Peers that bars are set against; those that follow run once in each setting."""
OTHERS = {"webdataset": "webdataset", "huggingface": "parquet", "lance": "lance"}
"""And what they read."""
PROCESSES = (0, 1, 2)
LITDATA = {"tokens": 8.0, "text": 2.5, "images": 5.0}
MDS = {"tokens": 40.0, "text": 12.0, "images": 15.0}
LITDATA_S3 = {"tokens": 3.5, "text": 1.4, "images": 2.0}
SHARE_OF_ZSTD = 0.6
FIRST_BATCH_SECONDS, FIRST_BATCH_SECONDS_S3 = 0.3, 0.5
ORDER_SAMPLES = 10**9
ORDER_MS, ORDER_MB = 50.0, 20.0
MEASURES = {
    "steady_per_second": "samples per second of a steady epoch (higher is better)",
    "steady_per_cpu_second": "samples per CPU second of a steady epoch (higher is better)",
    "first_epoch_per_second": "samples per second of the first epoch (higher is better)",
    "first_epoch_per_cpu_second": "samples per CPU second of the first epoch (higher is better)",
    "first_batch_seconds": "seconds to the first batch (lower is better)",
}
Found = Mapping[str, Mapping[str, Outcome]]
"""Outcomes by data set and contestant."""
NOTES = f"""Each contestant reads shuffled epochs in batches of 256 in a fresh process, in turn,
from shards of {SHARD_BYTES >> 20} MiB. Imports come before the clock, opening after its start. The
first epoch fills the library's own cache on the local disk; steady epochs follow, for 1.5 s or
more, each 6 s at the most. CPU seconds are those of all processes of the client. Peers were tried
with 0, 1 and 2 loader processes and went on with the fastest; those that no bar names (WebDataset,
Hugging Face datasets, Lance) ran once in each setting. All processes have the allocator's settings
of Millrace's own. `zstd` decodes the frames of ours from memory in one thread and drops them: the
limit. litdata in its default shuffles runs of 256 samples, Lance whole batches: neither mixes them.
The Hugging Face data sets and WebDataset (plain tar) mix 1000 samples. On S3 peers have the setting
that was the best locally; the server shares these cores."""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    asked = parse(__doc__ or "")
    work = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        data_sets.make(work / "input", quick=asked.quick)
        sizes = data_sets.describe(work / "input")
        refused = _write_shards(asked, work)
        local = {data: _contest(asked, data, work) for data in data_sets.NAMES}
        remote = _contest_on_s3(asked, local, work)
    finally:
        shutil.rmtree(work)
    argv = ("benchmarks.peers.orders", "cost", "0", str(ORDER_SAMPLES))
    order = hold({"order": [Setting(argv)]}, asked.runs, lambda _: 0.0)["order"]
    lines = [NOTES, "", sizes, "", *refused]
    for data, outcomes in local.items():
        lines += [f"{data}:", "", *settings_lines(outcomes), ""]
    if not remote:
        lines += ["S3 was not measured: OpenStack Swift is not installed.", ""]
    write(
        "stream",
        [Bars(_bars(local, remote, order)), *_tables(local, "local"), *_tables(remote, "S3")],
        notes="\n".join(lines),
        packages="torch zstandard pyarrow numpy s3fs",
        is_kept=not asked.quick,
    )


def _write_shards(asked: Asked, work: Path) -> list[str]:
    """What each library reads; lines about what could not be written."""
    refused = []
    for data in data_sets.NAMES:
        for name in WRITERS:
            if name == "litdata_tokens" and data != "tokens":
                continue
            output = work / "shards" / f"{name}-{data}"
            output.mkdir(parents=True)
            folders = (str(work / "input"), str(output))
            argv = ("benchmarks.peers.write_shards", name, data, *folders, str(SHARD_BYTES))
            try:
                run(Setting(argv, "" if name == "millrace" else asked.peer_python))
            except (OSError, RuntimeError) as error:
                refused.append(f"- {name} did not write {data}: {error}")
    return refused


def _contest(asked: Asked, data: str, work: Path) -> dict[str, Outcome]:
    shards, cache = work / "shards", work / "cache"

    def setting(name: str, shards_of: str, processes: int, python: str) -> Setting:
        where = (str(shards / f"{shards_of}-{data}"), str(cache))
        argv = ("benchmarks.peers.read_shards", name, data, *where, str(processes))
        return Setting(argv, python, f"{processes} loader processes")

    def peer(name: str, shards_of: str) -> list[Setting]:
        return [setting(name, shards_of, n, asked.peer_python) for n in PROCESSES]

    barred = {name: [setting(name, "millrace", 0, "")] for name in ("millrace", "zstd")}
    barred |= {
        name: peer(name, name) for name in RIVALS if name != "litdata_tokens" or data == "tokens"
    }
    others = {name: peer(name, shards_of) for name, shards_of in OTHERS.items()}

    def clear() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    return hold(barred, asked.runs, _speed, before=clear) | hold(others, 1, _speed, before=clear)


def _contest_on_s3(asked: Asked, local: Found, work: Path) -> Found:
    """Ours and the rivals, each with its best setting of before."""
    if importlib.util.find_spec("swift") is None:
        return {}
    cache = work / "cache"

    def contest(data: str, url: str) -> dict[str, Outcome]:
        contestants = {}
        for name in ("millrace", *RIVALS):
            outcome = local[data].get(name)
            if outcome and outcome.told:
                where = (f"{url}/{name}-{data}", str(cache))
                argv = ("benchmarks.peers.read_shards", name, data, *where, outcome.best[0])
                python = "" if name == "millrace" else asked.peer_python
                contestants[name] = [Setting(argv, python, outcome.best)]
        clear = partial(shutil.rmtree, cache, ignore_errors=True)
        return hold(contestants, asked.runs, _speed, before=clear)

    with s3_server() as url:
        filesystem = S3FileSystem()
        for folder in (work / "shards").iterdir():
            if folder.name.startswith(("millrace", *RIVALS)):
                filesystem.put(f"{folder}/", f"{url}/{folder.name}/", recursive=True)
        return {data: contest(data, url) for data in local}


def _speed(told: Told) -> float:
    return float(told["steady_per_second"])


def _bars(local: Found, remote: Found, order: Outcome) -> list[Bar]:
    bars = [
        Bar("order of 10^9 samples: CPU ms", order.median("cpu_ms"), ORDER_MS, True),
        Bar("order of 10^9 samples: MB", order.median("peak_mb"), ORDER_MB, True),
    ]
    wall, cpu = "steady_per_second", "steady_per_cpu_second"
    for data, found in local.items():
        share = found["millrace"].median(cpu) / found["zstd"].median(cpu)
        bars.append(Bar(f"{data}: CPU efficiency to one thread of zstd", share, SHARE_OF_ZSTD))
        for measure, what in ((wall, "samples/s"), (cpu, "samples per CPU second")):
            bars += [
                Bar(f"{data}: {what} to litdata's", _ratio(found, measure), LITDATA[data]),
                Bar(f"{data}: {what} to MDS's", _ratio(found, measure, "mds"), MDS[data]),
            ]
        first = found["millrace"].median("first_batch_seconds")
        bars.append(Bar(f"{data}: s to the first batch", first, FIRST_BATCH_SECONDS, True))
    for data, found in remote.items():
        for measure, what in ((wall, "samples/s"), (cpu, "samples per CPU second")):
            named = f"{data}, S3: {what} to litdata's"
            bars.append(Bar(named, _ratio(found, measure), LITDATA_S3[data]))
        first = found["millrace"].median("first_batch_seconds")
        bars.append(Bar(f"{data}, S3: s to the first batch", first, FIRST_BATCH_SECONDS_S3, True))
    return bars


def _ratio(found: Mapping[str, Outcome], measure: str, peer: str = "litdata") -> float:
    """Ours to the better of the peer's ways; NaN without the peer."""
    theirs = [one.median(measure) for name, one in found.items() if name.startswith(peer)]
    known = [value for value in theirs if not math.isnan(value)]
    return found["millrace"].median(measure) / max(known, default=float("nan"))


def _tables(found: Found, where: str) -> Sequence[Table]:
    return [
        Table(
            f"{data}, {where}: {unit}",
            [
                Series(name, one.values(measure))
                for name, one in outcomes.items()
                if one.told and measure in one.told[0]
            ],
        )
        for data, outcomes in found.items()
        for measure, unit in MEASURES.items()
    ]


if __name__ == "__main__":
    main()
