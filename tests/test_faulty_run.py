"""A whole training on S3, through a proxy that breaks a good part of all answers."""

import uuid
from pathlib import Path

import pytest

from millrace import manifest as manifests
from millrace.job import Job
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.spec import PipelineSpec
from millrace.spec_file import read_specs
from millrace.storage import FsspecStorage
from tests.fault_proxy import Fault, FaultProxy
from tests.pipelines_for_tests import ROOT

READS = (
    "status", "drop", "rst", "cut_fin", "cut_rst", "cut_length", "cut_chunked", "cut_chunked_end",
    "cut_http10", "flip", "pad", "ignore_range", "shift_range",
)  # fmt: skip
WRITES = ("status", "drop", "rst", "damage_request", "lose_reply")
VERBS = (("source_files", "ingest"), ("shards", "pack"), ("checkpoint", "train"))


@pytest.fixture(scope="module")
def spec() -> PipelineSpec:
    """`stdlib_lm` on one package of the standard library, and a few steps."""
    shipped = next(read_specs(ROOT / "pipelines" / "stdlib_lm" / "defs.yaml"))
    train = {"steps": 12, "checkpoint_every": 5, "validate_every": 6, "validate_samples": 8}
    return shipped.with_parts(
        {
            "source": shipped.source.model_dump() | {"url": "stdlib://email/**/*.py"},
            "task": shipped.task.model_dump() | {"block_bytes": 1024},
            "split": {"validation": 0.2, "test": 0.2},
            "train": shipped.train.model_dump() | train,
        }
    )


def run(spec: PipelineSpec, store: str, folder: Path) -> Manifest:
    """The checkpoint that the steps up to it make."""
    storage = FsspecStorage(store)
    inputs: dict[str, str] = {}
    for noun, verb in VERBS:
        job = Job(
            pipeline="stdlib_lm",
            folder=str(ROOT / "pipelines" / "stdlib_lm"),
            spec=spec,
            store=store,
            work=str(folder),
            key=noun * 3,
            inputs=dict(inputs),
        )
        path = next(e["path"] for e in list(follow(verb, job)) if e["event"] == "made")
        made = manifests.read(storage, path)
        manifests.point(storage, made)
        inputs[noun] = path
    return made


def test_a_training_through_faults_ends_with_the_bits_of_one_without(
    s3_url: str,
    through_proxy: FaultProxy,
    spec: PipelineSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name, share in (("calm", 0.0), ("stormy", 0.01)):
        through_proxy.faults = [
            *(Fault(kind, method="GET|HEAD", share=share) for kind in READS),
            *(Fault(kind, method="PUT|POST", share=share) for kind in WRITES),
        ]
        # A cache of its own: else the second run would fetch nothing.
        monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / name / "cache"))
        store = f"{s3_url}/{uuid.uuid4().hex}"
        found.append(run(spec, store, tmp_path / name))
        met = sum(fault.met for fault in through_proxy.faults)
        through_proxy.faults = []

    calm, stormy = found
    assert met > 4
    assert [file.sha256 for file in stormy.files] == [file.sha256 for file in calm.files]
    assert stormy.digest == calm.digest
