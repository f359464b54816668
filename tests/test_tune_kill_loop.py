from pathlib import Path

from tests.pipelines_for_tests import Line, Tree
from tests.tune_kill_loop import COORDINATOR, PAUSE, VICTIMS, kill_studies


def test_a_study_whose_processes_are_killed_and_paused_ends_as_one_that_nobody_touched(
    points: Line, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")

    tally = kill_studies(line, tree, 4, trials=8, steps=90)

    assert tally.num_kills == 4
    assert set(tally.killed) <= {*VICTIMS}
    assert {PAUSE, COORDINATOR} <= set(tally.killed)
    assert tally.num_studies >= 1
    assert tally.num_different == tally.num_running == tally.num_miscounted == 0
    assert tally.num_strays == tally.num_hangs == 0
    assert tally.errors == []
    assert tree.is_gone()
