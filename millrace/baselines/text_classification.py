"""Text classification: the most frequent class, naive Bayes and a linear model of n-grams."""

import numpy as np
import numpy.typing as npt

from millrace.baselines.counts import BUCKETS, Counts, count
from millrace.data.columns import run_starts
from millrace.data.samples import Samples
from millrace.tasks import TextClassificationTask
from millrace.telemetry import log

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
INVERSE_PENALTY = 10.0


def compare(task: TextClassificationTask, train: Samples, test: Samples) -> dict[str, Floats]:
    """Samples of each test record that a baseline gets right, by baseline."""
    log(f"baselines: counting n-grams of field `{task.text}`")
    seen, seen_labels, _ = _counted(train)
    asked, labels, records = _counted(test)
    answers = {
        "majority": np.full(len(labels), np.bincount(seen_labels).argmax()),
        "naive-bayes": naive_bayes(seen[:, :BUCKETS], seen_labels, asked[:, :BUCKETS]),
        "logistic-regression": logistic_regression(seen, seen_labels, asked),
    }
    starts = run_starts(records)
    return {
        name: np.add.reduceat((found == labels).astype(np.float64), starts)
        for name, found in answers.items()
    }


def _counted(samples: Samples) -> tuple[Counts, Labels, npt.NDArray[np.uint64]]:
    """Counts, label and record of each sample, in stored order."""
    texts: list[bytes] = []
    labels, records = [], []
    for columns in samples.batches(4096):
        rows = zip(columns["text"], columns["length"].tolist(), strict=True)
        texts.extend(row[:length].tobytes() for row, length in rows)
        labels.append(columns["label"])
        records.append(columns["record"])
    return count(texts), np.concatenate(labels), np.concatenate(records)


def naive_bayes(seen: Counts, seen_labels: Labels, asked: Counts) -> Labels:
    """The class of each asked text by multinomial naive Bayes, one added to each count."""
    from sklearn.naive_bayes import MultinomialNB  # noqa: PLC0415  a second others need not pay

    found: Labels = MultinomialNB().fit(seen, seen_labels).predict(asked)
    return found


def logistic_regression(seen: Counts, seen_labels: Labels, asked: Counts) -> Labels:
    """The class of each asked text by a logistic regression on tf-idf of the counts' logs."""
    from sklearn.feature_extraction.text import TfidfTransformer  # noqa: PLC0415  as above
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  as above
    from sklearn.multiclass import OneVsRestClassifier  # noqa: PLC0415  as above

    if len(np.unique(seen_labels)) < 2:
        return np.full(asked.shape[0], seen_labels[0])
    is_shared = seen.getnnz(axis=0) > 1  # what one text alone holds tells no other, and takes time
    seen, asked = seen[:, is_shared], asked[:, is_shared]
    weigh = TfidfTransformer(sublinear_tf=True).fit(seen)
    # A class against all others at a time: over many classes at once lbfgs takes minutes.
    one = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear", random_state=0)
    model = OneVsRestClassifier(one)
    found: Labels = model.fit(weigh.transform(seen), seen_labels).predict(weigh.transform(asked))
    return found
