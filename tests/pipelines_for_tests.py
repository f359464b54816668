"""Small pipelines on disk for tests of the engine, and a watch over process trees."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from millrace import manifest as manifests
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.job import Job
from millrace.launch import follow
from millrace.manifest import Manifest
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage

ROOT = Path(__file__).parents[1]
NAME = "p"
GONE_WITHIN_SECONDS = 5.0
NETWORKS = '''
import os
import pathlib
import signal
import threading

import torch
import torch.nn.functional as F
from torch import nn


class Bigram(nn.Module):
    """Predicts each byte, or token id, from the one before it."""

    def __init__(self, facts, *, width):
        super().__init__()
        self.start = facts.num_classes
        self.embed = nn.Embedding(self.start + 1, width)
        self.out = nn.Linear(width, self.start)

    def forward(self, tokens):
        return self.out(self.embed(F.pad(tokens.long()[:, :-1], (1, 0), value=self.start)))


class Linear(nn.Module):
    def __init__(self, facts):
        super().__init__()
        self.out = nn.Linear(facts.shape[0], facts.num_classes)

    def forward(self, inputs):
        return self.out(inputs)


class Nan(Linear):
    """Talkative, too: what it prints must not be taken for events, nor hide them."""

    def forward(self, inputs):
        print("one\\ntwo\\nthree")
        return super().forward(inputs) * float("nan")


class Raising(Linear):
    def forward(self, inputs):
        raise RuntimeError("the flux capacitor is missing")


class Deadly(Linear):
    def forward(self, inputs):
        os.kill(os.getpid(), signal.SIGKILL)


class Stack(nn.Module):
    """Blocks one after the other, with dropout."""

    def __init__(self, facts, *, width=16, dropout=0.0):
        super().__init__()
        self.inner = nn.Linear(facts.shape[0], width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)) for _ in range(3)
        )
        self.out = nn.Linear(width, facts.num_classes)

    def forward(self, inputs):
        x = self.inner(inputs)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class Stuck(Linear):
    def forward(self, inputs):
        threading.Event().wait()


class Hungry(Linear):
    def forward(self, inputs):
        return super().forward(inputs) + torch.empty(2**50).sum()


class Pausing(Linear):
    """Stops its process once, as if somebody had."""

    def forward(self, inputs):
        mark = pathlib.Path(os.environ["MILLRACE_TEST_PAUSED"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(inputs)
'''


@dataclass(frozen=True)
class Line:
    """A small pipeline in a folder: its source files, its network file, its store."""

    root: Path
    spec: PipelineSpec

    @property
    def storage(self) -> FsspecStorage:
        return FsspecStorage(str(self.root / "store"))

    def job(self, key: str = "", **sections: Any) -> Job:
        """A job on what is current, whole sections of the spec replaced."""
        inputs = {}
        for noun in ("source_files", "shards", "study", "checkpoint", "evaluation"):
            if f"{NAME}/{noun}/current.json" in self.storage.list(f"{NAME}/{noun}"):
                inputs[noun] = manifests.current(self.storage, NAME, noun).path
        return Job(
            pipeline=NAME,
            folder=str(self.root / "source"),
            spec=PipelineSpec.model_validate(self.spec.model_dump() | sections),
            store=str(self.root / "store"),
            work=str(self.root / "work"),
            key=key,
            inputs=inputs,
            usd_per_hour=3600.0,
        )

    def publish(self, made: Manifest) -> Manifest:
        """Publish what a step returned and make it current."""
        published = manifests.publish(self.storage, made)
        manifests.point(self.storage, published)
        return published

    def run(self, verb: str, job: Job) -> Manifest:
        """Run a step in processes of its own and make what it made current."""
        made = next(e["path"] for e in list(follow(verb, job)) if e["event"] == "made")
        found = manifests.read(self.storage, made)
        manifests.point(self.storage, found)
        return found

    def copy(self, folder: Path) -> "Line":
        """The same line in another folder, to change at will."""
        shutil.copytree(self.root, folder)
        return Line(folder, self.spec)


def build_classification(root: Path) -> Line:
    """Three clouds of points in four dimensions, a few points astray."""
    rng = np.random.default_rng(0)
    source = root / "source"
    source.mkdir()
    labels = rng.integers(0, 3, 600)
    points = rng.normal(size=(600, 4)) + 1.5 * np.eye(4)[labels]
    lines = [
        json.dumps({f"x{i}": round(float(x), 4) for i, x in enumerate(point)} | {"label": str(k)})
        for point, k in zip(points, labels, strict=True)
    ]
    (source / "points.jsonl").write_text("\n".join(lines) + "\n")
    return _packed(
        root,
        source={"url": "*.jsonl"},
        task={"kind": "classification", "shape": [4]},
        network={"name": "mlp", "width": 8, "depth": 1, "dropout": 0.0},
        train={"steps": 300, "batch": 16, "checkpoint_every": 50, "learning_rate": 0.01},
        search={
            "space": {
                "train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
                "train.batch": {"choices": [8, 16, 32]},
            },
            "trials": 7,
            "steps": 18,
            "together": 3,
        },
    )


def build_images(root: Path, images: str) -> Line:
    """Noisy squares, bright or dark, of 8 x 8 pixels in color; a folder for each class."""
    rng = np.random.default_rng(0)
    for label, low in (("bright", 120), ("dark", 0)):
        (root / "source" / label).mkdir(parents=True)
        squares = rng.integers(low, low + 120, (150, 8, 8, 3), np.uint8)
        for number, square in enumerate(squares):
            Image.fromarray(square).save(root / "source" / label / f"{number}.png")
    return _packed(
        root,
        source={"url": "*/*.png"},
        task={"kind": "classification", "shape": [3, 8, 8], "images": images},
        network={"name": "conv", "width": 4},
        train={"steps": 40, "batch": 16, "ranks": 1, "learning_rate": 0.01},
        search={"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
        gate={"beats": ["majority"]},
    )


def build_graphs(root: Path) -> Line:
    """Random 3-regular graphs of 12 vertices: enough of them for a gate to decide by."""
    (root / "source").mkdir()
    return _packed(
        root,
        source={"url": "synthetic://regular_graphs?vertices=12&records=80"},
        task={"kind": "maxcut", "vertices": 12},
        split={"validation": 0.1, "test": 0.5},
        network={"name": "qaoa", "depth": 1},
        train={"steps": 60, "batch": 8, "ranks": 1, "learning_rate": 0.05},
        search={"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
        gate={"beats": ["random"]},
    )


def build_tokens(root: Path) -> Line:
    """Lists of token ids, each mostly one more than the one before it, of a vocabulary of 300."""
    rng = np.random.default_rng(0)
    source = root / "source"
    source.mkdir()
    lists = []
    for size in rng.integers(5, 60, 400):
        steps = np.where(rng.random(size) < 0.9, 1, rng.integers(0, 300, size))
        lists.append(json.dumps({"ids": (np.cumsum(steps) % 300).tolist()}))
    (source / "ids.jsonl").write_text("\n".join(lists) + "\n")
    return _packed(
        root,
        source={"url": "*.jsonl"},
        task={"kind": "language_model", "tokens": "ids", "vocabulary": 300, "block_tokens": 32},
        network={"name": "networks.py:Bigram", "width": 64},
        train={"steps": 400, "batch": 16, "ranks": 1, "learning_rate": 0.03},
        search={"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
    )


def build_language(root: Path) -> Line:
    """Sentences over a few words, each a record."""
    words = ("the", "mill", "turns", "water", "into", "flour", "and", "flour", "into", "bread")
    draw = random.Random(0)  # noqa: S311  a fixed seed, not a secret
    source = root / "source"
    source.mkdir()
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(400)]
    (source / "sentences.txt").write_text("\n".join(lines) + "\n")
    return _packed(
        root,
        source={"url": "*.txt"},
        task={"kind": "language_model", "block_bytes": 32},
        network={"name": "networks.py:Bigram", "width": 16},
        train={"steps": 150, "batch": 16, "ranks": 1, "learning_rate": 0.03},
        search={"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
    )


def build_texts(root: Path) -> Line:
    """Files of a few words that their folder is known by among others; a folder for each class."""
    draw = random.Random(0)  # noqa: S311  a fixed seed, not a secret
    common = ("the", "and", "of", "a", "in", "is", "was")
    words = {
        "mill": ("flour", "wheel", "grain"),
        "port": ("anchor", "quay", "mast"),
        "wood": ("cedar", "moss", "fern"),
    }
    for label, own in words.items():
        (root / "source" / "places" / label).mkdir(parents=True)
        for number in range(60):
            text = " ".join(draw.choices(common * 2 + own, k=draw.randint(30, 60)))
            (root / "source" / "places" / label / f"{number}.txt").write_text(text)
    return _packed(
        root,
        source={"url": "places/**/*.txt", "records": "file"},
        task={
            "kind": "text_classification", "label": "top_folder", "block_bytes": 64,
            "longer": "divide",
        },
        network={"name": "encoder", "width": 16, "table_bits": 10},
        train={"steps": 60, "batch": 16, "learning_rate": 0.01},
        search={"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
    )  # fmt: skip


def _packed(root: Path, **sections: Any) -> Line:
    (root / "source" / "networks.py").write_text(NETWORKS)
    spec = PipelineSpec.model_validate({"split": {"validation": 0.2, "test": 0.2}} | sections)
    line = Line(root, spec)
    line.publish(ingest(line.job()))
    line.publish(pack(line.job("shards")))
    return line


FOLLOWER = """
import json, sys
from pathlib import Path
from millrace.errors import MillraceError
from millrace.launch import follow
from millrace.job import Job

