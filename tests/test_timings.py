import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace.errors import TrainingError
from millrace.train.choice import Choice, measure, settle
from millrace.train.parallel import lay_out
from millrace.train.probe import Probe
from millrace.train.strategy import Strategy
from millrace.train.timings import Figures, Timings, machine
from millrace.train.world import World
from tests.pipelines_for_tests import Line
from tests.test_parallel import STACK, data_of, job_of

SIZES = {"state_bytes": 1e6, "sample_bytes": 1e3, "recomputed_bytes": 1e3}
PEAKS = {"seconds of a TFLOP, float32": 10.0, "seconds of a TFLOP, bfloat16": 5.0}
KNOWN = {
    **SIZES,
    **PEAKS,
    "flops_per_sample": 1e6,
    "has_batch_norm": 0.0,
    "float32, 1 microbatches, 0 threads": 1.0,
    "bfloat16, 1 microbatches, 0 threads": 0.5,
    "bfloat16, 2 microbatches, 0 threads": 0.2,
    "bfloat16, 4 microbatches, 0 threads": 0.11,
    "bfloat16, 2 microbatches, 1 threads": 0.1,
    "bfloat16, 2 microbatches, 1 threads, compiled: compiling": 30.0,
    "bfloat16, 2 microbatches, 1 threads, compiled": 0.05,
}
"""Of a training in which every knob is worth turning."""


def chosen(
    line: Line, figures: dict[str, float], *, threads: int = 2, steps: int = 10**6
) -> Choice:
    """What these figures lead to. The network raises at its first forward: nothing is measured."""
    job, world = job_of(line, {"name": "networks.py:Raising"}), World.alone(threads=threads)
    with closing(data_of(line, job)) as data:
        path = Timings(job, data, world, line.storage).path
        kept = Figures(machine="any", torch="any", figures=figures)
        line.storage.write(path, kept.model_dump_json().encode())
        return measure(job, world, Timings(job, data, world, line.storage), steps=10**6)


@pytest.fixture
def line(points: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return points.copy(tmp_path / "line")


def test_known_figures_decide_every_knob_and_nothing_is_measured(line: Line) -> None:
    choice = chosen(line, KNOWN)

    assert choice.strategy == Strategy(
        precision="bfloat16", microbatches=2, threads=1, is_compiled=True
    )
    assert choice.microbatch_seconds == 0.05
    assert choice.peak_flops_per_second == pytest.approx(2e11)
    assert choice.why["microbatches"] == "a batch takes 500 ms in 1, 400 ms in 2, 440 ms in 4"
    assert choice.why["threads"] == "a microbatch takes 200 ms on 2, 100 ms on 1"
    assert "2 microbatches, 1 threads" in choice.told


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"bfloat16, 2 microbatches, 0 threads": 0.25}, {"microbatches": 1}),
        ({"has_batch_norm": 1.0}, {"microbatches": 1}),
        ({"bfloat16, 2 microbatches, 1 threads": 0.19}, {"threads": 0}),
        ({"bfloat16, 2 microbatches, 1 threads, compiled": 0.099}, {"is_compiled": False}),
    ],
)
def test_a_knob_that_gains_too_little_stays_where_it_was(
    line: Line, changed: dict[str, float], told: dict[str, Any]
) -> None:
    # Figures of what is looked at instead, none of which is any faster.
    others = {
        f"bfloat16, {parts} microbatches, {threads} threads{compiled}": 0.5 / parts
        for parts in (1, 4)
        for threads in (0, 1)
        for compiled in ("", ", compiled", ", compiled: compiling")
    }
    others |= {
        f"bfloat16, 2 microbatches, 0 threads{compiled}": 0.2
        for compiled in ("", ", compiled", ", compiled: compiling")
    }

    choice = chosen(line, others | KNOWN | changed)

    assert told.items() <= choice.strategy.model_dump().items()


