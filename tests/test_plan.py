import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.errors import SpecError
from millrace.job import Job
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.plan import history
from millrace.plan.command import in_lines
from millrace.plan.evidence import Evidence, evidence_key, extremes
from millrace.plan.forecast import plan
from millrace.plan.outlook import Outlook, Past, expected_work, foresee, refusal
from millrace.plan.spread import Interval
from millrace.plan.time_model import default_constants
from millrace.spec import PipelineSpec, TrainSpec
from tests.pipelines_for_tests import NAME, ROOT, Line
from tests.plan_runs import build_work, entry_of_run, run_of
from tests.test_options import PRICES

WORK = build_work(batch=16, steps=300)
EVIDENCE = Evidence(key="k", work=WORK, trial=WORK.model_copy(update={"ranks": 1}))
NOTHING_YET = Past([], [])


def planned(line: Line, key: str, **sections: object) -> Manifest:
    """Plan in a process of its own."""
    return line.run("forecast", line.job(key, **sections))


def outlook_of(made: Manifest) -> Outlook:
    return Outlook.model_validate(made.measured["outlook"])


@pytest.fixture
def line(points: Line, tmp_path: Path) -> Line:
    return points.copy(tmp_path / "line")


@pytest.fixture
def shards(line: Line) -> Manifest:
    return manifests.current(line.storage, NAME, "shards")


def test_what_never_ran_is_planned_by_a_probe_and_told_to_be(line: Line) -> None:
    made = planned(line, "first")

    outlook, evidence = outlook_of(made), Evidence.model_validate(made.measured["evidence"])
    assert outlook.basis == "a probe of 20 steps and 0 recorded trainings"
    assert 0 < outlook.training.low < outlook.training.value < outlook.training.high
    assert 0 < outlook.study.low < outlook.study.value
    assert 2**26 < outlook.memory_bytes.value < 2**33
    assert evidence.work.flops_per_sample > 0
    assert evidence.work.parameters == made.facts["parameters"]
    assert {work.batch for work in evidence.variants} == {8, 32}


def test_trials_on_ranks_are_planned_and_probed_by_the_share_of_one(line: Line) -> None:
    search = line.spec.search.model_dump() | {"ranks": 4}
    space = {"train.learning_rate": search["space"]["train.learning_rate"]}

    made = planned(line, "on ranks", search=search | {"space": space})

    evidence = Evidence.model_validate(made.measured["evidence"])
    assert (evidence.trial.ranks, evidence.trial.share) == (4, 4)
    assert {(run.work.ranks, run.work.batch) for run in evidence.probes} == {(1, 8), (1, 4)}


def test_a_second_plan_of_the_same_training_asks_no_probe(line: Line) -> None:
    first = planned(line, "first")
    longer = line.spec.train.model_dump() | {"steps": 3000}

    second = planned(line, "second", train=longer)

    assert second.measured["evidence"]["key"] == first.measured["evidence"]["key"]
    assert second.measured["evidence"]["probes"] == first.measured["evidence"]["probes"]
    short, long = outlook_of(first), outlook_of(second)
    assert long.training.value > short.training.value + 2700 * short.step_seconds
    assert second.facts["steps"] == 3000


def test_another_network_or_machine_needs_evidence_of_its_own(line: Line, shards: Manifest) -> None:
    job = line.job("plan")
    wider = line.job("plan", network=line.spec.network.model_dump() | {"width": 16})
    elsewhere = job.model_copy(update={"machine": "cloud-cpu-spot"})

    keys = {evidence_key(one, shards, 2) for one in (job, wider, elsewhere)}

    assert len(keys | {evidence_key(job, shards, 4)}) == 4
    longer = line.job("plan", train=line.spec.train.model_dump() | {"steps": 9})
    assert evidence_key(longer, shards, 2) in keys


