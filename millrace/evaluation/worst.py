"""The worst samples: which test samples the network fares worst at, and what it says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from millrace.data.columns import Columns, run_starts
from millrace.data.samples import Samples
from millrace.data.tokenizer import bytes_of_ids
from millrace.evaluation.origins import Origins
from millrace.spec import LanguageModelTask, Task

NUM_WORST = 10
EXCERPT = 80
"""Bytes shown of a sample."""
_BYTES = [bytes([value]) for value in range(256)]


def worst_samples(
    samples: Columns, test: Samples, origins: Origins, task: Task, tokenizer: bytes = b""
) -> list[dict[str, Any]]:
    """The samples with the highest loss by weight, the highest first.

    Args:
        samples: As `scoring.score` found them.
        test: Where they lie.
        origins: Of their records.
        task: Says whether its tokens are bytes.
        tokenizer: The file of the tokenizer that texts were encoded with, if they were.

    Returns:
        Of each: `loss`, `file`, `record` (its place there), `excerpt` of its text if it has one,
        and where there are classes `label`, `answer` and the answer's `probability`.
    """
    loss = samples["loss"] / samples["weight"]
    is_first = np.zeros(len(loss), np.int64)
    is_first[run_starts(samples["record"])] = 1
    record = np.cumsum(is_first) - 1
    words = _BYTES
    if isinstance(task, LanguageModelTask) and task.reads_ids:
        words = bytes_of_ids(tokenizer) if tokenizer else []
    found = []
    for row in np.argsort(-loss, kind="stable")[:NUM_WORST].tolist():
        told = {
            "loss": float(loss[row]),
            "file": printable(origins.paths[origins.file[record[row]]]),
            "record": int(origins.place[record[row]]),
            "excerpt": printable(excerpt(*_stored(test, row), words)),
        }
        if "probability" in samples:
            answer = int(samples["probability"][row].argmax())
            told["label"] = test.classes[samples["label"][row]]
            told["answer"] = test.classes[answer]
            told["probability"] = float(samples["probability"][row][answer])
        found.append(told)
    return found


def printable(text: str) -> str:
    """Without characters that could move, hide or end anything where it is shown."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def _stored(test: Samples, row: int) -> tuple[Columns, int]:
    """The frame that holds a sample, and the sample's row in it."""
    ends = np.cumsum(test.samples_per_frame)
    number = int(np.searchsorted(ends, row, side="right"))
    return test.frame(number), row - int(ends[number] - test.samples_per_frame[number])


def excerpt(columns: Columns, row: int, words: Sequence[bytes]) -> str:
    """How a text begins, or a list of token ids where they stand for no words; else nothing."""
    name = next((name for name in ("text", "tokens") if name in columns), "")
    if not name:
        return ""
    begin = columns[name][row][: min(EXCERPT, int(columns["length"][row]))].tolist()
    if words:
        return b"".join(words[token] for token in begin)[:EXCERPT].decode(errors="replace")
    return " ".join(map(str, begin))[:EXCERPT]
