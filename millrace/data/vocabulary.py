"""The tokenizer of a pipeline: learned from the texts of the training split, or a file given.

    records.npy --> records that are kept and train on --> their texts, of some MiB
                --> neighbours that occur most often are merged, again and again --> tokenizer.json
    a given tokenizer.json --> proven to lose nothing of the same texts          --> tokenizer.json

No text of another split is looked at, so that none leaks into what the held-out texts are cut by.
"""

import numpy as np

from millrace import manifest as manifests
from millrace.data.fields import build_encoder
from millrace.data.ingest import NOUN as SOURCE_FILES
from millrace.data.ingest import Ids, listed_file, load_ids
from millrace.data.shard import Layout
from millrace.data.splits import Kept, draw_splits, first_of_each
from millrace.data.tokenizer import (
    FILE,
    NOUN,
    Tokenizer,
    bytes_of_ids,
    given_file,
    load_library,
)
from millrace.data.unit import Unit, kept_values
from millrace.errors import SourceError, SpecError
from millrace.job import Job
from millrace.manifest import Manifest
from millrace.storage import FsspecStorage, StoredFile
from millrace.tasks import FileTokenizer, LanguageModelTask
from millrace.telemetry import log

LEARN_BYTES = 32 * 2**20
"""Of source, about the most to learn from: counts of pairs change little from there on."""
MEASURE_BYTES = 2**20
"""Of text, to tell how many bytes there are to an id."""


def learn_tokenizer(job: Job) -> Manifest:
    """Merge byte pairs of the training texts until there are as many ids as the task asks for.

    The same texts give the same file. Where they have fewer pairs to merge, there are fewer ids.
    A file that the task names is taken as it is.

    Raises:
        SpecError: The `tokenizers` library is not installed, or the file named loses bytes, has
            more ids than the task says, or is none.
        SourceError: A file changed since it was listed, or no record is left to train on.
    """
    task = job.spec.task
    assert isinstance(task, LanguageModelTask), "only a language model has a tokenizer"
    assert task.tokenizer != "bytes", "the task has a tokenizer"
    load_library()
    storage = FsspecStorage(job.store)
    source = manifests.read(storage, job.inputs[SOURCE_FILES])
    texts = _training_texts(job, source, load_ids(storage, source))
    some = texts[: 1 + int(np.searchsorted(np.cumsum([*map(len, texts)]), MEASURE_BYTES))]
    if isinstance(task.tokenizer, FileTokenizer):
        learned = _given(task.tokenizer, job.folder, some)
    else:
        learned = _merge(texts, task.tokenizer.vocabulary)
    folder = manifests.folder(job.pipeline, NOUN, job.key)
    num_ids = sum(map(len, Tokenizer(learned).encode([text.encode() for text in some])))
    num_bytes = sum(len(text.encode()) for text in some)
    facts = {
        "vocabulary": load_library().Tokenizer.from_str(learned.decode()).get_vocab_size(),
        "num_texts": len(texts),
        "bytes_per_token": round(num_bytes / num_ids, 4),
    }
    log(f"{facts['vocabulary']} ids, {facts['bytes_per_token']:.2f} bytes each on training texts")
    return Manifest(
        job.pipeline,
        NOUN,
        job.key,
        inputs={SOURCE_FILES: source.digest},
        files=(StoredFile.written(storage, f"{folder}/{FILE}", learned),),
        facts=facts,
    )


def _training_texts(job: Job, source: Manifest, ids: Ids) -> list[str]:
    """The texts of the training split; of about LEARN_BYTES, drawn by content, if there is more."""
    share = min(1.0, LEARN_BYTES / max(1, source.facts["num_bytes"]))
    is_drawn = (ids[:, 0] & np.uint64(0xFFFFFFFF)) < share * 2**32
    is_train = draw_splits(ids[:, 0], job.spec.split) == 0
    kept: Kept = first_of_each(ids[:, 1]) & is_train & is_drawn
    if not kept.any():
        raise SourceError(
            f"learn a tokenizer from {job.spec.source.place}",
            f"of {len(ids)} records none is left to train on",
            "Add records, or take another `split.seed`",
        )
    files = tuple(listed_file(job, source, i) for i in range(len(source.facts["files"])))
    nothing_written = Layout(level=1, frame_bytes=1, shard_bytes=1)
    unit = Unit(job.key, files, ids, kept, nothing_written)
    values = kept_values(job, unit, build_encoder(job.spec.task))
    return [value.inputs.decode() for _, value in values]


def _given(tokenizer: FileTokenizer, folder: str, texts: list[str]) -> bytes:
    """The file that the task names, once it has told these texts without loss."""
    data = given_file(tokenizer, folder)
    asked = f"take the tokenizer {tokenizer.path}"
    fix = "Name a byte-level `tokenizer.json`, as those of GPT-2, Llama 3 and Qwen are"
    try:
        words = bytes_of_ids(data)
        encoder = Tokenizer(data)
    except Exception as error:  # the library raises no other for what is no tokenizer
        raise SpecError(asked, f"{type(error).__name__}: {error}", fix) from error
    if len(words) > tokenizer.vocabulary:
        found = f"it has {len(words)} ids, `task.tokenizer.vocabulary` is {tokenizer.vocabulary}"
        raise SpecError(asked, found, f"Say `vocabulary: {len(words)}` or more")
    for text, ids in zip(texts, encoder.encode([text.encode() for text in texts]), strict=True):
        if b"".join(words[i] for i in ids) != text.encode():
            raise SpecError(asked, f"it loses bytes of the text {text[:60]!r}", fix)
    return data


def _merge(texts: list[str], vocabulary: int) -> bytes:
    """The learned tokenizer's file."""
    library = load_library()
    tokenizer = library.Tokenizer(library.models.BPE())
    # GPT-2's pattern: pairs are merged within words, runs of digits, of signs and of spaces.
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found: str = tokenizer.to_str(pretty=False)
    return found.encode()
