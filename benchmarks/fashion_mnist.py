"""Fashion-MNIST through the product: packed, trained for CPU-seconds, scored on the published test.

The 10,000 published test images are packed as a data set of their own, of which every split is
scored; of the 60,000 others 1 % are held out for validation and 1 % are not looked at.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.frozen import digest
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from millrace.train.loop import Trainer, TrainingData
from millrace.train.objective import build_objective, to_batch
from millrace.train.world import World

PROBE_STEPS = 20
NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv", "width": 16, "dropout": 0.1},
    "vit": {"name": "vit", "width": 64, "depth": 4, "dropout": 0.1},
}
TRAIN: dict[str, dict[str, Any]] = {
    "conv": {"batch": 128, "learning_rate": 0.003},
    "vit": {"batch": 128, "learning_rate": 0.002},
}


def measure(data: Path, folder: Path, network: str, seconds: float, seed: int) -> dict[str, float]:
    """Accuracy on the published test images after about `seconds` of one core's training.

    Args:
        data: Holds the four files of Fashion-MNIST.
        folder: To write to.
        network: Of NETWORKS.
        seconds: Of processor time, of all threads.
        seed: Of weights and order.
    """
    torch.set_num_threads(1)
    jobs = {name: _packed(data, folder, name, network, seed) for name in ("train", "t10k")}
    job, shards = jobs["train"]
    storage, world = FsspecStorage(job.store), World.alone(1)
    splits = TrainingData.load(storage, shards, {})
    probe = Trainer(job, splits, world, steps=10 * PROBE_STEPS)
    probe.run_to(2)
    start = time.process_time()
    probe.run_to(2 + PROBE_STEPS)
    steps = max(10, int(seconds * PROBE_STEPS / (time.process_time() - start)))
    probe.close()
    trainer = Trainer(job, splits, world, steps=steps)
    start = time.process_time()
    trainer.run_to(steps)
    spent = time.process_time() - start
    trainer.close()
    right, num = 0.0, 0
    objective = build_objective(job.spec.task)
    _refuse_other_classes(shards, jobs["t10k"][1])
    trainer.network.eval()
    with torch.inference_mode():
        for columns in _all_samples(storage, jobs["t10k"][1]):
            scores = objective.scores(trainer.network, to_batch(columns, world.device))
            right, num = right + scores.metric_B.sum().item(), num + len(scores.metric_B)
    return {"accuracy": right / num, "cpu_seconds": spent, "steps": steps, "num_test": num}


def _packed(data: Path, folder: Path, name: str, network: str, seed: int) -> tuple[Job, Manifest]:
    spec = PipelineSpec.model_validate({
        "source": {"url": f"{data.absolute()}/{name}-*-ubyte.gz"},
        "task": {"kind": "classification", "images": "pixels", "shape": [1, 28, 28]},
        "split": {"validation": 0.01, "test": 0.01},
        "network": NETWORKS[network],
        "train": TRAIN[network] | {"steps": 1000, "ranks": 1, "seed": seed, "weight_decay": 0.05},
        "search": {"space": {"train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True}}},
    })  # fmt: skip
    store = str(folder / "store")
    storage = FsspecStorage(store)
    job = Job(pipeline=name, folder=str(folder), spec=spec, store=store, work=str(folder))
    source = manifests.publish(storage, ingest(job))
    update = {"inputs": {"source_files": source.path}, "key": digest("shards", source.digest)}
    found = manifests.find(storage, name, "shards", update["key"])
    shards = found or manifests.publish(storage, pack(job.model_copy(update=update)))
    return job, shards


def _all_samples(storage: FsspecStorage, shards: Manifest) -> Iterator[dict[str, Any]]:
    for split in SPLITS:
        yield from Samples(storage, shards, split).batches(500)


def _refuse_other_classes(train: Manifest, test: Manifest) -> None:
    assert train.facts["classes"] == test.facts["classes"], "both number the classes alike"
