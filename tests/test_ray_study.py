"""Studies with workers on a Ray cluster of this machine; skipped where Ray is not installed."""

import os
import signal
from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.errors import ProcessFailedError, StorageError
from millrace.job import Job
from millrace.launch import follow
from tests.pipelines_for_tests import NAME, Line, Tree, events

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


def on_ray(job: Job) -> Job:
    return job.model_copy(update={"launcher": "ray"})


def parent_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return int(words[1])


def test_a_study_on_ray_loses_an_actor_and_ends_with_the_bits_of_this_machine(
    points: Line, tuned_points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")

    said, killed = [], 0
    for event in events(tree.follow("tune", on_ray(line.job("study")))):
        said.append(event)
        if event["event"] == "rung" and event["trial"] == 1 and not killed:
            killed = parent_of(tree.pids("millrace worker")[0])
            os.kill(killed, signal.SIGKILL)

    messages = [event.get("message", "") for event in said]
    assert said[-1]["event"] == "made", said[-5:]
    assert any("worker died (exit status -9)" in message for message in messages)
    made = manifests.read(line.storage, said[-1]["path"])
    assert made.digest == manifests.current(tuned_points.storage, NAME, "study").digest
    assert tree.is_gone()


def test_an_error_of_a_network_on_ray_ends_the_study_with_its_last_words(
    points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    search = line.spec.search.model_dump() | {"ranks": 2}  # of a gang, on an actor
    job = line.job("study", network={"name": "networks.py:Raising"}, search=search)

    with pytest.raises(ProcessFailedError, match=r"exited with 1(.|\n)*the flux capacitor"):
        list(follow("tune", on_ray(job)))

    assert tree.is_gone()


def test_a_machine_of_ray_without_room_for_scratch_says_so(
    points: Line, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = points.copy(tmp_path / "line")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MILLRACE_WORK", str(tmp_path / "file"))

    with pytest.raises(StorageError, match="MILLRACE_WORK"):
        list(follow("tune", on_ray(line.job("study"))))

    assert tree.is_gone()


def test_workers_find_room_on_machines_with_enough_for_all_their_ranks() -> None:
    # Imported here: it loads Ray, which the other tests leave to their children.
    from millrace.tune.ray_workers import num_places  # noqa: PLC0415

    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}, {"memory": 1e9}]

    assert num_places(machines, 4, "CPU") == 2
    assert num_places(machines, 1, "CPU") == 11
    assert num_places(machines, 2, "CPU", "GPU") == 1
    assert num_places(machines, 4, "CPU", "GPU") == 0
