import json
import subprocess
import sys

import numpy as np
import pytest

from millrace import manifest as manifests
from millrace.answers.language_model import continue_tokens
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.released import Released
from tests.pipelines_for_tests import NAME, ROOT, Line, build_tokens


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    line = build_tokens(tmp_path_factory.mktemp("tokens"))
    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        line.run(verb, line.job(noun))
    return line


def lists_of(line: Line, split: str) -> list[list[int]]:
    """The split's lists, put together from their blocks."""
    lists: dict[int, list[int]] = {}
    samples = Samples(line.storage, manifests.current(line.storage, NAME, "shards"), split)
    for batch in samples.batches(100):
        columns = (batch["tokens"], batch["length"], batch["record"])
        for tokens, length, record in zip(*columns, strict=True):
            lists.setdefault(int(record), []).extend(tokens[:length].tolist())
    return list(lists.values())


def test_what_is_stored_are_the_ids_of_the_source_in_two_bytes_each(line: Line) -> None:
    shards = manifests.current(line.storage, NAME, "shards")
    text = (line.root / "source" / "ids.jsonl").read_text()

    found = [ids for split in SPLITS for ids in lists_of(line, split)]

    expected = {tuple(json.loads(each)["ids"]) for each in text.splitlines()}
    assert sorted(map(tuple, found)) == sorted(expected)
    assert shards.facts["fields"]["tokens"] == ["uint16", [32]]


def test_a_model_of_token_ids_is_compared_with_their_counts(line: Line) -> None:
    facts = manifests.current(line.storage, NAME, "evaluation").facts

    train, test = (np.concatenate(lists_of(line, split)) for split in ("train", "test"))
    counts = np.bincount(train, minlength=300) + 1
    expected = -np.log2(counts[test] / counts.sum()).mean()
    assert facts["metric"] == "bits_per_token"
    assert list(facts["baselines"]) == ["unigram"]
    assert facts["baselines"]["unigram"]["value"] == pytest.approx(expected)
    assert facts["estimate"]["high"] < expected / 2


def test_a_released_model_of_token_ids_goes_on_with_ids(line: Line) -> None:
    store = str(line.root / "store")
    command = [sys.executable, "-m", "millrace", "predict", NAME, "--store", store]
    asked = ["--code", str(line.root / "source"), "--tokens", "7", "8", "--bytes", "5"]

    found = subprocess.run([*command, *asked], capture_output=True, text=True, cwd=ROOT, check=True)

    assert found.stdout == "7 8 9 10 11 12 13\n"
    released = Released(store, NAME, line.root / "source")
    assert continue_tokens(released, [298], 2, 0.0, 0) == [298, 299, 0]
