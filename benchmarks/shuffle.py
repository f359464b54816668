"""How well an epoch is mixed: variance of the batch mean on fully sorted data, against i.i.d.

    python -m benchmarks.shuffle [--runs 3] [--peer-python PATH] [--quick]

A sample's value is its place in the data. 1 is perfect; 256, the batch size, is no mixing at all.
"""

from benchmarks.contest import Asked, Setting, hold, parse, settings_lines
from benchmarks.result import Bar, Bars, Series, Table, write

NUM_SAMPLES = 1_000_000
NUM_QUICK = 200_000
BAR = 6.0
PEERS = ("mds_py1e", "mds_py1br", "litdata", "litdata_full", "buffer_1000", "buffer_64mib")
NOTES = """{} samples of 1 KiB, in batches of 256; a run is a seed. Ours is the stream's own order
at its own 64 MiB. The peers' orders come from their own functions: MDS with a block of 64 MiB and
shards of 16 MiB; litdata with chunks of 64 MiB, as it is installed (it shuffles runs of 256
samples) and with its full shuffle of a chunk; WebDataset's buffer over permuted shards of 16 MiB.
Steady: without the first and the last tenth of the epoch."""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    asked = parse(__doc__ or "")
    num_samples = NUM_QUICK if asked.quick else NUM_SAMPLES
    found = hold(_contestants(asked, num_samples), asked.runs, lambda _: 0.0)
    ours = found["millrace"].median("steady")
    write(
        "shuffle",
        [
            Bars([Bar("variance of the batch mean against i.i.d., steady", ours, BAR, True)]),
            *(
                Table(
                    f"variance of the batch mean against i.i.d., {what} (lower is better)",
                    [Series(name, one.values(what)) for name, one in found.items() if one.told],
                )
                for what in ("steady", "whole")
            ),
        ],
        notes="\n".join([NOTES.format(num_samples), "", *settings_lines(found)]),
        packages="numpy",
        is_kept=not asked.quick,
    )


def _contestants(asked: Asked, num_samples: int) -> dict[str, list[Setting]]:
    return {
        name: [
            Setting(
                ("benchmarks.peers.orders", name, "{run}", str(num_samples)),
                "" if name == "millrace" else asked.peer_python,
            )
        ]
        for name in ("millrace", *PEERS)
    }


if __name__ == "__main__":
    main()
