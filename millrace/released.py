"""The current release of a pipeline, loaded and proven: what answers are asked of."""

import json
from pathlib import Path

from torch import nn

from millrace import manifest as manifests
from millrace.data.tokenizer import FILE as TOKENIZER
from millrace.errors import SpecError
from millrace.evaluation.predecessor import NOUN
from millrace.evaluation.released_scores import SPEC
from millrace.frozen import Frozen
from millrace.models.build import build_network
from millrace.models.facts import DataFacts
from millrace.models.source import source_digest
from millrace.spec import CustomNetwork, Network, SourceSpec, Task, has_tokenizer
from millrace.storage import FsspecStorage
from millrace.train.checkpoint import WEIGHTS, load_weights


class _Described(Frozen):
    """The part of a release's spec.json that answering needs."""

    network: Network
    code: str
    """Digest of the user's own network file, or of the model's folder."""
    task: Task
    source: SourceSpec


class Released:
    """A released model, its bytes proven against the manifest, ready to answer on this machine.

    Args:
        store: URL of the store.
        pipeline: Name of the pipeline; its current release is taken.
        code: Folder that holds the user's own network file.
    """

    def __init__(self, store: str, pipeline: str, code: Path) -> None:
        storage = FsspecStorage(store)
        made = manifests.current(storage, pipeline, NOUN)
        spec = json.loads(made.file(SPEC).read(storage))
        described = _Described.model_validate(
            {key: spec[key] for key in ("network", "code", "task", "source")}
        )
        _refuse_other_code(described.network, code, described.code)
        self.digest = made.digest
        self.task, self.source = described.task, described.source
        self.classes: list[str] = spec["classes"]
        facts = DataFacts.from_dict(spec["facts"])
        self.network: nn.Module = build_network(described.network, facts, str(code))
        load_weights(self.network, made.file(WEIGHTS).read(storage))
        self.network.eval()
        self.tokenizer = made.file(TOKENIZER).read(storage) if has_tokenizer(self.task) else b""


def _refuse_other_code(network: Network, code: Path, released: str) -> None:
    """The user's code is never run from the store: only her own file, if it is the released one."""
    if source_digest(network, str(code)) == released:
        return
    asked = f"load the network {network.name} of the release"
    if isinstance(network, CustomNetwork):
        raise SpecError(
            asked,
            f"{code / network.file_name} is not the version it was released with",
            "Check that version out (a copy lies in the release's folder) or name it with --code",
        )
    raise SpecError(
        asked,
        f"the model's files in {code} are not those that it was released with",
        "Put those back, or name the folder that holds the model's with --code",
    )
