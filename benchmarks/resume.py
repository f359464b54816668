"""Trainings killed at random moments, again and again: bits, lost work and stall, ours and others'.

    python -m benchmarks.resume [--kills 50] [--peer-kills 4] [--peer-python PATH] [--quick]

Ours: of the tree of follower, launcher and two ranks one process is killed -9 at a time, or the
launcher gets SIGTERM, while it starts, trains, writes. Then the training is left to end. Others, on
one rank: killed at random steps. The stall is measured on one network and interval for all.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest import PEER_PYTHON, Setting, run
from benchmarks.peers import resume as peer
from benchmarks.result import Bar, Bars, Counts, write
from millrace.job import Job
from tests.kill_loop import Tally, kill_again_and_again
from tests.pipelines_for_tests import ROOT, Line, Tree, build_classification

STEPS, EVERY = 8000, 50
"""Of the training that is killed: each attempt gets through a small part of it."""
SLACK_SECONDS, STALL = 5.0, 0.02
IN_PEERS_PYTHON = ("huggingface", "lightning")
NOTES = """Ours is a small classification on 2 ranks, a checkpoint every {every} of {steps} steps.
Lost work is counted on the wall clock, from the moment when the state of the newest checkpoint was
copied to the kill. Checkpoints that were visible after a kill were read whole each time: {read}
reads. Others are a perceptron of 2.1 million weights, {peer_steps} steps of 64 samples, a
checkpoint every {peer_every} steps, killed -9 at random steps; their stall is the time inside their
own save calls, ours the copies and the collective before, as the loop itself counts them."""


@dataclass
class Found:
    """What became of one contestant."""

    is_equal: bool = False
    """Whether killed and unbroken runs end with the same bits."""
    num_kills: int = 0
    lost_steps: list[int] = field(default_factory=list)
    stall: float = float("nan")
    """Share of the loop's time."""
    version: str = ""
    refused: str = ""


