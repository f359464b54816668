import os
import subprocess
import sys
from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.errors import ProcessFailedError, SourceError, StorageError
from millrace.launch import follow, write_job
from tests.pipelines_for_tests import NAME, ROOT, Line, Tree


def test_a_step_tells_its_progress_and_what_it_made(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")

    said = list(follow("ingest", line.job()))

    kinds = [event["event"] for event in said]
    assert kinds == ["progress", "made"]
    made = manifests.read(line.storage, said[-1]["path"])
    assert made.digest == manifests.current(points.storage, NAME, "source_files").digest
    assert not list((line.root / "work" / "jobs").iterdir())


def test_the_seconds_of_a_step_are_priced(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")

    made = line.run("pack", line.job("other-shards"))

    assert 0 < made.seconds < 60
    assert made.usd == pytest.approx(made.seconds)  # at 3,600 dollars an hour


def test_an_error_of_a_step_comes_back_as_its_own_kind(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job(source={"url": "*.missing"})

    with pytest.raises(SourceError) as caught:
        list(follow("ingest", job))

    assert "*.missing" in caught.value.asked
    assert caught.value.fix
    assert not list((line.root / "work" / "jobs").iterdir())


def test_an_error_that_is_not_ours_comes_with_its_last_words(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("shards").model_copy(update={"inputs": {}})

    with pytest.raises(ProcessFailedError, match="KeyError: 'source_files'") as caught:
        list(follow("pack", job))

    assert "exited with 1" in caught.value.found


def test_a_work_folder_that_cannot_be_written_is_named(points: Line, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = points.job().model_copy(update={"work": str(tmp_path / "file" / "work")})

    with pytest.raises(StorageError, match="MILLRACE_WORK"):
        write_job(job, "train")


def test_a_process_whose_parent_died_before_it_was_tied_ends_at_once(tree: Tree) -> None:
    code = "from millrace.launch import tie_to_parent; tie_to_parent(); print('alive')"
    command = [sys.executable, "-c", code]

    orphan = subprocess.run(
        command, env=os.environ | {"MILLRACE_PARENT_PID": "1"}, capture_output=True, check=False
    )
    child = subprocess.run(
        command,
        env=os.environ | {"MILLRACE_PARENT_PID": str(os.getpid())},
        capture_output=True,
        check=False,
    )

    assert (orphan.returncode, orphan.stdout) == (-9, b"")
    assert (child.returncode, child.stdout) == (0, b"alive\n")
    assert not tree.pids()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["train", "a", "b"]])
def test_an_unknown_command_shows_the_usage(arguments: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "millrace", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )

    assert found.returncode == 2
    assert found.stderr.startswith("usage: python -m millrace predict PIPELINE")
    assert found.stdout == ""
