"""MaxCut: a cut drawn at random, and one that no vertex can enlarge by changing sides."""

import numpy as np
import numpy.typing as npt

from millrace.data.samples import Samples
from millrace.graphs import local_cuts
from millrace.tasks import MaxcutTask

Floats = npt.NDArray[np.float64]


def compare(_: MaxcutTask, __: Samples, test: Samples) -> dict[str, Floats]:
    """Approximation ratio of each baseline for each test record; they learn nothing.

    A cut drawn at random crosses half of the edges, in the mean.
    """
    batches = list(test.batches(4096))
    pairs = np.concatenate([batch["inputs"] for batch in batches])
    optimum = np.concatenate([batch["optimum"] for batch in batches]).astype(np.float64)
    return {
        "random": pairs.sum(1) / 2 / optimum,
        "local-search": local_cuts(pairs) / optimum,
    }
