"""The tokenizer: learned from the training split alone, without loss, the same every time."""

import json
import sys
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from assets.pipeline import build_chain
from assets.step import PipelineFolder
from millrace import manifest as manifests
from millrace.answers.language_model import continue_text
from millrace.data.ingest import ingest
from millrace.data.pack import pack
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.data.tokenizer import (
    FILE,
    NOUN,
    Tokenizer,
    bytes_of_ids,
    given_digest,
    tokenizer_of_shards,
)
from millrace.data.values import Value
from millrace.data.vocabulary import learn_tokenizer
from millrace.errors import SpecError
from millrace.manifest import Manifest
from millrace.released import Released
from millrace.spec import PipelineSpec
from millrace.storage import FsspecStorage
from resources.compute import Compute
from resources.storage import Storage
from tests.pipelines_for_tests import NAME, Line

pytest.importorskip("tokenizers", reason="the extra `tokenizers` is not installed")
WORDS = ["mill", "race", "water", "wheel", "stone", "grain", "flour", "sack"]


def _spec(**changed: object) -> PipelineSpec:
    sections = {
        "source": {"url": "*.jsonl"},
        "task": {
            "kind": "language_model",
            "tokenizer": {"kind": "bpe", "vocabulary": 300},
            "block_tokens": 16,
        },
        "network": {"name": "gpt", "width": 32, "depth": 1},
        "train": {"steps": 60, "batch": 8, "ranks": 1, "learning_rate": 0.01},
        "search": {"space": {"train.learning_rate": {"low": 0.001, "high": 0.1}}},
        "gate": {"beats": ["zstd-19"]},
    }
    return PipelineSpec.model_validate(sections | changed)


def _texts(seed: int, number: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(WORDS, rng.integers(5, 30)).tolist()) + f" n\u00fa\u2603 {i}\n"
        for i in range(number)
    ]


def _line(root: Path) -> Line:
    (root / "source").mkdir()
    lines = [json.dumps({"text": text}) for text in _texts(0, 300)]
    (root / "source" / "texts.jsonl").write_text("\n".join(lines) + "\n")
    line = Line(root, _spec())
    line.publish(ingest(line.job("source_files")))
    return line


def _packed(line: Line, learned: Manifest) -> Manifest:
    job = line.job("shards")
    asked = job.model_copy(update={"inputs": {**job.inputs, NOUN: learned.path}})
    return line.publish(pack(asked))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    line = _line(tmp_path_factory.mktemp("texts"))
    _packed(line, line.publish(learn_tokenizer(line.job("tokenizer"))))
    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        line.run(verb, line.job(noun))
    return line


def _file(line: Line) -> bytes:
    return tokenizer_of_shards(line.storage, manifests.current(line.storage, NAME, "shards"))


@pytest.mark.parametrize(
    "text", ["", "mill race", "  \n\t\tx=1", "na\u00efve \u2603 \U0001f9ea\x00\x7f"]
)
def test_every_text_is_encoded_without_loss(line: Line, text: str) -> None:
    data = _file(line)

    (ids,) = Tokenizer(data).encode([text.encode()])

    assert b"".join(bytes_of_ids(data)[i] for i in ids) == text.encode()


def test_frequent_words_become_one_id(line: Line) -> None:
    words = bytes_of_ids(_file(line))

    assert len(words) == 300
    assert sorted(words[:256]) == [bytes([byte]) for byte in range(256)]
    assert b" water" in words


def test_the_samples_are_the_texts_and_say_how_many_bytes_they_stand_for(line: Line) -> None:
    shards, words = manifests.current(line.storage, NAME, "shards"), bytes_of_ids(_file(line))
    found: dict[int, bytes] = {}
    for split in SPLITS:
        for columns in Samples(line.storage, shards, split).batches(64):
            for ids, length, record, num_bytes in zip(
                columns["tokens"], columns["length"], columns["record"], columns["num_bytes"],
                strict=True,
            ):  # fmt: skip
                part = b"".join(words[i] for i in ids[:length])
                assert len(part) == num_bytes
                found[int(record)] = found.get(int(record), b"") + part

    assert sorted(found.values()) == sorted(text.encode() for text in _texts(0, 300))
    assert shards.facts["fields"]["tokens"] == ["uint16", [16]]
    assert shards.facts["vocabulary"] == 300


def test_the_same_texts_give_the_same_file_whatever_other_splits_hold(tmp_path: Path) -> None:
    line = _line(tmp_path)
    first = learn_tokenizer(line.job("a"))
    again = learn_tokenizer(line.job("b"))
    shards = _packed(line, line.publish(first))
    held_out = {
        int(record)
        for split in ("validation", "test")
        for columns in Samples(line.storage, shards, split).batches(64)
        for record in columns["record"]
    }
    kept = [text for text in _texts(0, 300) if Value(text.encode()).split_id not in held_out]
    (tmp_path / "source" / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in kept)
    )
    line.publish(ingest(line.job("fewer")))

    fewer = learn_tokenizer(line.job("c"))

    assert 200 < len(kept) < 300
    assert first.file(FILE).sha256 == again.file(FILE).sha256 == fewer.file(FILE).sha256


