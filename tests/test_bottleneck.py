from dataclasses import replace

import pytest

from millrace.manifest import Manifest
from millrace.plan.account import calibration
from millrace.plan.bottleneck import Saving, savings, sentence, shares
from millrace.plan.spread import Interval
from millrace.plan.time_model import default_constants
from millrace.spec import PipelineSpec
from tests.conftest import BuildSpec
from tests.plan_runs import build_work, entry_of_run, run_of

CONSTANTS = default_constants("cpu")
RUN = run_of(build_work(ranks=2), CONSTANTS)


def build_study(seconds: float = 100.0, best_trial: int = 3) -> Manifest:
    return Manifest("p", "study", "k", facts={"best_trial": best_trial}, seconds=seconds)


def changes(spec: PipelineSpec, study: Manifest, **timing: float) -> dict[str, Saving]:
    run = RUN.model_copy(update={"timing": RUN.timing.model_copy(update=timing)})
    found = savings(spec, study, run, CONSTANTS, 24.0, usd_per_hour=3600.0, num_cores=2)
    assert found == sorted(found, key=lambda saving: -saving.usd)
    return {saving.fix: saving for saving in found}


def test_the_time_is_told_by_what_it_was_spent_on_and_adds_up() -> None:
    timing = RUN.timing.model_copy(update={"waited_seconds": 1.0, "stall_seconds": 0.25})
    run = RUN.model_copy(update={"timing": timing})
    checkpoint = Manifest("p", "checkpoint", "k", seconds=run.seconds + 0.25)
    made = {"study": build_study(), "checkpoint": checkpoint}

    found = shares(made, run, CONSTANTS, launch_seconds=4.0)

    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert next(iter(found)) == "study"
    assert found["training: waiting for data"] == 1
    assert found["training: launch"] == 4
    assert found["training: all-reduce"] > 0
    assert sum(found.values()) == pytest.approx(100 + run.seconds + 0.25 + 4)


def test_a_training_that_told_no_parts_is_told_whole() -> None:
    made = {"checkpoint": Manifest("p", "checkpoint", "k", seconds=7.0)}

    assert shares(made, None, CONSTANTS, 0.0) == {"checkpoint": 7.0}


def test_waiting_for_data_would_all_be_saved(build_spec: BuildSpec) -> None:
    found = changes(build_spec(), build_study(), waited_seconds=3.0)

    (fix,) = [fix for fix in found if "MILLRACE_CACHE_BYTES" in fix]
    assert (found[fix].seconds, found[fix].usd) == (3.0, 3.0)


def test_half_of_the_validations_would_do(build_spec: BuildSpec) -> None:
    spec = build_spec(train={"steps": 100, "batch": 4, "validate_every": 50})

    found = changes(spec, build_study(), validation_seconds=8.0)

    assert found["`train.validate_every: 100`"].seconds == pytest.approx(4.0)


def test_a_study_that_chose_the_spec_as_written_was_too_long(build_spec: BuildSpec) -> None:
    spec = build_spec()

    kept, moved = changes(spec, build_study(best_trial=0)), changes(spec, build_study())

    assert any("search.trials: 6" in fix for fix in kept)
    assert not any("search.trials" in fix for fix in moved)


def test_checkpoints_at_every_step_would_be_saved_by_youngs_interval(
    build_spec: BuildSpec,
) -> None:
    often = build_spec(train={"steps": 100, "batch": 4, "checkpoint_every": 1})

    found = changes(often, build_study(), num_checkpoints=99, stall_seconds=9.9)

    assert found["`train.checkpoint_every: auto`"].seconds == pytest.approx(9.9, rel=0.1)
    auto = changes(build_spec(), build_study(), num_checkpoints=99, stall_seconds=9.9)
    assert "`train.checkpoint_every: auto`" not in auto


def test_ranks_that_only_talk_to_each_other_would_be_saved(build_spec: BuildSpec) -> None:
    talkative = replace(CONSTANTS, step=replace(CONSTANTS.step, hop=1.0))

    found = savings(build_spec(), build_study(), RUN, talkative, 24.0, 3600.0, 2)

    assert found[0].fix.startswith("`train.ranks: 1`")
    assert found[0].seconds > 0.5 * RUN.seconds


def test_the_sentence_names_what_takes_most_and_the_change_that_saves_most() -> None:
    spent = {"study": 60.0, "training: updates": 40.0}
    fixes = [Saving("this", 0.5, seconds=20.0), Saving("that", 0.1, seconds=4.0)]

    told = sentence(spent, fixes, total_usd=2.0)

    assert told == (
        "study takes most, 60 s of 100 s; the cheapest fix is this: saves 20 s and $0.50 (25%)"
    )
    assert sentence(spent, fixes[1:], total_usd=100.0).endswith("saves 2% of the price")
    assert sentence(spent, [], total_usd=0.0).endswith("saves 2% of the price")


def test_calibration_tells_ratios_and_how_many_intervals_held() -> None:
    predicted = Interval(value=RUN.seconds, low=RUN.seconds / 2, high=RUN.seconds * 2)
    entries = [
        entry_of_run(RUN, 0),
        entry_of_run(RUN, 1, predicted=predicted),
        entry_of_run(RUN, 2, predicted=predicted, seconds=3 * RUN.seconds),
    ]

    found = calibration(entries)

    assert found["ratios"] == pytest.approx([1.0, 3.0])
    assert (found["lows"], found["highs"]) == ([0.5, 0.5], [2.0, 2.0])
    assert found["num_held"] == 1
