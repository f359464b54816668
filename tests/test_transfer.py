import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from millrace.frozen import Scalar
from millrace.launch import write_job
from millrace.spec import PipelineSpec
from millrace.tune.connection import LocalWorker
from millrace.tune.pictures import transfer_chart
from millrace.tune.pool import WorkerPool
from millrace.tune.rates import Extrapolation, Trained
from millrace.tune.rung import Rung
from millrace.tune.study import tune
from millrace.tune.transfer import (
    RATE,
    SHARE,
    WIDTH,
    Optimum,
    Transfer,
    full_trial_seconds,
    is_too_dear,
    reason_against,
    small_widths,
    through,
    transfer,
)
from tests.pipelines_for_tests import Line, Tree

SPACE = {RATE: {"low": 2.0**-12, "high": 2.0**-3, "log": True}}


def spec_of(network: Any, space: Mapping[str, Any] = SPACE, trials: int = 10) -> PipelineSpec:
    kind = "classification" if str(network).find("mlp") >= 0 else "language_model"
    task = {"kind": kind, "shape": [4]} if kind == "classification" else {"kind": kind}
    return PipelineSpec.model_validate(
        {
            "source": {"url": "*.jsonl"},
            "task": task,
            "network": network,
            "train": {"steps": 100, "batch": 16, "learning_rate": 0.01},
            "search": {"space": space, "trials": trials, "steps": 100},
        }
    )


class Lab:
    """Trains by a formula: the best rate goes by 1 / root of the width, the cost by its square."""

    def __init__(self, spec: PipelineSpec, worst: float = 2.0**-4) -> None:
        self._spec, self._worst = spec, worst
        self.asked: list[tuple[dict[str, Scalar], int]] = []
        self.seconds = 0.0

    def __call__(self, values: Sequence[Mapping[str, Scalar]], to: int) -> list[Rung]:
        return [self._train(dict(one), to) for one in values]

    def _train(self, values: dict[str, Scalar], to: int) -> Rung:
        self.asked.append((values, to))
        told = self._spec.values_at([WIDTH, RATE]) | values
        width, rate = float(told[WIDTH]), float(told[RATE])
        seconds = to * (width / 128) ** 2
        self.seconds += seconds
        loss = 3 - 0.1 * math.log2(width) + 0.1 * math.log2(rate / best_rate(width)) ** 2
        failed = "the loss is nan" if rate > self._worst else ""
        return Rung(math.nan if failed else loss, to, seconds, failed)


def best_rate(width: float) -> float:
    return 2.0**-5 / math.sqrt(width / 16)


def test_a_rate_found_on_smaller_widths_is_the_best_one_of_the_full_width() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    lab = Lab(spec)

    found = transfer(spec, budget_seconds=240.0, train=lab)

    assert found.why.startswith("on: a trial of width 128 takes 100 s, the budget has 24 s for")
    assert found.values[0][RATE] == pytest.approx(best_rate(128))
    assert [one.width for one in found.optima] == [16, 32]
    assert [one.rate for one in found.optima] == pytest.approx([best_rate(16), best_rate(32)])
    assert found.octave_loss == pytest.approx(0.1)
    assert found.seconds == pytest.approx(lab.seconds)
    assert found.seconds < SHARE * 240
    assert [to for values, to in lab.asked if not values] == [1, 1, 2, 6]  # two workers warm up
    assert {to for values, to in lab.asked if values} == {100}  # in full, at small widths alone
    assert all(int(values[WIDTH]) < 128 for values, _ in lab.asked if values)


def test_values_for_the_study_keep_the_specs_own_of_everything_else() -> None:
    space = SPACE | {"train.batch": {"choices": [8, 16]}, WIDTH: {"choices": [64, 128]}}
    spec = spec_of({"name": "gpt", "width": 128}, space)

    found = transfer(spec, budget_seconds=240.0, train=Lab(spec))

    assert found.values[0].keys() == space.keys()
    assert (found.values[0]["train.batch"], found.values[0][WIDTH]) == (16, 128)