def test_a_single_thread_is_not_swept_nor_is_a_number_that_the_user_gave(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN | {
        "bfloat16, 2 microbatches, 0 threads, compiled: compiling": 30.0,
        "bfloat16, 2 microbatches, 0 threads, compiled": 0.2,
    }

    alone = chosen(line, known, threads=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told = chosen(line, known, threads=2)

    for choice in (alone, told):
        assert choice.strategy.threads == 0
        assert "threads" not in choice.why


def test_what_finds_no_room_takes_infinitely_long_and_smaller_microbatches_are_tried(
    line: Line,
) -> None:
    job, world = job_of(line, {"name": "networks.py:Cramped", "room": 5}), World.alone(threads=1)

    with closing(data_of(line, job)) as data:
        choice = settle(job, data, world, line.storage, 40)
        kept = line.storage.read(Timings(job, data, world, line.storage).path)
    figures = Figures.model_validate_json(kept).figures

    assert choice.strategy == Strategy(microbatches=8)  # of 24 samples: 3 at a time
    assert math.isinf(figures["float32, 4 microbatches, 0 threads"])
    assert math.isfinite(figures["float32, 8 microbatches, 0 threads"])


def test_a_sample_that_does_not_fit_is_an_error_that_says_so(line: Line) -> None:
    job, world = job_of(line, {"name": "networks.py:Cramped", "room": 0}), World.alone(threads=1)
    full = {f"float32, {parts} microbatches, 0 threads": math.inf for parts in (1, 2, 4, 8, 16, 24)}

    with closing(data_of(line, job)) as data, pytest.raises(TrainingError, match="single sample"):
        settle(job, data, world, line.storage, 40)
    with pytest.raises(TrainingError, match="single sample"):
        chosen(line, KNOWN | full)


def test_a_second_training_of_the_same_shape_measures_nothing(line: Line) -> None:
    first = job_of(line, STACK)
    second = first.model_copy(update={"key": "another-training"})
    other = job_of(line, STACK, batch=48).model_copy(update={"key": "of-another-shape"})
    world = World.alone(threads=1)

    with closing(data_of(line, first)) as data:
        choice = settle(first, data, world, line.storage, 40)
        kept = line.storage.list("p/timings")
        again = settle(second, data, world, line.storage, 40)
        still_kept = line.storage.list("p/timings")
        settle(other, data, world, line.storage, 40)

    assert again == choice  # the seconds, too
    assert still_kept == kept
    assert len(kept) == 1
    assert len(line.storage.list("p/timings")) == 2


def test_damaged_figures_are_measured_anew(line: Line) -> None:
    job, world = job_of(line, STACK), World.alone(threads=1)

    with closing(data_of(line, job)) as data:
        path = Timings(job, data, world, line.storage).path
        line.storage.write(path, b'{"machine": "a", "fig')
        settle(job, data, world, line.storage, 40)

    kept = Figures.model_validate_json(line.storage.read(path))
    assert kept.figures["float32, 1 microbatches, 0 threads"] > 0
    assert (kept.machine, kept.torch) == (machine(torch.device("cpu")), torch.__version__)


def test_figures_told_later_are_in_proportion_to_those_that_are_known(line: Line) -> None:
    job, world = job_of(line, STACK), World.alone(threads=1)
    plain, half = Strategy(), Strategy(precision="bfloat16")

    with closing(data_of(line, job)) as data:
        timings = Timings(job, data, world, line.storage)
        (before,) = timings.seconds([plain])
        timings.keep()
        kept = Figures.model_validate_json(line.storage.read(timings.path))
        slow = {name: 1000 * value for name, value in kept.figures.items()}
        machine_was_busy = kept.model_copy(update={"figures": slow})
        line.storage.write(timings.path, machine_was_busy.model_dump_json().encode())
        both = Timings(job, data, world, line.storage).seconds([plain, half])

    assert both[0] == 1000 * before
    assert both[1] > 10 * before


def test_batch_norm_is_seen_and_threads_are_those_of_the_strategy(line: Line) -> None:
    job, world = job_of(line, {"name": "networks.py:Normed"}), World.alone(threads=1)

    with closing(data_of(line, job)) as data:
        assert Probe(job, data, world).has_batch_norm
        assert not Probe(job_of(line, STACK), data, world).has_batch_norm
    lay_out(torch.nn.Linear(1, 1), Strategy(threads=2), world)

    assert torch.get_num_threads() == 2