try:
    for event in follow(sys.argv[1], Job.model_validate_json(Path(sys.argv[2]).read_bytes())):
        print(json.dumps(event), flush=True)
except MillraceError as error:
    print(json.dumps({"event": "raised", **error.to_event()}), flush=True)
"""


class Tree:
    """The processes that carry one test's mark in their environment, whoever adopted them."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder, self._mark = folder, mark.encode()

    def pids(self, words: str = "") -> list[int]:
        """Those whose command line holds `words`, such as `millrace rank`."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    is_marked = self._mark in (folder / "environ").read_bytes()
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:  # gone, or another user's
                    continue
                if is_marked and words in command:
                    found.append(int(folder.name))
        return found

    def kill(self, words: str) -> None:
        """kill -9 one of them."""
        os.kill(self.pids(words)[0], signal.SIGKILL)

    def is_gone(self) -> bool:
        """Whether all of them end within the time that is promised."""
        deadline = time.monotonic() + GONE_WITHIN_SECONDS
        while self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def follow(self, verb: str, job: Job) -> "subprocess.Popen[str]":
        """A process that follows a job and prints its events, as a Dagster run would."""
        path = self._folder / "follower.json"
        path.write_text(job.model_dump_json())
        return subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, verb, str(path)], stdout=subprocess.PIPE, text=True
        )


def events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """The events that a follower prints, until it ends."""
    assert process.stdout is not None, "stdout is a pipe"
    with process, process.stdout:
        for line in process.stdout:
            yield json.loads(line)
