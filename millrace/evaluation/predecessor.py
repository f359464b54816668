"""The predecessor: the release that a checkpoint has to stand beside.

the current release is of another checkpoint, or of other shards --> that release
it is of this checkpoint, tested on these shards                 --> the one it had to stand beside

So a pipeline that is run again after its release finds the same evaluation, and redoes nothing.
"""

import json

from millrace import manifest as manifests
from millrace.errors import NotFoundError
from millrace.manifest import Manifest
from millrace.storage import Storage

NOUN = "release"
METRICS, RECORDS = "metrics.json", "records.npy"
"""Of a release: the facts of the evaluation that it was released by, and its sums per record."""


def find_predecessor(storage: Storage, shards: Manifest, checkpoint: Manifest) -> Manifest | None:
    """The release to compare a checkpoint with; None if there is none before it."""
    try:
        current = manifests.current(storage, checkpoint.pipeline, NOUN)
    except NotFoundError:
        return None
    made_from = {made.noun: made.digest for made in (shards, checkpoint)}
    if any(current.inputs[noun] != told for noun, told in made_from.items()):
        return current
    stood_beside = json.loads(current.file(METRICS).read(storage)).get("release", {})
    try:
        return manifests.read(storage, stood_beside["manifest"])
    except KeyError:
        return None
    except NotFoundError:
        return current  # what it stood beside was deleted: it stands beside itself