@pytest.mark.parametrize(
    ("network", "space", "told"),
    [
        ({"name": "model.py:Net", "width": 128}, SPACE, "a network of one's own"),
        ({"name": "hf:some/model"}, SPACE, "the network hf:some/model has no width"),
        ({"name": "gpt", "width": 64}, SPACE, "width 64 has no two widths of at least 16"),
        ({"name": "gpt", "width": 128}, {WIDTH: {"choices": [64, 128]}}, "no range of `train.lea"),
        (
            {"name": "gpt", "width": 128},
            {RATE: {"choices": [0.01, 0.02]}},
            "no range of `train.lea",
        ),
    ],
)
def test_what_cannot_be_transferred_is_off_with_a_reason_and_costs_nothing(
    network: Any, space: Any, told: str
) -> None:
    spec = spec_of(network, space)
    lab = Lab(spec)

    found = transfer(spec, budget_seconds=1.0, train=lab)

    assert told in found.why
    assert found.why == reason_against(spec)
    assert not found.values
    assert not lab.asked


def test_a_study_without_a_budget_or_with_enough_of_it_searches_at_full_width() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    unbounded, rich = Lab(spec), Lab(spec)

    found = transfer(spec, math.inf, unbounded)
    afforded = transfer(spec, 251.0, rich)

    assert found.why == "off: no budget bounds the study, so it searches at full width"
    assert not unbounded.asked
    assert afforded.why.endswith("which is not 4 times less")
    assert afforded.seconds == rich.seconds == sum(to for _, to in rich.asked)
    assert not afforded.values


@pytest.mark.parametrize(("budget", "is_dear"), [(249.0, True), (250.0, False), (251.0, False)])
def test_a_trial_is_too_dear_at_more_than_four_times_its_share(
    budget: float, is_dear: bool
) -> None:
    assert is_too_dear(100.0, 10, budget) == is_dear


def test_small_widths_cost_half_of_the_budget_and_one_training_at_most() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    lab = Lab(spec)

    found = transfer(spec, budget_seconds=60.0, train=lab)

    assert not found.values
    assert found.why.endswith("the smaller widths would take more than 50% of the budget")
    assert [one.width for one in found.trained][-1] == 32
    assert lab.seconds == pytest.approx(found.seconds)
    assert found.seconds < SHARE * 60 + 6.25  # one training of width 32


def test_widths_at_which_nothing_trains_leave_the_study_as_it_was() -> None:
    spec = spec_of({"name": "gpt", "width": 128})

    found = transfer(spec, budget_seconds=240.0, train=Lab(spec, worst=0.0))

    assert not found.values
    assert found.why.endswith("fewer than two smaller widths have a best learning rate")
    assert json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        ({"name": "gpt", "width": 512}, (32, 64, 128)),
        ({"name": "gpt", "width": 128}, (16, 32)),
        ({"name": "gpt", "width": 96}, (24,)),
        ({"name": "gpt", "width": 320, "heads": 10}, (20, 40, 80)),
        ({"name": "gpt", "width": 256, "heads": 64}, ()),  # a head needs two channels
        ({"name": "mlp", "width": 200}, (25, 50)),
    ],
)
def test_small_widths_are_those_that_the_network_can_have(
    network: dict[str, Any], widths: tuple[int, ...]
) -> None:
    assert small_widths(spec_of(network)) == widths


def test_the_seconds_of_a_trial_are_led_to_from_those_of_its_first_steps() -> None:
    short, long = Rung(1.0, 2, 2.5), Rung(1.0, 6, 4.5)

    assert full_trial_seconds(short, long, 100) == pytest.approx(2.5 + 98 * 0.5)
    assert full_trial_seconds(long, short, 100) == 4.5  # nonsense of a busy machine


def test_a_full_trial_verifies_the_rate_or_does_not() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    found = transfer(spec, budget_seconds=240.0, train=Lab(spec))

    better, worse = found.with_full_loss(2.3), found.with_full_loss(2.9)

    assert not found.is_verified
    assert better.is_verified
    assert not worse.is_verified
    assert worse.to_dict()["full_loss"] == 2.9
    assert found.to_dict()["full_loss"] is None