def test_a_step_keeps_a_record_with_what_was_expected_of_it(line: Line) -> None:
    outlook = outlook_of(planned(line, "plan"))
    short = line.spec.train.model_dump() | {"steps": 40, "ranks": 1}

    said = list(follow("train", line.job("first", train=short)))

    (entry,) = history.newest(line.storage, NAME, "checkpoint")
    expected = next(event for event in said if event["event"] == "expected")
    assert entry.predicted == outlook.training
    assert expected["seconds"] == outlook.training.value
    assert entry.seconds > 0
    assert entry.outside_seconds > 0
    assert entry.memory_bytes > 2**20
    assert entry.work is not None
    assert entry.timing is not None
    assert (entry.work.steps, entry.work.ranks) == (40, 1)
    parts = entry.timing
    known = parts.start_seconds + parts.loop_seconds + parts.validation_seconds
    assert known <= entry.seconds * 1.01
    assert parts.waited_seconds <= parts.loop_seconds


def test_a_plan_without_a_probe_goes_by_the_last_training(
    trained_points: Line, points: Line, tmp_path: Path
) -> None:
    unknown = points.copy(tmp_path / "unknown")
    shards = manifests.current(unknown.storage, NAME, "shards")
    with pytest.raises(SpecError, match="without a probe"):
        plan(unknown.job(), unknown.storage, shards, may_probe=False)

    evidence, outlook = plan(trained_points.job(), trained_points.storage, shards, may_probe=False)

    assert outlook.basis == "no probe and 1 recorded training"
    (entry,) = history.newest(trained_points.storage, NAME, "checkpoint")
    assert evidence.work == entry.work
    assert outlook.training.value == pytest.approx(entry.seconds, rel=0.5)


def run_command(line: Line, *arguments: str) -> "subprocess.CompletedProcess[str]":
    folder = line.root / "source"
    sections = {"type": "assets.Pipeline", "attributes": line.spec.model_dump(mode="json")}
    (folder / "defs.yaml").write_text(json.dumps(sections))
    return subprocess.run(
        [
            *(sys.executable, "-m", "millrace", "plan", NAME),
            *("--store", line.storage.url, "--folder", str(folder)),
            *arguments,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=line.root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_a_table_and_ends_in_one_json_object(line: Line) -> None:
    before = line.storage.list("")

    found = run_command(line, "--deadline-hours", "2")

    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["deadline_hours"] == 2
    assert told["chosen"] == "cloud-cpu-spot"
    assert told["usd"]["training"]["low"] > 0
    names = [one["machine"] for one in told["options"]]
    assert names[0] == "local"
    assert "cloud-h100-on-demand" in names
    for words in ("training", "memory", "energy", "not measured", "is the cheapest"):
        assert words in found.stdout
    assert line.storage.list("") == before  # it keeps nothing


def test_the_command_refuses_what_cannot_be_afforded(line: Line) -> None:
    train = line.spec.train.model_dump() | {"max_hours": 1e-6}
    cheap = Line(line.root, line.spec.with_parts({"train": train}))

    found = run_command(cheap)

    assert found.returncode == 1
    assert "refused: train p within train.max_hours 1e-06: even the low end" in found.stdout
    assert json.loads(found.stdout.splitlines()[-1])["refused"]


def test_the_command_says_what_to_materialize_first(line: Line) -> None:
    found = run_command(line, "--store", str(line.root / "empty"))

    assert found.returncode == 1
    assert "Materialize p/shards first" in found.stderr


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ""),
        ({"max_usd": 50.0, "max_hours": 1.0}, ""),
        ({"max_usd": 0.09}, r"max_usd 0\.09: even the low end of its predicted price is 0\.1 USD"),
        ({"max_hours": 0.01}, r"max_hours 0\.01: even the low end of its predicted time is"),
    ],
)
def test_a_run_is_refused_when_even_its_low_end_is_too_much(
    limits: dict[str, float], words: str
) -> None:
    train = TrainSpec.model_validate({"steps": 1, "batch": 2, **limits})
    training = Interval(value=200.0, low=100.0, high=400.0)

    found = refusal("p", train, training, usd_per_hour=3.6)

    assert (found is None) == (not words)
    if found is not None:
        with pytest.raises(type(found), match=words):
            raise found


