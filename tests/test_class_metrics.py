import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
)

from millrace.evaluation.auroc import auroc, macro_auroc
from millrace.evaluation.calibration import NUM_BINS, Reliability
from millrace.evaluation.confusion import confusion, macro_f1, mcc
from millrace.evaluation.quality import further_facts

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
# Few distinct scores, so that many are equal.
SCORED = st.lists(
    st.tuples(st.integers(0, 5).map(float), st.booleans()), min_size=2, max_size=40
).filter(lambda pairs: len({is_positive for _, is_positive in pairs}) == 2)


@given(PAIRS)
def test_counts_f1_and_mcc_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, answers = np.array(pairs).T

    counts = confusion(labels, answers, 4)

    assert counts.tolist() == confusion_matrix(labels, answers, labels=range(4)).tolist()
    present = sorted({*labels.tolist(), *answers.tolist()})
    expected = f1_score(labels, answers, labels=present, average="macro", zero_division=0)
    assert macro_f1(counts) == pytest.approx(expected)
    # Of a single class scikit-learn warns, and says 0, too.
    correlation = matthews_corrcoef(labels, answers) if len(present) > 1 else 0.0
    assert mcc(counts) == pytest.approx(correlation)


@given(SCORED)
def test_the_area_under_the_curve_is_that_of_scikit_learn(
    pairs: list[tuple[float, bool]],
) -> None:
    scores, is_positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])

    assert auroc(scores, is_positive) == pytest.approx(roc_auc_score(is_positive, scores))


def test_the_area_of_several_classes_is_the_mean_of_each_against_the_others() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    found = macro_auroc(probabilities, labels)

    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found == pytest.approx(expected)
    assert 0.7 < found < 0.95


def test_a_class_that_all_samples_are_of_or_none_has_no_area() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]])

    assert math.isnan(macro_auroc(probabilities, np.array([1, 1])))
    assert macro_auroc(probabilities, np.array([0, 1])) == 1.0  # nothing is of the third


def test_a_rare_class_that_is_never_answered_halves_the_macro_f1() -> None:
    labels = np.array([0] * 99 + [1])
    probabilities = np.tile(np.array([[0.8, 0.2]]), (100, 1))

    facts = further_facts(
        "accuracy", 0.99, {"label": labels, "probability": probabilities}, ("often", "rare")
    )

    assert facts["confusion"] == [[99, 0], [1, 0]]
    assert facts["classes"] == ["often", "rare"]
    assert facts["metrics"]["macro_f1"] == pytest.approx(2 * 99 / (99 + 100) / 2)
    assert facts["metrics"]["mcc"] == 0.0
    assert facts["metrics"]["auroc"] == 0.5
    assert facts["metrics"]["calibration_error"] == pytest.approx(0.99 - 0.8)


def test_answers_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 50_000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.random(50_000) > confidence).astype(np.int64)

    honest = Reliability.of(probabilities, labels)
    boastful = Reliability.of(np.stack([confidence**0.25, 1 - confidence**0.25], 1), labels)

    assert honest.error < 0.01
    assert boastful.error == pytest.approx((confidence**0.25 - confidence).mean(), abs=0.01)
    assert honest.count.sum() == 50_000


def test_each_answer_lies_in_the_bin_of_its_probability() -> None:
    confidence = np.array([1 / 3, 1 / 3, 0.5, 1.0, 1.0, 1.0])
    probabilities = np.concatenate([confidence[:, None], np.zeros((6, 1))], axis=1)
    labels = np.array([0, 1, 0, 0, 0, 1])

    found = Reliability.of(probabilities, labels).to_dict()

    assert found == {
        "count": [2, 1, 3],
        "confidence": pytest.approx([1 / 3, 0.5, 1.0]),
        "accuracy": pytest.approx([0.5, 1.0, 2 / 3]),
    }
    assert NUM_BINS == 15  # or the numbers cannot be compared with those of others


def test_bits_have_a_perplexity_and_other_metrics_have_none() -> None:
    assert further_facts("bits_per_byte", 2.0, {}, ()) == {"metrics": {"perplexity_per_byte": 4.0}}
    assert further_facts("bits_per_token", 3.0, {}, ()) == {
        "metrics": {"perplexity_per_token": 8.0}
    }
    assert further_facts("approximation_ratio", 0.9, {}, ()) == {"metrics": {}}