def test_the_studys_own_trial_verifies_the_rate_unless_it_was_pruned() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    found = transfer(spec, budget_seconds=240.0, train=Lab(spec))
    default = {"values": {RATE: 0.01}, "loss": 2.0}
    own = {"values": dict(found.values[0])}

    assert found.verified_by([default, own | {"loss": 2.3}]).full_loss == 2.3
    assert math.isnan(found.verified_by([default, own | {"loss": None}]).full_loss)
    assert math.isnan(Transfer("off: because").verified_by([default]).full_loss)


def test_what_is_told_survives_json_and_makes_a_picture() -> None:
    spec = spec_of({"name": "gpt", "width": 128})
    found = transfer(spec, budget_seconds=240.0, train=Lab(spec)).with_full_loss(2.3)

    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    svg = transfer_chart(told)

    assert Transfer.from_dict(told).with_full_loss(2.3) == found
    assert told["values"][0][RATE] == found.values[0][RATE]
    assert any(one["loss"] is None for one in told["trained"])  # those that diverged
    assert "expected at width 128" in svg
    for words in ("width 16", "width 32", "width 128", "best of each width"):
        assert f">{words}<" in svg
    off = Transfer("off: because", seconds=1.5)
    assert Transfer.from_dict(json.loads(json.dumps(off.to_dict()))) == off


def test_trainings_of_other_widths_go_through_the_workers_of_a_study(
    points: Line, tmp_path: Path, tree: Tree
) -> None:
    line = points.copy(tmp_path / "line")
    job = line.job("study", network={"name": "mlp", "width": 128, "depth": 1, "dropout": 0.0})
    path = write_job(job, "worker")

    with WorkerPool(lambda: LocalWorker(path), 2) as pool:
        train = through(pool)
        first, second = train([{WIDTH: 16, RATE: 0.01}, {WIDTH: 32, RATE: 0.01}], 9)
        (again,) = train([{WIDTH: 16, RATE: 0.01}], 9)

    assert first.loss == again.loss != second.loss
    assert min(first.seconds, second.seconds) > 0
    assert not tree.pids("millrace worker")


def test_rates_of_a_real_network_are_found_through_workers(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    network = {"name": "mlp", "width": 128, "depth": 1, "dropout": 0.0}
    search = line.spec.search.model_dump() | {"trials": 10**6}  # more than any budget pays for
    job = line.job("study", network=network, search=search)

    path = write_job(job, "worker")

    with WorkerPool(lambda: LocalWorker(path), 2) as pool:
        found = transfer(job.spec, 600.0, through(pool))

    assert found.why.startswith("on: a trial of width 128 takes")
    assert [one.width for one in found.optima] == [16, 32]
    assert found.found is not None
    assert 1e-4 <= found.found.low <= found.found.rate <= found.found.high <= 0.1


def test_a_study_tries_what_smaller_widths_told_right_after_the_default(
    points: Line, tmp_path: Path
) -> None:
    line = points.copy(tmp_path / "line")
    found = Transfer(
        "on: told before",
        width=8,
        values=({RATE: 0.02, "train.batch": 16},),
        found=Extrapolation(0.02, 0.01, 0.04, slope=-0.5, loss=0.5, noise=0.1),
        optima=(Optimum(4, 0.03, 0.9),),
        octave_loss=0.1,
        trained=(Trained(4, 0.03, 0.9), Trained(4, 0.1, math.inf)),
        seconds=1000.0,
    )
    told = json.dumps(found.to_dict()).encode()
    line.storage.write("p/study/study/transfer.json", told)

    made = tune(line.job("study"))

    own = made.facts["trials"][1]
    assert own["values"] == found.values[0]
    assert made.facts["transfer"] == found.verified_by([own]).to_dict()
    assert made.measured["spent_seconds"] > 1000


def test_damaged_figures_of_smaller_widths_are_found_anew(points: Line, tmp_path: Path) -> None:
    line = points.copy(tmp_path / "line")
    line.storage.write("p/study/study/transfer.json", b'{"values": [')

    made = tune(line.job("study"))

    assert made.facts["transfer"]["why"].startswith("off: no budget")
    assert [trial["number"] for trial in made.facts["trials"]] == list(range(7))