def main() -> None:
    """Run, write the result file, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--peer-kills", type=int, default=4)
    parser.add_argument("--peer-python", default=str(PEER_PYTHON))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 kills, no file")
    asked = parser.parse_args()
    num_kills, peer_kills = (4, 1) if asked.quick else (asked.kills, asked.peer_kills)
    with tempfile.TemporaryDirectory(prefix="millrace-benchmark-") as name:
        line = build_classification(_made(Path(name, "line")))
        steps = STEPS // 4 if asked.quick else STEPS
        is_equal, tally = _kill_ours(line, Path(name), num_kills, steps, asked.seed)
        stall = _stall_of_ours(line)
        peers = {
            contestant: _kill_peer(contestant, Path(name), peer_kills, asked)
            for contestant in (peer.CONTESTANTS if peer_kills else ())
        }
    lost = _beyond_interval(tally)
    equal = {"ours": is_equal} | {name: found.is_equal for name, found in peers.items()}
    bars = [
        Bar("ours: runs whose bits equal the unbroken run's", float(is_equal), 1),
        Bar("ours: lost seconds beyond one interval, at most", lost, SLACK_SECONDS, True),
        Bar("ours: checkpoint stall, share of step time", stall, STALL, True),
        Bar("ours: kills", sum(tally.killed.values()), num_kills),
        Bar("ours: stray processes", tally.num_strays, 0, True),
        Bar("ours: unreadable checkpoints seen", tally.num_unreadable, 0, True),
    ]
    counts = Counts("killed", {"ours": dict(tally.killed)})
    notes = NOTES.format(
        every=EVERY,
        steps=steps,
        read=tally.num_read,
        peer_steps=peer.STEPS,
        peer_every=peer.EVERY,
    )
    write(
        "resume",
        [Bars(bars), counts],
        notes="\n".join([notes, "", *_lines(peers, equal, stall, tally)]),
        packages="torch",
        is_kept=not asked.quick,
    )


def _lines(
    peers: Mapping[str, Found], equal: Mapping[str, bool], stall: float, tally: Tally
) -> list[str]:
    """The table of all contestants."""
    median = statistics.median(tally.lost_seconds or [0.0])
    rows = [
        f"| ours | {sum(tally.killed.values())} | {_word(equal['ours'])} | "
        f"median {median:.2f} s, most {max(tally.lost_seconds, default=0):.2f} s | {stall:.2%} |"
    ]
    for name, found in peers.items():
        if found.refused:
            rows.append(f"| {name} | none | failed: {found.refused} | | |")
            continue
        steps = ", ".join(map(str, found.lost_steps))
        rows.append(
            f"| {name} {found.version} | {found.num_kills} | {_word(found.is_equal)} | "
            f"steps {steps} | {found.stall:.2%} |"
        )
    head = "| | kills | bits equal the unbroken run's | lost work by kill | stall of the loop |"
    return [head, "|---|---|---|---|---|", *rows, ""]


def _word(is_equal: bool) -> str:
    return "yes" if is_equal else "**no**"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _kill_ours(
    line: Line, folder: Path, num_kills: int, steps: int, seed: int
) -> tuple[bool, Tally]:
    """Whether the bits are those of the unbroken run, and what was met."""
    mark = f"MILLRACE_TEST_TREE={uuid.uuid4().hex}"
    os.environ |= dict([mark.split("=")]) | {"PYTHONPATH": str(ROOT)}
    _say("ours, unbroken")
    unbroken = line.run("train", _job(line, "unbroken", steps))
    job = _job(line, "killed", steps)
    _say(f"ours, {num_kills} kills")
    tally = kill_again_and_again(job, Tree(folder, mark), num_kills, seed)
    resumed = line.run("train", job)
    _say(f"ours: {tally}")
    return resumed.digest == unbroken.digest, tally


def _job(line: Line, key: str, steps: int) -> Job:
    train = {"steps": steps, "checkpoint_every": EVERY, "validate_every": steps // 4}
    return line.job(key, train=line.spec.train.model_dump() | train)


def _beyond_interval(tally: Tally) -> float:
    """The most seconds lost by one kill, less the time between two checkpoints."""
    interval = max(tally.interval_seconds, default=0.0)
    return max(0.0, max(tally.lost_seconds, default=0.0) - interval)


def _stall_of_ours(line: Line) -> float:
    """Share of the loop's time, with the network, batch and interval of the others."""
    _say("ours, the stall")
    train: dict[str, Any] = {
        "steps": peer.STEPS,
        "batch": peer.BATCH,
        "checkpoint_every": peer.EVERY,
        "validate_every": peer.STEPS,
        "ranks": 1,
    }
    network = {"name": "mlp", "width": peer.WIDTH, "depth": 3, "dropout": peer.DROPOUT}
    section = line.spec.train.model_dump() | train
    made = line.run("train", line.job("stall", network=network, train=section))
    return float(made.measured["checkpoint_stall"])


def _kill_peer(name: str, folder: Path, num_kills: int, asked: argparse.Namespace) -> Found:
    """Unbroken, then killed at random steps until it has been often enough, then to the end."""
    draw = random.Random(asked.seed)  # noqa: S311  a fixed seed, not a secret
    python = asked.peer_python if name in IN_PEERS_PYTHON else ""

    def go(where: str, die_at: int) -> dict[str, Any]:
        argv = ("benchmarks.peers.resume", name, str(folder / f"{name}-{where}"), str(die_at))
        return run(Setting(argv, python))

    found = Found()
    _say(f"{name}, {num_kills} kills")
    try:
        unbroken = go("unbroken", 0)
    except (OSError, RuntimeError) as error:
        found.refused = " ".join(str(error).split())[:200]
        return found
    killed_at = 0
    # Each kill is in an interval of its own, so that all of them are come to.
    for number in range(num_kills + 1):
        low, high = (peer.STEPS * at // num_kills for at in (number, number + 1))
        die_at = draw.randrange(low + 1, high) if number < num_kills else 0
        told = go("killed", die_at)
        if number:
            found.lost_steps.append(killed_at - told["resumed_at"])
        killed_at = die_at
        found.num_kills += "digest" not in told
    if "digest" not in told:
        found.refused = f"resumed at step {told['resumed_at']}, it did not come to its end"
        return found
    found.is_equal = told["digest"] == unbroken["digest"]
    found.stall = unbroken["stall_seconds"] / unbroken["seconds"]
    found.version = str(told["version"])
    return found


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
