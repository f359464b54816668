"""Report what a pipeline has made, how good it is and what it took: `python -m millrace report`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace import manifest as manifests
from millrace.errors import NotFoundError
from millrace.evaluation.charts import quality_picture
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, default_store


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status. The last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m millrace report",
        description="What a pipeline has made, where, how good, in what time and for what money.",
    )
    parser.add_argument("pipeline")
    parser.add_argument("--store", default=default_store(), help="default: %(default)s")
    parser.add_argument("--picture", type=Path, help="write the evaluation's picture here (SVG)")
    asked = parser.parse_args(arguments)
    found = collect(asked.store, asked.pipeline)
    if asked.picture is not None:
        evaluation = manifests.current(FsspecStorage(asked.store), asked.pipeline, "evaluation")
        asked.picture.write_text(quality_picture(evaluation.facts) + "\n")
    sys.stdout.write(as_text(found) + "\n" + json.dumps(found) + "\n")
    return 0


def collect(store: str, pipeline: str) -> dict[str, Any]:
    """The report as plain values.

    Raises:
        NotFoundError: The pipeline has made nothing in this store.
    """
    storage = FsspecStorage(store)
    made: dict[str, Manifest] = {}
    for noun in _SUMMARIES:
        try:
            made[noun] = manifests.current(storage, pipeline, noun)
        except NotFoundError:
            continue
    if not made:
        raise NotFoundError(
            f"report on {pipeline} in {store}",
            "nothing has been made",
            f"Run: dagster asset materialize -m pipelines --select group:{pipeline}",
        )
    steps = {
        noun: {
            "seconds": round(manifest.seconds, 2),
            "usd": round(manifest.usd, 6),
            "num_bytes": manifest.num_bytes,
            "where": f"{store}/{manifest.folder}",
            "facts": summarize(noun, manifest),
        }
        for noun, manifest in made.items()
    }
    return {
        "pipeline": pipeline,
        "store": store,
        "steps": steps,
        "quality": _quality(made),
        "released": _is_released(made),
        "seconds": round(sum(manifest.seconds for manifest in made.values()), 2),
        "usd": round(sum(manifest.usd for manifest in made.values()), 6),
    }


def summarize(noun: str, manifest: Manifest) -> str:
    """One line on what a step made."""
    return _SUMMARIES[noun](manifest)


def _source_files(manifest: Manifest) -> str:
    facts = manifest.facts
    return (
        f"{len(facts['files'])} files, {facts['num_bytes'] / 1e6:.1f} MB, "
        f"{facts['num_records']} records, {facts['num_rejected']} rejected"
    )


def _tokenizer(manifest: Manifest) -> str:
    facts = manifest.facts
    return f"{facts['vocabulary']} ids, {facts['bytes_per_token']:.2f} bytes each"


def _shards(manifest: Manifest) -> str:
    facts = manifest.facts
    raw = sum(split["raw_bytes"] for split in facts["splits"].values())
    return (
        f"{len(facts['shards'])} shards, {manifest.num_bytes / 1e6:.1f} MB, "
        f"ratio {raw / max(1, manifest.num_bytes):.2f}, "
        f"{facts['num_duplicates']} duplicates dropped"
    )


def _plan(manifest: Manifest) -> str:
    outlook = manifest.measured["outlook"]
    training, usd = outlook["training"], outlook["options"][0]["usd"]["value"]
    return (
        f"study {outlook['study']['value']:.1f} s, training {training['value']:.1f} s "
        f"[{training['low']:.1f}, {training['high']:.1f}] expected, ${usd:.5f}"
    )


def _study(manifest: Manifest) -> str:
    facts = manifest.facts
    pruned = sum(trial["state"] == "PRUNED" for trial in facts["trials"])
    return f"{len(facts['trials'])} trials ({pruned} pruned), best {facts['best_values']}"


def _checkpoint(manifest: Manifest) -> str:
    facts = manifest.facts
    return (
        f"{facts['parameters']:,} parameters, {facts['steps']} steps on "
        f"{facts['train']['ranks']} ranks, "
        f"{manifest.measured['samples_per_second']:.1f} samples/s"
    )


def _evaluation(manifest: Manifest) -> str:
    estimate = manifest.facts["estimate"]
    return (
        f"{manifest.facts['metric']} {estimate['value']:.4f} "
        f"[{estimate['low']:.4f}, {estimate['high']:.4f}]"
    )


_SUMMARIES: dict[str, Callable[[Manifest], str]] = {
    "source_files": _source_files,
    "tokenizer": _tokenizer,
    "shards": _shards,
    "plan": _plan,
    "study": _study,
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "release": lambda manifest: str(manifest.facts["verdict"]),
    "cost": lambda manifest: str(manifest.measured["bottleneck"]),
}


def _is_released(made: Mapping[str, Manifest]) -> bool:
    """Whether the release in place is of the current checkpoint."""
    if not {"release", "checkpoint"} <= set(made):
        return False
    return made["release"].inputs["checkpoint"] == made["checkpoint"].digest


def _quality(made: Mapping[str, Manifest]) -> dict[str, Any]:
    """Of the current checkpoint; nothing where the last evaluation is of an earlier one."""
    if not {"evaluation", "checkpoint"} <= set(made):
        return {}
    if made["evaluation"].inputs["checkpoint"] != made["checkpoint"].digest:
        return {}
    facts = made["evaluation"].facts
    baselines = {name: value["value"] for name, value in facts["baselines"].items()}
    return {"metric": facts["metric"], **facts["estimate"], "baselines": baselines}


def as_text(found: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{found['pipeline']}, in {found['store']}", ""]
    for noun, step in found["steps"].items():
        lines.append(f"  {noun:<13}{step['seconds']:>8.1f} s  ${step['usd']:<9.5f} {step['facts']}")
    lines.append(f"  {'together':<13}{found['seconds']:>8.1f} s  ${found['usd']:.5f}")
    if quality := found["quality"]:
        spread = f"[{quality['low']:.4f}, {quality['high']:.4f}]"
        lines += ["", f"  {quality['metric']} on held-out records, with its 95 % interval"]
        lines.append(f"    {'this model':<22}{quality['value']:.4f} {spread}")
        lines += [f"    {name:<22}{value:.4f}" for name, value in quality["baselines"].items()]
    elif "evaluation" in found["steps"]:
        lines += ["", "  the evaluation is of an earlier checkpoint"]
    lines += [
        "",
        f"  released: {_released(found)}",
        f"  ask it:   python -m millrace predict {found['pipeline']} --help",
        "  see it:   make ui, then http://127.0.0.1:3000/locations/pipelines/asset-groups/"
        f"{found['pipeline']}",
    ]
    return "\n".join(lines)


def _released(found: Mapping[str, Any]) -> str:
    if found["released"]:
        return "yes"
    earlier = "; the release in place is of an earlier checkpoint"
    return "no" + (earlier if "release" in found["steps"] else "")
