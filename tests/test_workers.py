import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from millrace.data.workers import WORTH_BYTES, Task, num_cores, num_workers, work_through
from millrace.errors import CorruptError, ProcessDiedError, ProcessFailedError

ENOUGH = WORTH_BYTES + 1


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def fail(error: Exception, number: int) -> int:
    if number == 3:
        raise error
    return number


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def described(number: int) -> str:
    return f"square {number}"


def imports(_: int) -> bool:
    return "torch" in sys.modules


def test_every_item_is_worked_on_once_by_several_processes() -> None:
    found = dict(work_through(Task(square, described), range(40), 2))

    assert [found[number][0] for number in range(40)] == [number**2 for number in range(40)]
    processes = {pid for _, pid in found.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_one_worker_is_this_process() -> None:
    found = list(work_through(Task(square, described), range(3), 1))

    assert found == [(number, (number**2, os.getpid())) for number in range(3)]


def test_there_are_no_more_workers_than_items() -> None:
    found = dict(work_through(Task(square, described), [5], 8))

    assert found[0][0] == 25


@pytest.mark.parametrize("size", [1, 2])
def test_an_error_of_ours_comes_out_as_it_was(size: int) -> None:
    error = CorruptError("read a.jsonl", "it is torn", "Replace it")

    with pytest.raises(CorruptError) as caught:
        list(work_through(Task(partial(fail, error), described), range(8), size))

    assert caught.value.to_event() == error.to_event()


def test_another_error_comes_with_the_item_and_where_it_was_raised() -> None:
    task = Task(partial(fail, KeyError("lost")), described)

    with pytest.raises(ProcessFailedError, match="square 3: it failed with") as caught:
        list(work_through(task, range(8), 2))

    assert "KeyError: 'lost'" in caught.value.found


def test_a_killed_worker_is_an_error_that_names_what_it_worked_on() -> None:
    with pytest.raises(
        ProcessDiedError, match="square 3: the worker process was killed by SIGKILL"
    ):
        list(work_through(Task(die, described), range(8), 2))


def test_workers_load_no_torch() -> None:
    assert not any(loaded for _, loaded in work_through(Task(imports, described), range(4), 2))


def test_workers_die_with_their_parent() -> None:
    code = """
import os, signal
from tests.test_workers import Task, described, square, work_through

for number, (_, pid) in work_through(Task(square, described), range(4), 2):
    print(pid, flush=True)
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )

    pids = {int(line) for line in found.stdout.split()}
    assert found.returncode == -signal.SIGKILL
    assert pids
    wait_for(lambda: not any(map(is_alive, pids)), "a worker outlived its parent")


def wait_for(is_true: Callable[[], Any], why: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, why
        time.sleep(0.002)  # nothing tells us what processes that are not our children do


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def test_small_work_and_a_store_in_memory_stay_in_this_process() -> None:
    assert num_workers(10**6, ENOUGH, ["/a", "s3://b"]) == num_cores()
    assert num_workers(1, ENOUGH, ["/a"]) == 1
    assert num_workers(0, ENOUGH, ["/a"]) == 1
    assert num_workers(10, WORTH_BYTES, ["/a"]) == 1
    assert num_workers(10, ENOUGH, ["/a", "memory://b"]) == 1
