"""Language model: compressors and n-grams on texts, counts on token ids."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from millrace.baselines.compression import NGRAM_CONTEXT, Floats, compressed_bits, ngram_bits
from millrace.data.columns import Columns, run_starts
from millrace.data.samples import Samples
from millrace.data.tokenizer import bytes_of_ids
from millrace.tasks import LanguageModelTask
from millrace.telemetry import log


def compare(
    task: LanguageModelTask, train: Samples, test: Samples, tokenizer: bytes = b""
) -> dict[str, Floats]:
    """Bits of each test record, by baseline."""
    if task.tokens:
        return {"unigram": _unigram_bits(train, test, task.vocabulary)}
    texts = list(_texts(test, tokenizer))
    log("baselines: compressing the test split")
    found = compressed_bits(texts)
    log(f"baselines: counting n-grams of {NGRAM_CONTEXT + 1} bytes")
    return found | {f"{NGRAM_CONTEXT + 1}-gram": ngram_bits(list(_texts(train, tokenizer)), texts)}


def _unigram_bits(train: Samples, test: Samples, vocabulary: int) -> Floats:
    """Bits of each test record under the counts of the training ids, one added to each."""
    counts = np.ones(vocabulary)
    for columns in train.batches(4096):
        tokens, is_theirs = columns["tokens"], _is_theirs(columns)
        counts += np.bincount(tokens[is_theirs].astype(np.int64), minlength=vocabulary)
    bits = np.log2(counts.sum()) - np.log2(counts)
    sums, records = [], []
    for columns in test.batches(4096):
        sums.append((bits[columns["tokens"]] * _is_theirs(columns)).sum(1))
        records.append(columns["record"])
    found: Floats = np.add.reduceat(np.concatenate(sums), run_starts(np.concatenate(records)))
    return found


def _is_theirs(columns: Columns) -> npt.NDArray[np.bool_]:
    """Which tokens of each block are a record's, not padding."""
    positions = np.arange(columns["tokens"].shape[1])
    found: npt.NDArray[np.bool_] = positions < columns["length"][:, None]
    return found


def _texts(samples: Samples, tokenizer: bytes) -> Iterator[bytes]:
    """The records' texts, put together from their blocks; decoded, if they were encoded."""
    words = bytes_of_ids(tokenizer) if tokenizer else []
    parts: list[bytes] = []
    last = None
    for columns in samples.batches(4096):
        for tokens, length, record in zip(
            columns["tokens"], columns["length"], columns["record"], strict=True
        ):
            if parts and record != last:
                yield b"".join(parts)
                parts = []
            theirs = tokens[:length]
            parts.append(b"".join(words[i] for i in theirs) if words else theirs.tobytes())
            last = record
    if parts:
        yield b"".join(parts)
