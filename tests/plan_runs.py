"""Trainings with known constants, for tests of predictions."""

import random

from millrace.plan.fit import Run
from millrace.plan.history import Entry
from millrace.plan.time_model import Constants, training_seconds
from millrace.work import Timing, Work


def build_work(**fields: object) -> Work:
    """A small training, with some of its quantities changed."""
    values: dict[str, object] = {
        "steps": 100,
        "batch": 32,
        "ranks": 2,
        "threads": 1,
        "device": "cpu",
        "parameters": 200_000,
        "blocks": 2,
        "flops_per_sample": 2e8,
        "kept_bytes_per_sample": 4e5,
        "raw_bytes_per_sample": 512.0,
        "validations": 2,
        "validate_samples": 256,
    }
    return Work.model_validate(values | fields)


def draw_works(number: int, seed: int = 0) -> list[Work]:
    """Trainings of many sizes."""
    draw = random.Random(seed)  # noqa: S311  a fixed seed, not a secret
    works = []
    for _ in range(number):
        width = draw.choice((32, 64, 128, 256))
        works.append(
            build_work(
                steps=draw.choice((30, 100, 300)),
                batch=draw.choice((8, 16, 32, 64)),
                ranks=draw.choice((1, 2)),
                blocks=draw.choice((1, 2, 4)),
                parameters=12 * width**2 * 4,
                flops_per_sample=6e3 * width**2,
                kept_bytes_per_sample=4e3 * width,
            )
        )
    return works


def run_of(work: Work, constants: Constants, factor: float = 1.0) -> Run:
    """The run that a machine with these constants makes of a training, slowed down by a factor."""
    parts = training_seconds(work, constants)
    return Run(
        work=work,
        timing=Timing(
            start_seconds=parts.start * factor,
            loop_seconds=parts.updates * factor,
            waited_seconds=0.0,
            validation_seconds=parts.validations * factor,
            stall_seconds=0.0,
            num_checkpoints=0,
        ),
    )


def entry_of_run(run: Run, number: int = 0, **fields: object) -> Entry:
    """The entry that a run leaves."""
    values: dict[str, object] = {
        "pipeline": "p",
        "noun": "checkpoint",
        "key": f"{number:016x}",
        "made_at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00",
        "machine": "local",
        "num_cores": 2,
        "seconds": run.seconds,
        "usd_per_hour": 3600.0,
        "size": float(run.work.steps * run.work.batch),
        "work": run.work,
        "timing": run.timing,
    }
    return Entry.model_validate(values | fields)