def foreseen(spec: PipelineSpec, past: Past = NOTHING_YET, hours: float = 1e9) -> Outlook:
    return foresee(spec, EVIDENCE, past, PRICES, "local", 4, hours)


def test_recorded_trainings_narrow_the_interval_around_what_they_took(points: Line) -> None:
    slow = run_of(WORK, default_constants("cpu"), factor=2.0)
    entries = [entry_of_run(slow, number) for number in range(12)]

    before, after = foreseen(points.spec), foreseen(points.spec, Past(entries, []))

    width = [one.training.high / one.training.low for one in (before, after)]
    assert width[0] > 2
    assert width[1] < 1.3
    assert after.training.value > 1.5 * before.training.value
    assert after.basis.endswith("12 recorded trainings")


def test_trainings_recorded_on_another_machine_tell_its_speed(points: Line) -> None:
    fast = run_of(WORK, default_constants("cpu"), factor=0.25)
    there = [entry_of_run(fast, number, machine="gpu") for number in range(5)]

    found = {option.machine: option for option in foreseen(points.spec, Past(there, [])).options}

    assert found["gpu"].basis == "recorded runs there"
    assert found["gpu"].seconds.value == pytest.approx(found["local"].seconds.value / 4, rel=0.1)


def test_studies_are_predicted_by_earlier_ones_once_there_are_some(points: Line) -> None:
    run = run_of(WORK, default_constants("cpu"))
    search, batch = points.spec.search, points.spec.train.batch
    size = search.trials * search.steps * batch * 7 / 27
    studies = [
        entry_of_run(run, n, noun="study", seconds=50.0, size=size, work=None, timing=None)
        for n in range(10)
    ]

    found = foreseen(points.spec, Past([], studies))

    assert found.study.value == pytest.approx(50, rel=0.02)
    assert found.study.high < 55


def test_without_an_option_inside_the_deadline_none_is_chosen(points: Line) -> None:
    found = foreseen(points.spec, hours=1e-9)

    assert found.chosen == ""
    assert "no option is sure to end inside the deadline" in "\n".join(
        in_lines("p", points.spec, found)
    )


def test_the_training_is_expected_to_be_of_the_size_that_the_last_study_chose() -> None:
    wide = WORK.model_copy(update={"parameters": 2 * WORK.parameters, "steps": 7})
    evidence = EVIDENCE.model_copy(
        update={"variants": (wide.model_copy(update={"parameters": 3 * WORK.parameters}),)}
    )
    entry = entry_of_run(run_of(wide, default_constants("cpu")))

    assert expected_work(evidence, []) == WORK
    found = expected_work(evidence, [entry])
    assert (found.parameters, found.steps) == (wide.parameters, WORK.steps)
    huge = wide.model_copy(update={"parameters": 9 * WORK.parameters})
    other = entry_of_run(run_of(huge, default_constants("cpu")))
    assert expected_work(evidence, [entry, other]) == WORK


def test_only_fields_that_change_a_step_are_looked_at_their_ends(points: Line) -> None:
    batches = [spec.train.batch for spec in extremes(points.spec)]

    assert batches == [8, 32]


def test_a_job_names_the_machine_and_the_price_file_it_is_planned_with(line: Line) -> None:
    prices = line.root / "prices.yaml"
    prices.write_text("machines: {mine: {usd_per_hour: 7}}")
    job: Job = line.job("plan").model_copy(
        update={"machine": "mine", "price_file": str(prices), "usd_per_hour": 7.0}
    )

    outlook = outlook_of(line.run("forecast", job))

    assert [option.name for option in outlook.options] == ["mine"]
    assert outlook.here.usd.value == pytest.approx(7 * outlook.here.seconds.value / 3600)
