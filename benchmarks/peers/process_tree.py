"""CPU seconds and memory of a process and all that it started, from Linux's /proc."""

import os
import resource
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _TIMES = 1, slice(11, 15)
"""Fields of /proc/PID/stat behind the name: the parent; own and ended children's CPU ticks."""


def cpu_seconds() -> float:
    """Of this process, its ended children, and all that still run below it."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        seconds += usage.ru_utime + usage.ru_stime
    told = _stats()
    below = _below(os.getpid(), told) - {os.getpid()}
    return seconds + sum(sum(map(int, told[pid][_TIMES])) for pid in below) / _TICKS


def memory_bytes(pid: int, folder: str) -> int:
    """Resident bytes of a process and all below it, shared pages counted once in all.

    Args:
        pid: The process.
        folder: Files below it are the input: their mapped pages do not count.
    """
    return sum(_resident(one, folder) for one in _below(pid, _stats()))


def _resident(pid: int, folder: str) -> int:
    total, counts = 0, True
    try:
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024 if counts else 0
            elif line[0] in "0123456789abcdef":  # a mapping's first line; it ends in the file
                counts = folder not in line
    except OSError:  # it has ended
        return 0
    return total


def _stats() -> dict[int, list[str]]:
    """The fields of every process behind its name, by pid."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                found[int(path.name)] = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
    return found


def _below(pid: int, told: dict[int, list[str]]) -> set[int]:
    """The process and all its descendants."""
    found = {pid}
    while more := {one for one, stat in told.items() if int(stat[_PARENT]) in found} - found:
        found |= more
    return found
