"""Trainings through Ray Train on a cluster of this machine; skipped where Ray is not installed."""

from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.errors import TrainingError
from millrace.launch import follow
from tests.pipelines_for_tests import NAME, Line, Tree, events

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


def test_ray_ends_with_the_bits_of_torch_elastic_after_a_killed_rank(
    points: Line, trained_points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("checkpoint").model_copy(update={"launcher": "ray"})

    following = events(tree.follow("train", job))
    next(event for event in following if event["event"] == "checkpoint")
    tree.kill("millrace rank")
    said = list(following)

    assert [event["event"] for event in said].count("made") == 1, said[-5:]
    path = next(event["path"] for event in said if event["event"] == "made")
    made, unbroken = (
        manifests.read(line.storage, path),
        manifests.current(trained_points.storage, NAME, "checkpoint"),
    )
    assert made.measured["resumed_at"] >= 50
    assert made.digest == unbroken.digest
    assert tree.is_gone()


def test_leaving_early_stops_ray_and_all_it_started(
    points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("checkpoint").model_copy(update={"launcher": "ray"})

    following = follow("train", job)
    next(event for event in following if event["event"] == "checkpoint")
    following.close()  # type: ignore[attr-defined]  # a generator is an Iterator with more to it

    assert tree.is_gone()


def test_an_error_of_a_rank_ends_a_training_on_ray(
    points: Line, tree: Tree, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("checkpoint", network={"name": "networks.py:Nan"})

    with pytest.raises(TrainingError, match="the loss is nan"):
        list(follow("train", job.model_copy(update={"launcher": "ray"})))

    assert not [path for path in line.storage.list(f"{NAME}/checkpoint") if "manifest" in path]