def _given(folder: Path, *, vocabulary: int = 301, **changed: object) -> Line:
    """A line that takes up a tokenizer with a mark of its own beside the 300 learned ids."""
    line = _line(folder)
    learned = json.loads(learn_tokenizer(line.job("learned")).file(FILE).read(line.storage))
    mark = {"id": 300, "content": "<|end|>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    given = learned | {"added_tokens": [mark]} | changed
    (folder / "source" / "given.json").write_text(json.dumps(given))
    task = line.spec.task.model_dump() | {
        "tokenizer": {"kind": "file", "path": "given.json", "vocabulary": vocabulary}
    }
    return Line(folder, line.spec.with_parts({"task": task}))


def test_a_tokenizer_that_is_there_already_is_taken_as_it_is(tmp_path: Path) -> None:
    line = _given(tmp_path)
    made = learn_tokenizer(line.job("tokenizer"))
    shards = _packed(line, line.publish(made))

    data = made.file(FILE).read(line.storage)
    (ids,) = Tokenizer(data).encode([b"mill<|end|> race"])

    assert data == (tmp_path / "source" / "given.json").read_bytes()
    assert 300 in ids
    assert b"".join(bytes_of_ids(data)[i] for i in ids) == b"mill<|end|> race"
    assert shards.facts["vocabulary"] == 301


def test_another_file_is_another_tokenizer(tmp_path: Path) -> None:
    line = _given(tmp_path)
    folder = str(tmp_path / "source")
    first = given_digest(line.spec.task, folder)
    (tmp_path / "source" / "given.json").write_text("{}")

    assert len(first) == 64
    assert given_digest(line.spec.task, folder) != first
    assert not given_digest(_spec().task, folder)


@pytest.mark.parametrize(
    ("vocabulary", "changed", "found"),
    [
        (301, {"normalizer": {"type": "NFD"}}, "it loses bytes of the text"),
        (300, {}, r"it has 301 ids, `task\.tokenizer\.vocabulary` is 300"),
        (301, {"pre_tokenizer": {"type": "Nothing"}}, "take the tokenizer given.json"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, vocabulary: int, changed: dict[str, object], found: str
) -> None:
    line = _given(tmp_path, vocabulary=vocabulary, **changed)

    with pytest.raises(SpecError, match=found):
        learn_tokenizer(line.job("tokenizer"))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    line = _given(tmp_path)
    (tmp_path / "source" / "given.json").unlink()

    with pytest.raises(SpecError, match=r"take the tokenizer given\.json: .*No such file"):
        learn_tokenizer(line.job("tokenizer"))


def test_quality_is_told_in_bits_per_byte_beside_compressors(line: Line) -> None:
    facts = manifests.current(line.storage, NAME, "evaluation").facts

    assert facts["metric"] == "bits_per_byte"
    assert "zstd-19" in facts["baselines"]
    assert facts["estimate"]["value"] < facts["baselines"]["zstd-19"]["value"]
    assert facts["estimate"]["value"] > 0.3  # a word in eight is drawn at random: 3 bits


def test_a_release_goes_on_with_a_text(line: Line) -> None:
    released = Released(str(line.root / "store"), NAME, line.root)

    found = continue_text(released, "mill race", 40, 0.0, 0)

    assert found.startswith("mill race")
    assert len(found.encode()) == 49
    assert sum(word in found for word in WORDS) >= 3


def test_without_the_library_the_error_says_what_to_install(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed

    with pytest.raises(SpecError, match=r"pip install 'millrace\[tokenizers\]'"):
        Tokenizer(_file(line))


def test_dagster_learns_a_tokenizer_between_the_source_files_and_the_shards(tmp_path: Path) -> None:
    line = _line(tmp_path)
    defs = build_chain(PipelineFolder(NAME, str(line.root / "source"), line.spec))
    nouns = ("source_files", NOUN, "shards")
    steps = [
        asset
        for asset in defs.assets or ()
        if isinstance(asset, dg.AssetsDefinition) and asset.key.path[-1] in nouns
    ]
    store = str(tmp_path / "dagster")
    resources = {"storage": Storage(url=store), "compute": Compute(work=str(tmp_path / "work"))}

    first = dg.materialize(steps, resources=resources)
    learned, shards = _current(store, NOUN), _current(store, "shards")
    again = dg.materialize(steps, resources=resources)

    assert first.success
    assert again.success
    assert shards.inputs[NOUN] == learned.digest
    assert learned.facts["vocabulary"] == 300
    assert (_current(store, NOUN), _current(store, "shards")) == (learned, shards)


def test_only_a_pipeline_with_a_tokenizer_has_that_step() -> None:
    plain = _spec(task={"kind": "language_model", "block_bytes": 16})

    without, with_one = (
        {
            asset.key.path[-1]
            for asset in chain.assets or ()
            if isinstance(asset, dg.AssetsDefinition)
        }
        for chain in (build_chain(PipelineFolder(NAME, "", spec)) for spec in (plain, _spec()))
    )

    assert with_one - without == {NOUN}
    assert len(without) == 8


def _current(store: str, noun: str) -> Manifest:
    return manifests.current(FsspecStorage(store), NAME, noun)
