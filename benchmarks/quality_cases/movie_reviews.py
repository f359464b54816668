"""Movie reviews: is a review positive or negative."""

import zipfile
from pathlib import Path
from typing import Any

from benchmarks.quality_cases.case import Case, Outcome, packed, score, train

SPEC: dict[str, Any] = {
    "source": {"url": "movie_reviews/*/*.txt", "records": "file"},
    "task": {"kind": "text_classification", "block_bytes": 8192},
    "network": {"name": "encoder", "width": 32, "depth": 0, "dropout": 0.5},
    "train": {"steps": 400, "batch": 32, "ranks": 1, "learning_rate": 3e-3, "weight_decay": 0.1},
    "search": {"space": {"train.learning_rate": {"low": 1e-3, "high": 1e-2}}},
}
HELD_OUT = 0.2


def run(data: Path, scratch: Path, seed: int) -> Outcome:
    """Train on four fifths of the reviews, score the others; the seed also draws the split."""
    with zipfile.ZipFile(data / "movie_reviews.zip") as archive:
        archive.extractall(scratch)
    split = {"validation": HELD_OUT, "test": 0.01, "seed": seed}
    job, loaded = packed(SPEC | {"split": split}, scratch)
    network, cpu_seconds = train(job, loaded, seed)
    return Outcome(score(job, loaded, network), cpu_seconds)


CASE = Case(
    what="accuracy on held-out reviews",
    bar=0.84,
    is_ceiling=False,
    cpu_seconds=120,
    run=run,
    notes=(
        "Millrace holds out a fifth of the 2,000 reviews by their hash, another with each seed; "
        "training looks at none of them. A review's first 8 kB are read. "
        "Without blocks (`depth: 0`): with one the training split of 1,600 is learned by heart: "
        "held-out accuracy was 0.82 and 0.86, against 0.86 and 0.88 without (2 seeds each)."
    ),
    known={"unigrams": 0.868, "tf-idf and logistic regression": 0.886},
)
