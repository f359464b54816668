"""Language model: texts, or lists of token ids, cut into blocks."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.data.columns import Array, Columns, Field, smallest_unsigned
from millrace.data.tokenizer import Tokenizer, bytes_of_ids
from millrace.data.values import (
    Encoder,
    LabelIndex,
    Record,
    UnusableRecordError,
    Value,
    record_ids,
    required,
    text_of,
)
from millrace.tasks import LanguageModelTask


def build(task: LanguageModelTask, tokenizer: bytes) -> Encoder:
    """The encoder of a language model's task; its tokenizer's file, if samples are to be made."""
    if task.tokens:
        return _TokenBlocks(task)
    return _TextBlocks(task) if task.tokenizer == "bytes" else _EncodedTexts(task, tokenizer)


class _TextBlocks:
    """Texts cut into blocks of a fixed number of bytes; a text's last block is zero-padded."""

    def __init__(self, task: LanguageModelTask) -> None:
        self._text = task.text
        self.needs: tuple[str, ...] = (task.text,)
        self.label = ""
        self.facts: Mapping[str, Any] = {"vocabulary": task.vocabulary}
        self.fields = {"tokens": Field("uint8", (task.block_bytes,)), **_BLOCK}

    def extract(self, record: Record) -> Value:
        return Value(text_of(record, self._text))

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        return _blocks(values, _as_ids(values, "uint8"), self.fields["tokens"])


class _EncodedTexts(_TextBlocks):
    """Texts as token ids, cut into blocks of a fixed number; the last block is zero-padded."""

    def __init__(self, task: LanguageModelTask, tokenizer: bytes) -> None:
        super().__init__(task)
        self._tokenizer = tokenizer
        self.facts = {"vocabulary": task.num_ids}
        dtype = smallest_unsigned(task.num_ids - 1)
        self.fields = {
            "tokens": Field(dtype, (task.block_tokens,)),
            NUM_BYTES: Field("uint32"),
            **_BLOCK,
        }

    @cached_property
    def _encoder(self) -> Tokenizer:
        return Tokenizer(self._tokenizer)

    @cached_property
    def _bytes_of_ids(self) -> npt.NDArray[np.uint32]:
        return np.array([len(each) for each in bytes_of_ids(self._tokenizer)], np.uint32)

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        assert self._tokenizer, "samples are made once there is a tokenizer"
        told = self.fields["tokens"]
        found = self._encoder.encode([value.inputs for value in values])
        columns = _blocks(values, [ids.astype(told.dtype) for ids in found], told)
        tokens, length = columns["tokens"], columns["length"]
        assert isinstance(tokens, np.ndarray), "ids are stored as numbers"
        is_theirs = np.arange(tokens.shape[1]) < np.asarray(length)[:, None]
        num_bytes = (self._bytes_of_ids[tokens] * is_theirs).sum(1, dtype=np.uint32)
        return {"tokens": tokens, NUM_BYTES: num_bytes, **columns}


class _TokenBlocks:
    """Lists of token ids cut into blocks of a fixed number; the last block is zero-padded."""

    def __init__(self, task: LanguageModelTask) -> None:
        self._name, self._vocabulary = task.tokens, task.vocabulary
        self._dtype = smallest_unsigned(task.vocabulary - 1)
        self.needs: tuple[str, ...] = (task.tokens,)
        self.label = ""
        self.facts: Mapping[str, Any] = {"vocabulary": task.vocabulary}
        self.fields = {"tokens": Field(self._dtype, (task.block_tokens,)), **_BLOCK}

    def extract(self, record: Record) -> Value:
        listed = required(record, self._name)
        if not isinstance(listed, list | np.ndarray):  # Parquet's lists come as arrays
            raise UnusableRecordError(
                f"field `{self._name}` is {type(listed).__name__}, a list of token ids is needed"
            )
        if not len(listed):
            return Value(b"")
        wrong = self._refused(listed)
        if wrong:
            raise UnusableRecordError(
                f"field `{self._name}` holds {wrong}, ids are whole numbers from 0 to "
                f"{self._vocabulary - 1}"
            )
        return Value(np.array(listed, self._dtype).tobytes())

    def _refused(self, listed: list[Any] | Array) -> str:
        """The first entry that is no id of the vocabulary, as it is shown; empty if all are."""
        try:
            ids = np.array(listed)
        except ValueError:  # lists of unequal lengths
            ids = np.array(listed, object)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            beyond = (ids < 0) | (ids >= self._vocabulary)
            return str(ids[np.argmax(beyond)]) if beyond.any() else ""
        entries = listed.tolist() if isinstance(listed, np.ndarray) else listed
        others = [each for each in entries if type(each) is not int]
        return repr(others[0] if others else max(entries))[:40]

    def samples(self, values: Sequence[Value], labels: LabelIndex) -> Columns:
        told = self.fields["tokens"]
        return _blocks(values, _as_ids(values, told.dtype), told)


NUM_BYTES = "num_bytes"
"""Column: bytes of text that a block's ids stand for."""
_BLOCK = {"length": Field("uint32"), "record": Field("uint64")}


def _as_ids(values: Sequence[Value], dtype: str) -> list[Array]:
    return [np.frombuffer(value.inputs, dtype) for value in values]


def _blocks(values: Sequence[Value], found: Sequence[Array], told: Field) -> Columns:
    """The ids of values cut into blocks as the field says, and how much of each block is theirs."""
    (size,) = told.shape
    lengths = [len(ids) for ids in found]
    counts = [-(-length // size) for length in lengths]
    tokens = np.zeros((sum(counts), size), told.dtype)
    length = np.full(sum(counts), size, np.uint32)
    flat, row = tokens.reshape(-1), 0
    for ids, num_tokens, count in zip(found, lengths, counts, strict=True):
        start = row * size
        flat[start : start + num_tokens] = ids
        row += count
        if count:  # an empty text has no last block
            length[row - 1] = num_tokens - (count - 1) * size
    return {"tokens": tokens, "length": length, "record": np.repeat(record_ids(values), counts)}
