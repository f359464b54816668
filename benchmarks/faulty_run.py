"""A whole pipeline on S3, with and without faults: the same model, and what the faults cost.

    python -m benchmarks.faulty_run [--pipeline stdlib_lm] [--share 0.01]

Runs `dagster asset materialize` twice from source files to release, each time on an empty store
behind a proxy. In the second run each kind of fault hits that share of the requests it is meant
for: errors, closed and reset connections, bodies cut, padded, flipped and shifted, lost replies.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.result import Series, Table, write
from benchmarks.s3_server import s3_server
from millrace import manifest as manifests
from millrace.storage import FsspecStorage
from tests.fault_proxy import Fault, FaultProxy, running
from tests.test_faulty_run import READS, WRITES

ROOT = Path(__file__).parents[1]
NOUNS = ("source_files", "shards", "study", "checkpoint", "evaluation", "release")


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipeline", default="stdlib_lm")
    parser.add_argument("--share", type=float, default=0.01)
    asked = parser.parse_args()
    seconds: dict[str, float] = {}
    digests: dict[str, dict[str, str]] = {}
    with s3_server() as bucket, _behind_proxy() as proxy:
        for name, share in (("with faults", asked.share), ("without", 0.0)):
            proxy.faults = [
                *(Fault(kind, method="GET|HEAD", share=share) for kind in READS),
                *(Fault(kind, method="PUT|POST", share=share) for kind in WRITES),
            ]
            proxy.seen.clear()
            seconds[name] = _materialize(asked.pipeline, f"{bucket}/{name.replace(' ', '-')}")
            if share:
                num_requests, met = len(proxy.seen), {f.kind: 0 for f in proxy.faults}
                for fault in proxy.faults:
                    met[fault.kind] += fault.met
            proxy.faults = []
            digests[name] = _digests(asked.pipeline, f"{bucket}/{name.replace(' ', '-')}")
    rows = [
        f"| {noun} | {digests['with faults'][noun][:16]} | {digests['without'][noun][:16]} | "
        f"{'yes' if digests['with faults'][noun] == digests['without'][noun] else '**no**'} |"
        for noun in NOUNS
    ]
    hits = ", ".join(f"{kind} {count}" for kind, count in met.items())
    write(
        "faulty_run",
        [
            Table(
                "seconds of wall time (lower is better)",
                [Series(name, [taken]) for name, taken in seconds.items()],
            )
        ],
        notes="\n".join(
            [
                f"`dagster asset materialize --select group:{asked.pipeline}` on S3 (OpenStack "
                f"Swift) through the proxy. {sum(met.values())} of {num_requests} requests of the "
                f"first run were hit: {hits}. One run of each.",
                "",
                "| asset | digest with faults | without | equal |",
                "|---|---|---|---|",
                *rows,
            ]
        ),
        packages="torch s3fs dagster",
    )


@contextmanager
def _behind_proxy() -> Iterator[FaultProxy]:
    with running(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        yield proxy


def _materialize(pipeline: str, store: str) -> float:
    """Seconds of a whole run with a state of its own."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="millrace-run-") as home:
        subprocess.run(
            [
                str(Path(sys.executable).with_name("dagster")),
                *("asset", "materialize", "-m", "pipelines", "--select", f"group:{pipeline}"),
            ],
            check=True,
            cwd=ROOT,
            env=os.environ | {"DAGSTER_HOME": home, "MILLRACE_STORE": store},
            stdout=subprocess.DEVNULL,
        )
    return time.perf_counter() - start


def _digests(pipeline: str, store: str) -> dict[str, str]:
    storage = FsspecStorage(store)
    return {noun: manifests.current(storage, pipeline, noun).digest for noun in NOUNS}


if __name__ == "__main__":
    main()
