"""Plan a run before it is begun: `python -m millrace plan PIPELINE`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace import manifest as manifests
from millrace.cost import Prices
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.plan.forecast import PRICE_FILE, deadline_hours, plan
from millrace.plan.outlook import Outlook, refusal
from millrace.plan.words import (
    HEADS,
    as_text,
    choice_in_words,
    in_joules,
    in_seconds,
    in_usd,
    rows,
    with_ends,
)
from millrace.spec import PipelineSpec
from millrace.spec_file import read_pipeline
from millrace.storage import FsspecStorage, default_store


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 where the run would be refused. The last line is one JSON object."""
    asked = _parse(arguments)
    folder = asked.folder or Path("pipelines", asked.pipeline)
    spec = read_pipeline(folder / "defs.yaml")
    storage = FsspecStorage(asked.store)
    shards = manifests.current(storage, asked.pipeline, "shards")
    job = _job(asked, folder, spec, shards)
    hours = asked.deadline_hours
    hours = deadline_hours(spec.train) if hours is None else hours
    _, outlook = plan(job, storage, shards, hours, may_probe=not asked.no_probe)
    refused = refusal(job.pipeline, spec.train, outlook.training, job.usd_per_hour)
    lines = in_lines(job.pipeline, spec, outlook)
    lines += [f"  refused: {refused}"] if refused else []
    told = as_json(job, outlook, str(refused or ""))
    sys.stdout.write("\n".join(lines) + "\n" + json.dumps(told) + "\n")
    return 1 if refused else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m millrace plan",
        description="What the study and the training of a pipeline will take, with 90 % intervals, "
        "here and on each machine of the price file. Runs nothing but a probe of twenty steps.",
    )
    parser.add_argument("pipeline")
    parser.add_argument("--store", default=default_store(), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="of the pipeline; default: pipelines/PIPELINE")
    parser.add_argument("--prices", type=Path, default=PRICE_FILE, help="default: %(default)s")
    parser.add_argument("--deadline-hours", type=float, help="default: the spec's train.max_hours")
    parser.add_argument("--no-probe", action="store_true", help="from recorded runs alone")
    return parser.parse_args(arguments)


def _job(asked: argparse.Namespace, folder: Path, spec: PipelineSpec, shards: Manifest) -> Job:
    """What would be run, on this machine."""
    machine = os.environ.get("MILLRACE_MACHINE", "local")
    return Job(
        pipeline=asked.pipeline,
        folder=str(folder),
        spec=spec,
        store=asked.store,
        work="",
        inputs={"shards": shards.path},
        machine=machine,
        price_file=str(asked.prices),
        usd_per_hour=Prices.read(asked.prices).usd_per_hour(machine),
    )


def in_lines(pipeline: str, spec: PipelineSpec, outlook: Outlook) -> list[str]:
    """The plan for a person."""
    here, shares = outlook.here, outlook.shares
    memory = with_ends(outlook.memory_bytes, lambda num_bytes: f"{num_bytes / 2**20:,.0f} MiB")
    study, training = (with_ends(x, in_seconds) for x in (outlook.study, outlook.training))
    train, pace = spec.train, f"{outlook.step_seconds:.3g} s"
    spent = ", ".join(f"{what} {share:.0%}" for what, share in shares.items())
    lines = [
        f"{pipeline} on {outlook.machine}, by {outlook.basis}; intervals hold 90 %",
        "",
        f"  study       {study}  {spec.search.trials} trials of {spec.search.steps} steps",
        f"  training    {training}  {train.steps} steps of {pace}: {spent}",
        f"  together    {with_ends(here.seconds, in_seconds)}  {with_ends(here.usd, in_usd)}",
        f"  memory      {memory} a rank",
    ]
    if here.joules:
        lines.append(f"  energy      {in_joules(here.joules)} ({here.energy_basis})")
    return [*lines, "", as_text(HEADS, rows(outlook)), "", f"  {choice_in_words(outlook)}"]


def as_json(job: Job, outlook: Outlook, refused: str) -> dict[str, Any]:
    """The plan for a program; without a deadline it is null."""
    told = outlook.model_dump()
    price = job.usd_per_hour / 3600
    usd = {
        name: interval.times(price).model_dump()
        for name, interval in (("study", outlook.study), ("training", outlook.training))
    }
    return {"pipeline": job.pipeline, "refused": refused, "usd": usd, **told}
