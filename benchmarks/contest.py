"""Contestants of a benchmark: fresh processes, in turn, each with the best of its settings."""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.process_tree import memory_bytes
from millrace.launch import environment_of_child

ROOT = Path(__file__).parents[1]
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
LONGEST_SECONDS = 240.0
WATCH_SECONDS = 0.2
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
Told = dict[str, Any]
"""The line of JSON that a contestant's process prints last."""


@dataclass(frozen=True)
class Asked:
    """The command line of a benchmark with contestants."""

    runs: int
    peer_python: str
    quick: bool


def parse(description: str) -> Asked:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-python", default=str(PEER_PYTHON))
    parser.add_argument("--quick", action="store_true", help="little data, one run, no file")
    told = parser.parse_args()
    return Asked(1 if told.quick else told.runs, told.peer_python, told.quick)


@dataclass(frozen=True)
class Setting:
    """One way to run a contestant.

    Args:
        argv: Module and its arguments; `{run}` in them is the run's number, from 0.
        python: The interpreter; this one by default.
        name: What it is called in the result: `2 loader processes`.
        keeps_freed: Whether malloc keeps what is freed, as in Millrace's own processes.
    """

    argv: Sequence[str]
    python: str = ""
    name: str = ""
    keeps_freed: bool = True


@dataclass
class Outcome:
    """What a contestant told in each run with the best of its settings, or why it did not."""

    told: list[Told] = field(default_factory=list)
    best: str = ""
    refused: str = ""

    def values(self, measure: str) -> list[float]:
        """One measure of every run."""
        return [float(told[measure]) for told in self.told]

    def median(self, measure: str) -> float:
        """Of all runs; NaN if there was none."""
        return statistics.median(self.values(measure)) if self.told else math.nan

    def most(self, measure: str) -> float:
        """Of all runs; NaN if there was none."""
        return max(self.values(measure), default=math.nan)


def hold(
    contestants: Mapping[str, Sequence[Setting]],
    runs: int,
    score: Callable[[Told], float],
    *,
    before: Callable[[], None] = lambda: None,
    watched: Path | None = None,
) -> dict[str, Outcome]:
    """Run all contestants in turn, `runs` times; the first time with each of their settings.

    Args:
        contestants: By name, ours first.
        runs: How often; a setting's trial is the first of its runs.
        score: Of two settings the one with more goes on.
        before: Called before each process.
        watched: The folder of the input, if peak memory is to be measured: without what is mapped
            from there.
    """
    outcomes = {name: Outcome() for name in contestants}
    left = {name: list(settings) for name, settings in contestants.items()}
    for number in range(runs):
        for name, settings in left.items():
            outcome = outcomes[name]
            tried: list[tuple[Setting, Told]] = []
            for setting in settings:
                _say(f"run {number + 1} of {runs}: {name} {setting.name}")
                before()
                try:
                    tried.append((setting, run(setting, number, watched=watched)))
                except (OSError, RuntimeError) as error:
                    outcome.refused = " ".join(str(error).split())[:300]
                    _say(f"    {outcome.refused}")
            if tried:
                best, told = max(tried, key=lambda one: score(one[1]))
                outcome.told.append(told)
                outcome.best, outcome.refused = best.name, ""
                left[name] = [best]
            else:
                left[name] = []
    return outcomes


def run(setting: Setting, number: int = 0, *, watched: Path | None = None) -> Told:
    """One process from start to end, and everything below it.

    Raises:
        RuntimeError: It failed, or took too long; with its last words.
        OSError: There is no such interpreter.
    """
    environment = environment_of_child() | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if not setting.keeps_freed:
        environment = {n: value for n, value in environment.items() if n not in _MALLOC}
    argv = [part.format(run=number) for part in setting.argv]
    with tempfile.TemporaryDirectory(prefix="millrace-contestant-") as home:
        # Files, not pipes: a loader process that outlives its parent would hold a pipe open.
        output, words = Path(home, "output"), Path(home, "words")
        with output.open("wb") as stdout, words.open("wb") as stderr:
            process = subprocess.Popen(
                [setting.python or sys.executable, "-m", *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=home,
                env=environment | {"HF_HOME": home, "TMPDIR": home},
                start_new_session=True,
            )
        watch = _Watch(process.pid, watched)
        try:
            process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took longer than {LONGEST_SECONDS:.0f} s") from None
        finally:
            watch.end()
            with suppress(ProcessLookupError):  # loader processes that outlived it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told = _last(output, "{")
        if not told:
            status = f"it ended with {process.returncode}"
            raise RuntimeError(_last(words, "") or status)
    found: Told = json.loads(told)
    return found | ({"peak_bytes": watch.peak_bytes} if watched else {})


def _last(path: Path, start: str) -> str:
    """The last line that is not empty and begins so."""
    lines = path.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip() and line.startswith(start)), "")


class _Watch:
    """The peak memory of a process and all below it, looked at from outside."""

    def __init__(self, pid: int, folder: Path | None) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(pid, str(folder)), daemon=True)
        if folder is not None:
            self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _look(self, pid: int, folder: str) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(pid, folder))


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")
    sys.stderr.flush()


def settings_lines(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Lines of Markdown: version and best setting of each contestant, or why it is missing."""
    lines = []
    for name, outcome in outcomes.items():
        version = outcome.told[0].get("version", "") if outcome.told else ""
        found = f"{version}; {outcome.best}".strip("; ") if outcome.told else "none"
        lines.append(f"- {name}: {found}{outcome.refused and f' (failed: {outcome.refused})'}")
    return lines
