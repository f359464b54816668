from pathlib import Path

from millrace import manifest as manifests
from tests.pipelines_for_tests import NAME, Line, Tree
from tests.tune_kill_loop import COORDINATOR, KillLoop


def test_studies_whose_processes_are_killed_and_paused_end_as_one_that_nobody_touched(
    points: Line, tuned_points: Line, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")
    unbroken = manifests.current(tuned_points.storage, NAME, "study")

    tally = KillLoop(line.job, tree, unbroken, latest_seconds=0.2).run(3)

    assert tally.num_kills == 3
    assert tally.killed[COORDINATOR] == 1
    assert tally.num_studies >= 1
    assert tally.num_different == tally.num_running == tally.num_miscounted == 0
    assert tally.num_strays == tally.num_hangs == 0
    assert tally.errors == []
    assert tree.is_gone()
