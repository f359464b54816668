"""MB/s from records in memory to zstd shards: ours against MDS, litdata, WebDataset and Parquet.

    python -m benchmarks.pack [--runs 3] [--peer-python PATH] [--quick]

Records are mapped from files; each library writes them in a fresh process. The limit is zstd alone,
on the same bytes in as many threads as there are cores.
"""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import data_sets
from benchmarks.contest import Outcome, Setting, Told, hold, parse, settings_lines
from benchmarks.result import Bar, Bars, Series, Table, write

SHARD_BYTES = 64 * 2**20
OURS = ("millrace", "millrace_proven", "zstd")
PEERS = ("mds", "litdata", "webdataset_zstd", "parquet")
FASTER_THAN_MDS = 2.5
FASTER_THAN_LITDATA = {"tokens": 10.0, "text": 10.0, "images": 5.0}
SHARE_OF_ZSTD, BYTES_OF_MDS, PEAK_MB = 0.85, 1.02, 300.0
NOTES = f"""Every contestant writes the same records in a fresh process, in turn; importing and
mapping the input come before the clock. zstd level 3 and shards of {SHARD_BYTES >> 20} MiB for all.
Processes have the allocator's settings of Millrace's own (`millrace/launch.py`); a peer is also
tried without them and goes on with the faster of the two. Peak memory is that of all its processes,
shared pages counted once, looked at 5 times a second, without the pages of the input's files.
`millrace_proven` reads every shard back and decodes it, as a pipeline does. `zstd` only compresses,
in as many threads as there are cores: the limit."""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    asked = parse(__doc__ or "")
    work = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    try:
        data_sets.make(work / "input", quick=asked.quick)
        found = {
            data: _contest(data, work, asked.peer_python, asked.runs) for data in data_sets.NAMES
        }
        sizes = data_sets.describe(work / "input")
    finally:
        shutil.rmtree(work)
    lines = [NOTES, "", sizes, ""]
    for data, outcomes in found.items():
        lines += [f"{data}:", "", *settings_lines(outcomes), ""]
    write(
        "pack",
        [Bars(_bars(found)), *_tables(found)],
        notes="\n".join(lines),
        packages="zstandard pyarrow numpy",
        is_kept=not asked.quick,
    )


def _contest(data: str, work: Path, peer_python: str, runs: int) -> dict[str, Outcome]:
    contestants = {name: [_setting(name, data, work)] for name in OURS}
    for name in PEERS:
        contestants[name] = [
            _setting(name, data, work, peer_python, keeps_freed=keeps) for keeps in (True, False)
        ]

    def clear() -> None:
        shutil.rmtree(work / "output", ignore_errors=True)
        (work / "output").mkdir()

    return hold(contestants, runs, _speed, before=clear, watched=work / "input")


def _setting(
    name: str, data: str, work: Path, python: str = "", *, keeps_freed: bool = True
) -> Setting:
    folders = (str(work / "input"), str(work / "output"))
    argv = ("benchmarks.peers.write_shards", name, data, *folders, str(SHARD_BYTES))
    return Setting(argv, python, "" if keeps_freed else "plain malloc", keeps_freed=keeps_freed)


def _speed(told: Told) -> float:
    return float(told["mb_per_second"])


def _bars(found: Mapping[str, Mapping[str, Outcome]]) -> Sequence[Bar]:
    bars = []
    for data, outcomes in found.items():

        def ratio(measure: str, peer: str, outcomes: Mapping[str, Outcome] = outcomes) -> float:
            return outcomes["millrace"].median(measure) / outcomes[peer].median(measure)

        speed, slow = "mb_per_second", FASTER_THAN_LITDATA[data]
        bars += [
            Bar(f"{data}: MB/s to MDS's", ratio(speed, "mds"), FASTER_THAN_MDS),
            Bar(f"{data}: MB/s to litdata's", ratio(speed, "litdata"), slow),
            Bar(f"{data}: MB/s to raw zstd's", ratio(speed, "zstd"), SHARE_OF_ZSTD),
            Bar(f"{data}: bytes to MDS's", ratio("stored_bytes", "mds"), BYTES_OF_MDS, True),
        ]
        peak = max(outcomes[name].most("peak_bytes") for name in OURS[:2]) / 1e6
        bars.append(Bar(f"{data}: peak memory, MB", peak, PEAK_MB, True))
    return bars


def _tables(found: Mapping[str, Mapping[str, Outcome]]) -> list[Table]:
    measures = {
        "mb_per_second": ("MB of records per second (higher is better)", 1.0),
        "mb_per_cpu_second": ("MB of records per CPU second (higher is better)", 1.0),
        "stored_bytes": ("MB stored (lower is better)", 1e6),
        "peak_bytes": ("MB of memory at the peak (lower is better)", 1e6),
    }
    return [
        Table(
            f"{data}: {unit}",
            [
                Series(name, [value / scale for value in outcome.values(measure)])
                for name, outcome in outcomes.items()
                if outcome.told and not math.isnan(outcome.median(measure))
            ],
        )
        for data, outcomes in found.items()
        for measure, (unit, scale) in measures.items()
    ]


if __name__ == "__main__":
    main()
