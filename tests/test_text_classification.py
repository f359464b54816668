from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from millrace import manifest as manifests
from millrace.answers.text_classification import classify
from millrace.data.fields import build_encoder
from millrace.data.samples import Samples
from millrace.data.splits import SPLITS
from millrace.data.values import LabelIndex, UnusableRecordError
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.released import Released
from millrace.spec import EncoderNetwork, MotifConvNetwork, TextClassificationTask
from millrace.train.objective import build_objective, to_batch
from tests.pipelines_for_tests import NAME, Line, build_texts

CPU = torch.device("cpu")
FACTS = DataFacts(num_classes=3, shape=(32,))


def task(**fields: Any) -> TextClassificationTask:
    return TextClassificationTask.model_validate({"kind": "text_classification"} | fields)


def encoder_network(**fields: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = EncoderNetwork.model_validate(
        {"name": "encoder", "width": 16, "table_bits": 10, "patch": 3, "dropout": 0.0} | fields
    )
    return stirred(build_network(spec, FACTS, ""))


def motif_network(**fields: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = MotifConvNetwork.model_validate({"name": "motif_conv", "width": 8, "kernel": 4} | fields)
    return build_network(spec, FACTS, "").eval()


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """With blocks that are not the identity any more."""
    for name, parameter in network.named_parameters():
        if name.startswith("blocks"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def bytes_of(*texts: str, size: int = 32) -> torch.Tensor:
    rows = [list(text.encode().ljust(size, b"\0")) for text in texts]
    return torch.tensor(rows, dtype=torch.uint8)


@given(
    st.lists(st.text("ab c\u00e9", min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_the_samples_of_a_divided_text_are_its_bytes_but_for_a_short_end(
    texts: list[str], size: int
) -> None:
    encoder = build_encoder(task(block_bytes=size, longer="divide"))
    values = [encoder.extract({"text": text, "label": "x"}) for text in texts]
    values = [value for value in values if value.inputs]

    columns = encoder.samples(values, LabelIndex())

    for value in values:
        mine = columns["record"] == value.split_id
        kept = np.arange(size) < columns["length"][mine][:, None]
        found = columns["text"][mine][kept].tobytes()
        copies = sum(value.split_id == other.split_id for other in values)
        left_out = len(value.inputs) - len(found) // copies
        assert found.startswith(value.inputs[: len(found) // copies])
        assert 0 <= left_out < max(1, size / 4)
        assert not columns["text"][mine][~kept].any()


def test_a_long_text_is_cut_unless_it_is_to_be_divided() -> None:
    record = {"text": "  abcdefghij\n", "label": 7}
    cut, divided = (
        build_encoder(task(block_bytes=4, longer=longer)) for longer in ("cut", "divide")
    )

    one = cut.samples([cut.extract(record)], LabelIndex())
    all_of_it = divided.samples([divided.extract(record)] * 2, LabelIndex(["5"], {"5": 0}))

    assert [bytes(row) for row in one["text"]] == [b"abcd"]
    assert [bytes(row) for row in all_of_it["text"]] == [b"abcd", b"efgh", b"ij\0\0"] * 2
    assert all_of_it["length"].tolist() == [4, 4, 2] * 2
    assert all_of_it["label"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "no field `label`"),
        ({"label": "x"}, "no field `text`"),
        ({"label": "", "text": "x"}, "a label is printable text"),
        ({"label": "x", "text": 3}, "field `text` is int, text is needed"),
    ],
)
def test_a_record_without_text_or_class_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        build_encoder(task()).extract(record)


@pytest.mark.parametrize("fields", [
    {}, {"depth": 0}, {"depth": 2, "pool": "first"}, {"unit": "byte", "ngrams": 4}, {"patch": 1},
])  # fmt: skip
def test_a_text_scores_the_same_whatever_stands_beside_it_and_however_it_is_filled_up(
    fields: dict[str, Any],
) -> None:
    network = encoder_network(**fields)
    texts = ("def f(x): return x", "a", "the rain in Spain")

    together = network(bytes_of(*texts))

    for number, text in enumerate(texts):
        alone = network(bytes_of(text, size=max(2, len(text))))
        torch.testing.assert_close(together[number : number + 1], alone)


def test_words_are_told_apart_by_their_letters_alone() -> None:
    network = encoder_network(depth=0, ngrams=1)

    same = network(bytes_of("Word, other", "other ,word", "other,\t\nWORD"))
    other = network(bytes_of("word other", "word, others", "wor d,other"))

    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(same[0], same[2])
    for scores in other:
        assert not torch.allclose(scores, same[0])


def test_words_in_a_row_are_looked_up_together() -> None:
    scores = encoder_network(depth=0, ngrams=2)(bytes_of("a b c", "c b a"))

    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_blocks_see_the_order_of_patches(pool: str) -> None:
    network = encoder_network(depth=1, ngrams=1, patch=1, pool=pool)

    scores = network(bytes_of("a b c", "c b a"))

    assert not torch.allclose(scores[0], scores[1])


def test_of_more_words_than_half_of_the_bytes_the_last_are_left_out() -> None:
    network = encoder_network(depth=0)

    scores = network(bytes_of("(" * 17 + "a" * 15, "(" * 17 + ")" * 15, "(" * 16 + ")" * 16))

    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_a_text_without_any_word_has_scores_too() -> None:
    assert encoder_network()(bytes_of("\x01", "\x01 \x02")).isfinite().all()


def test_a_motif_is_found_wherever_it_lies_and_in_either_case() -> None:
    network = motif_network(kernel=3)

    scores = network(bytes_of("NNNNACGTNNNN", "NNNNNNNNacgtN", "NNNNACTTNNNN"))

    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_parts_say_where_a_motif_lies_whatever_the_longest_sequence_of_a_batch() -> None:
    network = motif_network(parts=4, depth=2)
    early, late = "ACGT" + "N" * 20, "N" * 20 + "ACGT"

    scores = network(bytes_of(early, late))

    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(network(bytes_of(early, size=25)), scores[:1])


def test_a_batch_is_cut_to_its_longest_text_and_scored_by_its_labels() -> None:
    widths = []

    class Network(torch.nn.Module):
        def forward(self, text_bt: torch.Tensor) -> torch.Tensor:
            widths.append(text_bt.shape[1])
            return torch.tensor([[0.0, 9.0], [0.0, 9.0]])

    columns = {
        "text": np.zeros((2, 32), np.uint8),
        "length": np.array([3, 5], np.uint32),
        "label": np.array([0, 1]),
    }

    scores = build_objective(task()).scores(Network(), to_batch(columns, CPU))

    assert widths == [5]
    assert scores.metric_B.tolist() == [0, 1]
    assert scores.logits_BK is not None
    assert scores.logits_BK.tolist() == [[0, 9], [0, 9]]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    line = build_texts(tmp_path_factory.mktemp("texts"))
    for verb, noun in (("train", "checkpoint"), ("evaluate", "evaluation"), ("release", "release")):
        line.run(verb, line.job(noun))
    return line


def test_no_piece_of_a_file_is_in_another_split_than_the_others(line: Line) -> None:
    shards = manifests.current(line.storage, NAME, "shards")
    records = {
        split: {
            record
            for batch in Samples(line.storage, shards, split).batches(100)
            for record in batch["record"].tolist()
        }
        for split in SPLITS
    }

    counts = {split: shards.facts["splits"][split] for split in SPLITS}
    assert all(counts[split]["num_samples"] > counts[split]["num_records"] for split in SPLITS)
    assert {split: len(found) for split, found in records.items()} == {
        split: counts[split]["num_records"] for split in SPLITS
    }
    assert len(set.union(*records.values())) == sum(len(found) for found in records.values())


def test_a_pipeline_of_texts_is_trained_evaluated_released_and_asked(line: Line) -> None:
    facts = manifests.current(line.storage, NAME, "evaluation").facts
    released = Released(str(line.root / "store"), NAME, line.root / "source")

    assert facts["metric"] == "accuracy"
    assert facts["estimate"]["low"] > facts["baselines"]["majority"]["high"]
    assert set(facts["baselines"]) == {"majority", "naive-bayes", "logistic-regression"}
    assert facts["baselines"]["naive-bayes"]["value"] > 0.9
    assert facts["baselines"]["logistic-regression"]["value"] > 0.9
    assert np.sum(facts["confusion"]) == facts["num_samples"]
    assert np.trace(facts["confusion"]) == round(facts["estimate"]["value"] * facts["num_samples"])
    assert 0.9 < facts["metrics"]["macro_f1"] <= 1
    for label, word in (("mill", "flour"), ("port", "anchor"), ("wood", "cedar")):
        assert next(iter(classify(released, {"text": f"{word} " * 20}))) == label
