import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from millrace.confusion import class_facts, confusion, macro_f1

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(PAIRS)
def test_counts_and_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, answers = np.array(pairs).T

    counts = confusion(labels, answers, 4)

    assert counts.tolist() == confusion_matrix(labels, answers, labels=range(4)).tolist()
    present = sorted({*labels.tolist(), *answers.tolist()})
    expected = f1_score(labels, answers, labels=present, average="macro", zero_division=0)
    assert macro_f1(counts) == pytest.approx(expected)


def test_a_rare_class_that_is_never_answered_halves_the_macro_f1() -> None:
    labels, answers = np.array([0] * 99 + [1]), np.zeros(100, np.int64)

    facts = class_facts(labels, answers, ("often", "rare"))

    assert facts["confusion"] == [[99, 0], [1, 0]]
    assert facts["macro_f1"] == pytest.approx(2 * 99 / (99 + 100) / 2)
    assert facts["classes"] == ["often", "rare"]
