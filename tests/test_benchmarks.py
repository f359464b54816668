import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.orders import BATCH, variances
from benchmarks.predict import RIVALS, Told
from benchmarks.result import Bar, as_told
from millrace.plan.time_model import default_constants
from tests.plan_runs import draw_works, entry_of_run, run_of

ROOT = Path(__file__).parents[1]


def test_a_benchmark_started_as_a_script_from_anywhere_reports_missing_peers(
    tmp_path: Path,
) -> None:
    script = str(ROOT / "benchmarks" / "shuffle.py")
    kept = sorted((ROOT / "benchmarks" / "results").iterdir())

    found = subprocess.run(
        [sys.executable, script, "--quick", "--peer-python", str(tmp_path / "none")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["bars"]["variance of the batch mean against i.i.d., steady"] < 6
    assert "- mds_py1e: none (failed: " in found.stdout
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == kept


def test_a_permutation_is_mixed_and_stored_order_is_not() -> None:
    places = np.arange(BATCH * 400)

    mixed = variances(np.random.default_rng(0).permutation(places), len(places))
    stored = variances(places, len(places))

    assert mixed["whole"] == pytest.approx(1, abs=0.3)
    assert stored["whole"] == pytest.approx(BATCH, rel=0.01)


@pytest.mark.parametrize(
    ("measured", "is_ceiling", "verdict"),
    [
        (2.0, False, "reached"),
        (0.5, False, "missed"),
        (0.5, True, "reached"),
        (2.0, True, "missed"),
        (float("nan"), True, "not measured"),
    ],
)
def test_a_bar_is_reached_missed_or_not_measured(
    measured: float, is_ceiling: bool, verdict: str
) -> None:
    assert Bar("ratio", measured, 1.0, is_ceiling).verdict == verdict


def test_a_result_names_no_path_of_the_machine_it_was_measured_on(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")

    assert as_told(["--data", folder, "--case", "maxcut"]) == ["--data", "DATA", "--case", "maxcut"]
    assert as_told(["--peer-python", ".venv/bin/python"]) == ["--peer-python", ".venv/bin/python"]


def test_rivals_of_the_time_model_have_their_constants_from_the_same_runs() -> None:
    runs = [run_of(work, default_constants("cpu"), factor=2.0) for work in draw_works(30)]
    entries = [entry_of_run(run, number) for number, run in enumerate(runs)]
    told = Told()

    for number in range(20, 30):
        told.add(entries[number], entries[:number])

    ours = np.mean(told.errors)
    assert ours < 0.1
    assert set(told.rivals) == set(RIVALS)
    assert all(np.mean(errors) > 2 * ours for errors in told.rivals.values())
    assert len(told.held) == 10
