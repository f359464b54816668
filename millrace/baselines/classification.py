"""Classification: the most frequent class, and a linear model of the flat inputs."""

import numpy as np
import numpy.typing as npt

from millrace.data.columns import Columns
from millrace.data.images import decoded
from millrace.data.samples import Samples
from millrace.tasks import ClassificationTask

Floats = npt.NDArray[np.float64]


def compare(_: ClassificationTask, train: Samples, test: Samples) -> dict[str, Floats]:
    """1 where a baseline is right, for each test record, by baseline."""
    seen, asked = _whole(train), _whole(test)
    return {
        "majority": majority_correct(seen["label"], asked["label"]),
        "logistic-regression": logistic_correct(
            seen["inputs"], seen["label"], asked["inputs"], asked["label"]
        ),
    }


def _whole(samples: Samples) -> Columns:
    batches = list(decoded(samples.batches(4096), samples.fields))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def majority_correct(train_labels: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Floats:
    """1 where the most frequent training label is right, per sample."""
    correct: Floats = (labels == np.bincount(train_labels).argmax()).astype(np.float64)
    return correct


def logistic_correct(
    train_inputs: npt.NDArray[np.float32 | np.uint8],
    train_labels: npt.NDArray[np.int64],
    inputs: npt.NDArray[np.float32 | np.uint8],
    labels: npt.NDArray[np.int64],
) -> Floats:
    """1 where a logistic regression on the flat standardized inputs is right, per sample."""
    # Imported here: it costs a second that a language model's evaluation need not pay.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(train_labels)) < 2:
        return majority_correct(train_labels, labels)
    scale = StandardScaler().fit(train_inputs.reshape(len(train_inputs), -1))
    model = LogisticRegression(max_iter=500)
    model.fit(scale.transform(train_inputs.reshape(len(train_inputs), -1)), train_labels)
    found = model.predict(scale.transform(inputs.reshape(len(inputs), -1)))
    correct: Floats = np.asarray(found == labels, np.float64)
    return correct
